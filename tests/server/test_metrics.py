# SPDX-License-Identifier: Apache-2.0
"""The metrics of contrastive decoding on a real server's /metrics page, against what the reference
counts. (With two API servers: ``test_data_parallel.py``.)
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.naive import NaiveCold, score
from tests.server.conftest import Server
from vllm_cold.tools.doctor import server_section
from vllm_cold.tools.doctor.doctor_report import Status

pytestmark = pytest.mark.server

ALPHA, BETA = 0.05, 2.0
# Blocks of 32 tokens: one is shared by all prompts, the rest is not whole.
PROMPTS = [[*range(320, 352), 60 + i] for i in range(6)]
MAX_TOKENS = 12


def counts(server: Server) -> dict[str, float]:
    names = (
        "requests_total", "generation_tokens_total", "changed_tokens_total", "candidates_count",
        "candidates_sum", "preemptions_total", "amateur_prompt_tokens_total",
        "amateur_cached_prompt_tokens_total", "requests_running", "requests_waiting",
        "requests_waiting_for_share",
    )  # fmt: skip
    page: Counter[str] = Counter()
    for sample in server.samples("vllm:cold_"):
        page[sample.name] += sample.value
    assert {"vllm:cold_requests_running", "vllm:cold_requests_waiting"} <= page.keys()
    # What is counted by method and adapter is not there before the first request.
    return {name: page[f"vllm:cold_{name}"] for name in names}


def expected(naive: NaiveCold, prompt: list[int], tokens: list[int]) -> tuple[int, int]:
    """Candidates and changed tokens along an answer, by the reference's logits."""
    candidates = changed = 0
    e_cache = a_cache = None
    ids = prompt
    for token in tokens:
        e, e_cache = naive._forward("one", [ids], e_cache)
        a, a_cache = naive._forward(None, [ids], a_cache)
        scores = score(e[0], a[0], ALPHA, BETA)
        candidates += int((scores > -torch.inf).sum())
        changed += int(scores.argmax()) != int(e[0].argmax())
        ids = [token]
    return candidates, changed


def test_what_computes(server: Server) -> None:
    """Told with the first step, whoever's it is; of a CPU."""
    server.ask(PROMPTS[0], cold=0)
    told = server.samples("vllm:cold_kernel_info")
    assert {sample.labels["kernel"] for sample in told} == {"products", "lora", "scoring"}
    assert all(sample.value == 1 and sample.labels["reason"] for sample in told)


def test_the_doctor_tells_what_contrastive_requests_may_have(server: Server) -> None:
    contrasts, slots = server_section.look(server.url)
    assert contrasts.name == "contrasts" and contrasts.status is Status.OK
    assert slots.name == "sequence slots of engine 0" and slots.status is Status.OK
    assert slots.value.startswith("contrastive requests may have all ")


def test_every_figure(server: Server, naive: NaiveCold) -> None:
    server.wait_until_idle()
    assert server.post("/reset_prefix_cache", {})[0] == 200
    before = counts(server)
    server.ask([*PROMPTS[0][::-1]], cold=0)
    assert counts(server) == before, "a regular request was counted"

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda p: server.ask(p, cold_alpha=ALPHA, cold_beta=BETA), PROMPTS))
    after = {name: value - before[name] for name, value in counts(server).items()}
    assert after["requests_total"] == len(PROMPTS)
    assert after["generation_tokens_total"] == sum(map(len, answers))
    assert after["requests_running"] == after["requests_waiting"] == 0
    assert after["preemptions_total"] == 0
    assert after["amateur_prompt_tokens_total"] == sum(map(len, PROMPTS))
    # The first amateurs, at most three at a time, may have computed the shared block each.
    assert after["amateur_cached_prompt_tokens_total"] in {32 * n for n in (3, 4, 5)}

    want = [expected(naive, p, t) for p, t in zip(PROMPTS, answers, strict=True)]
    changed = sum(c for _, c in want)
    assert changed > 0, "the example shows nothing"
    assert after["candidates_count"] == after["generation_tokens_total"]
    assert after["candidates_sum"] == sum(c for c, _ in want)
    assert after["changed_tokens_total"] == changed
