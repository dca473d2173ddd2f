# SPDX-License-Identifier: Apache-2.0
"""The naive reference is no stream's own text, and is right about its own rounding."""

import random

import pytest
import torch
from torch import Tensor

from tests.naive import (
    Amateur,
    Group,
    NaiveCold,
    group_score,
    pair,
    step,
)
from tests.tiny import SPECIAL_TOKENS, VOCAB_SIZE

pytestmark = pytest.mark.slow  # real models, though tiny ones

STEPS = 12


def test_cold_differs_from_both_streams(naive: NaiveCold) -> None:
    """Otherwise a decoder that ignores the amateur would pass every comparison."""
    rng = random.Random(0)
    prompts = [[rng.randrange(SPECIAL_TOKENS, VOCAB_SIZE) for _ in range(6)] for _ in range(6)]
    cold = naive.generate_many([pair(p, "one", 0.1, 0.5, STEPS) for p in prompts])
    for stream in (None, "one"):
        alone = [naive.greedy(prompt, stream, STEPS) for prompt in prompts]
        same = [a.tokens == b.tokens for a, b in zip(cold, alone, strict=True)]
        assert sum(same) <= 1


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
