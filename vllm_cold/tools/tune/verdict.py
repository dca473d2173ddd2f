# SPDX-License-Identifier: Apache-2.0
"""Which setting the dev problems pick, and whether it beats greedy decoding on the held-out ones.

Everything is paired: what counts is the difference on each problem. Scores lie in [0, 1].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped,unused-ignore]

from vllm_cold.errors import site
from vllm_cold.tools.tune.grid import Setting

Scores = NDArray[np.float64]

CONFIDENCE = 0.95  # of the intervals
LEVEL = 0.05  # below this p a difference is significant
FEWEST = 6  # problems with which p can be below it, if all differ in the same direction


class Comparison(msgspec.Struct, frozen=True):
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


class Outcome(msgspec.Struct, frozen=True):
    """A setting against greedy decoding, by one kind of score."""

    found: Comparison  # where texts answer: on all problems, but for those that say otherwise
    silent: Comparison | None  # where they do not, if there are such problems
    whole: Comparison  # on all problems


class Result(msgspec.Struct, frozen=True):
    """A setting or a baseline against greedy decoding."""

    setting: Setting
    score: Outcome  # where something must be kept, too, of both at once: the product
    match: Outcome | None = None  # where something must be kept, what is matched
    keep: Outcome | None = None  # and what is kept

    @property
    def lost(self) -> Comparison | None:
        """What must be kept, if it is significantly worse: where texts answer, where they do not,
        or on all problems.
        """
        if self.keep is None:
            return None
        parts = (self.keep.found, self.keep.silent, self.keep.whole)
        return next((one for one in parts if one is not None and is_worse(one)), None)

    def figures(self, part: Literal["found", "silent"], which: str = "") -> str:
        """A difference on held-out problems, which are ``which``, with its interval and p."""
        found: Comparison = getattr(self.score, part)
        both, each = "", ""
        if self.match is not None and self.keep is not None:
            match, keep = getattr(self.match, part), getattr(self.keep, part)
            both = " of both at once"
            each = f"; matched {points(match.difference)}, kept {points(keep.difference)}"
            each += f" with p = {keep.p:.2g}"
        return (
            f"{points(found.difference)} points{both} on {found.count} held-out problems{which} "
            f"(95 % interval {interval(found)}, p = {found.p:.2g}{each})"
        )


def result(setting: Setting, cold: Scores, greedy: Scores, answers: NDArray[np.bool_]) -> Result:
    """A setting's result.

    Args:
        setting: The setting.
        cold: Its scores [problems, 1 or 2]: what is matched, and what is kept if something must be.
        greedy: Those of greedy decoding.
        answers: Whether the problems' texts answer [problems].
    """
    kinds = [(cold.prod(1), greedy.prod(1))]
    if cold.shape[1] > 1:
        kinds += zip(cold.T, greedy.T, strict=True)
    outcomes = [
        Outcome(
            found=compare(new[answers], old[answers]),
            silent=None if answers.all() else compare(new[~answers], old[~answers]),
            whole=compare(new, old),
        )
        for new, old in kinds
    ]
    return Result(setting, *outcomes)


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


def _told(found: Comparison) -> str:
    """A difference and its p: "+8.0 points (p = 0.012)"."""
    return f"{points(found.difference)} points (p = {found.p:.2g})"


def loss(row: Result) -> str | None:
    """That it loses what must be kept, if it does, as a sentence without its full stop."""
    if row.match is None or (lost := row.lost) is None:
        return None
    gain = row.match.found.difference
    more = f"matches more ({points(gain)} points) but " if gain > 0.0 else ""
    return f"{row.setting} {more}loses what must be kept: {_told(lost)}"


def findings(baselines: Sequence[Result], lacks: str, untested: bool) -> list[str]:
    """What the baselines show before any setting is tried: whether the text or instruction helps at
    all (by the first baseline, which lacks it), and what the others gain at no extra cost.
    """
    said = []
    silently = f"where the {lacks} does not answer"
    for place, row in enumerate(baselines):
        found, silent = row.score.found, row.score.silent
        if place == 0:
            right = "right" if row.keep is None else "right and kept"
            said.append(f"The {lacks} {_help(found, right)}.")
            if silent is not None:
                said.append(f"{silently.capitalize()}, it {_help(silent, right)}.")
            continue
        told = f"Baseline (no extra cost), {row.setting}: {_told(found)}"
        if silent is not None:
            told += f", {silently} {_told(silent)}"
        if row.keep is not None:
            told += f"; what must be kept {_told(row.keep.whole)}"
        said.append(f"{told}.")
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

    def _gains(self, row: Result) -> bool:
        """Whether it beats greedy decoding: significantly on the held-out problems, and at all on
        the dev ones; and does not lose what must be kept.
        """
        gains = is_better(row.score.found) and self.dev[row.setting].score.found.difference > 0.0
        return gains and row.lost is None

    def _rivals(self, baseline: Result) -> bool:
        """Whether a baseline does as well as the picked setting.

        The setting has to score above it where texts answer: significantly if the baseline beats
        greedy decoding significantly, or is combined with the setting. It has to score above it on
        all problems, too, but for a baseline that is significantly worse than greedy decoding where
        texts answer.
        """
        found, whole, own = baseline.score.found, baseline.score.whole, self.best.score
        if found.cold >= own.found.cold:
            return True
        combined = baseline.setting.baseline == self.picked.baseline
        if (combined or is_better(found)) and not is_better(self.against[baseline.setting]):
            return True
        return whole.cold >= own.whole.cold and not is_worse(found)

    @property
    def use(self) -> Result | None:
        """The setting or baseline to use, on the held-out problems; None for greedy decoding.

        A setting is used if it beats greedy decoding, and no baseline does as well; else the best
        of those that do. Where it does not, the baseline that the dev problems pick, if that one
        does. What loses what must be kept never is.
        """
        baselines = self._baselines
        if self._gains(self.best):
            rivals = filter(self._rivals, baselines)
            return max(rivals, key=lambda row: row.score.found.cold, default=self.best)
        if not baselines:
            return None
        picked = pick([self.dev[row.setting] for row in baselines]).setting
        return self.held_out[picked] if self._gains(self.held_out[picked]) else None

    def _is_for_answers(self, row: Result) -> bool:
        """Whether something is to be used only where a text is known to answer: where texts do not,
        it is significantly worse, or on all problems greedy decoding or a baseline is better.
        """
        silent, whole = row.score.silent, row.score.whole
        if silent is None:
            return False
        most = max((one.score.whole.cold for one in self._baselines), default=0.0)
        return is_worse(silent) or whole.cold <= whole.greedy or whole.cold < most

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
        figures = row.figures("found", "" if silent is None else " whose text answers")
        only = " only where the text is known to answer" if self._is_for_answers(row) else ""
        lost = loss(best)
        if use is None:
            said = f"Use greedy decoding: {lost}; {figures}" if lost else self._no_gain(figures)
        elif use is best:
            said = f"Use {use.setting}{only}, which beats greedy decoding: {figures}"
            for one in self._baselines:
                if one.setting.baseline == self.picked.baseline:
                    found = self.against[one.setting]
                    gain = points(found.difference)
                    said += f", and {one.setting} alone by {gain} (p = {found.p:.2g})"
        else:
            name = str(use.setting)
            how = f"Leave the {name[3:]} out" if name.startswith("no ") else f"Use {name}"
            said = f"{how}{only}, without a contrast: {figures}"
            if lost:
                said += f"; {lost}"
            elif is_better(best.score.found):
                said += f"; {best.setting} ({points(best.score.found.difference)}) does not beat it"
        if silent is not None:
            return f"{said}; where the text does not answer, {row.figures('silent')}."
        return said + ("; irrelevant context was not tested." if self.untested else ".")

    def _no_gain(self, figures: str) -> str:
        """Why nothing but greedy decoding is advised."""
        dev = self.dev[self.picked].score.found
        tried = "no setting or baseline" if self.against else "no setting"
        kept = "" if self.best.keep is None else " and keeps what must be kept"
        return (
            f"Use greedy decoding: {tried} beats it significantly{kept}; {self.picked} differs by "
            f"{figures}; {points(dev.difference)} on {dev.count} dev problems"
        )
