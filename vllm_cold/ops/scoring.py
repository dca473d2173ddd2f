# SPDX-License-Identifier: Apache-2.0
"""The scoring op in torch: works on every device, in place, without a host sync."""

import torch
from torch import Tensor

_INF = float("inf")
_NEG_INF = -_INF


def contrastive_scores_(
    logits: Tensor,
    expert_rows: Tensor,
    amateur_rows: Tensor,
    log_alpha: Tensor,
    beta: Tensor,
    expert_top_k: Tensor | None = None,
    max_expert_top_k: int = 0,
) -> Tensor:
    """Write each pair's scores over both of its rows.

    The formula is ``vllm_cold.ops.naive``'s, in float32. Both rows get the same scores, so that
    whatever comes after (penalties, temperature, top-k, argmax) picks the same token for both.

    Args:
        logits: [R, V] float32, changed in place; rows that belong to no pair are not touched.
        expert_rows: [P] int64 row numbers.
        amateur_rows: [P] int64 row numbers.
        log_alpha: [P] float32, ln(alpha) <= 0.
        beta: [P] float32, >= 0.
        expert_top_k: [P] int64 caps on the candidates, 0 for none; None if no pair has one.
        max_expert_top_k: The largest cap, known on the host (no sync).

    Returns:
        ``logits``.

    Raises:
        RuntimeError: if a row of a pair holds NaN or +inf (on a GPU: a device-side assertion).
    """
    e = logits[expert_rows]
    a = logits[amateur_rows]
    best = e.amax(dim=-1, keepdim=True)
    # amax propagates NaN, so two numbers a row tell; a comparison with NaN is false.
    torch._assert_async(
        ((best < _INF) & (a.amax(dim=-1, keepdim=True) < _INF)).all(),
        "CoLD: the logits of an expert or amateur row hold NaN or +inf; no token can be chosen. "
        "Look at the model, the adapter and the dtype (float16 overflows easily).",
    )
    # Where the amateur excludes a token that the expert allows, the penalty is zero; without the
    # mask the score would be +inf.
    penalty = (beta.unsqueeze(-1) * a).masked_fill_(a == _NEG_INF, 0.0)
    scores = e * (1 + beta).unsqueeze(-1) - penalty
    invalid = (e < best + log_alpha.unsqueeze(-1)) | (e == _NEG_INF)
    if expert_top_k is not None and max_expert_top_k > 0:
        # A cap beyond the vocabulary excludes nothing, but other pairs' caps still count.
        most = min(max_expert_top_k, e.shape[-1])
        top = e.topk(most, dim=-1).values
        kth = top.gather(-1, (expert_top_k - 1).clamp_(min=0, max=most - 1).unsqueeze(-1))
        invalid |= (e < kth) & (expert_top_k > 0).unsqueeze(-1)
    scores.masked_fill_(invalid, _NEG_INF)
    logits[expert_rows] = scores
    logits[amateur_rows] = scores
    return logits
