# SPDX-License-Identifier: Apache-2.0
"""The naive reference obeys the identities of the method, and is right about its own rounding."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.naive import (
    Amateur,
    Group,
    NaiveCold,
    Request,
    Trace,
    assert_same_tokens,
    group_score,
    score,
    step,
)
from tests.tiny import (
    EOS_ID,
    SPECIAL_TOKENS,
    VOCAB_SIZE,
    make_tiny_adapter,
    make_tiny_model,
    make_zero_adapter,
)

pytestmark = pytest.mark.slow  # real models, though tiny ones

STEPS = 20
SETTINGS = [(0.1, 0.5), (0.1, 1.0), (0.5, 0.5), (0.01, 2.0)]


def _prompts(count: int) -> list[list[int]]:
    """Of two lengths, so that many run together."""
    rng = random.Random(0)
    return [
        [rng.randrange(SPECIAL_TOKENS, VOCAB_SIZE) for _ in range((5, 8)[i % 2])]
        for i in range(count)
    ]


PROMPTS = _prompts(8)
Greedy = dict[str | None, list[Trace]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    model = make_tiny_model(root / "model")
    return {
        "model": model,
        "one": make_tiny_adapter(model, root / "one", seed=1),
        "two": make_tiny_adapter(model, root / "two", seed=2, rank=16),
        "zero": make_zero_adapter(model, root / "zero"),
    }


@pytest.fixture(scope="module")
def naive(folders: dict[str, Path]) -> NaiveCold:
    return NaiveCold(folders["model"], {name: folders[name] for name in ("one", "two", "zero")})


@pytest.fixture(scope="module")
def greedy(naive: NaiveCold) -> Greedy:
    return {
        name: [naive.greedy(prompt, name, STEPS) for prompt in PROMPTS]
        for name in (None, "one", "two")
    }


def _assert_same(got: Sequence[Trace], expected: Sequence[Trace]) -> None:
    assert_same_tokens([trace.tokens for trace in got], expected)


def _different(left: Sequence[Trace], right: Sequence[Trace]) -> int:
    return sum(a.tokens != b.tokens for a, b in zip(left, right, strict=True))


def _many(
    naive: NaiveCold, expert: str, settings: Sequence[tuple[float, float]], **rest: Any
) -> list[list[Trace]]:
    """Traces of all prompts, for each (alpha, beta)."""
    requests = [
        Request(prompt, expert, alpha, beta, STEPS, **rest)
        for alpha, beta in settings
        for prompt in PROMPTS
    ]
    traces = naive.generate_many(requests)
    return [traces[i : i + len(PROMPTS)] for i in range(0, len(traces), len(PROMPTS))]


def test_cold_differs_from_both_streams(naive: NaiveCold, greedy: Greedy) -> None:
    """Otherwise a decoder that ignores the amateur would pass every comparison."""
    [cold] = _many(naive, "one", [(0.1, 0.5)])
    for stream in (None, "one"):
        assert _different(cold, greedy[stream]) >= 0.8 * len(PROMPTS)


@pytest.mark.parametrize(
    ("expert", "settings", "rest", "same"),
    [
        ("one", [(0.001, 0.0), (0.1, 0.0), (1.0, 0.0)], {}, "one"),
        ("one", [(1.0, 0.5), (1.0, 3.0)], {}, "one"),
        ("one", [(0.1, 0.5)], {"expert_top_k": 1}, "one"),
        ("one", [(0.1, 0.5)], {"amateur": "one"}, "one"),
        ("zero", SETTINGS, {}, None),
    ],
    ids=["beta zero", "alpha one", "one candidate", "equal streams", "an adapter of zeros"],
)
def test_where_nothing_is_contrasted_it_is_greedy(
    expert: str,
    settings: list[tuple[float, float]],
    rest: dict[str, Any],
    same: str | None,
    naive: NaiveCold,
    greedy: Greedy,
) -> None:
    for cold in _many(naive, expert, settings, **rest):
        _assert_same(cold, greedy[same])


PAIRS = list(zip(PROMPTS, PROMPTS[1:] + PROMPTS[:1], strict=True))
"""Of prompts for two streams."""


def _groups(naive: NaiveCold, expert: str | None, alpha: float, *amateurs: Amateur) -> list[Trace]:
    """Traces of all pairs of prompts; a `prompt_ids` of () stands for the second one."""
    groups = [
        Group(
            first,
            expert,
            [replace(a, prompt_ids=second) if a.prompt_ids == () else a for a in amateurs],
            alpha,
            STEPS,
        )
        for first, second in PAIRS
    ]
    return naive.generate_many(groups)


def test_a_prompt_of_its_own_changes_the_text(naive: NaiveCold, greedy: Greedy) -> None:
    """Otherwise an engine that ignores it would pass every comparison."""
    guided = _groups(naive, "one", 0.0, Amateur(-2.0, "one", ()))
    two = _groups(naive, None, 0.1, Amateur(0.5, "one"), Amateur(-0.5, "two", ()))
    assert _different(guided, greedy["one"]) >= 0.8 * len(PROMPTS)
    assert _different(two, greedy[None]) >= 0.8 * len(PROMPTS)
    for fewer in ([Amateur(0.5, "one")], [Amateur(-0.5, "two", ())]):
        assert _different(two, _groups(naive, None, 0.1, *fewer)) >= 0.8 * len(PROMPTS)
    masked = _groups(naive, "one", 0.1, Amateur(-2.0, "one", ()))
    assert _different(guided, masked) >= 0.5 * len(PROMPTS)


def test_an_adaptive_weight_is_an_adaptive_beta(naive: NaiveCold) -> None:
    [cold] = _many(naive, "one", [(0.02, 50.0)], adaptive=True)
    _assert_same(_groups(naive, "one", 0.02, Amateur(-50.0, adaptive=True)), cold)
    mixed = _groups(naive, "one", 0.02, Amateur(-50.0, adaptive=True), Amateur(0.0, "two"))
    _assert_same(mixed, cold)
    fixed = _groups(naive, "one", 0.02, Amateur(-50.0), Amateur(0.0, "two"))
    assert _different(fixed, cold) >= 0.5 * len(PROMPTS)


def test_generate_many_is_decode_for_groups(naive: NaiveCold) -> None:
    groups = [
        Group(first, expert, amateurs[:count], 0.0 if count % 2 else 0.05, 9 - count, cap)
        for first, second in PAIRS[:2]
        for expert in (None, "one")
        for amateurs in [(Amateur(-0.5, expert, second), Amateur(0.3, "two"), Amateur(-9.0))]
        for count, cap in ((1, None), (2, 3), (3, None))
    ]
    groups += [replace(g, prompt_ids=g.prompt_ids[::-1]) for g in groups]  # so that some are alike
    _assert_same(naive.generate_many(groups, batch_size=3), [naive.decode(g) for g in groups])


def test_generate_many_is_generate(naive: NaiveCold) -> None:
    requests: list[Request] = []
    singles: list[Trace] = []
    for index, prompt in enumerate(PROMPTS[:6]):
        stop = naive.greedy(prompt, "one", 3).tokens[2]
        for alpha, beta in SETTINGS[:2]:
            request = Request(
                prompt,
                "one",
                alpha,
                beta,
                max_tokens=STEPS - index,
                amateur="two" if index % 2 else None,
                expert_top_k=3 if index % 3 else None,
                eos_token_id=stop,
            )
            requests.append(request)
            singles.append(naive.generate(**asdict(request)))
    together = naive.generate_many(requests, batch_size=5)
    _assert_same(together, singles)
    for request, trace in zip(requests, together, strict=True):
        ended = trace.tokens[-1] == request.eos_token_id
        assert ended or len(trace.tokens) == request.max_tokens
        assert request.eos_token_id not in trace.tokens[:-1]
    assert any(len(t.tokens) < r.max_tokens for r, t in zip(requests, together, strict=True))


def test_equal_to_merged_weights_without_cache(naive: NaiveCold, folders: dict[str, Path]) -> None:
    """Two separate models, adapter merged, whole prefix recomputed at every step."""

    def load() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(folders["model"], dtype=torch.float32).eval()

    base = load()
    merged = PeftModel.from_pretrained(load(), folders["one"]).merge_and_unload()
    expected = [
        naive.generate(prompt, expert="one", alpha=0.1, beta=0.5, max_tokens=STEPS)
        for prompt in PROMPTS[:4]
    ]
    got = []
    for prompt in PROMPTS[:4]:
        ids = list(prompt)
        with torch.inference_mode():
            for _ in range(STEPS):
                e, a = (model(torch.tensor([ids])).logits[0, -1] for model in (merged, base))
                ids.append(int(score(e, a, 0.1, 0.5).argmax()))
        got.append(Trace(tokens=ids[len(prompt) :]))
    _assert_same(got, expected)
    groups = [
        Group(p, None, [Amateur(0.5, "one"), Amateur(-0.8, "one", q)], 0.0, STEPS)
        for p, q in PAIRS[:4]
    ]
    for group in groups:
        prompts = group.prompts
        with torch.inference_mode():
            for _ in range(STEPS):
                models = zip((base, merged, merged), prompts, strict=True)
                z0, z1, z2 = (model(torch.tensor([ids])).logits[0, -1] for model, ids in models)
                token = int((z0 + 0.5 * (z1 - z0) - 0.8 * (z2 - z0)).argmax())
                prompts = [[*ids, token] for ids in prompts]
        _assert_same([Trace(tokens=prompts[0][len(group.prompt_ids) :])], [naive.decode(group)])


def test_step_distribution(naive: NaiveCold) -> None:
    def distribution(temperature: float) -> Tensor:
        return naive.step_distribution(
            PROMPTS[0], expert="one", alpha=0.1, beta=0.5, temperature=temperature
        )

    first = naive.generate(PROMPTS[0], expert="one", alpha=0.1, beta=0.5, max_tokens=1).tokens[0]
    warm, cold = distribution(1.0), distribution(0.5)
    assert warm.shape == (VOCAB_SIZE,) and warm.dtype == torch.float64
    assert float(warm.sum()) == pytest.approx(1.0)
    assert int(warm.argmax()) == first
    assert 1 < int((warm > 0).sum()) < 100
    torch.testing.assert_close(cold, warm.square() / warm.square().sum())


def test_score_by_hand() -> None:
    e = torch.tensor([2.0, 1.5, 0.0, 1.0, -math.inf])
    a = torch.tensor([3.0, 0.5, -9.0, -math.inf, 0.0])
    got = score(e, a, alpha=math.exp(-1.0), beta=0.5).tolist()
    assert got == pytest.approx([1.5, 2.0, -math.inf, 1.5, -math.inf])


def test_group_score_by_hand() -> None:
    e = torch.tensor([2.0, 1.0, 0.0, -math.inf])
    a = torch.tensor([3.0, 1.0, -math.inf, 7.0])
    b = torch.tensor([0.0, 5.0, -2.0, 0.0])
    amateurs = [Amateur(-0.5), Amateur(2.0)]
    logits = [e, a, b]
    # 2 - 0.5 (3 - 2) + 2 (0 - 2); 1 - 0 + 2 (5 - 1); 0 - 0.5 (0 - 0) + 2 (-2 - 0)
    want = [-2.5, 9.0, -4.0, -math.inf]
    for alpha, valid in ((0.0, 3), (math.exp(-1.0), 2), (1.0, 1)):
        got = group_score(logits, Group((), None, amateurs, alpha, 1)).tolist()
        assert got == want[:valid] + [-math.inf] * (4 - valid)
    capped = group_score(logits, Group((), None, amateurs, 0.0, 1, expert_top_k=1))
    assert capped.tolist() == [-2.5, *[-math.inf] * 3]


def test_score_keeps_ties_at_the_kth() -> None:
    e = torch.tensor([1.0, 2.0, 1.0, 0.5])
    valid = [score(e, e, 0.01, 0.5, k).isfinite().tolist() for k in (1, 2, 3, 4, 9)]
    assert valid[0] == [False, True, False, False]
    assert valid[1] == valid[2] == [True, True, True, False]
    assert valid[3] == valid[4] == [True, True, True, True]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_score_refuses_bad_logits(bad: float) -> None:
    good, broken = torch.zeros(3), torch.tensor([0.0, bad, 0.0])
    for pair in ((good, broken), (broken, good)):
        with pytest.raises(ValueError, match="NaN"):
            score(*pair, 0.1, 0.5)
    with pytest.raises(ValueError, match="no token"):
        score(torch.full((3,), -math.inf), good, 0.1, 0.5)


AMATEURS = {
    "pair": [Amateur(-1.0)],
    "two": [Amateur(-0.6), Amateur(0.4)],
    "adaptive": [Amateur(-0.6, adaptive=True), Amateur(0.4)],
}


@pytest.mark.parametrize("amateurs", AMATEURS)
@pytest.mark.parametrize("expert_top_k", [None, 1, 3])
@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.7, 1.0])
def test_clear_choices_survive_noise(alpha: float, expert_top_k: int | None, amateurs: str) -> None:
    """Margin and edge together bound what noise can do; the noise is large so that it does."""
    group = Group((), None, AMATEURS[amateurs], alpha, 1, expert_top_k)
    # An adaptive weight is clear more rarely: any change of the valid set counts.
    noise, draws = (0.02, 1000) if amateurs == "adaptive" else (0.05, 400)
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(30, generator=generator, dtype=torch.float64)

    clear = changed = 0
    for _ in range(draws):
        logits = [draw() for _ in group.adapters]
        choice = step(logits, group)
        before, slack = choice.scores, min(choice.margin, choice.edge)
        shifted = [z + noise * (2 * torch.rand(30, generator=generator) - 1).sign() for z in logits]
        same = group_score(shifted, group).argmax() == before.argmax()
        # Two scores that both move by (1 + 2 sum |w|) * noise at most.
        if slack > 2 * (1 + 2 * sum(abs(a.weight) for a in group.amateurs)) * noise:
            clear += 1
            assert same
        changed += not same
    assert clear > 100
    assert changed > 5


def test_settled() -> None:
    trace = Trace([1, 2, 3], margins=[1.0, math.inf, 1e-5], edges=[1.0, 1.0, 1.0])
    assert trace.settled() == 2
    assert trace.settled(1e-6) == 3
    assert trace.settled(2.0) == 0
    trace.edges[1] = 0.0
    assert trace.settled() == 1


def test_tiny_files_are_reproducible(folders: dict[str, Path], tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    adapter = make_tiny_adapter(model, tmp_path / "one", seed=1)
    for new, old, name in (
        (model, folders["model"], "model.safetensors"),
        (adapter, folders["one"], "adapter_model.safetensors"),
    ):
        assert (new / name).read_bytes() == (old / name).read_bytes()


def test_tiny_tokenizer(folders: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["model"])
    assert len(tokenizer) == VOCAB_SIZE
    assert tokenizer.eos_token_id == EOS_ID
    text = ' w0 w17 w410 {"a": [1, true]}\n~'
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(tokenizer.encode(" w0 w17 w410")) == 3
    everything = tokenizer.decode(list(range(SPECIAL_TOKENS, VOCAB_SIZE)))
    assert str(everything).isascii()
    chat = [{"role": "user", "content": "hi w1"}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == "user: hi w1\nassistant:"
