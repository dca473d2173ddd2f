# SPDX-License-Identifier: Apache-2.0
"""What every backend of the scoring op is held to: cases, and the comparison with the reference.

A case mixes kinds of rows, settings and numbers of streams, one of each per group, so that a few
cases cover a lot. All outputs start as NaN (ids: as nonsense), so that what a backend does not
write shows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor

from tests.formula import group_scores
from vllm_cold.ops import Groups, backend_registry
from vllm_cold.ops.interface import MAX_STREAMS

INF = math.inf
VOCABS = (1, 31, 64, 4095, 4096, 4097, 32001, 49152, 128256, 151936, 152064, 256000)
NUM_GROUPS = (0, 1, 2, 7, 64)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LOG_ALPHAS = (math.log(0.1), math.log(1e-6), 0.0, -INF)
WEIGHTS = (-0.5, 0.0, -10.0, 0.75)
# Rows of a group, by what is special about them. "masked" are those whose only amateur is their
# expert's row again, without weight.
KINDS = (
    "normal", "ties", "one left", "expert -inf", "amateur -inf", "both -inf", "huge", "tiny",
    "equal", "ascending", "nothing left", "zeros", "overflow", "masked", "masked -inf",
)  # fmt: skip
LAYOUTS = ("contiguous", "padded", "every other row", "transposed")
# What is not finite in a group, in which of its rows ("amateur" is one of them), and where.
NOT_FINITE = tuple(
    product(
        ("nan", "-nan", "inf"),
        ("expert", "amateur", "all"),
        ("first", "middle", "last", "everywhere"),
    )
)
# Seed, number of groups, vocabulary: groups of all kinds; rows that are split, and that are not.
NOT_FINITE_CASES = (
    (2, 72, 61), (5, 72, 61), (2, 72, 1), (3, 73, 1), (4, 12, 2049), (5, 13, 4097),
    *((seed, 1, 20_001) for seed in range(6, 12)), (12, 2, 40_000), (13, 2, 17_001),
    (14, 3, 33_000), (15, 5, 9001), (16, 9, 120_000),
)  # fmt: skip
F32 = torch.finfo(torch.float32)


def bits(x: Tensor) -> Tensor:
    """The same memory as integers, of which NaN is equal to itself."""
    return x.view({2: torch.int16, 4: torch.int32}[x.element_size()])


@dataclass
class Case:
    """Arguments of the op. ``logits`` may be strided; ``base`` is the memory that it lies in."""

    base: Tensor
    logits: Tensor
    kinds: list[str]
    rows: Tensor
    weights: Tensor
    log_alpha: Tensor
    expert_top_k: Tensor | None = None
    max_expert_top_k: int = 0

    @property
    def groups(self) -> Groups:
        """What follows ``logits`` in both functions of the op."""
        return Groups(
            self.rows, self.weights, self.log_alpha, self.expert_top_k, self.max_expert_top_k
        )

    @property
    def present(self) -> Tensor:
        """[G, S - 1] bool: where there is an amateur."""
        return self.rows[:, 1:] >= 0

    @property
    def own(self) -> Tensor:
        """[G, S - 1] bool: where there is an amateur that is not the expert's row again."""
        return self.present & (self.rows[:, 1:] != self.rows[:, :1])

    @property
    def expert_rows(self) -> Tensor:
        """[G] row numbers."""
        return self.rows[:, 0]

    @property
    def amateur_rows(self) -> Tensor:
        """[A] row numbers of all amateurs with one of their own, group by group."""
        return self.rows[:, 1:][self.own]

    @cached_property
    def experts(self) -> Tensor:
        """[G, V] experts' logits, a copy."""
        return self.logits[self.expert_rows]

    @cached_property
    def amateurs(self) -> list[Tensor]:
        """Of each of the S - 1: [G, V] logits, a copy; the experts' where there is none."""
        rows = torch.where(self.rows < 0, self.rows[:, :1], self.rows)
        return [self.logits[column] for column in rows[:, 1:].unbind(1)]

    @property
    def settings(self) -> list[tuple[float, list[float], int]]:
        """What the reference takes after a group's rows, of the amateurs that there are."""
        groups = range(len(self.rows))
        caps = [0] * len(self.rows) if self.expert_top_k is None else self.expert_top_k.tolist()
        num = self.present.sum(1).tolist()
        return [
            (float(self.log_alpha[g]), self.weights[g, : num[g]].tolist(), caps[g]) for g in groups
        ]

    @cached_property
    def exact(self) -> Tensor:
        """[G, V] float64 scores by the reference."""
        scores = torch.empty(self.experts.shape, dtype=torch.float64)
        for group, (log_alpha, weights, cap) in enumerate(self.settings):
            amateurs = [a[group] for a in self.amateurs[: len(weights)]]
            scores[group] = group_scores(self.experts[group], amateurs, log_alpha, weights, cap)
        return scores

    @cached_property
    def tolerance(self) -> Tensor:
        """[G, V] float64: what float32 may err by, which is relative to the terms: they may cancel.

        Nothing where an amateur's weight is 0 or it equals the expert. Anything of its size where
        the product leaves float32's range: whether that saturates before the sum is up to the
        backend. Each amateur's errors add up: adding a product and saturating make none of them
        larger.
        """
        e = torch.where(self.experts == -INF, 0.0, self.experts.double())
        total, tolerance = e, torch.zeros_like(e)
        for a, weight in zip(self.amateurs, self.weights.double().T, strict=True):
            a = torch.where(a == -INF, 0.0, a.double())
            difference = (a - e).clamp(-F32.max, F32.max)
            product = weight.unsqueeze(1) * difference
            # The difference, its product with the weight and the sum are each rounded, to half of
            # eps.
            bound = 1.5 * F32.eps * (total.abs() + product.abs()) + 2 * F32.tiny
            bound = torch.where(product.abs() > F32.max, product.abs(), bound)
            tolerance += torch.where(product == 0, 0.0, bound)
            total = (total + product).clamp(-F32.max, F32.max)
        return tolerance

    @cached_property
    def edge(self) -> Tensor:
        """[G, V] bool: so near to the threshold that float32 may see it on the other side."""
        e = self.experts.double()
        best = e.amax(1, keepdim=True)
        log_alpha = self.log_alpha.double().unsqueeze(1)
        near = (e - best - log_alpha).abs() <= F32.eps * (best.abs() + log_alpha.abs())
        # The best is valid however it is rounded, and what is -inf is not; nor does rounding let in
        # what a cap keeps out.
        near &= (e < best) & (e > -INF) & (log_alpha > -INF)
        if self.expert_top_k is not None:
            for group, cap in enumerate(self.expert_top_k.tolist()):
                if 0 < cap < e.shape[1]:
                    near[group] &= e[group] >= e[group].topk(cap).values[-1]
        return near


@cache
def _noise() -> Tensor:
    return torch.randn(2**20, generator=torch.Generator().manual_seed(0))


def _rows(
    kind: str, streams: int, vocab: int, dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """[S, V] logits of one kind, the expert's first, float32 but representable in ``dtype``."""

    def number(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    noise = _noise()
    starts = [number(len(noise) - vocab) for _ in range(streams)]
    rows = torch.stack([noise[at : at + vocab] for at in starts]) * 4
    most = float(torch.finfo(dtype).max)
    if kind == "ties":
        rows = (rows * 2).round() / 8
    elif kind == "one left":
        rows[0] = torch.where(torch.arange(vocab) == number(vocab), rows[0], -INF)
    elif kind in ("expert -inf", "both -inf", "masked -inf"):
        rows[0, noise[:vocab] < 0.5] = -INF
    elif kind == "huge":
        rows *= min(most, 1e38) / 32
    elif kind == "tiny":
        rows *= float(torch.finfo(dtype).tiny) * 8
    elif kind == "equal":  # every second amateur
        rows[1::2] = rows[0]
    elif kind == "ascending":  # every tile beats all before it
        rows[0] = rows[0].sort().values
        rows[1:] = 0.0
    elif kind == "nothing left":
        rows[0] = -INF
    elif kind == "overflow":  # of z_0 - z_i and of the scores, in float32
        most = min(most, 3e38)
        rows = torch.where(rows > -2, most, -most)
    elif kind == "zeros":  # -0.0 and 0.0 are the same score
        rows = torch.where(rows < 0, -0.0, 0.0)
    if kind in ("amateur -inf", "both -inf"):
        for i, row in enumerate(rows[1:]):
            row[noise[i : i + vocab].flip(0) < 0] = -INF
    return rows.to(dtype).float()


def make_case(
    seed: int,
    num_groups: int,
    vocab: int,
    dtype: torch.dtype = torch.float32,
    layout: str = "padded",
    kinds: Sequence[str] = KINDS,
    streams: int | None = None,
) -> Case:
    """``num_groups`` groups scattered over some more rows, which hold NaN. Each has an alpha and a
    cap of its own, and a weight for each amateur.
    Group i is of kind ``seed + i``, so that consecutive seeds go through all of them. It has
    ``streams`` streams; by default up to 2, 3 or 4, by the seed, and fewer from group to group;
    2 if it is masked alone.
    """
    generator = torch.Generator().manual_seed(seed)
    most = 2 + seed % 3 if streams is None else streams
    chosen = [kinds[(seed + i) % len(kinds)] for i in range(num_groups)]
    masked = torch.tensor([kind.startswith("masked") for kind in chosen], dtype=torch.bool)
    sizes = [
        1 if alone else most if streams else most - i % (most - 1)
        for i, alone in enumerate(masked.tolist())
    ]
    num_rows = sum(sizes) + 3
    if layout == "contiguous":
        base = torch.full((num_rows, vocab), math.nan, dtype=dtype)
        logits = base
    elif layout == "padded":  # rows that start at odd addresses
        base = torch.full((num_rows, vocab + 5), math.nan, dtype=dtype)
        logits = base[:, 3 : 3 + vocab]
    elif layout == "every other row":
        base = torch.full((2 * num_rows, vocab), math.nan, dtype=dtype)
        logits = base[::2]
    else:
        base = torch.full((vocab, num_rows), math.nan, dtype=dtype)
        logits = base.t()
    rows = torch.full((num_groups, most), -1)
    parts = torch.randperm(num_rows, generator=generator)[: num_rows - 3].split(sizes)
    for group, (kind, part) in enumerate(zip(chosen, parts, strict=True)):
        rows[group, : len(part)] = part
        logits[part] = _rows(kind, len(part), vocab, dtype, generator).to(dtype)
    rows[masked, 1] = rows[masked, 0]

    def one_of(values: Sequence[float], *shape: int) -> Tensor:
        chosen = torch.randint(len(values), (num_groups, *shape), generator=generator)
        return torch.tensor(values)[chosen]

    caps = one_of((0, 0, 3, 0, 1, 0, 50, 0, 0, 10**9))
    log_alpha, weights = one_of(LOG_ALPHAS), one_of(WEIGHTS, most - 1)
    weighted = (rows[:, 1:] >= 0) & ~masked.unsqueeze(1)
    return Case(
        base,
        logits,
        chosen,
        rows,
        torch.where(weighted, weights, 0.0),
        log_alpha,
        caps if caps.any() else None,
        int(caps.max()) if num_groups else 0,
    )


def of_two(groups: Groups) -> tuple[Tensor, Groups]:
    """[G] bool, which groups have two streams, and these alone."""
    few = (groups.rows >= 0).sum(1) == 2
    narrow = replace(groups, rows=groups.rows[:, :2], weights=groups.weights[:, :1])
    return few, narrow.at(few)


def check_dense(case: Case, got: Tensor) -> None:
    """``got``, [G, V] float32, are the case's scores."""
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
    """``scores`` and ``ids`` are the best k of ``dense``, ties to the lower id."""
    assert scores.dtype == torch.float32 and ids.dtype == torch.int64
    assert scores.shape == ids.shape == (len(dense), k)
    best, order = torch.nn.functional.pad(dense, (0, k), value=-INF).sort(
        dim=1, descending=True, stable=True
    )
    assert torch.equal(scores, best[:, :k]), "not the best scores"
    want = order[:, :k].masked_fill(best[:, :k] == -INF, -1)
    assert torch.equal(ids, want), "not their tokens, or ties not to the lower id"


def statistics_of(expert: Tensor, scores: Tensor) -> Tensor:
    """[G, 3] int64 of groups that are finite: valid tokens, whether the best-scored is not the
    expert's best, and 0.
    """
    changed = scores.argmax(1) != expert.float().argmax(1)
    return torch.stack([(scores > -INF).sum(1), changed.long(), torch.zeros(len(scores))], 1).long()


def _where(case: Case, wrong: Tensor) -> list[tuple[str, int]]:
    return [(case.kinds[group], token) for group, token in wrong.nonzero()[:5].tolist()]


def check_backend(backend: str | Any, case: Case) -> None:
    """Run a backend, by name or as an object, on the case in every form and compare. Not through
    ``vllm_cold.ops.scoring``, which straightens out layouts (so "transposed" is not for here).
    """
    if isinstance(backend, str):
        backend = backend_registry.load(backend)
    num_groups, vocab = len(case.rows), case.logits.shape[1]
    before = case.base.clone()
    dense = torch.full((num_groups, vocab), math.nan)
    backend.scores(case.logits, case.groups, dense, None)
    check_dense(case, dense)
    few, two = of_two(case.groups)
    if few.any() and not few.all():
        alone = torch.full((len(two), vocab), math.nan)
        backend.scores(case.logits, two, alone, None)
        assert torch.equal(alone, dense[few]), "another group's amateurs change the scores"
    assert torch.equal(bits(case.base), bits(before)), "the input was written to"
    want = statistics_of(case.experts, dense)
    again, counted = torch.full_like(dense, math.nan), torch.full_like(want, -7)
    backend.scores(case.logits, case.groups, again, counted)
    assert torch.equal(again, dense), "counting changes the scores"
    assert torch.equal(counted, want), "wrong statistics"
    if case.logits.dtype != torch.float32:
        return
    case.experts, case.exact, case.tolerance, case.edge  # noqa: B018 - computed before they are lost
    backend.scores(case.logits, case.groups, None, None)
    assert torch.equal(case.logits[case.expert_rows], dense), "in place differs from dense"
    case.logits[case.expert_rows] = case.experts
    assert torch.equal(bits(case.base), bits(before)), "another row was written to"
    counted = torch.full_like(want, -7)
    backend.scores(case.logits, case.groups, None, counted)
    assert torch.equal(case.logits[case.expert_rows], dense), "counting changes the scores"
    assert torch.equal(counted, want), "wrong statistics in place"
    case.logits[case.expert_rows] = case.experts


def check_streams(backend: str | Any, vocab: int, dtype: torch.dtype = torch.float32) -> None:
    """``check_backend`` with as many amateurs as there may be, with fewer, and with the expert's
    row alone, which stays as it is.
    """
    kinds = ["normal", "ties", "amateur -inf"]
    case = make_case(3, 3, vocab, dtype, kinds=kinds, streams=MAX_STREAMS)
    case.weights /= 8
    case.rows[1, 1:], case.weights[1], case.log_alpha[1] = -1, 0.0, -INF
    case.rows[1, 1] = case.rows[1, 0]
    case.rows[2, 20:], case.weights[2, 19:] = -1, 0.0
    case.expert_top_k, case.max_expert_top_k = None, 0
    check_backend(backend, case)
    assert torch.equal(case.exact[1], case.experts[1].double())


def make_not_finite(case: Case, seed: int) -> tuple[Tensor, Tensor]:
    """Spoil every second group, with all of ``NOT_FINITE`` in turn.

    Returns:
        [G] bool, which groups; and of which of them the expert's row.
    """
    num_groups, vocab = len(case.rows), case.logits.shape[1]
    groups, experts = torch.zeros(2, num_groups, dtype=torch.bool)
    for group in range(seed % 2 if num_groups > 1 else 0, num_groups, 2):
        what, which, where = NOT_FINITE[(seed + 5 * (group // 2)) % len(NOT_FINITE)]
        places = {"first": 0, "middle": vocab // 2, "last": vocab - 1, "everywhere": slice(None)}
        groups[group] = True
        expert, *amateurs = (row for row in case.rows[group].tolist() if row >= 0)
        one = amateurs[(seed + group // 2) % len(amateurs)]
        rows = {"expert": [expert], "amateur": [one], "all": [expert, *amateurs]}
        experts[group] = expert in rows[which]
        for row in rows[which]:
            if what == "-nan":
                bits(case.logits)[row, places[where]] = -1  # all bits set, in every dtype
            else:
                case.logits[row, places[where]] = float(what)
    return groups, experts


def check_not_finite(
    backend: str | Any,
    seed: int,
    num_groups: int,
    vocab: int,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Run a backend on groups that hold NaN or +inf among others, in every form. They can be
    sampled from and are told of; the others are the same bits as without them.
    """
    if isinstance(backend, str):
        backend = backend_registry.load(backend)
    case = make_case(seed, num_groups, vocab, dtype)

    def scores(out: Tensor | None, counts: Tensor | None) -> None:
        backend.scores(case.logits, case.groups, out, counts)

    before, counted = torch.full((num_groups, vocab), math.nan), torch.full((num_groups, 3), -7)
    scores(before, counted)
    groups, experts = make_not_finite(case, seed)
    spoiled = case.base.clone()
    rows = case.logits[case.expert_rows], case.logits[case.amateur_rows]
    # Of NaN, "not equal" is true.
    valid = torch.where(experts.unsqueeze(1), rows[0] != -INF, before > -INF)

    def check(got: Tensor, counts: Tensor | None) -> None:
        assert torch.equal(bits(got)[~groups], bits(before)[~groups]), "the others' scores"
        assert (got < INF).all(), "a score is NaN or +inf"
        assert torch.equal(got > -INF, valid), "other candidates"
        if counts is not None:
            told = torch.equal(counts[:, 2], groups.long())
            assert told, "other groups are said to be not finite"
            assert torch.equal(counts[~groups], counted[~groups]), "the others' statistics"
            assert (counts != -7).all(), "statistics that are not written"

    for counts in (None, torch.full_like(counted, -7)):
        dense = torch.full_like(before, math.nan)
        scores(dense, counts)
        check(dense, counts)
    assert torch.equal(bits(case.base), bits(spoiled)), "the input was written to"
    if dtype != torch.float32:
        return
    others = ~groups[case.own.nonzero()[:, 0]]  # of the amateurs
    for counts in (None, torch.full_like(counted, -7)):
        scores(None, counts)
        check(case.logits[case.expert_rows], counts)
        amateurs = case.logits[case.amateur_rows]
        assert torch.equal(bits(amateurs)[others], bits(rows[1])[others]), "the others' amateurs"
        assert (amateurs < INF).all(), "an amateur cannot be sampled from"
        kept = (rows[1] < INF) & (rows[1] > -INF)
        assert torch.equal(amateurs[kept], rows[1][kept]), "more than that was written"
        case.logits[case.expert_rows], case.logits[case.amateur_rows] = rows
        assert torch.equal(bits(case.base), bits(spoiled)), "rows of no group were written to"
