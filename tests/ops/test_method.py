# SPDX-License-Identifier: Apache-2.0
"""The identities of the method, on the backend in use here."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.formula import group_scores
from vllm_cold.ops import Groups, contrastive_scores

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
