# SPDX-License-Identifier: Apache-2.0
"""Backend "torch": torch operations in float32, on any device, without a host sync."""

import math

import torch
from torch import Tensor

from vllm_cold.ops.interface import Backend, Groups, row_outside

_LARGEST = torch.finfo(torch.float32).max


def _missing(device: torch.device) -> str | None:
    """Return None: it runs anywhere."""
    return None


def _scores(logits: Tensor, groups: Groups, out: Tensor | None, statistics: Tensor | None) -> None:
    # torch counts negative numbers from the end. (Compiled, the check would cut the graph.)
    checked = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    if checked and (groups.rows.min() < -1 or groups.rows[:, 0].min() < 0):
        raise row_outside(logits, groups)
    e = logits[groups.rows[:, 0]].float()
    best = e.amax(dim=-1)
    # amax propagates NaN, so one number a row tells; a comparison with NaN is false.
    finite = best < math.inf
    # Of a row with NaN or +inf, nothing above -inf is invalid: NaN is not below anything.
    lowest = torch.where(finite, best + groups.log_alpha, -math.inf)
    invalid = (e < lowest.unsqueeze(-1)) | (e == -math.inf)
    if groups.expert_top_k is not None:
        floors = _floors(e, groups.expert_top_k, groups.max_expert_top_k)
        invalid |= e < floors.unsqueeze(-1)
    e.nan_to_num_(nan=0.0, posinf=0.0, neginf=-math.inf)
    scores = e
    for i in range(groups.num_streams - 1):
        # Where there is no amateur: the expert, whose weight is 0 there.
        rows = groups.rows[:, 1 + i]
        a = logits[torch.where(rows < 0, groups.rows[:, 0], rows)].float()
        if statistics is not None:
            finite &= a.amax(dim=-1) < math.inf
        # An amateur's NaN and infinities count as 0.
        a.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        difference = (e - a).clamp_(-_LARGEST, _LARGEST)
        scores = torch.addcmul(scores, difference, -groups.weights[:, i].unsqueeze(-1))
        scores.clamp_(-_LARGEST, _LARGEST)
    scores.masked_fill_(invalid, -math.inf)
    if statistics is not None:
        torch.logical_not(finite, out=statistics[:, 2])
        torch.sum(scores > -math.inf, -1, out=statistics[:, 0])
        # argmax gives the first of several maxima.
        torch.ne(scores.argmax(dim=-1), e.argmax(dim=-1), out=statistics[:, 1])
    if out is not None:
        out.copy_(scores)
    else:
        logits[groups.rows[:, 0]] = scores
        replace_nonfinite(logits, groups)


def replace_nonfinite(logits: Tensor, groups: Groups) -> None:
    """Write 0 over NaN and +inf in the amateurs' rows."""
    # Where there is no amateur, the expert's row stands in: it holds scores by now.
    rows = torch.where(groups.rows < 0, groups.rows[:, :1], groups.rows)[:, 1:].flatten()
    amateurs = logits[rows]
    logits[rows] = torch.where(amateurs < torch.inf, amateurs, 0.0)


def _floors(e: Tensor, expert_top_k: Tensor, max_expert_top_k: int) -> Tensor:
    # A cap beyond the vocabulary excludes nothing, but other groups' caps still count.
    most = min(max_expert_top_k, e.shape[-1])
    top = e.topk(most, dim=-1).values
    kth = top.gather(-1, (expert_top_k - 1).clamp_(min=0, max=most - 1).unsqueeze(-1)).squeeze(-1)
    # topk takes NaN for the largest: so the first tells of it.
    return kth.masked_fill_((expert_top_k <= 0) | ~(top[:, 0] < math.inf), -math.inf)


def expert_floors(logits: Tensor, groups: Groups) -> Tensor | None:
    """Return the lowest expert logit that each group's cap admits, for kernels that leave this to
    torch.

    Args:
        logits: [R, V].
        groups: G of them.

    Returns:
        [G] float32, -inf for a group without a cap and where the expert's row holds NaN or +inf;
        None if there is no cap at all.
    """
    if groups.expert_top_k is None:
        return None
    e = logits[groups.rows[:, 0]].float()
    return _floors(e, groups.expert_top_k, groups.max_expert_top_k)


BACKEND = Backend(_missing, _scores)
