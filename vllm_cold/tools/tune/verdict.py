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
    """A setting against greedy decoding, by one kind of score."""

    found: Comparison  # where texts answer: on all problems, but for those that say otherwise
    silent: Comparison | None  # where they do not, if there are such problems
    whole: Comparison  # on all problems


class Result(NamedTuple):
    """A setting or a baseline against greedy decoding."""

    setting: Setting
    score: Outcome  # where something must be kept, too, of both at once: the product
    match: Outcome | None = None  # where something must be kept, what is matched
    keep: Outcome | None = None  # and what is kept

    @property
    def lost(self) -> Comparison | None:
        """What must be kept, if it is significantly worse: where texts answer, or on all problems.
        What is lost only where texts do not answer does not count here.
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
    return max(rows, key=lambda row: (row.lost is None, row.score.whole.cold))


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
    """A difference on held-out problems, with its interval and p."""
    found: Comparison = getattr(row.score, part)
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
    more = f"matches more ({points(match.difference)} points) but " if match.difference > 0 else ""
    return (
        f"{row.setting} {more}loses what must be kept: {points(lost.difference)} points "
        f"(p = {lost.p:.2g})"
    )


def findings(baselines: Sequence[Result], lacks: str, untested: bool) -> list[str]:
    """What the baselines show before any setting is tried: whether the text or instruction helps at
    all (by the first baseline, which lacks it), and what the others gain at no extra cost.
    """
    said = []
    silently = f"where the {lacks} does not answer"
    for row in baselines[:1]:
        right = "right" if row.keep is None else "right and kept"
        said.append(f"The {lacks} {_help(row.score.found, right)}.")
        if row.score.silent is not None:
            said.append(f"{silently.capitalize()}, it {_help(row.score.silent, right)}.")
    for row in baselines[1:]:
        parts = filter(None, (row.score.found, row.score.silent))
        told = [f"{points(part.difference)} points (p = {part.p:.2g})" for part in parts]
        kept = ""
        if row.keep is not None:
            found = row.keep.whole
            kept = f"; what must be kept {points(found.difference)} points (p = {found.p:.2g})"
        said.append(
            f"Baseline (no extra cost), {row.setting}: {f', {silently} '.join(told)}{kept}."
        )
    if untested:
        said.append(
            'Not tested: irrelevant context. Add problems with "answers": false. There contrasts '
            f"have cost the most: {site('accuracy.html')}"
        )
    return said


def _help(without: Comparison, right: str) -> str:
    """Whether a text helps, by what is right without it."""
    does, advice = "has no clear effect", ""
    if is_worse(without):
        does = "helps"
    elif is_better(without):
        does, advice = "harms", ": leave it out"
    return (
        f"{does}: {percent(without.greedy)} are {right} with it, {percent(without.cold)} without "
        f"({without.count} problems, p = {without.p:.2g}){advice}"
    )


@dataclass(frozen=True)
class Verdict:
    """What to use, according to all that was compared."""

    dev: Mapping[Setting, Result]  # baselines and settings on the dev problems, in order
    picked: Setting  # by the dev problems
    held_out: Mapping[Setting, Result]  # baselines and the picked setting on the others
    against: Mapping[Setting, Comparison]  # that against baselines there, where texts answer
    untested: bool = False  # whether there may be texts that do not answer, and no row says so

    @property
    def best(self) -> Result:
        """The picked setting on the held-out problems."""
        return self.held_out[self.picked]

    @property
    def _baselines(self) -> list[Result]:
        """The baselines on the held-out problems, but for those that lose what must be kept."""
        rows = (self.held_out[one] for one in self.against)
        return [row for row in rows if row.lost is None]

    def _alone(self, setting: Setting) -> Setting | None:
        """The baseline that a setting is combined with, unless it loses what must be kept."""
        found = (row.setting for row in self._baselines)
        return next((one for one in found if one.baseline == setting.baseline), None)

    def _gains(self, row: Result) -> bool:
        """Whether it beats greedy decoding: significantly on the held-out problems, and at all on
        the dev ones; and does not lose what must be kept.
        """
        gains = is_better(row.score.found) and self.dev[row.setting].score.found.difference > 0.0
        return gains and row.lost is None

    @property
    def use(self) -> Result | None:
        """The setting or baseline to use, on the held-out problems; None for greedy decoding.

        A setting is used if it

        - beats greedy decoding significantly;
        - scores above each baseline where texts answer, and significantly above the best one if
          that one beats greedy decoding significantly;
        - scores above each baseline on all problems, whether or not their texts answer. A baseline
          that is significantly worse than greedy decoding where they do does not count here;
        - beats the baseline that it is combined with significantly.

        Else the baseline at which it fails is used; where it does not beat greedy decoding, the
        one that the dev problems pick, if that one does. What loses what must be kept never is.
        """
        best, baselines = self.best, self._baselines
        if self._gains(best):
            rival = max(baselines, key=lambda row: row.score.found.cold, default=None)
            if rival is None:
                return best
            loses = rival.score.found.cold >= best.score.found.cold
            ties = is_better(rival.score.found) and not is_better(self.against[rival.setting])
            if loses or ties:
                return rival
            safe = [row for row in baselines if not is_worse(row.score.found)]
            rival = max(safe, key=lambda row: row.score.whole.cold, default=None)
            if rival is not None and rival.score.whole.cold >= best.score.whole.cold:
                return rival
            alone = self._alone(best.setting)
            return self.held_out[alone] if alone and not is_better(self.against[alone]) else best
        if baselines:
            rival = self.held_out[pick([self.dev[row.setting] for row in baselines]).setting]
            if self._gains(rival):
                return rival
        return None

    def _is_for_answers(self, row: Result) -> bool:
        """Whether something is to be used only where a text is known to answer: where texts do not,
        it is significantly worse or keeps less, or on all problems greedy decoding or a baseline is
        better.
        """
        _, silent, whole = row.score
        if silent is None:
            return False
        harms = is_worse(silent) or (row.keep and row.keep.silent and is_worse(row.keep.silent))
        most = max((one.score.whole.cold for one in self._baselines), default=0.0)
        return bool(harms) or whole.cold <= whole.greedy or whole.cold < most

    @property
    def gain(self) -> bool:
        """Whether the setting is to be used, whether or not a text answers."""
        return self.use is self.best and not self._is_for_answers(self.best)

    @property
    def only(self) -> bool:
        """Whether the setting is to be used where a text is known to answer, and only there."""
        return self.use is self.best and self._is_for_answers(self.best)

    def headline(self) -> str:
        """What to use, and its figures."""
        best, use = self.best, self.use
        row = use or best
        silent = row.score.silent
        figures = _figures(row, which="" if silent is None else " whose text answers")
        only = " only where the text is known to answer" if self._is_for_answers(row) else ""
        if use is None:
            said = f"Use greedy decoding: {self._no_gain(figures)}"
        elif use is best:
            said = f"Use {use.setting}{only}, which beats greedy decoding: {figures}"
            if alone := self._alone(use.setting):
                found = self.against[alone]
                said += f", and {alone} alone by {points(found.difference)} (p = {found.p:.2g})"
        else:
            how = f"Use {use.setting}{only}"
            if (name := str(use.setting)).startswith("no "):
                how = f"Leave the {name.removeprefix('no ')} out{only}"
            said = f"{how}, without a contrast: {figures}{self._no_more(use)}"
        if silent is not None:
            return f"{said}; where the text does not answer, {_figures(row, 'silent')}."
        return said + ("; irrelevant context was not tested." if self.untested else ".")

    def _no_gain(self, figures: str) -> str:
        """Why nothing but greedy decoding is advised."""
        if lost := loss(self.best):
            return f"{lost}; {figures}"
        dev, tried = self.dev[self.picked].score.found, len(self.dev) - len(self.against)
        fewer = len(self._baselines) < len(self.against)
        return (
            f"no setting {'or baseline ' if self.against else ''}beats it significantly"
            f"{' without losing what must be kept' if fewer else ''}; {self.picked}"
            f"{f', picked from {tried} settings,' if tried > 1 else ''} "
            f"{'is significantly worse,' if is_worse(self.best.score.found) else 'differs by'} "
            f"{figures}; {points(dev.difference)} on {dev.count} dev problems"
        )

    def _no_more(self, use: Result) -> str:
        """Why a baseline is used and not the picked setting, if that loses or gains something."""
        best = self.best
        if lost := loss(best):
            return f"; {lost}"
        if not is_better(best.score.found):
            return ""
        less = "does not score more on all problems"
        if not is_better(self.against[use.setting]):
            less = "is not significantly better"
        return f"; {best.setting} ({points(best.score.found.difference)}) {less}"
