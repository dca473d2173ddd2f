# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold explain`` with an engine in this process, against the naive reference."""

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.asked import asked
from tests.naive import Amateur, Group, NaiveCold
from tests.naive import step as naive_step
from vllm_cold.tools.contrast import Prompt
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import collect, offline
from vllm_cold.tools.explain.offline import OfflineSource
from vllm_cold.tools.explain.prompts import Asked
from vllm_cold.tools.explain.record import Answer, Explanation, Report, Step
from vllm_cold.tools.explain.source import Source

pytestmark = pytest.mark.engine

CHAT = (("system", "w12 w7 w300"), ("user", "w45 w46"))
TEXT = "w12 w7 w300 w45"
TOKENS = 16
CONTRASTS: dict[str, tuple[Prompt, dict[str, Any]]] = {
    "another adapter": (" w5 w6 hello", {"amateur": "two", "alpha": 0.05, "beta": 2.0}),
    "wide": (TEXT, {"alpha": 1e-6, "beta": 0.5}),
    "a cap": (TEXT, {"alpha": 1e-6, "beta": 2.0, "expert_top_k": 7}),
    "a text without a part": (TEXT, {"part": "0:7", "alpha": 0.05, "beta": 2.0}),
    "no mask": (CHAT, {"without": "system", "preset": "cfg", "beta": 2.0}),
    "a rule of the whole vocabulary": (
        CHAT,
        {"without": 0, "rule": "mti", "alpha": 0.05, "rule_parameters": '{"beta": 2, "tau": 4.5}'},
    ),
    "a stream that ends": (CHAT, {"without": 0, "preset": "grd"}),
    "two amateurs": (
        TEXT,
        {"amateur": ["two", "base"], "part": ["0:7", ""], "weights": [-2.0, 0.5], "alpha": 0.05},
    ),
    "two amateurs, adaptive": (
        CHAT,
        {
            "amateur": ["two", ""],
            "amateur_messages": ["", '[{"role": "user", "content": "w3"}]'],
            "weights": ["adaptive", -0.5],
            "beta_max": 200.0,
            "alpha": 0.05,
        },
    ),
}


@pytest.fixture(scope="module")
def source(tiny: Path) -> Iterator[OfflineSource]:
    """The adapter "one", and "two" for amateurs."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        made = OfflineSource(
            str(tiny / "model"),
            f"one={tiny / 'one'}",
            [f"two={tiny / 'two'}"],
            dtype="float32",
            max_model_len=128,
        )
        yield made
        made.close()
        cleanup_dist_env_and_memory()


def explained(source: OfflineSource, prompt: Prompt, **contrast: Any) -> Explanation:
    work = collect.explain(source, asked([prompt], **contrast), max_tokens=TOKENS)
    return asyncio.run(work).explanations[0]


@torch.no_grad()
def check_streams(
    source: Source, naive: NaiveCold, prompt: Prompt, chat: bool = False, **contrast: Any
) -> Answer:
    """Tokens, probabilities, weights by their scores, and valid sets are those of the two models;
    returns CoLD's answer.
    """
    named = contrast.get("amateur")
    if isinstance(named, list):
        contrast["amateur"] = [source.base if name == "base" else name for name in named]
    prompts = asked([prompt], chat=chat, **contrast)

    async def both() -> tuple[list[Asked], Report]:
        read = await collect.read_all(source, prompts, TOKENS)
        return read, await collect.explain(source, prompts, max_tokens=TOKENS)

    [read], report = asyncio.run(both())
    expert, *others = read.streams
    settings, weights = read.contrast.settings, read.contrast.weights
    group = Group(
        expert.ids,
        expert.adapter,
        [
            Amateur(weight, stream.adapter, stream.ids)
            for stream, weight in zip(others, weights, strict=True)
        ],
        settings.alpha,
        TOKENS,
        settings.expert_top_k,
        rule=settings.rule,
        rule_parameters=settings.rule_parameters or {},
    )
    cold, greedy = report.explanations[0].answers
    trace = naive.decode(group)
    settled = trace.settled()  # before a token at the edge of the valid set, where rounding decides
    assert settled > 3
    assert [step.token for step in cold.steps][:settled] == trace.tokens[:settled]
    decoded = naive.greedy(expert.ids, expert.adapter, TOKENS)
    assert [step.token for step in greedy.steps] == decoded.tokens
    pairs = enumerate(zip(cold.steps, greedy.steps, strict=False))
    same = next((i for i, (a, b) in pairs if a.token != b.token), TOKENS)
    for answer in (cold, greedy):
        assert not any(step.wrong for step in answer.steps)
        ids: list[int] = []
        memory: dict[str, Any] = {}
        for number, step in enumerate(answer.steps):
            logits = [naive._forward(s.adapter, [[*s.ids, *ids]], None)[0][0] for s in read.streams]
            ended = memory.get("done", False)
            right = naive_step(logits, group, number, memory)
            ids.append(step.token)
            if answer is greedy and settings.rule is not None and number > same:
                assert step.weights is None and step.winner is None
            elif right.edge > 1e-3:
                check_step(step, logits, right.scores)
                ends = answer is cold and memory.get("done", False) and not ended
                assert step.ends == ((1,) if ends else ())
                assert not step.weights or (step.weights[0] is None) is ended
    return cold


def check_step(step: Step, logits: list[torch.Tensor], scores: torch.Tensor) -> None:
    assert step.complete and step.weights is not None
    rows = [z.double().softmax(0) for z in logits]
    assert step.winner == int(scores.argmax()) and step.greedy == int(rows[0].argmax())
    # A token at the edge of the valid set may be rounded to either side.
    assert abs(step.valid_size - int((scores > -math.inf).sum())) <= 1
    for c in step.candidates:
        got = (c.expert, *c.amateurs)
        assert got == pytest.approx([float(row[c.token]) for row in rows], rel=1e-3)
    valid = [c for c in step.candidates if c.valid and scores[c.token] > -math.inf]
    for c in valid[1:]:  # scores are up to a constant
        assert c.score is not None and valid[0].score is not None
        distance = float(scores[valid[0].token] - scores[c.token])
        assert valid[0].score - c.score == pytest.approx(distance, abs=1e-2, rel=1e-3)
    for row, bits in zip(rows[1:], step.divergences, strict=True):
        p, q = rows[0], row
        middle = (p + q) / 2
        whole = (p * (p / middle).log2() + q * (q / middle).log2()).nansum() / 2
        assert bits <= float(whole) + 1e-5  # the two models round in float32


@pytest.mark.parametrize("name", CONTRASTS)
def test_every_number_is_that_of_the_models(
    name: str, source: OfflineSource, naive: NaiveCold
) -> None:
    prompt, contrast = CONTRASTS[name]
    steps = check_streams(source, naive, prompt, **contrast).steps
    assert any(step.differs for step in steps) or name in ("wide", "a stream that ends")
    assert any(step.ends for step in steps) is (name == "a stream that ends")


def test_what_is_not_listed_is_told_by_the_engine(
    source: OfflineSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a vocabulary larger than what vLLM may list: the winners are the same."""
    given: dict[str, Any] = {"without": "system", "preset": "cfg", "beta": 2.0}
    exact = explained(source, CHAT, **given)
    monkeypatch.setattr(offline, "LARGEST_TOP", 50)
    short = explained(source, CHAT, **given)
    (mine, other), (theirs, _) = short.answers, exact.answers
    assert not any(step.complete or step.wrong for step in (*mine.steps, *other.steps))
    assert all(step.complete for step in theirs.steps)
    assert [s.winner for s in mine.steps] == [s.winner for s in theirs.steps]
    assert all(step.winner is None for step in other.steps)


def test_an_eager_engine_compiles_nothing(source: OfflineSource) -> None:
    """There may be no compiler."""
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters["frames"]
    before = counted["total"]
    explained(source, TEXT)
    assert counted["total"] == before


def test_prompts(source: OfflineSource) -> None:
    """A text in the chat template; what does not fit is a sentence."""
    [read] = asyncio.run(collect.read_all(source, asked(["w1"], chat=True), TOKENS))
    text = source.llm.get_tokenizer().decode(read.streams[0].ids)
    assert text == "user: w1\nassistant:"
    with pytest.raises(ToolError, match="--max-tokens=127: the prompt"):
        work = collect.explain(source, asked(["w1"]), max_tokens=127)
        asyncio.run(work)
