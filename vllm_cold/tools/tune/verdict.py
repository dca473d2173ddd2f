# SPDX-License-Identifier: Apache-2.0
"""Which setting the dev problems pick, and whether it beats greedy decoding on the held-out ones.

Everything is paired: what counts is the difference on each problem. Scores lie in [0, 1].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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

    @property
    def is_better(self) -> bool:
        """Whether vllm-cold is significantly better: more often, and by its mean."""
        return self.p < LEVEL and self.better > self.worse and self.difference > 0.0

    @property
    def is_worse(self) -> bool:
        """Whether it is significantly worse."""
        return self.p < LEVEL and self.worse > self.better and self.difference < 0.0

    @property
    def interval(self) -> str:
        """The interval of the difference, in percentage points: "+1.0 to +15.0"."""
        return f"{points(self.low)} to {points(self.high)}"

    def figures(self, which: str = "") -> str:
        """Describe the difference on held-out problems, with its interval and p; ``which`` says
        which of them.
        """
        return (
            f"{points(self.difference)} points on {self.count} held-out problems{which} "
            f"(95 % interval {self.interval}, p = {self.p:.2g})"
        )

    def __str__(self) -> str:
        return f"{points(self.difference)} points (p = {self.p:.2g})"


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
        test = stats.binomtest(better, differing, 0.5)
        p = float(test.pvalue)
        if np.isin((cold, greedy), (0.0, 1.0)).all():
            exact = test.proportion_ci(CONFIDENCE)
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


class Result(msgspec.Struct, frozen=True):
    """A setting or a baseline against greedy decoding."""

    setting: Setting
    answered: Comparison  # where texts answer, or nothing is said
    silent: Comparison | None  # where they do not, if there are such problems
    whole: Comparison  # on all problems


def result(setting: Setting, cold: Scores, greedy: Scores, answers: NDArray[np.bool_]) -> Result:
    """Compare a setting with greedy decoding.

    Args:
        setting: The setting.
        cold: Its scores [problems].
        greedy: Those of greedy decoding.
        answers: Whether the problems' texts answer [problems].
    """
    return Result(
        setting,
        answered=compare(cold[answers], greedy[answers]),
        silent=None if answers.all() else compare(cold[~answers], greedy[~answers]),
        whole=compare(cold, greedy),
    )


def pick(rows: Sequence[Result]) -> Result:
    """Pick the setting with the best dev score, the first of several: a grid begins with the
    mildest.
    """
    return max(rows, key=lambda row: row.whole.cold)


def points(difference: float) -> str:
    """Format a difference of mean scores in percentage points, with its sign: "+8.0"."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if float(text) == 0.0 else text


def percent(share: float) -> str:
    """Format a mean score, such as "54.0 %"."""
    return f"{100 * share:.1f} %"


def findings(baselines: Sequence[Result], lacks: str, untested: bool) -> list[str]:
    """Say what the baselines show before any setting is tried: whether the text or instruction
    helps at all (by the first, which lacks it), and what the others gain at no extra cost.
    """
    sentences = []
    silently = f"where the {lacks} does not answer"
    for place, row in enumerate(baselines):
        if place == 0:
            sentences.append(f"The {lacks} {_help(row.answered)}.")
            if row.silent is not None:
                sentences.append(f"{silently.capitalize()}, it {_help(row.silent)}.")
            continue
        sentence = f"Baseline (no extra cost), {row.setting}: {row.answered}"
        if row.silent is not None:
            sentence += f", {silently} {row.silent}"
        sentences.append(f"{sentence}.")
    if untested:
        sentences.append(
            'Not tested: irrelevant context. Add problems with "answers": false. There contrasts '
            f"have cost the most: {site('accuracy.html')}"
        )
    return sentences


def _help(without: Comparison) -> str:
    """Say whether a text helps, by what is right without it."""
    does, advice = "has no clear effect", ""
    if without.is_worse:
        does = "helps"
    elif without.is_better:
        does, advice = "harms", ": leave it out"
    return (
        f"{does}: {percent(without.greedy)} are right with it, {percent(without.cold)} without "
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
        """The picked setting on the held-out problems; a baseline, if no settings were tried."""
        return self.held_out[self.picked]

    @property
    def _baselines(self) -> list[Result]:
        """The baselines on the held-out problems."""
        return [self.held_out[baseline] for baseline in self.against]

    def _gains(self, row: Result) -> bool:
        """Whether it beats greedy decoding: significantly on the held-out problems, and at all on
        the dev ones.
        """
        return row.answered.is_better and self.dev[row.setting].answered.difference > 0.0

    def _rivals(self, baseline: Result) -> bool:
        """Whether a baseline does as well as the picked setting.

        The setting has to score above it where texts answer: significantly if the baseline beats
        greedy decoding significantly, or is combined with the setting. It has to score above it on
        all problems, too, but for a baseline that is significantly worse than greedy decoding where
        texts answer.
        """
        best, setting = self.best, baseline.setting
        if baseline.answered.cold >= best.answered.cold:
            return True
        combined = setting.baseline == self.picked.baseline
        if (combined or baseline.answered.is_better) and not self.against[setting].is_better:
            return True
        return baseline.whole.cold >= best.whole.cold and not baseline.answered.is_worse

    @property
    def use(self) -> Result | None:
        """The setting or baseline to use, on the held-out problems; None for the prompt as it is,
        decoded greedily.

        A setting is used if it beats greedy decoding, and no baseline does as well; else the best
        of those that do. Where it does not, the baseline that the dev problems pick, if that one
        does.
        """
        baselines = self._baselines
        if self.picked.args and self._gains(self.best):
            rivals = filter(self._rivals, baselines)
            return max(rivals, key=lambda row: row.whole.cold, default=self.best)
        if not baselines:
            return None
        picked = self.held_out[pick([self.dev[row.setting] for row in baselines]).setting]
        return picked if self._gains(picked) else None

    def _is_for_answers(self, row: Result) -> bool:
        """Whether something is to be used only where a text is known to answer: where texts do not,
        it is significantly worse, or on all problems greedy decoding is better, or than a setting a
        baseline.
        """
        if row.silent is None:
            return False
        whole = row.whole
        rivals = self._baselines if row.setting.args else ()
        most = max((baseline.whole.cold for baseline in rivals), default=0.0)
        return row.silent.is_worse or whole.cold <= whole.greedy or whole.cold < most

    @property
    def gain(self) -> bool:
        """Whether what was picked is to be used, whether or not a text answers."""
        return self.use is self.best and not self._is_for_answers(self.best)

    @property
    def only(self) -> bool:
        """Whether it is to be used where a text is known to answer, and only there."""
        return self.use is self.best and self._is_for_answers(self.best)

    def headline(self) -> str:
        """Say what to use, with its figures."""
        best, use = self.best, self.use
        row = use or best
        figures = row.answered.figures(" whose text answers" if row.silent else "")
        only = " only where the text is known to answer" if self._is_for_answers(row) else ""
        if use is None:
            dev = self.dev[self.picked].answered
            tried = "no setting or baseline" if self.against else "no setting"
            keep = "Use greedy decoding"
            if not self.picked.args:
                keep, tried = "Keep the prompt as it is", "no baseline"
            text = f"{keep}: {tried} beats it significantly; {self.picked} differs by "
            text += f"{figures}; {points(dev.difference)} on {dev.count} dev problems"
        elif use is best and self.picked.args:
            text = f"Use {use.setting}{only}, which beats greedy decoding: {figures}"
            if self.picked.baseline is not None:
                alone = Setting(baseline=self.picked.baseline)
                text += f", and {alone} alone by {self.against[alone]}"
        else:
            name = str(use.setting)
            how = f"Leave the {name[3:]} out" if name.startswith("no ") else f"Use {name}"
            contrast = ", without a contrast" if self.picked.args else ""
            text = f"{how}{only}{contrast}: {figures}"
            if best.answered.is_better and use is not best:
                text += f"; {best.setting} ({points(best.answered.difference)}) does not beat it"
        if row.silent is not None:
            return f"{text}; where the text does not answer, {row.silent.figures()}."
        return text + ("; irrelevant context was not tested." if self.untested else ".")
