# SPDX-License-Identifier: Apache-2.0
"""Which setting the dev problems pick, and whether it beats greedy decoding on the held-out ones.

Everything is paired: what counts is the difference on each problem. Scores lie in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped,unused-ignore]

from vllm_cold.tools.tune.grid import Setting

Scores = NDArray[np.float64]
RESAMPLES = 10_000
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


def level_of(confidence: float) -> float:
    """The level of significance that goes with a confidence; 0.05 for 0.95, to the last digit."""
    return round(1.0 - confidence, 12)


def fewest_problems(level: float) -> int:
    """The fewest problems with which McNemar's exact test can have p < level: all must differ,
    and all in the same direction.
    """
    return math.floor(math.log2(2.0 / level)) + 1


def compare(cold: Scores, greedy: Scores, confidence: float, seed: int = 0) -> Comparison:
    """Compare paired scores [n].

    The interval is the adjusted Wald one (D. G. Bonett and R. M. Price, Journal of Educational and
    Behavioral Statistics 37 (2012), 479-488): that of the normal distribution, with one problem
    more for the better and one for the worse, so that it keeps its coverage where few problems
    differ or none does. For scores of 0 and 1 it is widened, if need be, to the exact one of the
    share of the better among those that differ: it then has 0 inside where the test finds nothing.

    Args:
        cold: CoLD's scores.
        greedy: Greedy's scores of the same problems, in the same order.
        confidence: Of the interval, in (0, 1).
        seed: Of the permutations, where all are too many.
    """
    differences, count = cold - greedy, len(cold)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    seen = np.append(differences, (1.0, -1.0))
    low, high = stats.norm.interval(confidence, seen.mean(), seen.std() / math.sqrt(len(seen)))
    differing, test, p = better + worse, "McNemar, exact", 1.0
    if not np.isin((cold, greedy), (0.0, 1.0)).all():
        test, p = "sign-flip permutation", _sign_flip(differences, seed)
    elif differing:
        found = stats.binomtest(better, differing, 0.5)
        exact, p = found.proportion_ci(confidence), float(found.pvalue)
        low = min(low, differing / count * (2.0 * exact.low - 1.0))
        high = max(high, differing / count * (2.0 * exact.high - 1.0))
    return Comparison(
        count=count,
        greedy=float(greedy.mean()),
        cold=float(cold.mean()),
        difference=float(differences.mean()),
        low=max(-1.0, float(low)),
        high=min(1.0, float(high)),
        p=p,
        better=better,
        worse=worse,
        test=test,
    )


def _sign_flip(differences: Scores, seed: int) -> float:
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


@dataclass(frozen=True)
class Row:
    """One setting on the dev problems, which pick one.

    Attributes:
        setting: The setting.
        dev: Against greedy.
    """

    setting: Setting
    dev: Comparison


def pick(rows: Sequence[Row]) -> Row:
    """The setting with the best dev score, the first of several: a grid begins with the mildest."""
    return max(rows, key=lambda row: row.dev.cold)


def is_gain(dev: Comparison, test: Comparison, level: float) -> bool:
    """Whether the picked setting beats greedy decoding: significantly on the held-out problems, and
    at all on the dev ones.
    """
    return test.p < level and test.difference > 0.0 and dev.difference > 0.0


def points(difference: float) -> str:
    """A difference of mean scores in percentage points, with its sign: "+8.0"."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if float(text) == 0.0 else text


def percent(share: float) -> str:
    """A mean score, such as "54.0 %"."""
    return f"{100 * share:.1f} %"


def p_text(p: float) -> str:
    """A p value in a sentence, such as "p = 0.012"."""
    if p < 0.0001:
        return "p < 0.0001"
    return f"p = {p:.4f}" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def interval(found: Comparison) -> str:
    """The interval of a difference, in percentage points: "+1.0 to +15.0"."""
    return f"{points(found.low)} to {points(found.high)}"


def headline(rows: Sequence[Row], test: Comparison, confidence: float) -> str:
    """What to use, and what is known of it, in one sentence.

    Args:
        rows: All settings.
        test: The picked one on the held-out problems.
        confidence: Of the intervals.
    """
    best = pick(rows)
    dev = best.dev
    found = (
        f"{points(test.difference)} points on {test.count} held-out problems "
        f"({100 * confidence:g} % interval {interval(test)}, {p_text(test.p)})"
    )
    level = level_of(confidence)
    if is_gain(dev, test, level):
        return f"Use {best.setting}, which beats greedy decoding: {found}."
    picked = f"{best.setting}"
    picked += f", picked from {len(rows)} settings," if len(rows) > 1 else ""
    is_worse = test.p < level and test.difference < 0.0
    more = ""
    if test.p < level and not is_worse:
        more = f", but {points(dev.difference)} on the {dev.count} dev ones"
    return (
        f"No setting beats greedy decoding significantly, so use that: {picked} "
        f"{'is significantly worse,' if is_worse else 'differs by'} {found}{more}."
    )


def details(rows: Sequence[Row], test: Comparison) -> list[str]:
    """Sentences that belong to the headline."""
    best = pick(rows)
    dev = best.dev
    on_dev = f"On the {dev.count} dev problems its difference was {points(dev.difference)} points."
    if len(rows) > 1:
        on_dev += f" They picked it from {len(rows)} settings, so that is biased upwards."
    if dev.difference <= 0.0:
        on_dev = f"Not even on the {dev.count} dev problems was a setting better than greedy."
    tied = sum(row.dev.cold == dev.cold for row in rows)
    if tied > 1:
        on_dev += f" Of the {tied} settings with that dev score it is the first of the table."
    return [
        f"On the {test.count} held-out problems greedy scores {percent(test.greedy)} and "
        f"{best.setting} {percent(test.cold)}: better on {test.better}, worse on {test.worse} "
        f"({test.test}, two-sided).",
        on_dev,
    ]
