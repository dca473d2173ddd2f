# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of the scoring op; ``scoring_triton`` launches them. Importing needs Triton.

The vocabulary is cut into tiles, and a program walks over a segment of consecutive tiles.

1. ``tile_maxima`` reads the expert's logits: the maximum of each tile. What is not finite counts
   as +inf, so that it shows in the maximum.
2. ``score_tiles`` knows the group's threshold from these. It reads the amateurs' logits, but the
   expert's again only in tiles whose maximum reaches the threshold: few, unless alpha is tiny.
3. ``add_tallies``, for statistics alone, adds up what the segments of a group counted.

Where a group's maximum is +inf, every token above -inf is valid. What is not finite scores as 0 in
the expert's row and as -inf in an amateur's.

``rows`` is [G, S] and ``weights`` [G, S - 1]. Groups of two have a variant of ``score_tiles``; all
others share one, so that no number of streams makes another to compile.

For statistics, a token is one int64 key that sorts as (score, lower id first): the float's bits,
made to sort as an integer, above ``INT32_MAX - id``. So keys differ, and a maximum breaks ties.

Long, because the kernels share functions of the device and what these agree on.
"""

# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def, no-untyped-call"
# Reason: Triton has no types, and reads the annotations of a kernel for itself.

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
LARGEST = tl.constexpr(3.4028234663852886e38)
INT32_MAX = tl.constexpr(2**31 - 1)
EMPTY = tl.constexpr(-(2**63))  # below the key of any token

MAX_STREAMS = tl.constexpr(64)  # a power of 2, and not below that of the op

# What differs from step to step must not make another variant to compile while serving.
VARYING = ("num_streams", "num_tiles", "segment_tiles", "num_segments")
UNALIGNED = ("rows", "weights", "log_alpha", "floors")


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def tile_maxima(
    logits,
    row_stride,
    rows,
    num_streams,
    vocab,
    num_tiles,
    segment_tiles,
    num_segments,
    maxima,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the largest logit of each tile of the experts' rows to ``maxima`` [G, num_tiles]."""
    program = tl.program_id(0)
    group = program // num_segments
    first = program % num_segments * segment_tiles
    last = tl.minimum(first + segment_tiles, num_tiles)
    row = logits + tl.load(rows + group * num_streams) * row_stride
    lanes = tl.arange(0, TILE)
    # Some tiles at once keep more loads in flight.
    for block in range(first, last, BLOCK):
        tiles = block + tl.arange(0, BLOCK)
        starts = tiles * TILE
        here = tiles < last
        inside = here[:, None] & (lanes[None, :] < (vocab - starts)[:, None])
        x = tl.load(row + (starts[:, None] + lanes[None, :]), mask=inside, other=-INF)
        x = x.to(tl.float32)
        # Of a NaN, a maximum would return the other operand.
        x = _finite(x, INF)
        tl.store(maxima + group * num_tiles + tiles, tl.max(x, axis=1), mask=here)


@triton.jit
def _row_maximum(maxima, num_tiles):
    """Return the maximum over all tiles of a row, whose maxima start at ``maxima``."""
    lanes = tl.arange(0, 256)
    best = tl.full([256], -INF, tl.float32)
    for start in range(0, num_tiles, 256):
        inside = lanes < num_tiles - start
        best = tl.maximum(best, tl.load(maxima + start + lanes, mask=inside, other=-INF))
    return tl.max(best)


@triton.jit
def _threshold(best_logit, group, log_alpha, floors):
    """Return the lowest expert logit of a valid token."""
    # -LARGEST: a token at -inf is never valid, whatever the maximum.
    threshold = tl.maximum(best_logit + tl.load(log_alpha + group), -LARGEST)
    if floors is not None:
        threshold = tl.maximum(threshold, tl.load(floors + group))
    return tl.where(best_logit < INF, threshold, -LARGEST)


@triton.jit
def _finite(x, instead):
    """Return ``x`` with ``instead`` for NaN and +inf."""
    return tl.where(x < INF, x, instead)


@triton.jit
def _contrasted(scores, e, a, weight):
    """Return ``scores`` with one more amateur; of tokens that are not valid, anything."""
    difference = tl.clamp(e - tl.where(tl.abs(a) < INF, a, 0.0), -LARGEST, LARGEST)
    # fma by name: the same rounding, whatever else is compiled around it.
    return tl.clamp(tl.fma(difference, -weight, scores), -LARGEST, LARGEST)


@triton.jit
def _amateur(tokens, inside, worst, COUNTED: tl.constexpr, IN_PLACE: tl.constexpr):
    """Load an amateur's logits of a tile, which are at ``tokens``; return them and, if ``COUNTED``,
    the largest so far in each lane: NaN, if one was. ``IN_PLACE``: what is NaN or +inf becomes 0
    there; that is its score, too, where the row is the expert's as well.
    """
    # Not needed again: leave the cache to the expert's logits and the scores.
    a = tl.load(tokens, mask=inside, other=-INF, eviction_policy="evict_first").to(tl.float32)
    if COUNTED:
        worst = tl.maximum(worst, a, propagate_nan=tl.PropagateNan.ALL)
    if IN_PLACE:
        tl.store(tokens, tl.zeros_like(a), mask=inside & ~(a < INF))
    return a, worst


@triton.jit
def _keys(scores, ids):
    """Return sortable keys of scores and token ids; ``EMPTY`` where the score is -inf."""
    bits = tl.where(scores == 0, 0.0, scores).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & INT32_MAX)
    keys = (ordered.to(tl.int64) << 32) | (INT32_MAX - ids)
    return tl.where(scores > -INF, keys, EMPTY)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def score_tiles(
    logits,
    row_stride,
    rows,
    num_streams,
    weights,
    log_alpha,
    floors,
    vocab,
    num_tiles,
    segment_tiles,
    num_segments,
    maxima,
    out,
    out_stride,
    tallies,
    SEVERAL: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write the scores to ``out`` [G, V]; or, if that is None, over the expert's row, and 0 over
    NaN and +inf in the amateurs'.

    ``floors``: lowest expert logit that each group admits, or None. ``tallies`` [G * segments, 4]
    int64, or None: of each segment the number of valid tokens, the best key, the key of the
    expert's best token (a segment without one has a lower key than any that has), and 1 if the
    segment of an amateur's row or all of the expert's holds NaN or +inf, else 0. ``SEVERAL``: a
    group may have more than one amateur.
    """
    COUNTED: tl.constexpr = tallies is not None
    IN_PLACE: tl.constexpr = out is None
    program = tl.program_id(0)
    group = program // num_segments
    first = program % num_segments * segment_tiles
    last = tl.minimum(first + segment_tiles, num_tiles)
    rows += group * num_streams
    weights += group * (num_streams - 1)
    e_row = logits + tl.load(rows) * row_stride
    a_row = logits + tl.load(rows + 1) * row_stride
    group_maxima = maxima + group * num_tiles
    weight = tl.load(weights)
    if SEVERAL:
        streams = tl.arange(0, MAX_STREAMS)
        present = tl.load(rows + streams, mask=streams < num_streams, other=-1) >= 0
        num_amateurs = tl.sum(present.to(tl.int32)) - 1

    best_logit = _row_maximum(group_maxima, num_tiles)
    threshold = _threshold(best_logit, group, log_alpha, floors)

    if out is not None:
        out_row = out + group.to(tl.int64) * out_stride
    lanes = tl.arange(0, TILE)
    worst = tl.full([TILE], -INF, tl.float32)
    # One number each, and 32 bits wide: keys of whole tiles would take twice the registers.
    count = tl.full([], 0, tl.int32)
    best_score = tl.full([], -INF, tl.float32)
    best_id = tl.full([], INT32_MAX, tl.int32)
    expert_id = tl.full([], INT32_MAX, tl.int32)
    for tile in range(first, last):
        start = tile * TILE
        inside = lanes < vocab - start
        # Before it is known whether that is needed: the load is then on its way.
        a, worst = _amateur(a_row + start + lanes, inside, worst, COUNTED, IN_PLACE)
        scores = tl.full([TILE], -INF, tl.float32)
        if tl.load(group_maxima + tile) >= threshold:
            e = tl.load(e_row + start + lanes, mask=inside, other=-INF).to(tl.float32)
            e = _finite(e, 0.0)
            scores = _contrasted(e, e, a, weight)
            if SEVERAL:
                for i in range(1, num_amateurs):
                    row = logits + tl.load(rows + 1 + i) * row_stride
                    weight_i = tl.load(weights + i)
                    other, worst = _amateur(row + start + lanes, inside, worst, COUNTED, IN_PLACE)
                    scores = _contrasted(scores, e, other, weight_i)
            scores = tl.where(e >= threshold, scores, -INF)
            if COUNTED:
                count += tl.sum((scores > -INF).to(tl.int32))
                score = tl.max(scores)
                token = tl.min(tl.where(scores == score, start + lanes, INT32_MAX))
                best_id = tl.where(score > best_score, token, best_id)
                best_score = tl.maximum(best_score, score)
                token = tl.min(tl.where(e == best_logit, start + lanes, INT32_MAX))
                expert_id = tl.minimum(expert_id, token)
        elif SEVERAL & (COUNTED | IN_PLACE):
            for i in range(1, num_amateurs):
                row = logits + tl.load(rows + 1 + i) * row_stride
                _, worst = _amateur(row + start + lanes, inside, worst, COUNTED, IN_PLACE)
        if IN_PLACE:
            tl.store(e_row + start + lanes, scores, mask=inside)
        else:
            tl.store(out_row + start + lanes, scores, mask=inside)
    if COUNTED:
        tl.store(tallies + 4 * program, count.to(tl.int64))
        tl.store(tallies + 4 * program + 1, _keys(best_score, best_id))
        # The same logit in all segments: the largest key is of the lowest id.
        tl.store(tallies + 4 * program + 2, _keys(best_logit, expert_id))
        most = tl.maximum(best_logit, tl.max(_finite(worst, INF)))
        tl.store(tallies + 4 * program + 3, (most == INF).to(tl.int64))


@triton.jit(do_not_specialize=VARYING)
def add_tallies(tallies, num_segments, statistics, BLOCK: tl.constexpr):
    """Write ``statistics`` [G, 3] of ``tallies`` [G, num_segments, 4]."""
    group = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    count = tl.full([], 0, tl.int64)
    best = tl.full([], EMPTY, tl.int64)
    expert = tl.full([], EMPTY, tl.int64)
    bad = tl.full([], 0, tl.int64)
    for start in range(0, num_segments, BLOCK):
        inside = lanes < num_segments - start
        tally = tallies + 4 * (group * num_segments + start + lanes)
        count += tl.sum(tl.load(tally, mask=inside, other=0))
        best = tl.maximum(best, tl.max(tl.load(tally + 1, mask=inside, other=EMPTY)))
        expert = tl.maximum(expert, tl.max(tl.load(tally + 2, mask=inside, other=EMPTY)))
        bad = tl.maximum(bad, tl.max(tl.load(tally + 3, mask=inside, other=0)))
    to = statistics + 3 * group
    tl.store(to, count)
    # A key's lower half tells the token.
    changed = (best & 0xFFFFFFFF) != (expert & 0xFFFFFFFF)
    tl.store(to + 1, changed.to(tl.int64))
    tl.store(to + 2, bad)
