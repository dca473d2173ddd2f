# SPDX-License-Identifier: Apache-2.0
"""The formula of `naive` in float64: what kernels, processors and engines are compared with."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# What differences and sums saturate at: float32's largest.
_LARGEST = torch.finfo(torch.float32).max


def group_scores(
    expert: Tensor,
    amateurs: Sequence[Tensor],
    log_alpha: float,
    weights: Sequence[float],
    cap: int = 0,
) -> Tensor:
    """Scores [V], float64, of logits [V] of any float dtype; a cap of 0 is none. An amateur's -inf
    counts as 0.
    """
    expert = expert.double()
    scores = expert.clamp(-_LARGEST, _LARGEST)
    for amateur, weight in zip(amateurs, weights, strict=True):
        allowed = amateur.double().masked_fill(amateur == -math.inf, 0.0)
        difference = (allowed - expert).clamp(-_LARGEST, _LARGEST)
        scores = (scores + weight * difference).clamp(-_LARGEST, _LARGEST)
    valid = (expert >= threshold(expert, log_alpha, cap)) & (expert > -math.inf)
    return scores.masked_fill(~valid, -math.inf)


def threshold(expert: Tensor, log_alpha: float, cap: int) -> Tensor:
    """The smallest of the expert's logits that is a candidate's."""
    bar = expert.max() + log_alpha
    return bar.maximum(expert.topk(cap).values[-1]) if 0 < cap <= expert.numel() else bar
