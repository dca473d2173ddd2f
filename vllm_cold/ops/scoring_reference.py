# SPDX-License-Identifier: Apache-2.0
"""Backend "reference": the truth for the op, written as the formula reads, in float64."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vllm_cold.ops.interface import NOT_FINITE, Backend, Groups, replace_nonfinite

_LARGEST = torch.finfo(torch.float32).max


def _missing(device: torch.device) -> str | None:
    """None: it runs anywhere (and syncs with the host)."""
    return None


def group_scores(
    expert: Tensor,
    amateurs: Sequence[Tensor],
    log_alpha: float,
    weights: Sequence[float],
    expert_top_k: int = 0,
) -> Tensor:
    """[V] float64 scores of one group, by the formula of ``vllm_cold.ops.scoring``.

    Args:
        expert: [V] unnormalised logits, any float dtype.
        amateurs: Of each, [V] unnormalised logits.
        log_alpha: ln of the plausibility threshold, <= 0; -inf for none.
        weights: Of each amateur.
        expert_top_k: Cap on the candidates, 0 for none; ties with the k-th stay.

    Raises:
        RuntimeError: if a row holds NaN or +inf.
    """
    e, others = expert.double(), [a.double() for a in amateurs]
    if not all((row < math.inf).all() for row in (e, *others)):
        raise RuntimeError(NOT_FINITE)
    valid = (e >= e.max() + log_alpha) & (e > -math.inf)
    if 0 < expert_top_k < e.numel():
        valid &= e >= e.topk(expert_top_k).values[-1]
    scores = e.clamp(-_LARGEST, _LARGEST)
    for a, weight in zip(others, weights, strict=True):
        difference = (torch.where(a == -math.inf, 0.0, a) - e).clamp(-_LARGEST, _LARGEST)
        scores = (scores + weight * difference).clamp(-_LARGEST, _LARGEST)
    return torch.where(valid, scores, -math.inf)


def _scores(logits: Tensor, groups: Groups, out: Tensor | None, statistics: Tensor | None) -> None:
    caps = [0] * len(groups) if groups.expert_top_k is None else groups.expert_top_k.tolist()
    settings = zip(groups.log_alpha.tolist(), groups.weights.tolist(), caps, strict=True)
    for group, (rows, chosen) in enumerate(zip(groups.rows.tolist(), settings, strict=True)):
        log_alpha, weights, cap = chosen
        expert, *others = (logits[row] for row in rows if row >= 0)
        finite = all(bool((row < math.inf).all()) for row in (expert, *others))
        if not finite:
            others = [torch.where(row < math.inf, row, -math.inf) for row in others]
            if not (expert < math.inf).all():
                expert = torch.where(expert < math.inf, expert, 0.0)
                log_alpha, cap = -math.inf, 0
        rounded = group_scores(expert, others, log_alpha, weights[: len(others)], cap).float()
        if statistics is not None:
            # argmax gives the first of several maxima.
            statistics[group, 0] = (rounded > -math.inf).sum()
            statistics[group, 1] = rounded.argmax() != expert.argmax()
            statistics[group, 2] = not finite
        if out is not None:
            out[group] = rounded
        else:
            logits[rows[0]] = rounded
    if out is None:
        replace_nonfinite(logits, groups)


BACKEND = Backend(_missing, _scores)
