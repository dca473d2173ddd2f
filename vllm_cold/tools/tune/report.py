# SPDX-License-Identifier: Apache-2.0
"""The conclusion: which setting is best, whether it beats greedy, and what that is worth.

Plain numbers and sentences; ``show``, ``heatmap`` and ``page`` only present them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from vllm_cold.tools.tune import stats
from vllm_cold.tools.tune.changes import Change
from vllm_cold.tools.tune.grid import Setting
from vllm_cold.tools.tune.stats import Comparison, Scores

FORMAT = 2
SMALL = 50  # held-out problems; with fewer, only large differences can be found
P_FLOOR = 0.0001
CUT = 0.05  # share of outputs cut off by --max-tokens that is worth a word


@dataclass(frozen=True)
class Row:
    """One setting on the dev problems, which pick one.

    Attributes:
        setting: The setting.
        dev: Against greedy, None where the setting is greedy decoding itself.
        p_holm: ``dev.p``, corrected for the number of settings.
        significant: Whether ``p_holm`` is below the level; for better or for worse.
        leads: Whether it has the best score, or is within one standard error of it where both are
            significantly better than greedy.
    """

    setting: Setting
    dev: Comparison | None = None
    p_holm: float | None = None
    significant: bool = False
    leads: bool = False


@dataclass(frozen=True)
class Report:
    """All that the presentations say.

    Attributes:
        gain: Whether the picked setting beats greedy significantly.
        headline: What to use, and what is known of it, in one sentence.
        details: Sentences that belong to it.
        best: The setting that the dev problems picked.
        test: ``best`` against greedy on the held-out problems.
        rows: All settings, on the dev problems.
        level: Of significance.
        confidence: Of the intervals.
        detectable: The smallest true difference that the held-out problems show as significant
            four times in five, None if none.
        ladder: The same for other numbers of held-out problems: (problems, difference).
        needed: Held-out problems that would show a true difference of the size of that on them as
            significant four times in five; None where that is no gain, or there are as many.
        changes: The held-out problems on which the two score differently.
        notes: What else a reader has to know.
        serve: The line to paste: with CoLD if ``gain``, greedy otherwise.
        serve_best: The line for ``best``, whatever the verdict.
        run: What was run: files, options, versions, counts.
    """

    gain: bool
    headline: str
    details: tuple[str, ...]
    best: Setting
    test: Comparison
    rows: tuple[Row, ...]
    level: float
    confidence: float
    detectable: float | None
    ladder: tuple[tuple[int, float | None], ...]
    needed: int | None
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    serve: str
    serve_best: str
    run: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The content of report.json."""
        return {"format": FORMAT, **msgspec.to_builtins(self)}


def level_of(confidence: float) -> float:
    """The level of significance that goes with a confidence; 0.05 for 0.95, to the last digit."""
    return round(1.0 - confidence, 12)


def percent(share: float) -> str:
    """A mean score, such as "54.0 %"."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """A difference of mean scores in percentage points, with its sign: "+8.0"."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if float(text) == 0.0 else text


def size(difference: float) -> str:
    """A difference in percentage points, without its sign: "8.0"."""
    return f"{100 * abs(difference):.1f}"


def p_value(p: float) -> str:
    """A p value, such as "0.012", with three digits at most."""
    if p < P_FLOOR:
        return f"<{P_FLOOR:.4f}"
    return f"{p:.4f}" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def p_text(p: float) -> str:
    """The same in a sentence: "p = 0.012"."""
    return f"p < {P_FLOOR:.4f}" if p < P_FLOOR else f"p = {p_value(p)}"


def interval(comparison: Comparison) -> str:
    """The interval of a difference, in percentage points: "+1.0 to +15.0"."""
    return f"{points(comparison.low)} to {points(comparison.high)}"


def judge_grid(
    scores: Callable[[Setting | None], Scores],
    grid: Sequence[Setting],
    confidence: float,
    seed: int,
) -> tuple[Row, ...]:
    """Compare every setting with greedy on the dev problems.

    Args:
        scores: Gives the scores [n] of a setting, or of greedy.
        grid: The settings.
        confidence: Of the intervals; the level of significance is 1 minus it.
        seed: Of the resampling.
    """
    greedy = scores(None)
    compared = {
        setting: stats.compare(scores(setting), greedy, confidence, seed)
        for setting in grid
        if not setting.is_greedy
    }
    corrected = dict(zip(compared, stats.holm([one.p for one in compared.values()]), strict=True))
    level = level_of(confidence)
    top = max(compared, key=lambda setting: compared[setting].cold)

    def wins(setting: Setting) -> bool:
        return corrected[setting] < level and compared[setting].difference > 0.0

    def leads(setting: Setting) -> bool:
        if compared[setting].cold == compared[top].cold:
            return True
        both = wins(setting) and wins(top)
        return both and stats.is_within_standard_error(scores(top) - scores(setting))

    return tuple(
        Row(setting)
        if setting.is_greedy
        else Row(
            setting,
            compared[setting],
            corrected[setting],
            corrected[setting] < level,
            leads(setting),
        )
        for setting in grid
    )


def pick(rows: Sequence[Row]) -> Setting:
    """Of those that lead the one nearest to greedy: small beta (or weights), large alpha.

    An adaptive beta counts as the most that it reaches, and is nearer than a number of that size.
    """
    return max(
        (row.setting for row in rows if row.leads),
        key=lambda setting: (-setting.strength, setting.adaptive, setting.alpha),
    )


def conclude(
    *,
    rows: tuple[Row, ...],
    scores: Callable[[Setting | None, str], Scores],
    confidence: float,
    seed: int,
    changes: tuple[Change, ...],
    notes: Sequence[str],
    serve: Callable[[Setting | None], str],
    use: Callable[[Setting | None], str],
    run: dict[str, Any],
) -> Report:
    """Judge the picked setting on the held-out problems, and say so.

    Args:
        rows: From ``judge_grid``.
        scores: Gives the scores [n] of greedy, or of the picked setting, on the "dev" or the
            held-out "test" problems.
        confidence: Of the intervals.
        seed: Of the resampling.
        changes: From ``changes.find``.
        notes: What the run has to say.
        serve: Gives the command line for a setting, or for greedy.
        use: Gives what a sentence says of that: what to paste.
        run: What was run.
    """
    level = level_of(confidence)
    best = pick(rows)
    dev = next(row.dev for row in rows if row.setting == best)
    assert dev is not None
    parts = ("test", "dev")
    greedy, cold = [scores(None, part) for part in parts], [scores(best, part) for part in parts]
    test = stats.compare(cold[0], greedy[0], confidence, seed)
    gain = test.p < level and test.difference > 0.0 and dev.difference > 0.0

    variance = stats.spread(np.concatenate(cold) - np.concatenate(greedy))
    binary = all(map(stats.is_binary, (*cold, *greedy)))
    ladder = tuple(
        (test.count * factor, stats.detectable(test.count * factor, variance, level, binary))
        for factor in (1, 2, 4, 8, 16)
    )
    detectable = ladder[0][1]
    needed = None
    if points(test.difference).startswith("+"):
        # For that difference at least as many have to differ.
        differing = max(variance, test.difference) if binary else variance
        needed = stats.problems_needed(test.difference, differing, level)
        needed = needed if needed > test.count else None

    found = (
        f"{points(test.difference)} points on {test.count} held-out problems "
        f"({100 * confidence:g} % interval {interval(test)}, {p_text(test.p)})"
    )
    if gain:
        headline = f"Use {use(best)}, which beats greedy decoding: {found}."
    else:
        several = sum(row.dev is not None for row in rows)
        picked = f"{best}, picked from {several} settings," if several > 1 else str(best)
        is_worse, more = test.p < level and test.difference < 0.0, ""
        if test.p < level and not is_worse:
            more = f", but {points(dev.difference)} on the {dev.count} dev ones"
        elif needed is not None:
            more = (
                f", and a true difference of that size takes about {needed} to be found four times "
                "in five"
            )
        elif not is_worse and detectable is not None:
            more = (
                f", which find a true difference of about {size(detectable)} points four times in "
                "five"
            )
        elif not is_worse:
            more = ", too few to find any difference reliably"
        headline = (
            f"No setting beats greedy decoding significantly, so use that, {use(None)}: {picked} "
            f"{'is significantly worse,' if is_worse else 'differs by'} {found}{more}."
        )

    return Report(
        gain=gain,
        headline=headline,
        details=tuple(_details(rows, best, dev, test)),
        best=best,
        test=test,
        rows=rows,
        level=level,
        confidence=confidence,
        detectable=detectable,
        ladder=ladder,
        needed=needed,
        changes=changes,
        notes=(*notes, *_notes(test, dev, level)),
        serve=serve(best if gain else None),
        serve_best=serve(best),
        run=run,
    )


def _details(rows: Sequence[Row], best: Setting, dev: Comparison, test: Comparison) -> list[str]:
    details = [
        f"On the {test.count} held-out problems greedy scores {percent(test.greedy)} and {best} "
        f"{percent(test.cold)}: better on {test.better}, worse on {test.worse} ({test.test}, "
        "two-sided)."
    ]
    compared = [(row, row.dev) for row in rows if row.dev is not None]
    on_dev = f"n the {dev.count} dev problems"
    if dev.difference <= 0.0:
        details.append(f"Not even o{on_dev} was a setting better than greedy.")
    else:
        details.append(f"O{on_dev} its difference was {points(dev.difference)} points.")
        if len(compared) > 1:
            details[1] += (
                f" They picked it from {len(compared)} settings, so that is biased upwards."
            )
        leading = [(row, found) for row, found in compared if row.leads]
        if len(leading) > 1:
            others = f"{len(leading) - 1} other {'setting' if len(leading) == 2 else 'settings'}"
            top, most = max(leading, key=lambda one: one[1].cold)
            if not any(row.setting == best and row.significant for row, _ in leading):
                tied = f"{others.capitalize()} had the same score, and it is the mildest."
            elif top.setting == best:
                tied = (
                    f"Those problems do not tell it apart from {others}, each of which is within "
                    "one standard error of its score; it is the mildest."
                )
            else:
                tied = (
                    f"Those problems do not tell it apart from {others}: each is within one "
                    f"standard error of the best score, that of {top.setting} "
                    f"({points(most.difference)} points), and it is the mildest."
                )
            details.append(tied)
    worse = [
        str(row.setting) for row, found in compared if row.significant and found.difference < 0
    ]
    if worse:
        details.append(f"Significantly worse than greedy o{on_dev}: {'; '.join(worse)}.")
    return details


def _notes(test: Comparison, dev: Comparison, level: float) -> list[str]:
    notes = []
    if test.greedy == dev.greedy == 1.0:
        notes.append("Greedy decoding is right everywhere: there is nothing to gain here.")
    if test.greedy == dev.greedy == test.cold == dev.cold == 0.0:
        notes.append(
            "Nothing is right, with either kind of decoding. Compare the outputs in results.sqlite "
            "with the answers: --match, --chat, --stop or --max-tokens may be wrong."
        )
    excludes_zero = test.low > 0.0 or test.high < 0.0
    if excludes_zero != (test.p < level):
        notes.append(
            "The interval and p disagree about zero. The test decides; the interval, from "
            "resampling, shows the size."
        )
    if test.count < SMALL:
        notes.append(
            f"Only {test.count} problems are held out: nothing but a large difference can be found."
        )
    return notes
