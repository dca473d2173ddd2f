# SPDX-License-Identifier: Apache-2.0
"""Backend "reference": the truth for the op, written as the formula reads, in float64."""

import math

import torch
from torch import Tensor

from vllm_cold.ops.interface import NOT_FINITE, Backend, Pairs, make_samplable

_LARGEST = torch.finfo(torch.float32).max


def _missing(device: torch.device) -> str | None:
    """None: it runs anywhere (and syncs with the host)."""
    return None


def adaptive_beta(
    expert: Tensor, amateur: Tensor, log_alpha: float, beta_max: float, expert_top_k: int = 0
) -> float:
    """The contrast strength of a pair whose beta adapts itself (``vllm_cold.ops.scoring``).

    Args:
        expert: As in ``pair_scores``.
        amateur: As in ``pair_scores``.
        log_alpha: As in ``pair_scores``.
        beta_max: The most that it can be, >= 0.
        expert_top_k: As in ``pair_scores``.

    Returns:
        ``beta_max * exp(max(a over V) - max(a)) * JSD(softmax(e over V), softmax(a over V))`` with
        the valid tokens V and the Jensen-Shannon divergence in bits; 0 where the amateur is -inf on
        all of V, or V is empty.

    Raises:
        RuntimeError: if a row holds NaN or +inf.
    """
    e, a = expert.double(), amateur.double()
    valid = _valid(e, a, log_alpha, expert_top_k)
    most = a.max()
    e, a = e[valid], a[valid]
    if not e.numel() or a.max() == -math.inf:
        return 0.0
    p, q = e.softmax(0), a.softmax(0)
    middle = (p + q) / 2
    # x log x is 0 at 0.
    bits = [torch.special.xlogy(x, x / middle.clamp(min=1e-300)).sum() for x in (p, q)]
    divergence = float(sum(bits) / (2 * math.log(2)))
    return beta_max * math.exp(float(a.max() - most)) * min(max(divergence, 0.0), 1.0)


def pair_scores(
    expert: Tensor,
    amateur: Tensor,
    log_alpha: float,
    beta: float,
    expert_top_k: int = 0,
    adaptive: bool = False,
) -> Tensor:
    """Scores of one pair (O'Brien & Lewis, arXiv 2309.09117; mask: Li et al., arXiv 2210.15097).

    Args:
        expert: [V] unnormalised logits of the adapted model, any float dtype.
        amateur: [V] unnormalised logits of the amateur.
        log_alpha: ln of the plausibility threshold, <= 0.
        beta: Contrast strength, >= 0.
        expert_top_k: Cap on the candidates, 0 for none; ties with the k-th stay.
        adaptive: Use ``adaptive_beta`` for the contrast strength, with ``beta`` as its most.

    Returns:
        [V] float64: ``(1 + beta) * expert - beta * amateur`` where the expert's logit is at least
        ``max(expert) + log_alpha``, -inf elsewhere. Where the amateur is -inf the penalty is zero.

    Raises:
        RuntimeError: if a row holds NaN or +inf.
    """
    e, a = expert.double(), amateur.double()
    valid = _valid(e, a, log_alpha, expert_top_k)
    if adaptive:
        beta = adaptive_beta(expert, amateur, log_alpha, beta, expert_top_k)
    penalty = torch.where(a == -math.inf, 0.0, beta * a)
    return torch.where(valid, (1 + beta) * e - penalty, -math.inf)


def _valid(e: Tensor, a: Tensor, log_alpha: float, expert_top_k: int) -> Tensor:
    if not ((e < math.inf).all() and (a < math.inf).all()):
        raise RuntimeError(NOT_FINITE)
    valid = (e >= e.max() + log_alpha) & (e > -math.inf)
    if 0 < expert_top_k < e.numel():
        valid &= e >= e.topk(expert_top_k).values[-1]
    return valid


def _scores(logits: Tensor, pairs: Pairs, out: Tensor | None, statistics: Tensor | None) -> None:
    num = len(pairs)
    caps = [0] * num if pairs.expert_top_k is None else pairs.expert_top_k.tolist()
    adapts = [False] * num if pairs.adaptive is None else pairs.adaptive.tolist()
    settings = zip(pairs.log_alpha.tolist(), pairs.beta.tolist(), caps, adapts, strict=True)
    rows = list(zip(pairs.expert_rows.tolist(), pairs.amateur_rows.tolist(), strict=True))
    for pair, ((e, a), knobs) in enumerate(zip(rows, settings, strict=True)):
        expert, amateur = logits[e], logits[a]
        finite = bool((expert < math.inf).all() and (amateur < math.inf).all())
        if not finite:
            amateur = torch.where(amateur < math.inf, amateur, -math.inf)
            if not (expert < math.inf).all():
                expert = torch.where(expert < math.inf, expert, 0.0)
                knobs = (-math.inf, knobs[1], 0, knobs[3])
        exact = pair_scores(expert, amateur, *knobs)
        # Only valid tokens saturate: the others stay at -inf.
        rounded = torch.where(exact == -math.inf, exact, exact.clamp(-_LARGEST, _LARGEST)).float()
        if statistics is not None:
            # argmax gives the first of several maxima.
            statistics[pair, 0] = (rounded > -math.inf).sum()
            statistics[pair, 1] = rounded.argmax() != expert.argmax()
            statistics[pair, 2] = not finite
        if out is not None:
            out[pair] = rounded
        else:
            logits[e] = rounded
    if out is None:
        make_samplable(logits, pairs.amateur_rows)


def _topk(logits: Tensor, pairs: Pairs, out_scores: Tensor, out_ids: Tensor) -> None:
    """Sorts the float32 scores, so that ties are those of float32."""
    dense = torch.empty(len(pairs), logits.shape[1], device=logits.device)
    _scores(logits, pairs, dense, None)
    out_scores.fill_(-math.inf)
    out_ids.fill_(-1)
    k = min(out_scores.shape[1], dense.shape[1])
    best, ids = dense.sort(dim=-1, descending=True, stable=True)
    best, ids = best[:, :k], ids[:, :k]
    out_scores[:, :k] = best
    out_ids[:, :k] = torch.where(best > -math.inf, ids, -1)


BACKEND = Backend(_missing, _scores, _topk)
