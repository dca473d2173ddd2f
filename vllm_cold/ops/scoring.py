# SPDX-License-Identifier: Apache-2.0
"""The contrastive scoring op: dense scores, or the best k of each group.

A group is an expert's row of logits, ``z_0``, and those of its amateurs, ``z_1`` and so on, each
with a weight. Over the vocabulary V::

    valid  = z_0 >= max(z_0) + log_alpha,  z_0 > -inf,  z_0 >= the expert_top_k-th largest z_0
    s      = z_0 + sum_i w_i * (z_i - z_0)      where valid, -inf elsewhere

Contrastive decoding has one amateur, of weight ``-beta``: ``s = (1 + beta) * z_0 - beta * z_1``
(O'Brien & Lewis, arXiv 2309.09117; mask: Li et al., arXiv 2210.15097); two, of weights w and -w,
are proxy tuning's (Liu et al., arXiv 2401.08565). A logit of -inf of an amateur counts as 0.
Scores are float32, whatever the dtype of the logits. Backends add one amateur after the other,
``s = fma(z_0 - z_i, -w_i, s)``: one that equals the expert, or has no weight, changes nothing.
Each difference and each sum saturates at float32's largest finite values, so a valid token's score
is finite.

A group is not finite if one of its rows holds NaN or +inf. By default that is an error. With
``check=False`` it concerns this group alone: the scores and statistics of the others are the same
bits as without it, ``statistics`` tells which groups they are, and what is written for them can be
sampled from: scores are finite or -inf, and -inf where the expert's logit is. If only amateurs'
rows are affected, the valid tokens are those of the formula. If the expert's is, they are all
tokens above -inf, NaN and +inf included, whatever alpha and the cap: so there is one, unless all
logits are -inf. The values say nothing.

Gradients are not recorded. No host sync (but to check, where the device is neither a CPU nor a
GPU), and no shape that depends on data: on GPUs both functions can be captured in graphs.
"""

import torch
from torch import Tensor
from torch.nn import functional

from vllm_cold.ops import backend_registry
from vllm_cold.ops.interface import NOT_FINITE, OUT_OF_RANGE, Groups, row_outside

MAX_K = 64
_PART = 128  # tokens


@torch.no_grad()
def contrastive_scores(
    logits: Tensor,
    groups: Groups,
    *,
    inplace: bool = False,
    statistics: Tensor | None = None,
    check: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Compute the scores of each group over the whole vocabulary.

    Args:
        logits: [R, V] float32, bfloat16 or float16, any strides.
        groups: Their rows, numbered from 0 to R - 1, and settings.
        inplace: Write the scores over the expert's row of each group instead. ``logits`` is float32
            then, each of its rows is contiguous, none overlap, and no row is in two places, but the
            expert's of a group whose only amateur it is, of weight 0. No other row is written to,
            but amateurs' of a group that is not finite: they hold numbers then, which say nothing,
            so that they can be sampled from too.
        statistics: [G, 3] int64, contiguous, to write to: how many tokens are valid; 1 if the
            token with the best score is not the expert's best one, else 0 (of several tokens with
            the same value, the one with the lowest id counts); 1 if a row of the group holds NaN or
            +inf, else 0; on NPUs, ``interface.OUT_OF_RANGE`` if a row number of the group is. Where
            that is not 0, the two numbers before it mean nothing.
        check: Whether NaN or +inf in a row of a group is an error.
        backend: One of ``backend_registry.BACKENDS``; None for the best one here.

    Returns:
        [G, V] float32 scores, or ``logits`` if ``inplace``.

    Raises:
        ValueError: if an argument's shape, dtype or device is not as said above.
        IndexError: if a row number is out of range (on GPUs not checked; on NPUs if ``check``,
            and otherwise no token of the group is valid; in place, its rows stay as they are).
        RuntimeError: if ``check``, and a row of a group holds NaN or +inf (on a GPU: a device-side
            assertion); what was written by then is undefined. Or if ``backend`` cannot run here.
        MemoryError: if there is none left for intermediate results.
    """
    groups.check(logits, statistics)
    vocab, device = logits.shape[1], logits.device
    straight = logits.stride(1) == 1 or vocab == 1
    if inplace and logits.dtype != torch.float32:
        raise ValueError(
            f"contrastive_scores: logits is {logits.dtype}; with inplace=True it must be float32"
        )
    if inplace and (not straight or (len(logits) > 1 and logits.stride(0) < vocab)):
        raise ValueError(
            f"contrastive_scores: logits has strides {logits.stride()}; with inplace=True its "
            f"rows of {vocab} must be contiguous, and not overlap"
        )
    implementation = backend_registry.load(backend_registry.choose(device, backend))
    if check and statistics is None:
        statistics = torch.empty(len(groups), 3, dtype=torch.int64, device=device)
    rows = logits if straight else logits.contiguous()
    shape = len(groups), vocab
    out = None if inplace else torch.empty(shape, dtype=torch.float32, device=device)
    if len(groups):
        implementation.scores(rows, groups, out, statistics)
    if check and statistics is not None:
        if device.type != "cuda" and (statistics[:, 2] == OUT_OF_RANGE).any():
            raise row_outside(logits, groups)
        _assert_finite(statistics[:, 2] == 0)
    return logits if out is None else out


def _assert_finite(finite: Tensor) -> None:
    if finite.device.type == "cuda":
        torch._assert_async(finite.all(), NOT_FINITE)
    elif not finite.all():
        raise RuntimeError(NOT_FINITE)


@torch.no_grad()
def contrastive_topk(
    logits: Tensor,
    groups: Groups,
    *,
    k: int,
    check: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the k best scores of each group and their token ids, best first, ties to the lower id.

    For those who sample from them themselves. The scores are those of ``contrastive_scores``, bit
    for bit, of which it needs all [G, V] for a moment. It raises what ``contrastive_scores`` does.

    Args:
        logits: As there.
        groups: As there.
        k: How many, 1 to 64, else ValueError; may exceed the number of valid tokens and V.
        check: As there.
        backend: As there.

    Returns:
        [G, k] float32 scores and [G, k] int64 token ids. Where a group has fewer than k valid
        tokens, the rest is -inf with id -1.
    """
    if not 1 <= k <= MAX_K:
        raise ValueError(f"contrastive_topk: k is {k}; it must be from 1 to {MAX_K}")
    return best(contrastive_scores(logits, groups, check=check, backend=backend), k)


def best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best of each row [G, V] and their token ids, as ``contrastive_topk`` does."""
    missing = -scores.shape[1] % _PART
    padded = functional.pad(scores, (0, missing), value=-torch.inf)
    parts = torch.unflatten(padded, 1, (-1, _PART))
    # The k best are in the k parts with the best maxima.
    chosen = _order(parts.amax(2))[:, :k].sort(1).values
    inside = chosen.unsqueeze(2) * _PART + torch.arange(_PART, device=scores.device)
    candidates = inside.flatten(1)  # by rising id
    unsorted = padded.gather(1, candidates)
    order = _order(unsorted)[:, :k]
    values, ids = unsorted.gather(1, order), candidates.gather(1, order)
    return values, ids.masked_fill_(values == -torch.inf, -1)


def _order(scores: Tensor) -> Tensor:
    """Return indices that sort each row, the best first, ties to the lower index; -0 is 0."""
    return (scores + 0.0).sort(dim=1, descending=True, stable=True).indices
