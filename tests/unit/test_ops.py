# SPDX-License-Identifier: Apache-2.0
"""The scoring op against the plain reference, and the identities of the method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vllm_cold.ops import contrastive_scores_, naive
from vllm_cold.rows import PairRows
from vllm_cold.stream import Stream

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
INF = math.inf
ALPHAS = [1e-6, 0.05, 0.1, 0.5, 1.0]
BETAS = [0.0, 0.5, 2.0, 10.0]


def pair_rows(
    pairs: Sequence[tuple[int, int]], knobs: Sequence[tuple[float, float, int]]
) -> PairRows | None:
    """Through ``PairRows.of``, so that the tests see what the processors hand over."""
    streams = []
    for i, ((expert, amateur), (alpha, beta, top_k)) in enumerate(zip(pairs, knobs, strict=True)):
        streams.append((expert, Stream(alpha, beta, top_k, pair=f"{i}", role="expert")))
        streams.append((amateur, Stream(alpha, beta, top_k, pair=f"{i}", role="amateur")))
    return PairRows.of(streams, CPU)


def run(logits: Tensor, rows: PairRows) -> Tensor:
    return contrastive_scores_(
        logits,
        rows.expert,
        rows.amateur,
        rows.log_alpha,
        rows.beta,
        rows.expert_top_k,
        rows.max_expert_top_k,
    )


def score(e: Tensor, a: Tensor, alpha: float, beta: float, top_k: int = 0) -> Tensor:
    """Scores of one pair."""
    rows = pair_rows([(0, 1)], [(alpha, beta, top_k)])
    assert rows is not None
    both = run(torch.stack((e, a)).float(), rows)
    assert torch.equal(both[0], both[1])
    return both[0]


def assert_scores(got: Tensor, e: Tensor, a: Tensor, knobs: tuple[float, float, int]) -> None:
    want = naive.contrastive_scores(e, a, *knobs)
    assert torch.equal(got.isfinite(), want.isfinite()), "not the same tokens are valid"
    assert not got.isnan().any() and not (got == INF).any()
    # Rounding is relative to the terms, which may cancel.
    finite = e[e.isfinite()], a[a.isfinite()]
    largest = max((float(t.abs().max()) for t in finite if len(t)), default=0.0)
    scale = (1 + 2 * knobs[1]) * largest
    valid = want.isfinite()
    error = (got.double() - want)[valid].abs()
    assert (error <= 4 * torch.finfo(torch.float32).eps * scale).all()


@dataclass
class Case:
    logits: Tensor
    pairs: list[tuple[int, int]] = field(default_factory=list)
    knobs: list[tuple[float, float, int]] = field(default_factory=list)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Logits are multiples of 1/8 (times a power of two): ties happen, and no token is so near to
    the threshold that float32 and float64 may disagree (the thresholds are no such multiples).
    """
    num_pairs = draw(st.integers(1, 4))
    num_plain = draw(st.integers(0, 3))
    num_rows = 2 * num_pairs + num_plain
    vocab = draw(st.sampled_from([1, 2, 3, 17, 64, 65]))
    scale = draw(st.sampled_from([1.0, 1.0, 2.0**10, 2.0**100]))
    spread = draw(st.sampled_from([2, 40, 400]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randint(-spread, spread + 1, (num_rows, vocab), generator=generator) / 8.0
    logits *= scale
    for row in range(num_rows):
        masked = torch.rand(vocab, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))
        masked[draw(st.integers(0, vocab - 1))] = False  # all but one at most
        logits[row, masked] = -INF
    order = draw(st.permutations(range(num_rows)))
    case = Case(logits)
    for i in range(num_pairs):
        case.pairs.append((order[2 * i], order[2 * i + 1]))
        top_k = draw(st.sampled_from([0, 0, 1, 2, 5, vocab, vocab + 1, 10**9]))
        case.knobs.append((draw(st.sampled_from(ALPHAS)), draw(st.sampled_from(BETAS)), top_k))
    return case


@settings(max_examples=300, deadline=None)
@given(cases(), st.sampled_from(["contiguous", "padded", "transposed", "every other row"]))
def test_equals_the_reference(case: Case, layout: str) -> None:
    before = case.logits
    num_rows, vocab = before.shape
    if layout == "contiguous":
        base = before.clone()
        logits = base
    elif layout == "padded":
        base = torch.full((num_rows, vocab + 7), 123.0)
        logits = base[:, 3 : 3 + vocab]
    elif layout == "transposed":
        base = torch.empty(vocab, num_rows)
        logits = base.t()
    else:
        base = torch.full((2 * num_rows, vocab), 123.0)
        logits = base[::2]
    logits.copy_(before)
    rows = pair_rows(case.pairs, case.knobs)
    assert rows is not None
    assert run(logits, rows) is logits
    for (expert, amateur), knobs in zip(case.pairs, case.knobs, strict=True):
        assert_scores(logits[expert], before[expert], before[amateur], knobs)
        assert torch.equal(logits[expert], logits[amateur])
    touched = {row for pair in case.pairs for row in pair}
    for row in set(range(num_rows)) - touched:
        assert torch.equal(logits[row].view(torch.int32), before[row].view(torch.int32))
    if layout == "padded":
        assert (base[:, :3] == 123).all() and (base[:, 3 + vocab :] == 123).all()
    if layout == "every other row":
        assert (base[1::2] == 123).all()


def test_one_cap_does_not_lift_another() -> None:
    """A cap beyond the vocabulary is none; it must not switch off the caps of other pairs."""
    logits = torch.tensor([[3.0, 2.9, 2.8, 2.7]]).repeat(4, 1)
    rows = pair_rows([(0, 1), (2, 3)], [(0.1, 0.5, 2), (0.1, 0.5, 1000)])
    assert rows is not None
    run(logits, rows)
    assert logits.isfinite().sum(1).tolist() == [2, 2, 4, 4]


def test_any_cap_that_settings_admit_fits() -> None:
    streams = [(row, Stream(0.1, 0.5, 2**31 - 1, None, "x", role))
               for row, role in enumerate(("expert", "amateur"))]  # fmt: skip
    rows = PairRows.of(streams, CPU)
    assert rows is not None
    assert run(torch.zeros(2, 5), rows).tolist() == [[0.0] * 5] * 2


def test_no_pair_never_reaches_the_op() -> None:
    assert PairRows.of([], CPU) is None
    lonely = [(0, Stream(0.1, 0.5, pair="x", role="expert")),
              (1, Stream(0.1, 0.5, pair="y", role="amateur"))]  # fmt: skip
    assert PairRows.of(lonely, CPU) is None


def test_no_pair_is_harmless_all_the_same() -> None:
    none, knobs = torch.empty(0, dtype=torch.int64), torch.empty(0)
    logits = torch.randn(3, 5)
    before = logits.clone()
    assert torch.equal(contrastive_scores_(logits, none, none, knobs, knobs), before)


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("column", [0, 4])
def test_nan_raises(row: int, column: int) -> None:
    rows = pair_rows([(0, 1)], [(0.1, 0.5, 0)])
    assert rows is not None
    logits = torch.zeros(3, 5)
    logits[row, column] = math.nan
    with pytest.raises(RuntimeError, match="NaN"):
        run(logits, rows)
    with pytest.raises(ValueError, match="NaN"):
        naive.contrastive_scores(logits[0], logits[1], 0.1, 0.5)


def test_nan_in_a_row_of_no_pair_is_not_ours() -> None:
    rows = pair_rows([(0, 1)], [(0.1, 0.5, 0)])
    assert rows is not None
    logits = torch.zeros(3, 5)
    logits[2] = math.nan
    assert run(logits, rows)[2].isnan().all()


def test_by_hand() -> None:
    e = torch.tensor([2.0, 1.5, 0.0, 1.0, -INF])
    a = torch.tensor([3.0, 0.5, -9.0, -INF, 0.0])
    # valid: e >= 2 - 1; where the amateur is -inf there is no penalty.
    want = [1.5, 2.0, -INF, 1.5, -INF]
    assert score(e, a, math.exp(-1.001), 0.5).tolist() == pytest.approx(want)
    assert naive.contrastive_scores(e, a, math.exp(-1.001), 0.5).tolist() == pytest.approx(want)


def logits_pair(seed: int, vocab: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    e, a = 2 * torch.randn(2, vocab, generator=generator)
    return e, a


@pytest.mark.parametrize("alpha", ALPHAS)
def test_beta_zero_is_the_expert(alpha: float) -> None:
    for seed in range(20):
        e, a = logits_pair(seed)
        a[::3] = -INF
        got = score(e, a, alpha, 0.0)
        assert got.argmax() == e.argmax()
        assert torch.equal(got[got.isfinite()], e[got.isfinite()])


@pytest.mark.parametrize("beta", BETAS)
def test_alpha_one_is_greedy(beta: float) -> None:
    for seed in range(20):
        e, a = logits_pair(seed)
        got = score(e, a, 1.0, beta)
        assert got.isfinite().nonzero().flatten().tolist() == [int(e.argmax())]


def test_alpha_one_keeps_exact_ties() -> None:
    e, a = torch.tensor([2.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, -5.0])
    assert score(e, a, 1.0, 1.0).tolist() == [3.0, 4.0, -INF]


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("beta", BETAS)
def test_equal_streams_are_greedy(alpha: float, beta: float) -> None:
    for seed in range(20):
        e, _ = logits_pair(seed)
        got = score(e, e, alpha, beta)
        assert got.argmax() == e.argmax()
        # And the probabilities are the expert's, among its valid tokens.
        valid = got.isfinite()
        torch.testing.assert_close(got[valid], e[valid], rtol=1e-4, atol=1e-4)


def test_with_one_valid_token_beta_does_not_matter() -> None:
    e, a = logits_pair(0)
    e[7] = e.max() + 5
    assert {int(score(e, a, 0.1, beta).argmax()) for beta in BETAS} == {7}


def test_the_maximum_is_taken_after_masks() -> None:
    e, a = torch.tensor([9.0, 2.0, 1.9, -3.0]), torch.zeros(4)
    e[0] = -INF  # what a grammar does to the expert
    assert score(e, a, 0.1, 0.5).isfinite().tolist() == [False, True, True, False]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(ALPHAS), st.sampled_from(BETAS),
       st.floats(-50, 50), st.floats(-50, 50))  # fmt: skip
def test_shifting_a_streams_logits_changes_nothing(
    seed: int, alpha: float, beta: float, by_e: float, by_a: float
) -> None:
    """Unnormalised logits are as good as log-probabilities: the distribution is the same."""
    e, a = logits_pair(seed, vocab=30)
    gap = (e - e.max() - math.log(alpha)).abs()
    if alpha < 1 and gap.min() < 1e-3:
        return  # a token that rounding may let in or out
    base, shifted = score(e, a, alpha, beta), score(e + by_e, a + by_a, alpha, beta)
    torch.testing.assert_close(base.softmax(0), shifted.softmax(0), rtol=2e-2, atol=1e-4)
