# SPDX-License-Identifier: Apache-2.0
"""The metrics of CoLD on a real server's /metrics page, against what the reference counts.

With two API servers: three processes between the logits and the page.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.naive import NaiveCold, score
from tests.server.conftest import Server, arguments, serve

pytestmark = pytest.mark.server

ALPHA, BETA = 0.05, 2.0
# Blocks of 32 tokens: one is shared by all prompts, the rest is not whole.
PROMPTS = [[*range(20, 52), 60 + i] for i in range(6)]
MAX_TOKENS = 12


@pytest.fixture(scope="module", params=[1, 2], ids=["one API server", "two API servers"])
def server(
    request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    # A step has no room for both streams' prompts: some steps end amid them.
    command = [*arguments(tiny), "--block-size", "32", "--max-num-batched-tokens", "40"]
    command += ["--api-server-count", str(request.param)]
    with serve(tmp_path_factory.mktemp("metrics"), command) as running:
        yield running


def counts(server: Server) -> dict[str, float]:
    names = (
        "requests_total", "generation_tokens_total", "changed_tokens_total", "candidates_count",
        "candidates_sum", "pair_preemptions_total", "amateur_prompt_tokens_total",
        "amateur_cached_prompt_tokens_total", "pairs_running", "pairs_waiting",
    )  # fmt: skip
    page = server.all_metrics("vllm_cold_")
    return {name: page[f"vllm_cold_{name}"] for name in names}


def complete(server: Server, prompt: list[int], **xargs: Any) -> list[int]:
    # A client each: a new connection may reach the other API server.
    response = server.client.completions.create(
        model="one", prompt=prompt, temperature=0.0, max_tokens=MAX_TOKENS,
        extra_body={"return_token_ids": True, "ignore_eos": True, "vllm_xargs": xargs},
    )  # fmt: skip
    return response.choices[0].token_ids  # type: ignore[attr-defined, no-any-return]


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


def test_every_figure(server: Server, naive: NaiveCold) -> None:
    before = counts(server)
    assert not any(before.values())
    complete(server, PROMPTS[0], cold=0)
    assert counts(server) == before, "a plain request was counted"

    with ThreadPoolExecutor(3) as pool:
        answers = list(
            pool.map(lambda p: complete(server, p, cold_alpha=ALPHA, cold_beta=BETA), PROMPTS)
        )
    after = counts(server)
    assert after["requests_total"] == len(PROMPTS)
    assert after["generation_tokens_total"] == sum(map(len, answers))
    assert after["pairs_running"] == after["pairs_waiting"] == 0
    assert after["pair_preemptions_total"] == 0
    assert after["amateur_prompt_tokens_total"] == sum(map(len, PROMPTS))
    # The first amateurs, at most three at a time, may have computed the shared block each.
    assert after["amateur_cached_prompt_tokens_total"] in {32 * n for n in (3, 4, 5)}

    want = [expected(naive, p, t) for p, t in zip(PROMPTS, answers, strict=True)]
    changed = sum(c for _, c in want)
    assert changed > 0, "the example shows nothing"
    assert after["candidates_count"] == after["generation_tokens_total"]
    assert after["candidates_sum"] == sum(c for c, _ in want)
    assert after["changed_tokens_total"] == changed


def test_pairs_in_flight_and_gone(server: Server) -> None:
    """The gauges follow a stream that the client leaves."""
    stream = server.client.completions.create(
        model="one", prompt=PROMPTS[0], temperature=0.0, max_tokens=200, stream=True,
        extra_body={"ignore_eos": True, "vllm_xargs": {"cold": 1}},
    )  # fmt: skip
    for _ in zip(stream, range(5), strict=False):
        pass
    assert counts(server)["pairs_running"] == 1
    stream.response.close()
    server.wait_until_idle()
    # Of two API servers one may have been slow; the next steps tell both again.
    deadline = time.monotonic() + 60
    while (page := counts(server))["pairs_running"] or page["pairs_waiting"]:
        assert time.monotonic() < deadline, page
        complete(server, PROMPTS[1], cold=0)
