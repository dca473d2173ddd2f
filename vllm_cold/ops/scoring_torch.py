# SPDX-License-Identifier: Apache-2.0
"""Backend "torch": torch operations in float32, on any device, without a host sync."""

import math

import torch
from torch import Tensor

from vllm_cold.ops.interface import Backend, Pairs, make_samplable

_LARGEST = torch.finfo(torch.float32).max
_SMALLEST = torch.finfo(torch.float32).tiny


def _missing(device: torch.device) -> str | None:
    """None: it runs anywhere."""
    return None


def _dense(logits: Tensor, pairs: Pairs, statistics: Tensor | None = None) -> Tensor:
    """[P, V] float32 scores."""
    expert_rows, amateur_rows, beta = pairs.expert_rows, pairs.amateur_rows, pairs.beta
    # torch counts negative numbers from the end. (Compiled, the check would cut the graph.)
    checked = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    if checked and min(expert_rows.min(), amateur_rows.min()) < 0:
        raise IndexError("contrastive scoring: a number in expert_rows or amateur_rows is < 0")
    e = logits[expert_rows].float()
    a = logits[amateur_rows].float()
    best = e.amax(dim=-1)
    if statistics is not None:
        # amax propagates NaN, so two numbers a pair tell; a comparison with NaN is false.
        finite = (best < math.inf) & (a.amax(dim=-1) < math.inf)
        torch.logical_not(finite, out=statistics[:, 2])
    floors = None
    if pairs.expert_top_k is not None:
        floors = _floors(e, pairs.expert_top_k, pairs.max_expert_top_k)
    invalid = _invalid(e, best, pairs.log_alpha, floors)
    _make_finite(e, a)
    if pairs.adaptive is not None:
        beta = _betas(e, a, invalid, beta, pairs.adaptive)
    # Where the amateur excludes a token that the expert allows, the penalty is zero.
    difference = (e - a.nan_to_num_(neginf=0.0)).clamp_(-_LARGEST, _LARGEST)
    scores = torch.addcmul(e, difference, beta.unsqueeze(-1)).clamp_(-_LARGEST, _LARGEST)
    scores.masked_fill_(invalid, -math.inf)
    if statistics is not None:
        torch.sum(scores > -math.inf, -1, out=statistics[:, 0])
        # argmax gives the first of several maxima.
        torch.ne(scores.argmax(dim=-1), e.argmax(dim=-1), out=statistics[:, 1])
    return scores


def _make_finite(e: Tensor, a: Tensor) -> None:
    """NaN and +inf become what they count as."""
    e.nan_to_num_(nan=0.0, posinf=0.0, neginf=-math.inf)
    a.nan_to_num_(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)


def _invalid(e: Tensor, best: Tensor, log_alpha: Tensor, floors: Tensor | None) -> Tensor:
    # Of a row with NaN or +inf, nothing above -inf is: NaN is not below anything.
    lowest = torch.where(best < math.inf, best + log_alpha, -math.inf)
    invalid = (e < lowest.unsqueeze(-1)) | (e == -math.inf)
    if floors is not None:
        invalid |= e < floors.unsqueeze(-1)
    return invalid


def _betas(e: Tensor, a: Tensor, invalid: Tensor, beta: Tensor, adaptive: Tensor) -> Tensor:
    most = a.amax(dim=-1)
    a = a.masked_fill(invalid, -math.inf)
    best = a.amax(dim=-1)
    p, q = _softmax(e.masked_fill(invalid, -math.inf)), _softmax(a)
    both = (p + q).clamp_(min=_SMALLEST)
    # Where p is 0, so is its term: the logarithm is kept finite.
    bits = [(x * (2 * x / both).clamp_(min=_SMALLEST).log2_()).sum(dim=-1) for x in (p, q)]
    divergence = ((bits[0] + bits[1]) / 2).clamp_(min=0.0, max=1.0)
    reach = (best - most).exp_().masked_fill_(best == -math.inf, 0.0)
    return torch.where(adaptive, beta * reach * divergence, beta)


def _softmax(x: Tensor) -> Tensor:
    """Zeros, not NaN, where all of a row is -inf. Equal rows give equal results: so their
    divergence is 0 exactly.
    """
    weights = (x - x.amax(dim=-1, keepdim=True).clamp_(min=-_LARGEST)).exp_()
    return weights / weights.sum(dim=-1, keepdim=True).clamp_(min=1.0)


def _floors(e: Tensor, expert_top_k: Tensor, max_expert_top_k: int) -> Tensor:
    # A cap beyond the vocabulary excludes nothing, but other pairs' caps still count.
    most = min(max_expert_top_k, e.shape[-1])
    top = e.topk(most, dim=-1).values
    kth = top.gather(-1, (expert_top_k - 1).clamp_(min=0, max=most - 1).unsqueeze(-1)).squeeze(-1)
    # topk takes NaN for the largest: so the first tells of it.
    return kth.masked_fill_((expert_top_k <= 0) | ~(top[:, 0] < math.inf), -math.inf)


def expert_floors(logits: Tensor, pairs: Pairs) -> Tensor | None:
    """For kernels that leave this to torch: the lowest expert logit that each pair's cap admits.

    Args:
        logits: [R, V].
        pairs: P of them.

    Returns:
        [P] float32, -inf for a pair without a cap and where the expert's row holds NaN or +inf;
        None if there is no cap at all.
    """
    if pairs.expert_top_k is None:
        return None
    e = logits[pairs.expert_rows].float()
    return _floors(e, pairs.expert_top_k, pairs.max_expert_top_k)


def adaptive_betas(logits: Tensor, pairs: Pairs, floors: Tensor | None) -> Tensor:
    """For kernels that leave this to torch: each pair's contrast strength.

    Args:
        logits: [R, V].
        pairs: P of them.
        floors: What ``expert_floors`` returned.

    Returns:
        [P] float32: of an adaptive pair, its beta scaled down as this step demands (if it is not
        finite: anything from 0 to beta); beta of the others.
    """
    if pairs.adaptive is None:
        return pairs.beta
    e, a = logits[pairs.expert_rows].float(), logits[pairs.amateur_rows].float()
    invalid = _invalid(e, e.amax(dim=-1), pairs.log_alpha, floors)
    _make_finite(e, a)
    return _betas(e, a, invalid, pairs.beta, pairs.adaptive)


def _scores(logits: Tensor, pairs: Pairs, out: Tensor | None, statistics: Tensor | None) -> None:
    dense = _dense(logits, pairs, statistics)
    if out is not None:
        out.copy_(dense)
    else:
        logits[pairs.expert_rows] = dense
        make_samplable(logits, pairs.amateur_rows)


def _topk(logits: Tensor, pairs: Pairs, out_scores: Tensor, out_ids: Tensor) -> None:
    dense = _dense(logits, pairs)
    vocab = dense.shape[1]
    # torch.topk may give any of two equal scores. Integers that sort as (score, lower id) have no
    # equals: float32 bits order as integers once the negatives' are flipped; + 0.0 turns -0 into 0.
    bits = (dense + 0.0).view(torch.int32).long()
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys = ordered * 2**31 + (vocab - 1 - torch.arange(vocab, device=dense.device))
    k = min(out_scores.shape[1], vocab)
    ids = vocab - 1 - keys.topk(k, dim=-1).values % 2**31
    best = dense.gather(-1, ids)
    out_scores[:, :k] = best
    out_scores[:, k:] = -math.inf
    out_ids[:, :k] = ids.masked_fill_(best == -math.inf, -1)
    out_ids[:, k:] = -1


BACKEND = Backend(_missing, _scores, _topk)
