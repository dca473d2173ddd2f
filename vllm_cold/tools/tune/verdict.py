# SPDX-License-Identifier: Apache-2.0
"""Which setting the dev problems pick, and whether it beats greedy decoding on the held-out ones.

Everything is paired: what counts is the difference on each problem. Scores lie in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped,unused-ignore]

from vllm_cold.errors import site
from vllm_cold.tools.tune.grid import Setting

Scores = NDArray[np.float64]

CONFIDENCE = 0.95  # of the intervals
LEVEL = 0.05  # below this p a difference is significant
FEWEST = 6  # problems with which p can be below it, if all differ in the same direction


@dataclass(frozen=True)
class Comparison:
    """Scores of contrastive decoding against those of greedy decoding on the same problems."""

    count: int  # problems
    greedy: float  # mean score
    cold: float
    difference: float  # cold - greedy
    low: float  # ends of its interval
    high: float
    p: float  # two-sided, of the hypothesis that neither is better more often
    better: int  # problems on which vllm-cold scores higher
    worse: int


def compare(cold: Scores, greedy: Scores) -> Comparison:
    """Compare paired scores [n].

    The test is the sign test, which for scores of 0 and 1 is McNemar's exact one.

    The interval is the adjusted Wald one (D. G. Bonett and R. M. Price, Journal of Educational and
    Behavioral Statistics 37 (2012), 479-488): that of the normal distribution, with one problem
    more for the better and one for the worse, so that it keeps its coverage where few problems
    differ or none does. For scores of 0 and 1 it is widened, if need be, to the exact one of the
    share of the better among those that differ: it then has 0 inside where the test finds nothing.
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


class Outcome(NamedTuple):
    """What is matched, or what is kept, alone."""

    found: Comparison  # where texts answer
    silent: Comparison | None  # where they do not, if there are such problems
    whole: Comparison  # on all problems


class Result(NamedTuple):
    """A setting or a plain prompt against greedy decoding. Where something must be kept, too, a
    problem's score is that of both at once: the product.
    """

    setting: Setting
    found: Comparison  # where texts answer: on all problems, but for those that say otherwise
    silent: Comparison | None = None  # on those that do, if there are any
    match: Outcome | None = None  # where something must be kept, what is matched
    keep: Outcome | None = None  # and what is kept

    @property
    def score(self) -> float:
        """Its mean score on all of them."""
        parts = (self.found, self.silent or self.found)
        return sum(part.count * part.cold for part in parts) / sum(part.count for part in parts)

    @property
    def greedy(self) -> float:
        """The mean score of greedy decoding on all of them."""
        parts = (self.found, self.silent or self.found)
        return sum(part.count * part.greedy for part in parts) / sum(part.count for part in parts)

    @property
    def harms(self) -> bool:
        """Whether it is significantly worse where texts do not answer, or keeps less there."""
        parts = (self.silent, self.keep and self.keep.silent)
        return any(part is not None and is_worse(part) for part in parts)

    @property
    def lost(self) -> Comparison | None:
        """What must be kept, if it is significantly worse: where texts answer, or on all problems.
        What is lost where texts do not answer harms there alone.
        """
        if self.keep is None:
            return None
        found, silent, whole = self.keep
        parts = (found,) if silent is not None and is_worse(silent) else (found, whole)
        return next(filter(is_worse, parts), None)


def pick(rows: Sequence[Result]) -> Result:
    """The setting with the best dev score, the first of several: a grid begins with the mildest.
    One that loses what must be kept is taken only where all do.
    """
    return max(rows, key=lambda row: (row.lost is None, row.score))


def is_better(found: Comparison) -> bool:
    """Whether it is significantly better: more often, and by its mean."""
    return found.p < LEVEL and found.better > found.worse and found.difference > 0.0


def is_worse(found: Comparison) -> bool:
    """Whether it is significantly worse."""
    return found.p < LEVEL and found.worse > found.better and found.difference < 0.0


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


def _figures(row: Result, part: Literal["found", "silent"] = "found", which: str = "") -> str:
    """A difference on held-out problems, with all that belongs to it."""
    found: Comparison = getattr(row, part)
    both, each = "", ""
    if row.match is not None and row.keep is not None:
        match, keep = (getattr(one, part) for one in (row.match, row.keep))
        both = " of both at once"
        each = f"; matched {points(match.difference)}, kept {points(keep.difference)}"
        each += f" with p = {keep.p:.2g}"
    return (
        f"{points(found.difference)} points{both} on {found.count} held-out problems{which} "
        f"(95 % interval {interval(found)}, p = {found.p:.2g}{each})"
    )


def loss(row: Result) -> str | None:
    """That it loses what must be kept, if it does, as a sentence without its full stop."""
    if row.match is None or row.keep is None or (lost := row.lost) is None:
        return None
    match = row.match.found if lost is row.keep.found else row.match.whole
    more = f"matches more ({points(match.difference)} points) and " if match.difference > 0 else ""
    return (
        f"{row.setting} {more}loses what must be kept: {points(lost.difference)} points "
        f"(p = {lost.p:.2g}), so it is not advised"
    )


def findings(plain: Sequence[Result], lacks: str, blind: bool) -> list[str]:
    """What plain prompts, first that without the text or instruction, tell before any setting is
    tried: whether it helps at all, and what is to be had for nothing.
    """
    said = []
    for row in plain[:1]:
        right = "right" if row.keep is None else "right and kept"
        said.append(f"The {_help(row.found, lacks, right)}.")
        if row.silent is not None:
            said.append(f"Where it does not answer, the {_help(row.silent, lacks, right)}.")
    for row in plain[1:]:
        parts = filter(None, (row.found, row.silent))
        told = [f"{points(part.difference)} points (p = {part.p:.2g})" for part in parts]
        kept = ""
        if row.keep is not None:
            found = row.keep.whole
            kept = f"; what must be kept {points(found.difference)} points (p = {found.p:.2g})"
        said.append(
            f"Free baseline, {row.setting}: {', where it does not answer '.join(told)}{kept}."
        )
    if blind:
        said.append(
            'Not tested: texts that do not answer. Add problems with "answers": false. There '
            f"contrasts have cost the most: {site('accuracy.html')}"
        )
    return said


def _help(without: Comparison, lacks: str, right: str) -> str:
    """Whether a text helps, by what is right without it."""
    does, advice = "has no clear effect", ""
    if is_worse(without):
        does = "helps"
    elif is_better(without):
        does, advice = "harms", ": better leave it out"
    return (
        f"{lacks} {does}: {percent(without.greedy)} are {right} with it, {percent(without.cold)} "
        f"without ({without.count} problems, p = {without.p:.2g}){advice}"
    )


@dataclass(frozen=True)
class Verdict:
    """What to use, by all that was compared."""

    dev: Mapping[Setting, Result]  # plain prompts and settings on the dev problems, in order
    picked: Setting  # by the dev problems
    held_out: Mapping[Setting, Result]  # plain prompts and the picked setting on the others
    against: Mapping[Setting, Comparison]  # that against plain prompts there, where texts answer
    blind: bool = False  # whether there may be texts that do not answer, and no row says so

    @property
    def best(self) -> Result:
        """The picked setting on the held-out problems."""
        return self.held_out[self.picked]

    @property
    def _plain(self) -> list[Result]:
        """The plain prompts on the held-out problems, but for those that lose what must be kept."""
        rows = (self.held_out[one] for one in self.against)
        return [row for row in rows if row.lost is None]

    def _alone(self, setting: Setting) -> Setting | None:
        """The plain prompt that a setting is tried by."""
        found = (row.setting for row in self._plain)
        return next((one for one in found if one.plain == setting.plain), None)

    def _gains(self, row: Result) -> bool:
        """Whether it beats greedy decoding: significantly on the held-out problems, and at all on
        the dev ones; and does not lose what must be kept.
        """
        gains = is_better(row.found) and self.dev[row.setting].found.difference > 0.0
        return gains and row.lost is None

    @property
    def use(self) -> Result | None:
        """The setting or the plain prompt to use, on the held-out problems; None for greedy
        decoding. A setting has to beat greedy decoding significantly; it must not score below any
        plain prompt, and has to beat the best one significantly if that is a gain for nothing. Nor
        may it score below one on all problems, whether or not their texts answer: that one is to be
        used, unless it is significantly worse where they do. It has to beat the plain prompt that
        it is tried by significantly, whatever that gains. What loses what must be kept is out.
        """
        best, plain = self.best, self._plain
        if self._gains(best):
            rival = max(plain, key=lambda row: row.found.cold, default=None)
            if rival is None:
                return best
            loses = rival.found.cold >= best.found.cold
            ties = is_better(rival.found) and not is_better(self.against[rival.setting])
            if loses or ties:
                return rival
            safe = [row for row in plain if not is_worse(row.found)]
            rival = max(safe, key=lambda row: row.score, default=None)
            if rival is not None and rival.score >= best.score:
                return rival
            alone = self._alone(best.setting)
            return self.held_out[alone] if alone and not is_better(self.against[alone]) else best
        if plain:
            rival = self.held_out[pick([self.dev[row.setting] for row in plain]).setting]
            if self._gains(rival):
                return rival
        return None

    def _is_for_answers(self, row: Result) -> bool:
        """Whether something is to be used only where a text is known to answer: it is significantly
        worse where texts do not, or greedy decoding or a plain prompt is better on all problems.
        """
        if row.silent is None:
            return False
        most = max((row.score for row in self._plain), default=0.0)
        return row.harms or row.score <= row.greedy or row.score < most

    @property
    def gain(self) -> bool:
        """Whether the setting is to be used, whether or not a text answers."""
        return self.use is self.best and not self._is_for_answers(self.best)

    @property
    def only(self) -> bool:
        """Whether the setting is to be used where a text is known to answer, and only there."""
        return self.use is self.best and self._is_for_answers(self.best)

    def headline(self) -> str:
        """What to use, and what is known of it, in one sentence."""
        best, use = self.best, self.use
        row = use or best
        figures = _figures(row, which="" if row.silent is None else " whose text answers")
        only = " only where the text is known to answer" if self._is_for_answers(row) else ""
        if use is None and (said := loss(best)):
            said = f"Use greedy decoding: {said}; {figures}"
        elif use is None:
            dev, tried = self.dev[best.setting].found, len(self.dev) - len(self.against)
            fewer = len(self._plain) < len(self.against)
            without = " without losing what must be kept" if fewer else ""
            said = (
                f"No setting {'and no plain prompt ' if self.against else ''}beats greedy decoding "
                f"significantly{without}, so use that: {best.setting}"
                f"{f', picked from {tried} settings,' if tried > 1 else ''} "
                f"{'is significantly worse,' if is_worse(best.found) else 'differs by'} "
                f"{figures}; {points(dev.difference)} on {dev.count} dev problems"
            )
        elif use is best:
            said = f"Use {use.setting}{only}, which beats greedy decoding: {figures}"
            if alone := self._alone(use.setting):
                found = self.against[alone]
                said += f", and {alone} alone by {points(found.difference)} (p = {found.p:.2g})"
        else:
            said = f"Use {use.setting}{only}, and no contrast: {figures}"
            if lost := loss(best):
                said += f"; {lost}"
            elif is_better(best.found):
                gained = points(best.found.difference)
                less = "scores no more than that on all problems"
                if not is_better(self.against[use.setting]):
                    less = "is not significantly better than that"
                said += f"; {best.setting} ({gained}) {less}"
        if row.silent is not None:
            return f"{said}; where the text does not answer, {_figures(row, 'silent')}."
        return said + ("; nothing is known of texts that do not answer." if self.blind else ".")
