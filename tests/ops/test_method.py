# SPDX-License-Identifier: Apache-2.0
"""The formula by hand: the backend in use here, and the reference of the tests."""

import math

import pytest
import torch

from tests.formula import group_scores
from vllm_cold.ops import Groups, contrastive_scores

pytestmark = pytest.mark.unit

INF = math.inf


@pytest.mark.parametrize(
    ("rows", "weights", "log_alpha", "want"),
    [
        # Valid: 2 - 1 and above; where the amateur is -inf there is no penalty.
        (
            [[2.0, 1.5, 0.0, 1.0, -INF], [3.0, 0.5, -9.0, -INF, 0.0]],
            [-0.5],
            -1.001,
            [1.5, 2.0, -INF, 1.5, -INF],
        ),
        # An amateur's -inf counts as 0, as the expert's logit is here.
        (
            [[2.0, 1.0, 0.0], [0.0, 3.0, -INF], [4.0, 1.0, 1.0]],
            [-0.5, 0.25],
            -INF,
            [2.0 - 2.0 * -0.5 + 2.0 * 0.25, 1.0 + 2.0 * -0.5, 0.25],
        ),
    ],
)
def test_by_hand(
    rows: list[list[float]], weights: list[float], log_alpha: float, want: list[float]
) -> None:
    logits, numbers = torch.tensor(rows), torch.arange(len(rows)).unsqueeze(0)
    groups = Groups(numbers, torch.tensor([weights]), torch.tensor([log_alpha]))
    assert contrastive_scores(logits, groups)[0].tolist() == pytest.approx(want)
    found = group_scores(logits[0], list(logits[1:]), log_alpha, weights)
    assert found.tolist() == pytest.approx(want)
