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


def adaptive_weight(
    expert: Tensor, amateur: Tensor, log_alpha: float, weight: float, expert_top_k: int = 0
) -> float:
    """The weight of an amateur whose weight adapts itself (``vllm_cold.ops.scoring``).

    Args:
        expert: As in ``group_scores``.
        amateur: [V], one of those in ``group_scores``.
        log_alpha: As in ``group_scores``.
        weight: The farthest from 0 that it can be.
        expert_top_k: As in ``group_scores``.

    Returns:
        ``weight * exp(max(a over V) - max(a)) * JSD(softmax(e over V), softmax(a over V))`` with
        the valid tokens V and the Jensen-Shannon divergence in bits; 0 where the amateur is -inf on
        all of V, or V is empty.

    Raises:
        RuntimeError: if a row holds NaN or +inf.
    """
    e, a = expert.double(), amateur.double()
    valid = _valid(e, (a,), log_alpha, expert_top_k)
    most = a.max()
    e, a = e[valid], a[valid]
    if not e.numel() or a.max() == -math.inf:
        return 0.0
    p, q = e.softmax(0), a.softmax(0)
    middle = (p + q) / 2
    # x log x is 0 at 0.
    bits = [torch.special.xlogy(x, x / middle.clamp(min=1e-300)).sum() for x in (p, q)]
    divergence = float(sum(bits) / (2 * math.log(2)))
    return weight * math.exp(float(a.max() - most)) * min(max(divergence, 0.0), 1.0)


def group_scores(
    expert: Tensor,
    amateurs: Sequence[Tensor],
    log_alpha: float,
    weights: Sequence[float],
    expert_top_k: int = 0,
    adaptive: Sequence[bool] | None = None,
) -> Tensor:
    """Scores of one group (``vllm_cold.ops.scoring`` names the sources).

    Args:
        expert: [V] unnormalised logits, any float dtype.
        amateurs: Of each, [V] unnormalised logits.
        log_alpha: ln of the plausibility threshold, <= 0; -inf for none.
        weights: Of each amateur.
        expert_top_k: Cap on the candidates, 0 for none; ties with the k-th stay.
        adaptive: Of each amateur, whether to use ``adaptive_weight``; None for no one.

    Returns:
        [V] float64: ``expert + sum_i weights[i] * (amateurs[i] - expert)`` where the expert's logit
        is at least ``max(expert) + log_alpha``, -inf elsewhere. An amateur's -inf counts as 0.
        Differences and sums saturate at float32's largest.

    Raises:
        RuntimeError: if a row holds NaN or +inf.
    """
    e, others = expert.double(), [a.double() for a in amateurs]
    valid = _valid(e, others, log_alpha, expert_top_k)
    scores = e.clamp(-_LARGEST, _LARGEST)
    for i, (a, weight) in enumerate(zip(others, weights, strict=True)):
        if adaptive is not None and adaptive[i]:
            weight = adaptive_weight(e, a, log_alpha, weight, expert_top_k)
        difference = (torch.where(a == -math.inf, 0.0, a) - e).clamp(-_LARGEST, _LARGEST)
        scores = (scores + weight * difference).clamp(-_LARGEST, _LARGEST)
    return torch.where(valid, scores, -math.inf)


def _valid(e: Tensor, others: Sequence[Tensor], log_alpha: float, expert_top_k: int) -> Tensor:
    if not all((row < math.inf).all() for row in (e, *others)):
        raise RuntimeError(NOT_FINITE)
    valid = (e >= e.max() + log_alpha) & (e > -math.inf)
    if 0 < expert_top_k < e.numel():
        valid &= e >= e.topk(expert_top_k).values[-1]
    return valid


def _scores(logits: Tensor, groups: Groups, out: Tensor | None, statistics: Tensor | None) -> None:
    num, amateurs = groups.weights.shape
    caps = [0] * num if groups.expert_top_k is None else groups.expert_top_k.tolist()
    adapts = [[False] * amateurs] * num if groups.adaptive is None else groups.adaptive.tolist()
    settings = zip(groups.log_alpha.tolist(), groups.weights.tolist(), caps, adapts, strict=True)
    for group, (rows, knobs) in enumerate(zip(groups.rows.tolist(), settings, strict=True)):
        log_alpha, weights, cap, adaptive = knobs
        expert, *others = (logits[row] for row in rows if row >= 0)
        finite = all(bool((row < math.inf).all()) for row in (expert, *others))
        if not finite:
            others = [torch.where(row < math.inf, row, -math.inf) for row in others]
            if not (expert < math.inf).all():
                expert = torch.where(expert < math.inf, expert, 0.0)
                log_alpha, cap = -math.inf, 0
        num_amateurs = len(others)
        rounded = group_scores(
            expert, others, log_alpha, weights[:num_amateurs], cap, adaptive[:num_amateurs]
        ).float()
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
