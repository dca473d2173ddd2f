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
from scipy import stats  # type: ignore[import-untyped,unused-ignore]

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
    low, high = bootstrap_interval(differences, confidence, seed)
    if is_binary(cold) and is_binary(greedy):
        test, p = "McNemar, exact", mcnemar(better, worse)
    else:
        test, p = "sign-flip permutation", sign_flip(differences, seed)
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


def bootstrap_interval(differences: Scores, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``differences`` [n], which lie in [-1, 1].

    Where all differences are equal, resampling shows nothing else and the interval would be a
    point. Then it is widened by what n problems can miss: a share u of problems with
    (1 - u)**n = (1 - confidence) / 2 at the far end of the range.
    """
    count = len(differences)
    values, counts = np.unique(differences, return_counts=True)
    tail = (1.0 - confidence) / 2.0
    if len(values) == 1:
        only, unseen = float(values[0]), 1.0 - tail ** (1.0 / count)
        return only - unseen * (only + 1.0), only + unseen * (1.0 - only)
    rng = np.random.default_rng(seed)
    # How often each value is drawn is all that a resample's mean depends on.
    chunk = max(1, _CHUNK // len(values))
    means = np.concatenate(
        [
            rng.multinomial(count, counts / count, size=min(chunk, RESAMPLES - start)) @ values
            for start in range(0, RESAMPLES, chunk)
        ]
    )
    low, high = np.quantile(means / count, (tail, 1.0 - tail))
    return float(low), float(high)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction: p values that allow for all of them having been looked at."""
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


def detectable(count: int, variance: float, level: float, binary: bool) -> float | None:
    """The smallest true difference that ``count`` problems show as significant four times in five.

    Args:
        count: Held-out problems.
        variance: Of one problem's difference; ``spread`` of those seen.
        level: Of significance.
        binary: Whether scores are 0 or 1.

    Returns:
        A difference of mean scores, or None if even the largest possible one is too small.
    """
    found = _reach(level) * math.sqrt(variance / count)
    if binary:  # McNemar's test needs so many problems that differ, whatever the variance
        found = max(found, fewest_problems(level) / count)
    return found if found <= 1.0 else None


def problems_needed(difference: float, variance: float, level: float) -> int:
    """Problems that show a true ``difference`` > 0 as significant four times in five."""
    return math.ceil((_reach(level) / difference) ** 2 * variance)
