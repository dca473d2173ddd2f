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
    """A setting or a plain prompt against greedy decoding.

    Attributes:
        setting: It.
        found: Where texts answer: on all problems, but for those that say otherwise.
        silent: On those that do; None if there are none.
    """

    setting: Setting
    found: Comparison
    silent: Comparison | None = None

    @property
    def score(self) -> float:
        """Its mean score on all of them."""
        parts = (self.found, self.silent or self.found)
        return sum(part.count * part.cold for part in parts) / sum(part.count for part in parts)

    @property
    def harms(self) -> bool:
        """Whether it is significantly worse where texts do not answer."""
        return self.silent is not None and is_worse(self.silent)


def pick(rows: Sequence[Row]) -> Row:
    """The setting with the best dev score, the first of several: a grid begins with the mildest."""
    return max(rows, key=lambda row: row.score)


def is_better(found: Comparison) -> bool:
    """Whether it is significantly better: more often, and by its mean."""
    return found.p < LEVEL and found.better > found.worse and found.difference > 0.0


def is_worse(found: Comparison) -> bool:
    """Whether it is significantly worse."""
    return found.p < LEVEL and found.worse > found.better and found.difference < 0.0


def is_gain(dev: Comparison, test: Comparison) -> bool:
    """Whether what was picked beats greedy decoding: significantly on the held-out problems, and at
    all on the dev ones.
    """
    return is_better(test) and dev.difference > 0.0


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


def _figures(row: Row, silent: bool = False) -> str:
    """A difference with all that belongs to it."""
    found = row.silent if silent and row.silent is not None else row.found
    which = " whose text answers" if row.silent is not None and not silent else ""
    return (
        f"{points(found.difference)} points on {found.count} held-out problems{which} "
        f"(95 % interval {interval(found)}, p = {found.p:.2g})"
    )


def findings(plain: Sequence[Row], lacks: str, blind: bool) -> list[str]:
    """What plain prompts tell before any setting is tried: whether the text helps at all, and what
    is to be had for nothing.

    Args:
        plain: The plain prompts on all problems, that without the text first.
        lacks: What it is, a text or an instruction.
        blind: Whether there may be texts that do not answer, and no problem has one.
    """
    said = []
    for row in plain[:1]:
        said.append(f"The {_help(row.found, lacks)}.")
        if row.silent is not None:
            said.append(f"Where it does not answer, the {_help(row.silent, lacks)}.")
    for row in plain[1:]:
        parts = filter(None, row[1:])
        told = [f"{points(part.difference)} points (p = {part.p:.2g})" for part in parts]
        said.append(f"For nothing, {row.setting}: {', where it does not answer '.join(told)}.")
    if blind:
        said.append(
            'Blind spot: no problem says "answers": false, so nothing is known of texts that do '
            "not answer the question. There contrasts have cost the most (docs/accuracy.md): add "
            "such problems."
        )
    return said


def _help(without: Comparison, lacks: str) -> str:
    """Whether a text helps, by what is right without it."""
    does, advice = "has no clear effect", ""
    if is_worse(without):
        does = "helps"
    elif is_better(without):
        does, advice = "harms", ": better leave it out"
    return (
        f"{lacks} {does}: {percent(without.greedy)} are right with it, {percent(without.cold)} "
        f"without ({without.count} problems, p = {without.p:.2g}){advice}"
    )


@dataclass(frozen=True)
class Verdict:
    """What to use, by all that was compared.

    Attributes:
        dev: Plain prompts and settings on the dev problems.
        plain: The plain prompts on the held-out problems.
        best: The setting that the dev problems picked, on the held-out ones.
        against: It against each plain prompt there, where texts answer.
        blind: Whether nothing is known of texts that do not answer, though there may be some.
    """

    dev: Sequence[Row]
    plain: Sequence[Row]
    best: Row
    against: Sequence[Comparison] = ()
    blind: bool = False

    @property
    def use(self) -> Row | None:
        """The setting or the plain prompt to use, on the held-out problems; None for greedy
        decoding. A setting has to beat greedy decoding significantly; it must not score below any
        plain prompt, and has to beat the best one significantly if that is a gain for nothing.
        """
        dev = {row.setting: row.found for row in self.dev}
        if is_gain(dev[self.best.setting], self.best.found):
            if not self.plain:
                return self.best
            at = max(range(len(self.plain)), key=lambda i: self.plain[i].found.cold)
            rival = self.plain[at]
            loses = rival.found.cold >= self.best.found.cold
            ties = is_better(rival.found) and not is_better(self.against[at])
            return rival if loses or ties else self.best
        if self.plain:
            named = {row.setting: row for row in self.plain}
            rival = named[pick([row for row in self.dev if row.setting in named]).setting]
            if is_gain(dev[rival.setting], rival.found):
                return rival
        return None

    @property
    def gain(self) -> bool:
        """Whether the setting is to be used, whether or not a text answers."""
        return self.use is self.best and not self.best.harms

    @property
    def only(self) -> bool:
        """Whether the setting is to be used where a text is known to answer, and only there."""
        return self.use is self.best and self.best.harms

    def headline(self) -> str:
        """What to use, and what is known of it, in one sentence."""
        best, use = self.best, self.use
        if use is None:
            tried = len(self.dev) - len(self.plain)
            (dev,) = (row.found for row in self.dev if row.setting == best.setting)
            picked = f"{best.setting}" + (f", picked from {tried} settings," if tried > 1 else "")
            said = (
                f"No setting {'and no plain prompt ' if self.plain else ''}beats greedy decoding "
                f"significantly, so use that: {picked} "
                f"{'is significantly worse,' if is_worse(best.found) else 'differs by'} "
                f"{_figures(best)}; {points(dev.difference)} on {dev.count} dev problems"
            )
            return said + self._elsewhere(best)
        only = " only where the text is known to answer" if use.harms else ""
        said = f"Use {use.setting}{only}, which beats greedy decoding: {_figures(use)}"
        if use is not best:
            said = f"Use {use.setting}{only}, and no contrast: {_figures(use)}"
            if is_better(best.found):
                gained = points(best.found.difference)
                said += f"; {best.setting} ({gained}) is not significantly better than that"
        return said + self._elsewhere(use)

    def _elsewhere(self, row: Row) -> str:
        """The end of the headline: what is known where texts do not answer."""
        if row.silent is not None:
            return f"; where the text does not answer, {_figures(row, silent=True)}."
        return "; nothing is known of texts that do not answer." if self.blind else "."

    def details(self) -> str:
        """A sentence that belongs to the headline."""
        found = self.best.found
        return (
            f"On the {found.count} held-out problems greedy scores {percent(found.greedy)} and "
            f"{self.best.setting} {percent(found.cold)}: better on {found.better}, worse on "
            f"{found.worse} (sign test, for right and wrong McNemar's exact one, two-sided)."
        )
