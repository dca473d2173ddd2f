# SPDX-License-Identifier: Apache-2.0
"""Backend "torch": torch operations in float32, on any device, without a host sync."""

import math

import torch
from torch import Tensor

from vllm_cold.ops.interface import Backend, Groups, replace_nonfinite

_LARGEST = torch.finfo(torch.float32).max
_SMALLEST = torch.finfo(torch.float32).tiny


def _missing(device: torch.device) -> str | None:
    """None: it runs anywhere."""
    return None


def _scores(logits: Tensor, groups: Groups, out: Tensor | None, statistics: Tensor | None) -> None:
    # torch counts negative numbers from the end. (Compiled, the check would cut the graph.)
    checked = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    if checked and (groups.rows.min() < -1 or groups.rows[:, 0].min() < 0):
        raise IndexError(
            "contrastive scoring: a number in rows is < 0, and not -1 in place of an amateur's"
        )
    e = logits[groups.rows[:, 0]].float()
    best = e.amax(dim=-1)
    # amax propagates NaN, so one number a row tells; a comparison with NaN is false.
    finite = best < math.inf
    floors = None
    if groups.expert_top_k is not None:
        floors = _floors(e, groups.expert_top_k, groups.max_expert_top_k)
    invalid = _invalid(e, best, groups.log_alpha, floors)
    e.nan_to_num_(nan=0.0, posinf=0.0, neginf=-math.inf)
    scores = e
    for i in range(groups.num_streams - 1):
        a, weight = _amateur(logits, groups, i), groups.weights[:, i]
        if statistics is not None:
            finite &= a.amax(dim=-1) < math.inf
        _exclude(a)
        if groups.adaptive is not None:
            weight = _weight(e, a, invalid, weight, groups.adaptive[:, i])
        # An amateur's -inf counts as 0.
        difference = (e - a.nan_to_num_(neginf=0.0)).clamp_(-_LARGEST, _LARGEST)
        scores = torch.addcmul(scores, difference, -weight.unsqueeze(-1))
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


def _amateur(logits: Tensor, groups: Groups, i: int) -> Tensor:
    """[G, V] float32, a copy; where there is none, the expert, whose weight is 0 there."""
    rows = groups.rows[:, 1 + i]
    return logits[torch.where(rows < 0, groups.rows[:, 0], rows)].float()


def _exclude(a: Tensor) -> None:
    """An amateur's NaN and +inf count as -inf."""
    a.nan_to_num_(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)


def _invalid(e: Tensor, best: Tensor, log_alpha: Tensor, floors: Tensor | None) -> Tensor:
    # Of a row with NaN or +inf, nothing above -inf is: NaN is not below anything.
    lowest = torch.where(best < math.inf, best + log_alpha, -math.inf)
    invalid = (e < lowest.unsqueeze(-1)) | (e == -math.inf)
    if floors is not None:
        invalid |= e < floors.unsqueeze(-1)
    return invalid


def _weight(e: Tensor, a: Tensor, invalid: Tensor, weight: Tensor, adaptive: Tensor) -> Tensor:
    most = a.amax(dim=-1)
    a = a.masked_fill(invalid, -math.inf)
    best = a.amax(dim=-1)
    p, q = _softmax(e.masked_fill(invalid, -math.inf)), _softmax(a)
    both = (p + q).clamp_(min=_SMALLEST)
    # Where p is 0, so is its term: the logarithm is kept finite.
    bits = [(x * (2 * x / both).clamp_(min=_SMALLEST).log2_()).sum(dim=-1) for x in (p, q)]
    divergence = ((bits[0] + bits[1]) / 2).clamp_(min=0.0, max=1.0)
    reach = (best - most).exp_().masked_fill_(best == -math.inf, 0.0)
    return torch.where(adaptive, weight * reach * divergence, weight)


def _softmax(x: Tensor) -> Tensor:
    """Zeros, not NaN, where all of a row is -inf. Equal rows give equal results: so their
    divergence is 0 exactly.
    """
    weights = (x - x.amax(dim=-1, keepdim=True).clamp_(min=-_LARGEST)).exp_()
    return weights / weights.sum(dim=-1, keepdim=True).clamp_(min=1.0)


def _floors(e: Tensor, expert_top_k: Tensor, max_expert_top_k: int) -> Tensor:
    # A cap beyond the vocabulary excludes nothing, but other groups' caps still count.
    most = min(max_expert_top_k, e.shape[-1])
    top = e.topk(most, dim=-1).values
    kth = top.gather(-1, (expert_top_k - 1).clamp_(min=0, max=most - 1).unsqueeze(-1)).squeeze(-1)
    # topk takes NaN for the largest: so the first tells of it.
    return kth.masked_fill_((expert_top_k <= 0) | ~(top[:, 0] < math.inf), -math.inf)


def expert_floors(logits: Tensor, groups: Groups) -> Tensor | None:
    """For kernels that leave this to torch: the lowest expert logit that each group's cap admits.

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


def adaptive_weights(logits: Tensor, groups: Groups, floors: Tensor | None) -> Tensor:
    """For kernels that leave this to torch: each amateur's weight.

    Args:
        logits: [R, V].
        groups: G of them.
        floors: What ``expert_floors`` returned.

    Returns:
        [G, S - 1] float32: of an adaptive amateur, its weight scaled down as this step demands (if
        the group is not finite: anything from 0 to it); of the others, their weights.
    """
    if groups.adaptive is None:
        return groups.weights
    e = logits[groups.rows[:, 0]].float()
    invalid = _invalid(e, e.amax(dim=-1), groups.log_alpha, floors)
    e.nan_to_num_(nan=0.0, posinf=0.0, neginf=-math.inf)
    found = []
    for i, (weight, adaptive) in enumerate(zip(groups.weights.T, groups.adaptive.T, strict=True)):
        a = _amateur(logits, groups, i)
        _exclude(a)
        found.append(_weight(e, a, invalid, weight, adaptive))
    return torch.stack(found, 1)


BACKEND = Backend(_missing, _scores)
