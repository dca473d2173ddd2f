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

MAX_K = 64
LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# What stands behind the logits in both functions, up to ``adaptive``.
PairArguments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, int, Tensor | None]


@torch.no_grad()
def contrastive_scores(
    logits: Tensor,
    expert_rows: Tensor,
    amateur_rows: Tensor,
    log_alpha: Tensor,
    beta: Tensor,
    expert_top_k: Tensor | None = None,
    max_expert_top_k: int = 0,
    adaptive: Tensor | None = None,
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
        expert_rows: [P] int64 row numbers in [0, R).
        amateur_rows: [P] int64 row numbers in [0, R).
        log_alpha: [P] float32, ln(alpha) <= 0.
        beta: [P] float32, >= 0.
        expert_top_k: [P] int64 caps on the candidates, 0 for none; None if no pair has one. Ties
            with the last one admitted stay.
        max_expert_top_k: The largest cap, known on the host (no sync); 0 if there is none.
        adaptive: [P] bool: whether the pair's beta adapts itself at every step, with ``beta`` as
            its most; None if no pair's does.
        inplace: Write the scores over both rows of each pair instead, so that whatever comes after
            (penalties, temperature, argmax) picks the same token for both. ``logits`` is float32
            then, its rows do not overlap, and no row is in two pairs. Rows of no pair are not
            touched.
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
    pairs = expert_rows, amateur_rows, log_alpha, beta, expert_top_k, max_expert_top_k, adaptive
    num_pairs, vocab = _check(logits, *pairs)
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
    logits[expert_rows] = out
    logits[amateur_rows] = out
    return logits


def _run(
    implementation: registry.Backend,
    logits: Tensor,
    pairs: PairArguments,
    out: Tensor | None,
    statistics: Tensor | None,
    check: bool,
) -> None:
    implementation.scores(logits, *pairs, out, statistics)
    if check and statistics is not None:
        _assert_finite(statistics[:, 2] == 0)


def _assert_finite(finite: Tensor) -> None:
    if finite.device.type == "cuda":
        torch._assert_async(finite.all(), registry.NOT_FINITE)
    elif not finite.all():
        raise RuntimeError(registry.NOT_FINITE)


@torch.no_grad()
def contrastive_topk(
    logits: Tensor,
    expert_rows: Tensor,
    amateur_rows: Tensor,
    log_alpha: Tensor,
    beta: Tensor,
    expert_top_k: Tensor | None = None,
    max_expert_top_k: int = 0,
    adaptive: Tensor | None = None,
    *,
    k: int,
    out: tuple[Tensor, Tensor] | None = None,
    check: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best scores of each pair and their token ids, best first, ties to the lower id.

    Takes what ``contrastive_scores`` takes, and:

    Args:
        logits: As there, and so are the arguments up to ``adaptive``.
        expert_rows: As there.
        amateur_rows: As there.
        log_alpha: As there.
        beta: As there.
        expert_top_k: As there.
        max_expert_top_k: As there.
        adaptive: As there.
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
    pairs = expert_rows, amateur_rows, log_alpha, beta, expert_top_k, max_expert_top_k, adaptive
    num_pairs, _ = _check(logits, *pairs)
    implementation = registry.load(registry.choose(logits.device, backend))
    scores, ids = out or (None, None)
    scores = _output("out[0]", scores, (num_pairs, k), torch.float32, logits.device)
    ids = _output("out[1]", ids, (num_pairs, k), torch.int64, logits.device)
    if num_pairs:
        rows = logits if logits.stride(1) == 1 else logits.contiguous()
        implementation.topk(rows, *pairs, scores, ids)
        if check:
            # Of a row with NaN, that is the maximum.
            most = rows[torch.cat((expert_rows, amateur_rows))].amax(1)
            _assert_finite(most < torch.inf)
    return scores, ids


def _check(
    logits: Tensor,
    expert_rows: Tensor,
    amateur_rows: Tensor,
    log_alpha: Tensor,
    beta: Tensor,
    expert_top_k: Tensor | None,
    max_expert_top_k: int,
    adaptive: Tensor | None,
) -> tuple[int, int]:
    """P and V, if the arguments fit together; reads no element."""
    if logits.dim() != 2 or logits.dtype not in LOGITS_DTYPES or not 1 <= logits.shape[1] < 2**31:
        raise ValueError(
            f"contrastive scoring: logits is {_describe(logits)}; it must be [R, V] with "
            "1 <= V < 2**31, float32, bfloat16 or float16"
        )
    num_pairs = len(expert_rows) if expert_rows.dim() else 0
    vectors = [
        ("expert_rows", expert_rows, torch.int64),
        ("amateur_rows", amateur_rows, torch.int64),
        ("log_alpha", log_alpha, torch.float32),
        ("beta", beta, torch.float32),
    ]
    if expert_top_k is not None:
        vectors.append(("expert_top_k", expert_top_k, torch.int64))
    if adaptive is not None:
        vectors.append(("adaptive", adaptive, torch.bool))
    for name, vector, dtype in vectors:
        if (
            vector.shape != (num_pairs,)
            or vector.dtype != dtype
            or vector.device != logits.device
            or not vector.is_contiguous()
        ):
            raise ValueError(
                f"contrastive scoring: {name} is {_describe(vector)}; it must be [{num_pairs}] "
                f"{dtype} on {logits.device}, contiguous, as one entry per pair"
            )
    if (expert_top_k is None) != (max_expert_top_k <= 0):
        raise ValueError(
            f"contrastive scoring: max_expert_top_k is {max_expert_top_k}; it must be the largest "
            "of expert_top_k, and expert_top_k None if no pair has a cap"
        )
    return num_pairs, logits.shape[1]


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
            f"contrastive scoring: {name} is {_describe(given)}; it must be {list(shape)} {dtype} "
            f"on {device}, contiguous"
        )
    return given


def _describe(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}"
