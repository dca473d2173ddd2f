# SPDX-License-Identifier: Apache-2.0
"""Is one list of scores better than another, on the same problems?

Everything is paired: what counts is the difference on each problem. Scores lie in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats  # type: ignore[import-untyped,unused-ignore]

Scores = NDArray[np.float64]
RESAMPLES = 10_000
POWER = 0.8
_CHUNK = 4_000_000  # numbers drawn at a time


@dataclass(frozen=True)
class Comparison:
    """Scores of CoLD against those of greedy decoding on the same problems.

    Attributes:
        count: Problems.
        greedy: Greedy's mean score.
        cold: CoLD's mean score.
        difference: ``cold - greedy``.
        low: Lower end of the interval of the difference.
        high: Upper end.
        p: Two-sided p of the hypothesis that neither is better.
        better: Problems on which CoLD scores higher.
        worse: Problems on which it scores lower.
        test: Name of the test that gave ``p``.
    """

    count: int
    greedy: float
    cold: float
    difference: float
    low: float
    high: float
    p: float
    better: int
    worse: int
    test: str


def compare(cold: Scores, greedy: Scores, confidence: float, seed: int) -> Comparison:
    """Compare paired scores [n].

    Args:
        cold: CoLD's scores.
        greedy: Greedy's scores of the same problems, in the same order.
        confidence: Of the interval, in (0, 1).
        seed: Of the resampling.
    """
    differences = cold - greedy
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    if is_binary(cold) and is_binary(greedy):
        test, p = "McNemar, exact", mcnemar(better, worse)
        low, high = paired_interval(better, worse, len(cold), confidence)
    else:
        test, p = "sign-flip permutation", sign_flip(differences, seed)
        low, high = bootstrap_interval(differences, confidence, seed)
    return Comparison(
        count=len(cold),
        greedy=float(greedy.mean()),
        cold=float(cold.mean()),
        difference=float(differences.mean()),
        low=low,
        high=high,
        p=p,
        better=better,
        worse=worse,
        test=test,
    )


def is_binary(scores: Scores) -> bool:
    """Whether all scores are 0 or 1."""
    return bool(np.isin(scores, (0.0, 1.0)).all())


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided p of McNemar's test, from the problems on which the two differ."""
    if better + worse == 0:
        return 1.0
    return float(stats.binomtest(better, better + worse, 0.5).pvalue)


def sign_flip(differences: Scores, seed: int) -> float:
    """Two-sided p of the paired permutation test on the mean of ``differences`` [n].

    If neither method is better, each difference could as well have the other sign. Exact where
    all 2**n flips are fewer than those that are drawn.
    """
    nonzero = differences[differences != 0.0]  # a flip of zero changes nothing
    if len(nonzero) < 2:  # one problem shows nothing, and scipy wants two
        return 1.0
    result = stats.permutation_test(
        (nonzero,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES - 1,
        batch=max(1, _CHUNK // len(nonzero)),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def paired_interval(better: int, worse: int, count: int, confidence: float) -> tuple[float, float]:
    """Interval of the difference of two paired shares, which contains 0 where ``mcnemar`` does not
    reject it.

    It is the wider, at each end, of two. Tango's score interval keeps its coverage where few
    problems differ, but tests zero less carefully than the exact test. The exact interval
    (Clopper-Pearson) of the share of the better among those that differ agrees with that test, but
    takes for granted how many differ.

    Args:
        better: Problems of one kind on which the two differ.
        worse: Those of the other.
        count: All problems.
        confidence: In (0, 1).
    """
    tail = (1.0 - confidence) / 2.0
    ends = _low_end(better, worse, count, tail), -_low_end(worse, better, count, tail)
    return max(-1.0, ends[0]), min(1.0, ends[1])


def _low_end(better: int, worse: int, count: int, tail: float) -> float:
    if worse == count:
        return -1.0
    differing, critical = better + worse, float(stats.norm.isf(tail))

    def score(difference: float) -> float:
        # T. Tango, Statistics in Medicine 17 (1998), 891-908: the standardised difference, with
        # the share of the worse that is most likely if ``difference`` is true.
        b = (2 * count - better + worse) * difference - differing
        c = -worse * difference * (1.0 - difference)
        share = (math.sqrt(max(0.0, b * b - 8 * count * c)) - b) / (4 * count)
        variance = count * (2 * share + difference * (1.0 - difference))
        return (better - worse - count * difference) / math.sqrt(max(variance, 1e-300)) - critical

    found = (better - worse) / count
    low = float(optimize.brentq(score, -1.0 + 1e-12, min(found, 1.0 - 1e-12)))
    if better == 0:
        return low
    exact = float(stats.beta.ppf(tail, better, worse + 1))
    # Rounded, as the exact end can be 0 itself.
    return min(low, round(differing / count * (2 * exact - 1.0), 12))


def bootstrap_interval(differences: Scores, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``differences`` [n], which lie in [-1, 1].

    Where all differences are equal, resampling shows nothing else and the interval would be a
    point. Then it is widened by what n problems can miss: a share u of problems with
    (1 - u)**n = (1 - confidence) / 2 at the far end of the range.
    """
    count = len(differences)
    if (differences == differences[0]).all():
        tail = (1.0 - confidence) / 2.0
        only, unseen = float(differences[0]), 1.0 - tail ** (1.0 / count)
        return only - unseen * (only + 1.0), only + unseen * (1.0 - only)
    found = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, _CHUNK // count),
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction: p values that allow for all of them having been looked at.

    S. Holm, Scandinavian Journal of Statistics 6 (1979), 65-70. SciPy does not have it.
    """
    order = sorted(range(len(ps)), key=lambda index: ps[index])
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = largest
    return corrected


def fewest_problems(level: float) -> int:
    """The fewest problems with which McNemar's exact test can have p < level: all must differ,
    and all in the same direction.
    """
    return math.floor(math.log2(2.0 / level)) + 1


def _reach(level: float) -> float:
    """How many standard errors a true difference must have to be found with ``POWER``."""
    return float(stats.norm.ppf(1.0 - level / 2.0) + stats.norm.ppf(POWER))


def spread(differences: Scores) -> float:
    """Mean square of the differences [n], at least that of one problem out of all: none seen
    does not mean none. For 0/1 scores it is the share of problems on which the two differ.
    """
    return max(float((differences**2).mean()), 1.0 / len(differences))


def is_within_standard_error(differences: Scores) -> bool:
    """Whether the mean of ``differences`` [n] is at most its standard error from 0; for 0/1 scores,
    whether McNemar's statistic is at most 1.
    """
    return float(differences.sum()) ** 2 <= float((differences**2).sum())


def detectable(count: int, variance: float, level: float, binary: bool) -> float | None:
    """The smallest true difference that ``count`` problems show as significant four times in five.

    Args:
        count: Held-out problems.
        variance: Of one problem's difference; ``spread`` of those seen.
        level: Of significance.
        binary: Whether scores are 0 or 1.

    Returns:
        A difference of mean scores, or None if even the largest possible one is too small. With
        0/1 scores no difference is larger than the share of problems that differ, which is
        ``variance``.
    """
    found = _reach(level) * math.sqrt(variance / count)
    if binary:  # McNemar's test needs so many problems that differ, whatever the variance
        found = max(found, fewest_problems(level) / count)
    return found if found <= (variance if binary else 1.0) else None


def problems_needed(difference: float, variance: float, level: float) -> int:
    """Problems that show a true ``difference`` > 0 as significant four times in five."""
    return math.ceil((_reach(level) / difference) ** 2 * variance)
