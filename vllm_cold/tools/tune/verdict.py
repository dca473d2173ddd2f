# SPDX-License-Identifier: Apache-2.0
"""Which setting the dev problems pick, and whether it beats greedy decoding on the held-out ones.

Everything is paired: what counts is the difference on each problem. Scores lie in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped,unused-ignore]

from vllm_cold.tools.tune.grid import Setting

Scores = NDArray[np.float64]

CONFIDENCE = 0.95  # of the intervals
LEVEL = 0.05  # below this p a difference is significant
FEWEST = 6  # problems with which p can be below it, if all differ in the same direction


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
        p: Two-sided p of the hypothesis that neither is better more often.
        better: Problems on which CoLD scores higher.
        worse: Problems on which it scores lower.
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


def compare(cold: Scores, greedy: Scores) -> Comparison:
    """Compare paired scores [n].

    The test is the sign test, which for scores of 0 and 1 is McNemar's exact one.

    The interval is the adjusted Wald one (D. G. Bonett and R. M. Price, Journal of Educational and
    Behavioral Statistics 37 (2012), 479-488): that of the normal distribution, with one problem
    more for the better and one for the worse, so that it keeps its coverage where few problems
    differ or none does. For scores of 0 and 1 it is widened, if need be, to the exact one of the
    share of the better among those that differ: it then has 0 inside where the test finds nothing.

    Args:
        cold: CoLD's scores.
        greedy: Greedy's scores of the same problems, in the same order.
    """
    differences, count = cold - greedy, len(cold)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    seen = np.append(differences, (1.0, -1.0))
    low, high = stats.norm.interval(CONFIDENCE, seen.mean(), seen.std() / math.sqrt(len(seen)))
    differing, p = better + worse, 1.0
    if differing:
        found = stats.binomtest(better, differing, 0.5)
        p = float(found.pvalue)
        if np.isin((cold, greedy), (0.0, 1.0)).all():
            exact = found.proportion_ci(CONFIDENCE)
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
    )


class Row(NamedTuple):
    """A setting against greedy decoding on the dev problems, which pick one."""

    setting: Setting
    dev: Comparison


def pick(rows: Sequence[Row]) -> Row:
    """The setting with the best dev score, the first of several: a grid begins with the mildest."""
    return max(rows, key=lambda row: row.dev.cold)


def is_gain(dev: Comparison, test: Comparison) -> bool:
    """Whether the picked setting beats greedy decoding: significantly on the held-out problems,
    more often and by its mean, and at all on the dev ones.
    """
    is_better = test.better > test.worse and test.difference > 0.0
    return test.p < LEVEL and is_better and dev.difference > 0.0


def points(difference: float) -> str:
    """A difference of mean scores in percentage points, with its sign: "+8.0"."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if float(text) == 0.0 else text


def percent(share: float) -> str:
    """A mean score, such as "54.0 %"."""
    return f"{100 * share:.1f} %"


def interval(found: Comparison) -> str:
    """The interval of a difference, in percentage points: "+1.0 to +15.0"."""
    return f"{points(found.low)} to {points(found.high)}"


def headline(rows: Sequence[Row], test: Comparison) -> str:
    """What to use, and what is known of it, in one sentence, of all settings on the dev problems
    and the picked one on the held-out ones.
    """
    best = pick(rows)
    dev = best.dev
    found = (
        f"{points(test.difference)} points on {test.count} held-out problems "
        f"(95 % interval {interval(test)}, p = {test.p:.2g})"
    )
    if is_gain(dev, test):
        return f"Use {best.setting}, which beats greedy decoding: {found}."
    picked = f"{best.setting}"
    picked += f", picked from {len(rows)} settings," if len(rows) > 1 else ""
    is_worse = test.p < LEVEL and test.worse > test.better and test.difference < 0.0
    return (
        f"No setting beats greedy decoding significantly, so use that: {picked} "
        f"{'is significantly worse,' if is_worse else 'differs by'} {found}; "
        f"{points(dev.difference)} on {dev.count} dev problems."
    )


def details(rows: Sequence[Row], test: Comparison) -> list[str]:
    """Sentences that belong to the headline."""
    best = pick(rows)
    on_dev = (
        f"On the {best.dev.count} dev problems its difference was {points(best.dev.difference)} "
        "points."
    )
    if len(rows) > 1:
        on_dev += f" They picked it from {len(rows)} settings, so that is biased upwards."
    return [
        f"On the {test.count} held-out problems greedy scores {percent(test.greedy)} and "
        f"{best.setting} {percent(test.cold)}: better on {test.better}, worse on {test.worse} "
        "(sign test, for right and wrong McNemar's exact one, two-sided).",
        on_dev,
    ]
