# SPDX-License-Identifier: Apache-2.0
"""The identities of the method, on the backend in use here."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vllm_cold.ops import Groups, contrastive_scores
from vllm_cold.ops.scoring_reference import group_scores

pytestmark = pytest.mark.unit

INF = math.inf


def combine(logits: Tensor, weights: Sequence[float], log_alpha: float = -INF) -> Tensor:
    """Scores of one group of all rows."""
    rows = torch.arange(len(logits)).unsqueeze(0)
    groups = Groups(rows, torch.tensor([weights]), torch.tensor([log_alpha]))
    return contrastive_scores(logits, groups)[0]


def score(e: Tensor, a: Tensor, alpha: float, beta: float) -> Tensor:
    return combine(torch.stack((e, a)), [-beta], math.log(alpha))


def test_by_hand() -> None:
    e = torch.tensor([2.0, 1.5, 0.0, 1.0, -INF])
    a = torch.tensor([3.0, 0.5, -9.0, -INF, 0.0])
    # valid: e >= 2 - 1; where the amateur is -inf there is no penalty.
    want = [1.5, 2.0, -INF, 1.5, -INF]
    assert score(e, a, math.exp(-1.001), 0.5).tolist() == pytest.approx(want)
    assert group_scores(e, [a], -1.001, [-0.5]).tolist() == pytest.approx(want)


def test_two_amateurs_by_hand() -> None:
    e = torch.tensor([2.0, 1.0, 0.0])
    logits = torch.stack((e, torch.tensor([0.0, 3.0, -INF]), torch.tensor([4.0, 1.0, 1.0])))
    # -INF counts as 0, as the expert's logit is here.
    want = [2.0 - 2.0 * -0.5 + 2.0 * 0.25, 1.0 + 2.0 * -0.5, 0.25]
    assert combine(logits, [-0.5, 0.25]).tolist() == pytest.approx(want)
    assert group_scores(e, logits[1:], -INF, [-0.5, 0.25]).tolist() == pytest.approx(want)


def logits_pair(seed: int, vocab: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    e, a = 2 * torch.randn(2, vocab, generator=generator)
    return e, a


def test_guidance_away_from_one_amateur_and_towards_another() -> None:
    """Product of experts: log-probabilities add up (arXiv 2401.08565, 2306.17806)."""
    for seed in range(20):
        e, a = logits_pair(seed)
        b, _ = logits_pair(100 + seed)
        got = combine(torch.stack((e, a, b)), [0.8, -0.8]).log_softmax(0)
        parts = [x.log_softmax(0) for x in (e, a, b)]
        want = (parts[0] + 0.8 * (parts[1] - parts[2])).log_softmax(0)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        guided = combine(torch.stack((e, a)), [-0.5]).log_softmax(0)
        want = (1.5 * parts[0] - 0.5 * parts[1]).log_softmax(0)
        torch.testing.assert_close(guided, want, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-6, 0.1, 1.0]),
       st.sampled_from([0.0, 0.5, 2.0, 10.0]),
       st.floats(-50, 50), st.floats(-50, 50))  # fmt: skip
def test_shifting_a_streams_logits_changes_nothing(
    seed: int, alpha: float, beta: float, by_e: float, by_a: float
) -> None:
    """Unnormalised logits are as good as log-probabilities: the distribution is the same."""
    e, a = logits_pair(seed, vocab=30)
    gap = (e - e.max() - math.log(alpha)).abs()
    if alpha < 1 and gap.min() < 1e-3:
        return  # a token that rounding may let in or out
    base, shifted = score(e, a, alpha, beta), score(e + by_e, a + by_a, alpha, beta)
    torch.testing.assert_close(base.softmax(0), shifted.softmax(0), rtol=2e-2, atol=1e-4)
