# SPDX-License-Identifier: Apache-2.0
"""The contrastive scoring op: dense scores, or the best k of each pair.

With ``e`` and ``a`` the logits of a pair's expert and amateur row, over the vocabulary V::

    valid  = e >= max(e) + log_alpha  and  e > -inf  and  e >= the expert_top_k-th largest e
    s      = (1 + beta) * e - beta * a      where valid, -inf elsewhere

(O'Brien & Lewis, arXiv 2309.09117; mask: Li et al., arXiv 2210.15097.) Where ``a`` is -inf the
penalty ``beta * a`` is zero. Scores are float32, whatever the dtype of the logits. Backends compute
``e + beta * (e - a)``: where ``e == a`` or ``beta == 0``, the score is ``e`` exactly. Difference,
product and sum saturate at float32's largest finite values, so a valid token's score is finite.

A pair that is ``adaptive`` has another beta at every step, from 0 to the one that it was given::

    D     = JSD(softmax(e over the valid), softmax(a over the valid)), in bits: 0 to 1
    r     = exp(max of a over the valid - max of a)
    beta' = beta * r * D

with ``JSD(p, q) = (KL(p || m) + KL(q || m)) / 2``, ``m = (p + q) / 2``, the Jensen-Shannon
divergence (which scales a contrast in AdaCAD, arXiv 2409.07394). Beta is 0 where expert and amateur
agree about the valid tokens, where there is but one, and where ``a`` is -inf on all of them. It is
near 0 where the amateur wants something else altogether: what it says about these tokens is then
the noise of its tail.

A pair is not finite if one of its rows holds NaN or +inf. By default that is an error. With
``check=False`` it concerns this pair alone: the scores and statistics of the others are the same
bits as without it, ``statistics`` tells which pairs they are, and what is written for them can be
sampled from: scores are finite or -inf, and -inf where the expert's logit is. If only the amateur's
row is affected, the valid tokens are those of the formula. If the expert's is, they are all tokens
above -inf, NaN and +inf included, whatever alpha and the cap: so there is one, unless all logits
are -inf. The values say nothing.

Gradients are not recorded. No host sync (but to check, where the device is neither a CPU nor a
GPU), and no shape that depends on data: on GPUs both functions can be captured in graphs.
"""

import torch
from torch import Tensor

from vllm_cold.ops import registry
from vllm_cold.ops.interface import NOT_FINITE, Backend, Pairs, describe, make_samplable

MAX_K = 64


@torch.no_grad()
def contrastive_scores(
    logits: Tensor,
    pairs: Pairs,
    *,
    inplace: bool = False,
    out: Tensor | None = None,
    statistics: Tensor | None = None,
    check: bool = True,
    backend: str | None = None,
) -> Tensor:
    """The scores of each pair over the whole vocabulary.

    Args:
        logits: [R, V] float32, bfloat16 or float16, any strides.
        pairs: Their rows, numbered from 0 to R - 1, and settings.
        inplace: Write the scores over the expert's row of each pair instead. ``logits`` is float32
            then, its rows do not overlap, and no row is in two pairs. No other row is touched, but
            the amateur's of a pair that is not finite: it holds numbers then, which say nothing,
            so that it can be sampled from too.
        out: [P, V] float32, contiguous, to write to; not the memory of ``logits``.
        statistics: [P, 3] int64, contiguous, to write to: how many tokens are valid; 1 if the
            token with the best score is not the expert's best one, else 0 (of several tokens with
            the same value, the one with the lowest id counts); 1 if a row of the pair holds NaN or
            +inf, else 0. Where that is 1, the two numbers before it mean nothing.
        check: Whether NaN or +inf in a row of a pair is an error.
        backend: One of ``registry.BACKENDS``; None for the best one here.

    Returns:
        [P, V] float32 scores (``out``, if given), or ``logits`` if ``inplace``.

    Raises:
        ValueError: if an argument's shape, dtype or device is not as said above.
        IndexError: if a row number is out of range (not checked on accelerators).
        RuntimeError: if ``check``, and a row of a pair holds NaN or +inf (on a GPU: a device-side
            assertion); what was written by then is undefined. Or if ``backend`` cannot run here.
        MemoryError: if there is none left for intermediate results.
    """
    if inplace and (out is not None or logits.dtype != torch.float32):
        raise ValueError(
            f"contrastive_scores: inplace=True takes float32 logits and no out; logits is "
            f"{logits.dtype}, out is {'None' if out is None else 'given'}"
        )
    pairs.check(logits)
    num_pairs, vocab = len(pairs), logits.shape[1]
    implementation = registry.load(registry.choose(logits.device, backend))
    if check or statistics is not None:
        shape = num_pairs, 3
        statistics = _output("statistics", statistics, shape, torch.int64, logits.device)
    if inplace and (logits.stride(1) == 1 or vocab == 1):
        if len(logits) > 1 and logits.stride(0) < vocab:
            raise ValueError(
                f"contrastive_scores: logits has strides {logits.stride()}; with inplace=True its "
                f"rows of {vocab} must not overlap"
            )
        if num_pairs:
            _run(implementation, logits, pairs, None, statistics, check)
        return logits
    out = _output("out", out, (num_pairs, vocab), torch.float32, logits.device)
    if num_pairs:
        rows = logits if logits.stride(1) == 1 else logits.contiguous()
        _run(implementation, rows, pairs, out, statistics, check)
    if not inplace:
        return out
    logits[pairs.expert_rows] = out
    make_samplable(logits, pairs.amateur_rows)
    return logits


def _run(
    implementation: Backend,
    logits: Tensor,
    pairs: Pairs,
    out: Tensor | None,
    statistics: Tensor | None,
    check: bool,
) -> None:
    implementation.scores(logits, pairs, out, statistics)
    if check and statistics is not None:
        _assert_finite(statistics[:, 2] == 0)


def _assert_finite(finite: Tensor) -> None:
    if finite.device.type == "cuda":
        torch._assert_async(finite.all(), NOT_FINITE)
    elif not finite.all():
        raise RuntimeError(NOT_FINITE)


@torch.no_grad()
def contrastive_topk(
    logits: Tensor,
    pairs: Pairs,
    *,
    k: int,
    out: tuple[Tensor, Tensor] | None = None,
    check: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best scores of each pair and their token ids, best first, ties to the lower id.

    For those who look at candidates, or sample from them themselves. vLLM's sampler takes whole
    rows, so the engine does not use it.

    Takes what ``contrastive_scores`` takes, and:

    Args:
        logits: As there.
        pairs: As there.
        k: How many, 1 to 64; may exceed the number of valid tokens and V.
        out: [P, k] float32 and [P, k] int64, contiguous, to write to.
        check: As there; costs a pass of torch over all rows of pairs.
        backend: As there.

    Returns:
        [P, k] float32 scores and [P, k] int64 token ids (``out``, if given). Where a pair has
        fewer than k valid tokens, the rest is -inf with id -1.

    Raises:
        ValueError: if an argument's shape, dtype or device, or k, is not as said above.
        IndexError: as ``contrastive_scores``.
        RuntimeError: as ``contrastive_scores``.
        MemoryError: as ``contrastive_scores``.
    """
    if not 1 <= k <= MAX_K:
        raise ValueError(f"contrastive_topk: k is {k}; it must be from 1 to {MAX_K}")
    pairs.check(logits)
    num_pairs = len(pairs)
    implementation = registry.load(registry.choose(logits.device, backend))
    scores, ids = out or (None, None)
    scores = _output("out[0]", scores, (num_pairs, k), torch.float32, logits.device)
    ids = _output("out[1]", ids, (num_pairs, k), torch.int64, logits.device)
    if num_pairs:
        rows = logits if logits.stride(1) == 1 else logits.contiguous()
        implementation.topk(rows, pairs, scores, ids)
        if check:
            # Of a row with NaN, that is the maximum.
            most = rows[torch.cat((pairs.expert_rows, pairs.amateur_rows))].amax(1)
            _assert_finite(most < torch.inf)
    return scores, ids


def _output(
    name: str,
    given: Tensor | None,
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    if given is None:
        return torch.empty(shape, dtype=dtype, device=device)
    if (
        given.shape != shape
        or given.dtype != dtype
        or given.device != device
        or not given.is_contiguous()
    ):
        raise ValueError(
            f"contrastive scoring: {name} is {describe(given)}; it must be {list(shape)} {dtype} "
            f"on {device}, contiguous"
        )
    return given
