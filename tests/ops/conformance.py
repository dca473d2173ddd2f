# SPDX-License-Identifier: Apache-2.0
"""What every backend of the scoring op is held to: cases, and the comparison with the reference.

A case mixes kinds of rows and settings, one of each per pair, so that a few cases cover a lot. All
outputs start as NaN (ids: as nonsense), so that what a backend does not write shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor

from vllm_cold.ops import Pairs, registry
from vllm_cold.ops.scoring_reference import adaptive_beta, pair_scores

INF = math.inf
VOCABS = (1, 31, 64, 4095, 4096, 4097, 32001, 49152, 128256, 151936, 152064, 256000)
NUM_PAIRS = (0, 1, 2, 7, 64)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ALPHAS = (0.1, 1e-6, 1.0)
BETAS = (0.5, 0.0, 10.0)
KS = (1, 5, 64)
# Rows of a pair, by what is special about them.
KINDS = (
    "normal", "ties", "one left", "expert -inf", "amateur -inf", "both -inf", "huge", "tiny",
    "equal", "ascending", "nothing left", "zeros", "overflow",
)  # fmt: skip
LAYOUTS = ("contiguous", "padded", "every other row", "transposed")
# What is not finite in a pair, in which of its rows, and where.
NOT_FINITE = tuple(
    product(
        ("nan", "-nan", "inf"),
        ("expert", "amateur", "both"),
        ("first", "middle", "last", "everywhere"),
    )
)
# Seed, number of pairs, vocabulary: pairs of all kinds; rows that are split, and that are not.
NOT_FINITE_CASES = (
    (0, 72, 61), (1, 72, 61), (2, 72, 1), (3, 73, 1), (4, 12, 2049), (5, 13, 4097),
    *((seed, 1, 20_001) for seed in range(6, 12)), (12, 2, 40_000), (13, 2, 17_001),
    (14, 3, 33_000), (15, 5, 9001), (16, 9, 120_000),
)  # fmt: skip
F32 = torch.finfo(torch.float32)


@dataclass
class Case:
    """Arguments of the op. ``logits`` may be strided; ``base`` is the memory that it lies in."""

    base: Tensor
    logits: Tensor
    kinds: list[str]
    expert_rows: Tensor
    amateur_rows: Tensor
    log_alpha: Tensor
    beta: Tensor
    expert_top_k: Tensor | None
    max_expert_top_k: int
    adaptive: Tensor | None = None

    @property
    def pairs(self) -> Pairs:
        """What comes behind ``logits`` in both functions of the op."""
        return Pairs(
            self.expert_rows, self.amateur_rows, self.log_alpha, self.beta, self.expert_top_k,
            self.max_expert_top_k, self.adaptive,
        )  # fmt: skip

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """[P, V] expert and amateur logits, a copy."""
        return self.logits[self.expert_rows], self.logits[self.amateur_rows]

    @cached_property
    def terms(self) -> tuple[Tensor, Tensor]:
        """[P, V] float64 ``e`` and ``e - a``, with 0 for -inf."""
        e, a = (rows.double() for rows in self.rows)
        e, a = (torch.where(t == -INF, 0.0, t) for t in (e, a))
        return e, e - a

    @property
    def settings(self) -> list[tuple[float, float, int, bool]]:
        """What the reference takes behind a pair's rows."""
        caps = [0] * len(self.beta) if self.expert_top_k is None else self.expert_top_k.tolist()
        adaptive = [False] * len(self.beta) if self.adaptive is None else self.adaptive.tolist()
        return list(zip(self.log_alpha.tolist(), self.beta.tolist(), caps, adaptive, strict=True))

    @cached_property
    def betas(self) -> tuple[Tensor, Tensor]:
        """[P] float64 contrast strengths by the reference, and what float32 may err by in them:
        nothing where they are given, or 0 by definition.
        """
        betas, errors = self.beta.double(), torch.zeros(len(self.beta), dtype=torch.float64)
        for pair, (log_alpha, beta_max, cap, adaptive) in enumerate(self.settings):
            if not adaptive:
                continue
            e, a = (rows[pair].double() for rows in self.rows)
            betas[pair] = adaptive_beta(e, a, log_alpha, beta_max, cap)
            # An edge token may be a candidate or not. They come by their logits: all from one of
            # them up, or none.
            others = [betas[pair]]
            if self.edge[pair].any():
                logits = e[self.edge[pair]].unique()
                above = torch.nextafter(logits.max().float(), torch.tensor(INF)).double()
                others += [
                    adaptive_beta(e, a, float(lowest - e.max()), beta_max, cap)
                    for lowest in (*logits, above)
                ]
            candidates = pair_scores(e, a, log_alpha, 0.0, cap) > -INF
            candidates |= self.edge[pair]
            reached = a[candidates].max() if candidates.any() else torch.tensor(-INF)
            if int(candidates.sum()) > 1 and reached > -INF:
                # Half of eps, at each rounding. exp(x): x may be rounded twice, the result twice;
                # the mean of -x over a distribution is at most log(V), and below 13. The sums: of
                # lanes and in trees, not deeper than a few dozen. Terms of the divergence: 6. The
                # divergence moves as much as the mean of its probabilities.
                distance = float(a.max() - reached)
                errors[pair] = (32 + distance + 4) * F32.eps * math.exp(-distance) * beta_max
                errors[pair] += 2 * F32.tiny * beta_max
            errors[pair] += max(abs(betas[pair] - other) for other in others)
        return betas, errors

    @cached_property
    def exact(self) -> Tensor:
        """[P, V] float64 scores by the reference, saturated as float32 is. Where ``e - a`` leaves
        float32's range, it saturates too. Where it is 0, no rounding of the reference's shows.
        """
        scores = torch.empty(self.rows[0].shape, dtype=torch.float64)
        for pair, knobs in enumerate(self.settings):
            scores[pair] = pair_scores(self.rows[0][pair], self.rows[1][pair], *knobs)
        e, difference = self.terms
        scores = torch.where((difference == 0) & (scores > -INF), e, scores)
        beyond = difference.abs() > F32.max
        by_parts = e + self.betas[0].unsqueeze(1) * difference.clamp(-F32.max, F32.max)
        saturated = torch.where(beyond, by_parts, scores).clamp(-F32.max, F32.max)
        return torch.where(scores == -INF, scores, saturated)

    @cached_property
    def tolerance(self) -> Tensor:
        """[P, V] float64: what float32 may err by, which is relative to the terms: they may cancel.

        Nothing where beta = 0 or the streams are equal. Anything of its size where the product
        leaves float32's range: whether that saturates before the sum is up to the backend. Where
        beta is not given but computed, what that errs by comes on top.
        """
        e, difference = self.terms
        beta, error = (of_pair.unsqueeze(1) for of_pair in self.betas)
        product = beta * difference
        # The difference, its product with beta and the sum are each rounded, to half of eps.
        bound = 1.5 * F32.eps * (e.abs() + product.abs()) + 2 * F32.tiny
        bound = torch.where(product.abs() > F32.max, product.abs(), bound)
        return torch.where(product == 0, 0.0, bound) + error * difference.abs()

    @cached_property
    def best(self) -> tuple[Tensor, Tensor]:
        """[P, up to 65] float64 exact scores and their ids, best first."""
        best = self.exact.topk(min(65, self.exact.shape[1]))
        return best.values, best.indices

    @cached_property
    def blurred(self) -> Tensor:
        """[P, 1] bool: the pair has a token that rounding may let in or out."""
        return self.edge.any(1, keepdim=True)

    @cached_property
    def edge(self) -> Tensor:
        """[P, V] bool: so near to the threshold that float32 may see it on the other side."""
        e = self.rows[0].double()
        best = e.amax(1, keepdim=True)
        log_alpha = self.log_alpha.double().unsqueeze(1)
        near = (e - best - log_alpha).abs() <= F32.eps * (best.abs() + log_alpha.abs())
        # The best is valid however it is rounded, and what is -inf is not; nor does rounding let in
        # what a cap keeps out.
        near &= (e < best) & (e > -INF)
        if self.expert_top_k is not None:
            for pair, cap in enumerate(self.expert_top_k.tolist()):
                if 0 < cap < e.shape[1]:
                    near[pair] &= e[pair] >= e[pair].topk(cap).values[-1]
        return near


@cache
def _noise() -> Tensor:
    return torch.randn(2**20, generator=torch.Generator().manual_seed(0))


def _rows(kind: str, vocab: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """[2, V] expert and amateur logits of one kind, float32 but representable in ``dtype``."""

    def number(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    noise = _noise()
    both = torch.stack([noise[(at := number(len(noise) - vocab)) : at + vocab] for _ in "ea"]) * 4
    most = float(torch.finfo(dtype).max)
    if kind == "ties":
        both = (both * 2).round() / 8
    elif kind == "one left":
        both[0] = torch.where(torch.arange(vocab) == number(vocab), both[0], -INF)
    elif kind in ("expert -inf", "both -inf"):
        both[0, noise[:vocab] < 0.5] = -INF
    elif kind == "huge":
        both *= min(most, 1e38) / 32
    elif kind == "tiny":
        both *= float(torch.finfo(dtype).tiny) * 8
    elif kind == "equal":
        both[1] = both[0]
    elif kind == "ascending":  # the worst for a running top-k
        both[0] = both[0].sort().values
        both[1] = 0.0
    elif kind == "nothing left":
        both[0] = -INF
    elif kind == "overflow":  # of e - a and of the scores, in float32
        most = min(most, 3e38)
        both = torch.where(both > -2, most, -most)
    elif kind == "zeros":  # -0.0 and 0.0 are the same score
        both = torch.where(both < 0, -0.0, 0.0)
    if kind in ("amateur -inf", "both -inf"):
        both[1, noise[-vocab:] < 0] = -INF
    return both.to(dtype).float()


def make_case(
    seed: int,
    num_pairs: int,
    vocab: int,
    dtype: torch.dtype = torch.float32,
    layout: str = "padded",
    kinds: Sequence[str] = KINDS,
) -> Case:
    """``num_pairs`` pairs scattered over some more rows, with alpha, beta, cap and whether beta
    adapts itself drawn for each.
    Pair i is of kind ``seed + i``, so that consecutive seeds go through all of them.
    """
    generator = torch.Generator().manual_seed(seed)
    num_rows = 2 * num_pairs + 3
    if layout == "contiguous":
        base = torch.full((num_rows, vocab), 7.0, dtype=dtype)
        logits = base
    elif layout == "padded":  # rows that start at odd addresses
        base = torch.full((num_rows, vocab + 5), 7.0, dtype=dtype)
        logits = base[:, 3 : 3 + vocab]
    elif layout == "every other row":
        base = torch.full((2 * num_rows, vocab), 7.0, dtype=dtype)
        logits = base[::2]
    else:
        base = torch.full((vocab, num_rows), 7.0, dtype=dtype)
        logits = base.t()
    order = torch.randperm(num_rows, generator=generator)
    experts, amateurs = order[:num_pairs].clone(), order[num_pairs : 2 * num_pairs].clone()
    chosen = [kinds[(seed + i) % len(kinds)] for i in range(num_pairs)]
    for kind, e, a in zip(chosen, experts.tolist(), amateurs.tolist(), strict=True):
        logits[[e, a]] = _rows(kind, vocab, dtype, generator).to(dtype)

    def one_of(values: Sequence[float]) -> Tensor:
        chosen = torch.randint(len(values), (num_pairs,), generator=generator)
        return torch.tensor(values)[chosen]

    caps = one_of((0, 0, 3, 0, 1, 0, 50, 0, 0, 10**9))
    log_alpha, beta = one_of([math.log(alpha) for alpha in ALPHAS]), one_of(BETAS)
    adaptive = one_of((False, True))
    return Case(
        base,
        logits,
        chosen,
        experts,
        amateurs,
        log_alpha,
        beta,
        caps if caps.any() else None,
        int(caps.max()) if num_pairs else 0,
        adaptive if adaptive.any() else None,
    )


def check_dense(case: Case, got: Tensor) -> None:
    """``got``, [P, V] float32, are the case's scores."""
    assert got.dtype == torch.float32 and got.shape == case.exact.shape
    assert not got.isnan().any(), f"NaN: not written, or made ({case.kinds})"
    valid, want = got > -INF, case.exact > -INF
    wrong = (valid != want) & ~case.edge
    assert not wrong.any(), f"not the same tokens are valid: {_where(case, wrong)}"
    assert (got <= F32.max).all(), "a score is infinite"
    error = torch.where(valid & want, (got.double() - case.exact).abs(), 0.0)
    wrong = error > case.tolerance
    assert not wrong.any(), f"wrong scores: {_where(case, wrong)}"


def check_topk(k: int, scores: Tensor, ids: Tensor, dense: Tensor) -> None:
    """``scores`` and ``ids`` are the best k of ``dense``, the backend's own scores, exactly. So
    their order is that of the exact scores wherever float32 can tell these apart.
    """
    assert scores.dtype == torch.float32 and ids.dtype == torch.int64
    assert scores.shape == ids.shape == (len(dense), k)
    found = ids >= 0
    count = (dense > -INF).sum(1).clamp(max=k)
    assert torch.equal(found, torch.arange(k) < count.unsqueeze(1)), "not so many are valid"
    assert (scores[~found] == -INF).all() and (ids[~found] == -1).all()
    at = ids.clamp(min=0)
    assert torch.equal(scores[found], dense.gather(1, at)[found]), "not the dense scores"
    later, earlier = scores[:, 1:], scores[:, :-1]
    ordered = (earlier > later) | ((earlier == later) & (ids[:, :-1] < ids[:, 1:]))
    assert ordered[found[:, 1:]].all(), "not by score, or ties not to the lower id"
    # In order and all different, they are the best if nothing else is better than the last of them.
    last = (count - 1).clamp(min=0).unsqueeze(1)
    score, token = scores.gather(1, last), at.gather(1, last)
    better = (dense > score) | ((dense == score) & (torch.arange(dense.shape[1]) < token))
    assert torch.equal(better.sum(1)[count > 0], (count - 1)[count > 0]), "not the best"


def check_order(case: Case, ids: Tensor) -> None:
    """The ids are those of the exact scores, where float32 can tell a score from its neighbours."""
    scores, order = case.best
    k = min(ids.shape[1], scores.shape[1])
    slack = 2 * torch.where(case.exact > -INF, case.tolerance, 0.0).amax(1, keepdim=True)
    apart = torch.nn.functional.pad(scores[:, :-1] - scores[:, 1:], (1, 1), value=INF) > slack
    if scores.shape[1] == 65:
        apart = apart[:, :-1]  # nothing is known of what comes behind the last
    above, below = apart[:, :-1], apart[:, 1:]
    k = min(k, below.shape[1])
    certain = above[:, :k] & below[:, :k] & (scores[:, :k] > -INF) & ~case.blurred
    assert torch.equal(ids[:, :k][certain], order[:, :k][certain]), "another order than exact"


def statistics_of(expert: Tensor, scores: Tensor) -> Tensor:
    """[P, 3] int64 of pairs that are finite: valid tokens, whether the best-scored is not the
    expert's best, and 0.
    """
    changed = scores.argmax(1) != expert.float().argmax(1)
    return torch.stack([(scores > -INF).sum(1), changed.long(), torch.zeros(len(scores))], 1).long()


def _where(case: Case, wrong: Tensor) -> list[tuple[str, int]]:
    return [(case.kinds[pair], token) for pair, token in wrong.nonzero()[:5].tolist()]


def check_backend(backend: str | Any, case: Case, ks: Sequence[int] = KS) -> None:
    """Run a backend, by name or as an object, on the case in every form and compare. Not through
    ``vllm_cold.ops.scoring``, which straightens out layouts (so "transposed" is not for here).
    """
    if isinstance(backend, str):
        backend = registry.load(backend)
    num_pairs, vocab = len(case.beta), case.logits.shape[1]
    before = case.base.clone()
    dense = torch.full((num_pairs, vocab), math.nan)
    backend.scores(case.logits, case.pairs, dense, None)
    check_dense(case, dense)
    if case.adaptive is not None:
        given = torch.full_like(dense, math.nan)
        backend.scores(case.logits, replace(case.pairs, adaptive=None), given, None)
        same = torch.equal(given[~case.adaptive], dense[~case.adaptive])
        assert same, "a pair that adapts itself changes the others"
    longest = None
    for k in sorted(ks, reverse=True):
        scores = torch.full((num_pairs, k), math.nan)
        ids = torch.full((num_pairs, k), 10**12)
        backend.topk(case.logits, case.pairs, scores, ids)
        if longest is None:
            check_topk(k, scores, ids, dense)
            check_order(case, ids)
            longest = scores, ids
        assert torch.equal(scores, longest[0][:, :k]), "the scores depend on k"
        assert torch.equal(ids, longest[1][:, :k]), "the ids depend on k"
    bits = {2: torch.int16, 4: torch.int32}[before.element_size()]
    assert torch.equal(case.base.view(bits), before.view(bits)), "the input was written to"
    want = statistics_of(case.rows[0], dense)
    again, counted = torch.full_like(dense, math.nan), torch.full_like(want, -7)
    backend.scores(case.logits, case.pairs, again, counted)
    assert torch.equal(again, dense), "counting changes the scores"
    assert torch.equal(counted, want), "wrong statistics"
    if case.logits.dtype != torch.float32:
        return
    case.rows, case.exact, case.tolerance, case.edge  # noqa: B018 - computed before they are lost
    backend.scores(case.logits, case.pairs, None, None)
    assert torch.equal(case.logits[case.expert_rows], dense), "in place differs from dense"
    case.logits[case.expert_rows] = case.rows[0]
    assert torch.equal(case.base.view(bits), before.view(bits)), "another row was written to"
    counted = torch.full_like(want, -7)
    backend.scores(case.logits, case.pairs, None, counted)
    assert torch.equal(case.logits[case.expert_rows], dense), "counting changes the scores"
    assert torch.equal(counted, want), "wrong statistics in place"
    case.logits[case.expert_rows] = case.rows[0]


def make_not_finite(case: Case, seed: int) -> tuple[Tensor, Tensor]:
    """Spoil every second pair, with all of ``NOT_FINITE`` in turn.

    Returns:
        [P] bool, which pairs; and of which of them the expert's row.
    """
    num_pairs, vocab = len(case.beta), case.logits.shape[1]
    pairs, experts = torch.zeros(2, num_pairs, dtype=torch.bool)
    bits = case.logits.view({2: torch.int16, 4: torch.int32}[case.logits.element_size()])
    for pair in range(seed % 2 if num_pairs > 1 else 0, num_pairs, 2):
        what, rows, where = NOT_FINITE[(seed + 5 * (pair // 2)) % len(NOT_FINITE)]
        places = {"first": 0, "middle": vocab // 2, "last": vocab - 1, "everywhere": slice(None)}
        pairs[pair], experts[pair] = True, rows != "amateur"
        for name, row in (("expert", case.expert_rows[pair]), ("amateur", case.amateur_rows[pair])):
            if rows in (name, "both"):
                if what == "-nan":
                    bits[row, places[where]] = -1  # all bits set, in every dtype
                else:
                    case.logits[row, places[where]] = float(what)
    return pairs, experts


def check_not_finite(
    backend: str | Any,
    seed: int,
    num_pairs: int,
    vocab: int,
    dtype: torch.dtype = torch.float32,
    ks: Sequence[int] = KS,
) -> None:
    """Run a backend on pairs that hold NaN or +inf beside others, in every form. They can be
    sampled from and are told of; the others are the same bits as without them.
    """
    if isinstance(backend, str):
        backend = registry.load(backend)
    case = make_case(seed, num_pairs, vocab, dtype)

    def scores(out: Tensor | None, counts: Tensor | None) -> None:
        backend.scores(case.logits, case.pairs, out, counts)

    def best(k: int) -> tuple[Tensor, Tensor]:
        found = torch.full((num_pairs, k), math.nan), torch.full((num_pairs, k), 10**12)
        backend.topk(case.logits, case.pairs, *found)
        return found

    def bits(x: Tensor) -> Tensor:
        return x.view({2: torch.int16, 4: torch.int32}[x.element_size()])

    before, counted = torch.full((num_pairs, vocab), math.nan), torch.full((num_pairs, 3), -7)
    scores(before, counted)
    best_before = {k: best(k) for k in ks}
    pairs, experts = make_not_finite(case, seed)
    spoiled = case.base.clone()
    rows = case.logits[case.expert_rows], case.logits[case.amateur_rows]
    # Of NaN, "not equal" is true.
    valid = torch.where(experts.unsqueeze(1), rows[0] != -INF, before > -INF)

    def check(got: Tensor, counts: Tensor | None) -> None:
        assert torch.equal(bits(got)[~pairs], bits(before)[~pairs]), "the others' scores"
        assert (got < INF).all(), "a score is NaN or +inf"
        assert torch.equal(got > -INF, valid), "other candidates"
        if counts is not None:
            assert torch.equal(counts[:, 2], pairs.long()), "other pairs are said to be not finite"
            assert torch.equal(counts[~pairs], counted[~pairs]), "the others' statistics"
            assert (counts != -7).all(), "statistics that are not written"

    for counts in (None, torch.full_like(counted, -7)):
        dense = torch.full_like(before, math.nan)
        scores(dense, counts)
        check(dense, counts)
    for k in ks:
        got, ids = best(k)
        assert torch.equal(bits(got)[~pairs], bits(best_before[k][0])[~pairs]), "the others' best"
        assert torch.equal(ids[~pairs], best_before[k][1][~pairs]), "the others' best ids"
        assert (got < INF).all(), "one of the best is NaN or +inf"
        found = torch.arange(k) < valid.sum(1, keepdim=True)
        assert torch.equal(got > -INF, found), "not as many of the best as there are"
        assert (ids[~found] == -1).all() and ((ids[found] >= 0) & (ids[found] < vocab)).all()
        assert valid.gather(1, ids.clamp(min=0))[found].all(), "one of the best is no candidate"
        assert (got[:, :-1] >= got[:, 1:]).all(), "the best are not in order"
        ordered = torch.where(found, ids, -1 - torch.arange(k)).sort(1).values
        assert (ordered[:, 1:] > ordered[:, :-1]).all(), "one of the best is there twice"
    assert torch.equal(bits(case.base), bits(spoiled)), "the input was written to"
    if dtype != torch.float32:
        return
    for counts in (None, torch.full_like(counted, -7)):
        scores(None, counts)
        check(case.logits[case.expert_rows], counts)
        amateurs = case.logits[case.amateur_rows]
        assert torch.equal(bits(amateurs)[~pairs], bits(rows[1])[~pairs]), "the others' amateurs"
        assert (amateurs < INF).all(), "an amateur cannot be sampled from"
        kept = (rows[1] < INF) & (rows[1] > -INF)
        assert torch.equal(amateurs[kept], rows[1][kept]), "more than that was written"
        case.logits[case.expert_rows], case.logits[case.amateur_rows] = rows
        assert torch.equal(bits(case.base), bits(spoiled)), "rows of no pair were written to"


def adaptive_case(dtype: torch.dtype = torch.float32, vocab: int = 2500) -> tuple[Case, Tensor]:
    """Pairs whose beta adapts itself, and [P] float64 what it is by definition; NaN where that is
    for the reference to say. Candidates lie in several tiles, for backends that have some.
    """
    tail = -50.0
    ids = torch.tensor([3, 1030, vocab - 1])
    generator = torch.Generator().manual_seed(0)

    def row(*logits: float, rest: float = tail) -> Tensor:
        values = torch.full((vocab,), rest)
        values[ids[: len(logits)]] = torch.tensor(logits)
        return values

    noise = torch.randn(2, vocab, generator=generator)
    log3, beta = math.log(3), 2.0
    # p = (1/2, 1/2), q = (3/4, 1/4)
    known = 0.954434002924965 - (1 + 0.8112781244591328) / 2
    halfway = row(log3, 0.0)
    halfway[5] = log3 + math.log(2)  # what the amateur likes best is no candidate
    far = row(log3, 0.0)
    far[5] = 2000.0
    # expert, amateur, log_alpha, cap, beta
    pairs: list[tuple[Tensor, Tensor, float, int, float]] = [
        (row(1.0), row(5.0, 3.0), -2.3, 0, 0.0),  # one candidate
        (row(1.0, 0.5, 0.9), row(0.0, 3.0, 1.0), -2.3, 1, 0.0),  # one by the cap
        (row(1.0), row(5.0, 3.0), 0.0, 0, 0.0),  # one by alpha
        (noise[0] * 4, noise[0] * 4, -13.8, 0, 0.0),  # expert and amateur agree
        (noise[0] * 4, noise[0] * 4, -1e4, 0, 0.0),
        (row(2.0, 1.0, 1.5), row(-INF, -INF, -INF), -2.3, 0, 0.0),  # nothing to go by
        (row(2.0, 1.0, 1.5), row(rest=-INF), -2.3, 0, 0.0),
        (row(rest=-INF), noise[1], -2.3, 0, 0.0),  # no candidate
        (row(2.0, 1.0), far, -2.3, 0, 0.0),  # e^-1999
        (row(0.0, 0.0), row(log3, 0.0), -2.3, 0, beta * known),
        (row(7.0, 7.0), row(log3 - 9, -9.0), -0.1, 2, beta * known),
        (row(0.0, 0.0), halfway, -2.3, 0, beta * known / 2),
        (row(0.0, 0.0, 0.0), row(log3, 0.0, -INF), -2.3, 0, math.nan),  # one the amateur excludes
        (row(0.0, -30.0), row(-30.0, 0.0), -40.0, 0, beta),  # nothing in common
        (row(0.0, 0.0), row(1.0, -INF), -2.3, 0, beta * 0.31127812445913283),  # H(3/4) - 1/2
        (row(1.0, 1.0, 1.0), row(1.0, 1.0, 0.0), -2.3, 2, math.nan),  # ties with the cap's last
        (noise[0] * 4, noise[1] * 4, math.log(1e-6), 0, math.nan),
        (noise[0] * 4, noise[1] * 4, -1e4, 0, math.nan),  # every token
        (noise[0] / 1e3, noise[1] / 1e3, -1.0, 0, math.nan),  # hardly any divergence
        (noise[0] * 9, noise[1] * 9, -1e4, 50, math.nan),
    ]
    experts, amateurs, log_alphas, caps, betas = zip(*pairs, strict=True)
    num = len(pairs)
    logits = torch.stack([*experts, *amateurs]).to(dtype)
    rows = torch.arange(2 * num)
    # log 3 is rounded.
    known_betas = torch.tensor(betas, dtype=torch.float64)
    case = Case(
        logits, logits, ["adaptive"] * num, rows[:num].clone(), rows[num:].clone(),
        torch.tensor(log_alphas), torch.full((num,), beta), torch.tensor(caps), max(caps),
        torch.ones(num, dtype=torch.bool),
    )  # fmt: skip
    return case, known_betas


def check_adaptive(backend: str | Any) -> None:
    """Run a backend on ``adaptive_case`` in every dtype, and hold it to the betas by definition."""
    for dtype in DTYPES:
        case, known = adaptive_case(dtype)
        exact = case.betas[0]
        off = (exact - known)[~known.isnan()].abs()
        # What the dtype makes of log 3 moves the divergence by less.
        assert (off <= 8 * torch.finfo(dtype).eps).all(), f"the reference: {off}"
        assert torch.equal(exact == 0, known == 0)
        check_backend(backend, case, ks=(5,))
        module = registry.load(backend) if isinstance(backend, str) else backend
        dense = torch.full(case.exact.shape, math.nan)
        module.scores(case.logits, case.pairs, dense, None)
        for pair in (known == 0).nonzero().flatten().tolist():
            valid = case.exact[pair] > -INF
            same = torch.equal(dense[pair][valid], case.rows[0][pair][valid].float())
            assert same, f"beta is not 0 in pair {pair}"
