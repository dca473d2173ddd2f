# SPDX-License-Identifier: Apache-2.0
"""The truth for the scoring op: one pair, written as the formula reads, in float64."""

import math

import torch
from torch import Tensor


def contrastive_scores(
    expert: Tensor, amateur: Tensor, alpha: float, beta: float, expert_top_k: int = 0
) -> Tensor:
    """Scores of one pair (O'Brien & Lewis, arXiv 2309.09117; mask: Li et al., arXiv 2210.15097).

    Args:
        expert: [V] unnormalised logits of the adapted model, any float dtype.
        amateur: [V] unnormalised logits of the amateur.
        alpha: Plausibility threshold in (0, 1].
        beta: Contrast strength, >= 0.
        expert_top_k: Cap on the candidates, 0 for none; ties with the k-th stay.

    Returns:
        [V] float64: ``(1 + beta) * expert - beta * amateur`` where the expert's logit is at least
        ``max(expert) + ln(alpha)``, -inf elsewhere. Where the amateur is -inf the penalty is zero.

    Raises:
        ValueError: if a row holds NaN or +inf.
    """
    e, a = expert.double(), amateur.double()
    if not ((e < math.inf).all() and (a < math.inf).all()):
        raise ValueError("contrastive_scores: a logits row holds NaN or +inf")
    valid = (e >= e.max() + math.log(alpha)) & (e > -math.inf)
    if 0 < expert_top_k < e.numel():
        valid &= e >= e.topk(expert_top_k).values[-1]
    penalty = torch.where(a == -math.inf, 0.0, beta * a)
    return torch.where(valid, (1 + beta) * e - penalty, -math.inf)
