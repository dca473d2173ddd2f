# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold explain`` with an engine in this process, against the naive reference."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.asked import asked
from tests.naive import Amateur, Group, NaiveCold, adapted, group_score, score
from vllm_cold.method.settings import ColdSettings
from vllm_cold.tools.contrast import Prompt, expert_reads
from vllm_cold.tools.engine import prompt_maker
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import collect, offline
from vllm_cold.tools.explain.offline import OfflineSource
from vllm_cold.tools.explain.trace import Answer

pytestmark = pytest.mark.engine

SETTINGS = ColdSettings(alpha=0.05, beta=2.0)
PROMPTS = ["w12 w7 w300 w45", " w5 w6 hello"]


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


def ids(source: OfflineSource, prompt: Prompt, chat: bool = False) -> list[int]:
    """What the expert reads."""
    return prompt_maker(source.llm)("prompt", expert_reads(prompt, chat))


def check_numbers(
    answer: Answer, prompt: list[int], naive: NaiveCold, amateur: str | None, settings: ColdSettings
) -> None:
    """Probabilities, scores and valid sets are those of the two models."""
    ids = list(prompt)
    for step in answer.steps:
        e, _ = naive._forward("one", [ids], None)
        a, _ = naive._forward(amateur, [ids], None)
        e, a = e[0].double(), a[0].double()
        knobs = settings.alpha, settings.strength, settings.expert_top_k
        scores = score(e, a, *knobs, settings.adaptive)
        beta = settings.strength
        if settings.adaptive:
            beta = adapted(e, a, scores > -math.inf, beta)
        bar = e.max() + math.log(settings.alpha)
        if settings.adaptive and (e - bar).abs().min() < 1e-3:
            ids.append(step.token)
            continue
        assert step.beta == pytest.approx(beta, rel=1e-3, abs=1e-4)
        constant = -(1 + beta) * e.logsumexp(0) + beta * a.logsumexp(0)
        if (e - bar).abs().min() > 1e-3:  # no token at the edge
            assert step.valid_size == int((scores > -math.inf).sum())
        assert step.valid_complete
        for c in step.candidates:
            assert c.expert == pytest.approx(float(e.log_softmax(0)[c.token]), abs=1e-4)
            assert c.amateurs == pytest.approx([float(a.log_softmax(0)[c.token])], abs=1e-4)
            assert c.bounds == (False,)
            if c.valid and scores[c.token] > -math.inf:
                expected = float(scores[c.token] + constant)
                assert c.score == pytest.approx(expected, abs=1e-3, rel=1e-3)
        p, q = e.softmax(0), a.softmax(0)
        middle = (p + q) / 2
        whole = (p * (p / middle).log2() + q * (q / middle).log2()).sum() / 2
        assert step.divergence <= float(whole) + 1e-6
        ids.append(step.token)


@pytest.mark.parametrize("amateur", [None, "two"])
def test_both_answers_are_accounted_for(
    amateur: str | None, source: OfflineSource, naive: NaiveCold
) -> None:
    prompts = asked(PROMPTS, SETTINGS, amateur=amateur)
    report = collect.explain(source, prompts, max_tokens=24)
    differing = 0
    for text, explanation in zip(PROMPTS, report.explanations, strict=True):
        prompt = ids(source, text)
        assert explanation.prompt_tokens == len(prompt)
        greedy = naive.greedy(prompt, "one", 24)
        cold = naive.generate(
            prompt, expert="one", amateur=amateur, alpha=0.05, beta=2.0, max_tokens=24
        )
        assert [s.token for s in explanation.greedy.steps] == greedy.tokens
        assert [s.token for s in explanation.cold.steps] == cold.tokens
        for answer in (explanation.cold, explanation.greedy):
            assert answer.mismatches == ()
            assert "".join(step.text for step in answer.steps) == answer.text
            check_numbers(answer, prompt, naive, amateur, SETTINGS)
        differing += sum(step.differs for step in explanation.cold.steps)
        assert explanation.parting is not None
    assert differing > 0


@torch.no_grad()
def test_a_cap_and_wide_valid_sets(source: OfflineSource, naive: NaiveCold) -> None:
    prompt = ids(source, PROMPTS[0])
    for settings in (ColdSettings(1e-6, 0.5), ColdSettings(1e-6, 0.5, expert_top_k=7)):
        report = collect.explain(source, asked(PROMPTS[:1], settings), max_tokens=8)
        answer = report.explanations[0].cold
        assert answer.mismatches == ()
        check_numbers(answer, prompt, naive, None, settings)
        sizes = [step.valid_size for step in answer.steps]
        assert max(sizes) == 7 if settings.expert_top_k else max(sizes) > 20


@torch.no_grad()
def test_an_adaptive_beta(source: OfflineSource, naive: NaiveCold) -> None:
    settings = ColdSettings(0.05, "adaptive", beta_max=300.0)
    report = collect.explain(source, asked(PROMPTS, settings), max_tokens=20)
    betas = []
    for text, explanation in zip(PROMPTS, report.explanations, strict=True):
        prompt = ids(source, text)
        cold = naive.generate(
            prompt, expert="one", alpha=0.05, beta=300.0, adaptive=True, max_tokens=20
        )
        assert cold.settled() == 20
        assert [s.token for s in explanation.cold.steps] == cold.tokens
        for answer in (explanation.cold, explanation.greedy):
            assert answer.mismatches == () and answer.unknown_betas == ()
            check_numbers(answer, prompt, naive, None, settings)
            betas += [step.beta for step in answer.steps if step.beta is not None]
        assert explanation.parting is not None
    assert min(betas) < 0.5 and max(betas) > 5.0


def test_the_chat_template(source: OfflineSource) -> None:
    plain, chat = ids(source, "w1"), ids(source, "w1", chat=True)
    assert source.llm.get_tokenizer().decode(chat) == "user: w1\nassistant:"
    assert plain != chat
    [read] = source.read(asked(["w1"], chat=True))
    assert [stream.ids for stream in read.streams] == [tuple(chat)] * 2


def test_refused_requests_are_sentences(source: OfflineSource) -> None:
    with pytest.raises(ToolError, match="--max-tokens=127: the prompt"):
        collect.explain(source, asked(["w1"], SETTINGS), max_tokens=127)


CHAT = (("system", "w12 w7 w300"), ("user", "w45 w46"))
CONTRASTS: dict[str, tuple[Prompt, dict[str, Any]]] = {
    "a chat without its system prompt": (CHAT, {"without": "system", "alpha": 0.05, "beta": 2.0}),
    "a text without a part": (PROMPTS[0], {"part": "0:7", "alpha": 0.05, "beta": 2.0}),
    "no mask": (CHAT, {"without": "system", "preset": "cfg", "beta": 2.0}),
    "no mask, adaptive": (CHAT, {"without": 0, "preset": "adacad", "beta_max": 20.0}),
    "a preset's mask with a weight": (
        CHAT,
        {"without": "system", "preset": "adacad", "weights": -2.0, "alpha": 0.05},
    ),
    "another text": (PROMPTS[1], {"amateur_prompt": "w9 w8", "alpha": 0.05, "beta": 2.0}),
    "two amateurs": (
        PROMPTS[0],
        {
            "amateur": ["two", "base"],
            "part": ["0:7", ""],
            "weights": [-2.0, 0.5],
            "alpha": 0.05,
        },
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


def check_streams(source: OfflineSource, naive: NaiveCold, prompt: Prompt, **contrast: Any) -> int:
    """The engine's tokens are the reference's, and those of the numbers; how many differ."""
    model = source._base
    named = contrast.get("amateur")
    if isinstance(named, list):
        contrast["amateur"] = [model if name == "base" else name for name in named]
    [one] = asked([prompt], **contrast)
    [read] = source.read([one])
    expert, *others = read.streams
    group = Group(
        expert.ids,
        expert.adapter,
        [
            Amateur(weight.weight, stream.adapter, stream.ids, weight.adaptive)
            for stream, weight in zip(others, one.contrast.weights, strict=True)
        ],
        one.contrast.settings.alpha,
        16,
    )
    trace = naive.decode(group)
    assert trace.settled() == 16
    [explanation] = collect.explain(source, [one], max_tokens=16).explanations
    assert [step.token for step in explanation.cold.steps] == trace.tokens
    for answer in (explanation.cold, explanation.greedy):
        assert answer.mismatches == () and answer.told == () and answer.unknown_betas == ()
        ids: list[int] = []
        for step in answer.steps:
            logits = [naive._forward(s.adapter, [[*s.ids, *ids]], None)[0][0] for s in read.streams]
            scores = group_score(logits, group)
            assert step.winner == int(scores.argmax())
            for c in step.candidates:
                for value, z in zip(c.amateurs, logits[1:], strict=True):
                    assert value == pytest.approx(float(z.log_softmax(0)[c.token]), abs=1e-3)
            valid = [c for c in step.candidates if c.valid]
            for c in valid[1:]:  # scores are up to a constant
                assert c.score is not None and valid[0].score is not None
                distance = float(scores[valid[0].token] - scores[c.token])
                assert valid[0].score - c.score == pytest.approx(distance, abs=1e-2, rel=1e-3)
            ids.append(step.token)
    return sum(step.differs for step in explanation.cold.steps)


@pytest.mark.parametrize("name", CONTRASTS)
def test_own_prompts_and_several_amateurs(
    name: str, source: OfflineSource, naive: NaiveCold
) -> None:
    prompt, contrast = CONTRASTS[name]
    assert check_streams(source, naive, prompt, **contrast) > 0


def test_what_is_not_listed_is_told_by_the_engine(
    source: OfflineSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a vocabulary larger than what vLLM may list: the winners are the same."""
    prompts = asked([CHAT], without="system", preset="cfg", beta=2.0)
    exact = collect.explain(source, prompts, max_tokens=16).explanations[0]
    monkeypatch.setattr(offline, "LARGEST_TOP", 50)
    short = collect.explain(source, prompts, max_tokens=16).explanations[0]
    for mine, theirs in ((short.cold, exact.cold), (short.greedy, exact.greedy)):
        assert mine.told == tuple(range(16)) and theirs.told == ()
        assert mine.mismatches == theirs.mismatches == ()
        assert [s.winner for s in mine.steps] == [s.winner for s in theirs.steps]
    assert any(step.differs for step in short.greedy.steps)


def test_an_engine_without_lora(tiny: Path, source: OfflineSource, naive: NaiveCold) -> None:
    """The base model is guided by a prompt."""
    bare = OfflineSource(str(tiny / "model"), dtype="float32", max_model_len=128)
    assert bare.llm.llm_engine.vllm_config.lora_config is None
    assert bare.description.adapter is None
    for name in ("a chat without its system prompt", "no mask"):
        prompt, contrast = CONTRASTS[name]
        assert check_streams(bare, naive, prompt, **contrast) > 0
    with pytest.raises(ToolError, match="nothing to contrast with"):
        bare.read(asked(["w1"]))
    bare.close()


def test_what_cannot_start(tiny: Path, tmp_path: Path) -> None:
    model, one = str(tiny / "model"), str(tiny / "one")
    with pytest.raises(ToolError, match="--amateur=.*is the adapter itself"):
        OfflineSource(model, one, [one])
    with pytest.raises(ToolError, match="no config.json there"):
        OfflineSource(str(tmp_path), one)
    config = json.loads((tiny / "one" / "adapter_config.json").read_text())
    large = tmp_path / "large"
    large.mkdir()
    (large / "adapter_config.json").write_text(json.dumps({**config, "r": 1024}))
    with pytest.raises(ToolError, match="rank 1024, and vLLM serves ranks up to 512"):
        OfflineSource(model, str(large))
    with pytest.raises(ToolError) as error:
        OfflineSource(model, one, max_model_len=100_000)
    start = (
        f"--model={model!r}: the engine does not start: User-specified max_model_len (100000) is"
    )
    assert str(error.value).startswith(start)
    assert "pydantic" not in str(error.value)
