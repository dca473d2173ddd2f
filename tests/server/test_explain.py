# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold explain`` with a running server, against the naive reference."""

import asyncio
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.naive import Amateur, Group, NaiveCold
from tests.naive import step as naive_step
from tests.questions import Prompt, questions
from tests.requests import xargs
from tests.server.conftest import Server, arguments, serve
from tests.tiny import make_tokenizer
from vllm_cold.settings.sources import Messages
from vllm_cold.tools.contrast_args import Content, adapter_of, amateur_reads
from vllm_cold.tools.explain.explain_source import explain
from vllm_cold.tools.explain.record import Report, ShownStep
from vllm_cold.tools.server import Server as Asking

pytestmark = pytest.mark.server

TOKENS = 16
CHAT = (("system", "w12 w7 w300"), ("user", "w45 w46"))
TEXT = "w12 w7 w300 w45"
CONTRASTS: dict[str, tuple[str | None, Prompt, dict[str, Any]]] = {
    "a text as a chat": ("one", " w5 w6 hello", {"beta": 2.0, "chat": True, "alpha": 0.3}),
    "the base model": (None, CHAT, {"without": "system", "beta": 2.0}),
    "a cap": ("one", TEXT, {"alpha": 1e-6, "beta": 2.0, "expert_top_k": 7}),
    "a text without a part": ("one", TEXT, {"part": "0:7", "alpha": 0.05, "beta": 2.0}),
    "no mask": ("one", CHAT, {"without": "system", "preset": "cfg", "beta": 2.0}),
    "a rule of the whole vocabulary": (
        "one",
        CHAT,
        {"without": 0, "rule": "mti", "alpha": 0.05, "rule_parameters": '{"beta": 2, "tau": 4.5}'},
    ),
    "a stream that ends": ("one", CHAT, {"without": 0, "preset": "grd"}),
    "two amateurs, adaptive": (
        "one",
        CHAT,
        {
            "amateur": ["two", ""],
            "amateur_messages": ["", '[{"role": "user", "content": "w3"}]'],
            "weights": ["adaptive", -0.5],
            "rule_parameters": {"beta_max": 200.0},
            "alpha": 0.05,
        },
    ),
}


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its own default is contrastive decoding with a cap of 1, for chats against what is not from a
    user: a request that forgets an override is greedy, or another contrast.
    """
    default = ("--sampler", "cold", "--cold-expert-top-k", "1", "--cold-without", "system,0")
    command = [*arguments(tiny), *default]
    with serve(tmp_path_factory.mktemp("explain"), command) as running:
        yield running


def explained(server: Server, adapter: str | None, prompt: Prompt, **contrast: Any) -> Report:
    prompts = questions([prompt], **contrast)
    return asyncio.run(explain(Asking(server.url, adapter), prompts, TOKENS))


def group_of(tiny: Path, expert: str | None, prompt: Prompt, **contrast: Any) -> Group:
    """What the naive reference decodes."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny / "model")

    def ids(reads: Content) -> list[int]:
        if not isinstance(reads, Messages):
            return list(tokenizer(reads.value).input_ids)
        text = tokenizer.apply_chat_template(
            reads.value, add_generation_prompt=True, tokenize=False
        )
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    [one] = questions([prompt], **contrast)
    amateurs = []
    for spec, weight in zip(one.contrast.amateurs, one.contrast.weights, strict=True):
        reads = amateur_reads(one.reads, spec)
        adapter = adapter_of(spec, expert, "base")
        amateurs.append(Amateur(weight, adapter, None if reads is None else ids(reads)))
    settings = one.contrast.settings
    return Group(
        ids(one.reads),
        expert,
        amateurs,
        settings.alpha,
        TOKENS,
        settings.expert_top_k,
        rule=settings.rule,
        rule_parameters=settings.rule_parameters or {},
    )


@pytest.mark.parametrize("name", CONTRASTS)
@torch.no_grad()
def test_every_number_is_that_of_the_models(
    name: str, server: Server, tiny: Path, naive: NaiveCold
) -> None:
    adapter, prompt, contrast = CONTRASTS[name]
    report = explained(server, adapter, prompt, **contrast)
    group = group_of(tiny, adapter, prompt, **contrast)
    alone = replace(
        group, rule=None, amateurs=[replace(each, weight=0.0) for each in group.amateurs]
    )
    cold, greedy = report.explanations[0].answers
    trace = naive.decode(group)
    settled = trace.settled()  # before a token at the edge of the valid set, where rounding decides
    assert settled > 3
    assert [step.token for step in cold.steps][:settled] == trace.tokens[:settled]
    decoded = naive.greedy(group.prompt_ids, adapter, TOKENS)
    assert [step.token for step in greedy.steps] == decoded.tokens
    assert cold.num_prompt_tokens == greedy.num_prompt_tokens == len(group.prompt_ids)
    for answer, of in ((cold, group), (greedy, alone)):
        ids: list[int] = []
        memory: dict[str, Any] = {}
        for number, step in enumerate(answer.steps):
            logits = [
                naive._forward(name, [[*read, *ids]], None)[0][0]
                for name, read in zip(of.adapters, of.prompts, strict=True)
            ]
            ended = memory.get("done", False)
            right = naive_step(logits, of, number, memory)
            ids.append(step.token)
            if right.edge > 1e-3:
                check_step(step, logits, right.scores, ended=ended)
                assert step.ends == ((1,) if memory.get("done", False) and not ended else ())
                assert bool(step.weights) == (of.rule is not None)
    ends = any(step.ends for step in cold.steps)
    assert ends is (name == "a stream that ends")
    assert ends or any(step.differs for step in cold.steps)
    assert not any(step.differs for step in greedy.steps)


def check_step(
    step: ShownStep, logits: list[torch.Tensor], scores: torch.Tensor, ended: bool
) -> None:
    rows = [z.double().softmax(0) for z in logits]
    assert step.token == int(scores.argmax()) and step.greedy == int(rows[0].argmax())
    # A token at the edge of the valid set may be rounded to either side.
    assert abs(step.valid_size - int((scores > -math.inf).sum())) <= 1
    assert {c.token for c in step.candidates} >= set(rows[0].topk(15).indices.tolist())
    for c in step.candidates:
        right = [float(row[c.token]) for row in rows[: 1 if ended else None]]
        assert [c.expert, *(one for one in c.amateurs if one is not None)] == pytest.approx(
            right, rel=1e-3
        )
        if c.score is not None and scores[c.token] > -math.inf:
            assert c.score == pytest.approx(float(scores[c.token]), abs=1e-2, rel=1e-3)
    for row, bits in zip(rows[1:], step.divergences, strict=True):
        p, q = rows[0], row
        middle = (p + q) / 2
        whole = (p * (p / middle).log2() + q * (q / middle).log2()).nansum() / 2
        assert (bits is None) is ended
        assert ended or bits == pytest.approx(float(whole), abs=1e-4)


def ids(characters: str) -> list[int]:
    return list(make_tokenizer().convert_tokens_to_ids([*characters]))


# What limits a request, and the tokens that it leaves at each step.
LIMITS: dict[str, tuple[dict[str, Any], list[list[int]]]] = {
    "a mask": ({"allowed_token_ids": list(range(30, 60))}, [list(range(30, 60))] * 6),
    "a grammar": (
        {"structured_outputs": {"regex": "[a-f]{3}-[0-9]{2}"}},
        [*[ids("abcdef")] * 3, ids("-"), *[ids("0123456789")] * 2],
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_masks_and_sampled_tokens(name: str, server: Server) -> None:
    """No forbidden token is told, and a sampled token comes with its score."""
    limit, left = LIMITS[name]
    body = {"model": "one", "prompt": TEXT, "max_tokens": 6, "temperature": 0.7, "seed": 1, **limit}
    asked = xargs(amateur="base", beta=1.0, alpha=0.0, expert_top_k=1000, explain=40)
    status, text = server.post("/v1/completions", {**body, **asked, "return_token_ids": True})
    assert status == 200, text
    found = json.loads(text)
    steps = found["kv_transfer_params"]["cold"]["steps"]
    tokens = found["choices"][0]["token_ids"]
    for step, token, allowed in zip(steps, tokens, left, strict=True):
        assert sorted(step["tokens"]) == allowed and token in allowed
        assert step["candidates"] == len(allowed) and step["weights"] == [-1.0]
        assert step["scores"] == sorted(step["scores"], reverse=True)
        expert, amateur = map(torch.tensor, step["logits"])
        assert step["scores"] == pytest.approx((2 * expert - amateur).tolist(), abs=1e-4)
        for logits, log_sum in zip((expert, amateur), step["log_sums"], strict=True):
            assert float((logits - log_sum).exp().sum()) == pytest.approx(1, abs=1e-4)
