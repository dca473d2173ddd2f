# SPDX-License-Identifier: Apache-2.0
"""The statistics, against known values, other ways to compute them, and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from vllm_cold.tools.tune import stats

pytestmark = pytest.mark.unit


def pairs(better: int, worse: int, equal: int) -> tuple[stats.Scores, stats.Scores]:
    """0/1 scores (CoLD's, greedy's) with so many problems of each kind."""
    cold = np.array([1.0] * better + [0.0] * worse + [1.0] * equal)
    greedy = np.array([0.0] * better + [1.0] * worse + [1.0] * equal)
    return cold, greedy


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (6, 0, 2 * 0.5**6),
        (0, 6, 2 * 0.5**6),
        (5, 0, 2 * 0.5**5),
        (8, 1, 2 * (1 + 9) / 2**9),
        (12, 5, 2 * sum(math.comb(17, k) for k in range(6)) / 2**17),
    ],
)
def test_mcnemar_by_counting(better: int, worse: int, expected: float) -> None:
    assert stats.mcnemar(better, worse) == pytest.approx(expected, rel=1e-12)


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 5))
def test_mcnemar_is_the_sign_flip_test_of_0_and_1(better: int, worse: int, equal: int) -> None:
    if better + worse + equal < 1:
        return
    cold, greedy = pairs(better, worse, equal)
    # Both are exact here, and the same test.
    assert stats.sign_flip(cold - greedy, 0) == pytest.approx(stats.mcnemar(better, worse))


def test_sign_flip_by_counting() -> None:
    differences = np.array([0.5, 0.2, -0.1, 0.4, 0.0, 0.3, 0.25])
    nonzero = differences[differences != 0]
    flips = [
        abs(float(np.dot(signs, nonzero)))
        for signs in itertools.product((-1, 1), repeat=len(nonzero))
    ]
    seen = abs(float(nonzero.sum()))
    expected = sum(value >= seen - 1e-12 for value in flips) / len(flips)
    assert stats.sign_flip(differences, 0) == pytest.approx(expected)


@pytest.mark.slow
def test_sign_flip_of_many_is_near_the_t_test() -> None:
    differences = np.random.default_rng(1).normal(0.03, 0.2, 400).clip(-1, 1)
    expected = scipy_stats.ttest_1samp(differences, 0.0).pvalue
    assert stats.sign_flip(differences, 0) == pytest.approx(expected, abs=0.01)
    assert stats.sign_flip(differences, 0) == stats.sign_flip(differences, 0)
    assert stats.sign_flip(-differences, 0) == pytest.approx(stats.sign_flip(differences, 0), 0.2)


@pytest.mark.parametrize("differences", [[], [0.0, 0.0], [0.0, 0.4]])
def test_sign_flip_of_nothing(differences: list[float]) -> None:
    assert stats.sign_flip(np.array(differences), 0) == 1.0


def test_the_interval_is_that_of_means_drawn_anew() -> None:
    cold, greedy = pairs(30, 12, 158)
    differences = cold - greedy
    # How often each of the three values is drawn is all that a mean depends on.
    drawn = np.random.default_rng(5).multinomial(200, [0.15, 0.06, 0.79], size=20_000)
    expected = np.quantile((drawn[:, 0] - drawn[:, 1]) / 200, (0.025, 0.975))
    low, high = stats.bootstrap_interval(differences, 0.95, 0)
    assert (low, high) == pytest.approx(tuple(expected), abs=0.006)
    assert (low, high) == stats.bootstrap_interval(differences, 0.95, 0)
    narrow = stats.bootstrap_interval(differences, 0.8, 0)
    assert low < narrow[0] < 18 / 200 < narrow[1] < high
    # No mean that can be drawn is outside.
    cold, greedy = pairs(3, 0, 37)
    assert stats.bootstrap_interval(cold - greedy, 0.95, 0)[0] == 0.0


def test_the_interval_of_fractions_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(2).uniform(-0.4, 0.6, 150)
    whole = stats.bootstrap_interval(differences, 0.95, 0)
    monkeypatch.setattr(stats, "_CHUNK", 150 * 37)
    assert stats.bootstrap_interval(differences, 0.95, 0) == pytest.approx(whole, abs=0.01)
    error = differences.std() / math.sqrt(150)
    assert whole[1] - whole[0] == pytest.approx(2 * 1.96 * error, rel=0.05)


@pytest.mark.slow
def test_the_interval_holds_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 1000)  # for speed
    rng = np.random.default_rng(3)
    truth, inside, rounds = 0.12 - 0.05, 0, 400
    for index in range(rounds):
        differences = rng.choice([1.0, -1.0, 0.0], p=[0.12, 0.05, 0.83], size=200)
        low, high = stats.bootstrap_interval(differences, 0.95, index)
        inside += low <= truth <= high
    assert 0.92 <= inside / rounds <= 0.98


def coverage(count: int, better: float, worse: float) -> float:
    """How often the interval of 0/1 scores holds the truth, over all that can be drawn."""
    inside = total = 0.0
    for b in range(count + 1):
        for c in range(count - b + 1):
            chance = scipy_stats.multinomial.pmf(
                [b, c, count - b - c], count, [better, worse, 1 - better - worse]
            )
            if chance > 1e-7:
                low, high = stats.paired_interval(b, c, count, 0.95)
                total += chance
                inside += chance * (low - 1e-9 <= better - worse <= high + 1e-9)
    return inside / total


@pytest.mark.parametrize(
    ("count", "better", "worse"),
    [
        (12, 0.1, 0.02),
        (30, 0.05, 0.0),
        (50, 0.02, 0.02),
        (50, 0.9, 0.05),
        (100, 0.01, 0.0),
        (100, 0.04, 0.0),
        (100, 0.04, 0.02),
        (100, 0.15, 0.1),
    ],
)
def test_the_interval_of_0_and_1_covers_even_if_few_differ(
    count: int, better: float, worse: float
) -> None:
    assert coverage(count, better, worse) > 0.94


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 300), st.sampled_from([0.9, 0.95]))
def test_the_interval_of_0_and_1_agrees_with_the_test(
    better: int, worse: int, equal: int, confidence: float
) -> None:
    count = better + worse + equal
    if count == 0:
        return
    low, high = stats.paired_interval(better, worse, count, confidence)
    assert -1.0 <= low <= (better - worse) / count <= high <= 1.0
    significant = stats.mcnemar(better, worse) < round(1.0 - confidence, 12)
    assert (low > 0.0 or high < 0.0) is significant
    assert stats.paired_interval(worse, better, count, confidence) == (-high, -low)


def test_the_interval_of_0_and_1_in_known_places() -> None:
    # No difference seen in 100: Wilson's limit of a share, z**2 / (n + z**2).
    assert stats.paired_interval(0, 0, 100, 0.95) == pytest.approx((-0.037, 0.037), abs=1e-4)
    # Four better, none worse, p = 0.125: the exact end, (2 * 0.025 ** (1/4) - 1) * 4 / 100.
    low, high = stats.paired_interval(4, 0, 100, 0.95)
    assert low == pytest.approx(0.04 * (2 * 0.025**0.25 - 1))
    assert 0.09 < high < 0.11
    cold, greedy = pairs(4, 0, 96)
    found = stats.compare(cold, greedy, 0.95, 0)
    assert (found.low, found.high) == (low, high)
    # Many of both: near the normal interval of the mean.
    low, high = stats.paired_interval(300, 120, 1580, 0.95)
    error = math.sqrt((420 / 1580 - (180 / 1580) ** 2) / 1580)
    assert low == pytest.approx(180 / 1580 - 1.96 * error, abs=0.002)
    assert high == pytest.approx(180 / 1580 + 1.96 * error, abs=0.002)


@pytest.mark.parametrize("only", [0.0, 1.0, -1.0, 0.5])
def test_equal_differences_still_leave_doubt(only: float) -> None:
    low, high = stats.bootstrap_interval(np.full(20, only), 0.95, 0)
    assert -1.0 <= low <= only <= high <= 1.0
    # A share of 1 - 0.025 ** (1 / 20) = 16.8 % of other problems is missed in 2.5 % of draws.
    assert high - low == pytest.approx(2 * 0.16843, abs=1e-4)


def test_holm_by_hand() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.5, 0.9]) == [1.0, 1.0]
    assert stats.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(ps: list[float]) -> None:
    corrected = stats.holm(ps)
    for p, q in zip(ps, corrected, strict=True):
        assert p <= q <= min(1.0, len(ps) * p) or q == pytest.approx(min(1.0, len(ps) * p))
    for (p, q), (r, s) in itertools.combinations(zip(ps, corrected, strict=True), 2):
        assert (p - r) * (q - s) >= 0.0


def test_compare_names_the_test_that_fits_the_scores() -> None:
    cold, greedy = pairs(20, 4, 76)
    found = stats.compare(cold, greedy, 0.95, 0)
    assert (found.count, found.better, found.worse) == (100, 20, 4)
    assert found.difference == pytest.approx(0.16)
    assert found.cold - found.greedy == pytest.approx(0.16)
    assert found.test.startswith("McNemar")
    assert found.p == stats.mcnemar(20, 4)
    assert 0.0 < found.low < 0.16 < found.high
    cold[0] = 0.5
    assert stats.compare(cold, greedy, 0.95, 0).test == "sign-flip permutation"


@pytest.mark.parametrize("level", [0.05, 0.01, 0.1, 0.0625])
def test_fewest_problems(level: float) -> None:
    fewest = stats.fewest_problems(level)
    assert stats.mcnemar(fewest, 0) < level <= stats.mcnemar(fewest - 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "rate"), [(60, 0.15), (100, 0.1), (200, 0.05), (100, 0.2), (300, 0.1), (1000, 0.3)]
)
def test_a_detectable_difference_is_found_four_times_in_five(count: int, rate: float) -> None:
    difference = stats.detectable(count, rate, 0.05, binary=True)
    assert difference is not None
    rng, found, rounds = np.random.default_rng(4), 0, 1500
    for _ in range(rounds):
        better, worse, _ = rng.multinomial(
            count, [(rate + difference) / 2, (rate - difference) / 2, 1 - rate]
        )
        found += stats.mcnemar(better, worse) < 0.05
    # The exact test is a little more careful than the formula.
    assert 0.70 <= found / rounds <= 0.86


def test_what_cannot_be_detected() -> None:
    # Six problems must differ, however small the variance.
    assert stats.detectable(60, 0.1, 0.05, binary=True) is None
    assert stats.detectable(60, 1e-6, 0.05, binary=True) is None
    # No difference of 12 points where 5 in 100 differ.
    assert stats.detectable(50, 0.05, 0.05, binary=True) is None
    assert stats.detectable(50, 0.05, 0.05, binary=False) == pytest.approx(0.0886, abs=1e-4)
    assert stats.detectable(5, 1e-6, 0.05, binary=True) is None
    assert stats.detectable(4, 1.0, 0.05, binary=False) is None


def test_problems_needed_is_the_inverse() -> None:
    needed = stats.problems_needed(0.05, 0.2, 0.05)
    assert stats.detectable(needed, 0.2, 0.05, binary=False) <= 0.05
    assert stats.detectable(needed - 1, 0.2, 0.05, binary=False) > 0.05
    assert needed == math.ceil((1.959964 + 0.841621) ** 2 * 0.2 / 0.05**2)


def test_spread_is_never_zero() -> None:
    assert stats.spread(np.zeros(40)) == 1 / 40
    cold, greedy = pairs(6, 4, 30)
    assert stats.spread(cold - greedy) == pytest.approx(0.25)
