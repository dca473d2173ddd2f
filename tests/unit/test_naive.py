# SPDX-License-Identifier: Apache-2.0
"""The naive reference obeys the identities of the method, and is right about its own rounding."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.naive import (
    Amateur,
    Group,
    NaiveCold,
    Trace,
    assert_same_tokens,
    group_score,
    pair,
    score,
    step,
)
from tests.tiny import (
    SPECIAL_TOKENS,
    VOCAB_SIZE,
)

pytestmark = pytest.mark.slow  # real models, though tiny ones

STEPS = 12


def _prompts(count: int) -> list[list[int]]:
    """Of two lengths, so that many run together."""
    rng = random.Random(0)
    return [
        [rng.randrange(SPECIAL_TOKENS, VOCAB_SIZE) for _ in range((5, 8)[i % 2])]
        for i in range(count)
    ]


PROMPTS = _prompts(6)


def _assert_same(got: Sequence[Trace], expected: Sequence[Trace]) -> None:
    assert_same_tokens([trace.tokens for trace in got], expected)


def _different(left: Sequence[Trace], right: Sequence[Trace]) -> int:
    return sum(a.tokens != b.tokens for a, b in zip(left, right, strict=True))


def test_cold_differs_from_both_streams(naive: NaiveCold) -> None:
    """Otherwise a decoder that ignores the amateur would pass every comparison."""
    cold = naive.generate_many([pair(p, "one", 0.1, 0.5, STEPS) for p in PROMPTS])
    for stream in (None, "one"):
        alone = [naive.greedy(prompt, stream, STEPS) for prompt in PROMPTS]
        assert _different(cold, alone) >= 0.8 * len(PROMPTS)


PAIRS = list(zip(PROMPTS, PROMPTS[1:] + PROMPTS[:1], strict=True))
"""Of prompts for two streams."""


def test_generate_many_is_decode_for_groups(naive: NaiveCold) -> None:
    groups = [
        Group(first, expert, amateurs[:count], 0.0 if count % 2 else 0.05, 9 - count, cap)
        for first, second in PAIRS[:2]
        for expert in (None, "one")
        for amateurs in [(Amateur(-0.5, expert, second), Amateur(0.3, "two"), Amateur(-9.0))]
        for count, cap in ((1, None), (2, 3), (3, None))
    ]
    groups += [
        Group(p, "one", [Amateur(None), Amateur(0.3, "two")], 0.0, 8, rule=rule)
        for p in PROMPTS[:2]
        for rule in ("m3id", "grd", "adaptive")
    ]
    groups += [replace(g, prompt_ids=g.prompt_ids[::-1]) for g in groups]  # so that some are alike
    _assert_same(naive.generate_many(groups, batch_size=3), [naive.decode(g) for g in groups])


def test_equal_to_merged_weights_without_cache(naive: NaiveCold, tiny: Path) -> None:
    """Two separate models, adapter merged, whole prefix recomputed at every step."""

    def load() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(tiny / "model", dtype=torch.float32).eval()

    base = load()
    merged = PeftModel.from_pretrained(load(), tiny / "one").merge_and_unload()
    expected = [
        naive.generate(prompt, expert="one", alpha=0.1, beta=0.5, max_tokens=STEPS)
        for prompt in PROMPTS[:2]
    ]
    got = []
    for prompt in PROMPTS[:2]:
        ids = list(prompt)
        with torch.inference_mode():
            for _ in range(STEPS):
                e, a = (model(torch.tensor([ids])).logits[0, -1] for model in (merged, base))
                ids.append(int(score(e, a, 0.1, 0.5).argmax()))
        got.append(Trace(tokens=ids[len(prompt) :]))
    _assert_same(got, expected)
    groups = [
        Group(p, None, [Amateur(0.5, "one"), Amateur(-0.8, "one", q)], 0.0, STEPS)
        for p, q in PAIRS[:2]
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


def test_what_a_rule_chooses_by_hand() -> None:
    """Of one amateur, beside a fixed weight; the number of the step and the memory are its own."""
    e, a = torch.tensor([0.25] * 4).log(), torch.tensor([0.5, 0.5, 0.0, 0.0]).log()
    b = torch.tensor([0.0, 0.0, 1.0, 0.0])
    group = Group((), None, [Amateur(None), Amateur(2.0)], 0.0, 1, rule="m3id")
    group = replace(group, rule_parameters={"gamma": math.log(2), "threshold": 0.3})
    for number, weight in ((0, -1.0), (2, -7.0)):  # 1 - 2^t
        # An amateur's -inf counts as 0.
        differences = torch.tensor([math.log(2)] * 2 + [math.log(4)] * 2)
        want = e + weight * differences + 2 * (b - e)
        got = step([e, a, b], group, number).scores
        torch.testing.assert_close(got, want.double(), rtol=1e-6, atol=1e-6)
    # grd decides at the first conflict: the amateur is sure, then is not any more.
    e, sure, unsure = (
        torch.tensor(p).log() for p in ((0.5, 0.3, 0.2), (0.1, 0.8, 0.1), (0.3, 0.5, 0.2))
    )
    group, memory = Group((), None, [Amateur(None)], 0.0, 1, rule="grd"), {}
    for amateur in (sure, unsure):
        assert int(step([e, amateur], group, 0, memory).scores.argmax()) == 1
    assert int(step([e, unsure], group).scores.argmax()) == 0


AMATEURS = {"pair": [Amateur(-1.0)], "two": [Amateur(-0.6), Amateur(0.4)]}


@pytest.mark.parametrize("amateurs", AMATEURS)
@pytest.mark.parametrize(("alpha", "expert_top_k"), [(0.0, None), (0.0, 3), (0.05, None), (0.7, 3)])
def test_clear_choices_survive_noise(alpha: float, expert_top_k: int | None, amateurs: str) -> None:
    """Margin and edge together bound what noise can do; the noise is large so that it does."""
    group = Group((), None, AMATEURS[amateurs], alpha, 1, expert_top_k)
    noise, draws = 0.05, 200
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
        if slack > 2 * (1 + 2 * sum(abs(a.weight or 0.0) for a in group.amateurs)) * noise:
            clear += 1
            assert same
        changed += not same
    assert clear > 50
    assert changed > 2
