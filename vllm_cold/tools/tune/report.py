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
from vllm_cold.tools.tune.data import Problem
from vllm_cold.tools.tune.grid import Setting
from vllm_cold.tools.tune.stats import Comparison, Scores

FORMAT = 2
SHOWN_CHANGES = 10  # each of better and worse
SMALL = 50  # held-out problems; with fewer, only large differences can be found
P_FLOOR = 0.0001
CUT = 0.05  # share of outputs cut off by --max-tokens that is worth a word


@dataclass(frozen=True)
class Row:
    """One setting on the dev problems, which pick the best.

    Attributes:
        setting: The setting.
        dev: Against greedy, None where the setting is greedy decoding itself.
        p_holm: ``dev.p``, corrected for the number of settings.
        significant: Whether ``p_holm`` is below the level; for better or for worse.
    """

    setting: Setting
    dev: Comparison | None
    p_holm: float | None
    significant: bool


@dataclass(frozen=True)
class Change:
    """A held-out problem on which the two score differently."""

    id: str
    prompt: str
    answers: tuple[str, ...]
    greedy: str
    cold: str
    greedy_score: float
    cold_score: float


@dataclass(frozen=True)
class Report:
    """All that the presentations say.

    Attributes:
        gain: Whether the picked setting beats greedy significantly.
        headline: The verdict, one sentence.
        details: Sentences that belong to it.
        best: The best setting on the dev problems.
        test: ``best`` against greedy on the held-out problems.
        rows: All settings, on the dev problems.
        level: Of significance.
        confidence: Of the intervals.
        detectable: The smallest true difference that the held-out problems show as significant
            four times in five, None if none.
        ladder: The same for other numbers of held-out problems: (problems, difference).
        needed: Held-out problems that would show a true difference as large as that on the dev
            problems; None where that is no gain.
        changes: Some of the problems on which the two differ.
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
    compared = [
        None if setting.is_greedy else stats.compare(scores(setting), greedy, confidence, seed)
        for setting in grid
    ]
    corrected = iter(stats.holm([found.p for found in compared if found is not None]))
    rows = []
    for setting, found in zip(grid, compared, strict=True):
        p_holm = None if found is None else next(corrected)
        is_significant = p_holm is not None and p_holm < level_of(confidence)
        rows.append(Row(setting, found, p_holm, is_significant))
    return tuple(rows)


def pick(rows: Sequence[Row]) -> Setting:
    """The best mean score; among equals the one nearest to greedy: small beta (or weights), large
    alpha.

    An adaptive beta counts as the most that it reaches, and is nearer than a number of that size.
    """
    best = max(
        (row for row in rows if row.dev is not None),
        key=lambda row: (
            row.dev.cold,  # type: ignore[union-attr]
            -row.setting.strength,
            row.setting.adaptive,
            row.setting.alpha,
        ),
    )
    return best.setting


def find_changes(
    problems: Sequence[Problem],
    outputs: Callable[[Setting | None, str], str],
    best: Setting,
    greedy: Scores,
    cold: Scores,
) -> tuple[Change, ...]:
    """The first problems on which ``best`` scores higher, then those where it scores lower."""
    found: dict[bool, list[Change]] = {True: [], False: []}
    for problem, low, high in zip(problems, greedy.tolist(), cold.tolist(), strict=True):
        kept = found[high > low]
        if high != low and len(kept) < SHOWN_CHANGES:
            kept.append(
                Change(
                    problem.id,
                    problem.text,
                    problem.answers,
                    outputs(None, problem.id),
                    outputs(best, problem.id),
                    low,
                    high,
                )
            )
    return tuple(found[True] + found[False])


def conclude(
    *,
    rows: tuple[Row, ...],
    greedy_test: Scores,
    best_test: Scores,
    greedy_dev: Scores,
    best_dev: Scores,
    confidence: float,
    seed: int,
    changes: tuple[Change, ...],
    notes: Sequence[str],
    serve: Callable[[Setting | None], str],
    run: dict[str, Any],
) -> Report:
    """Judge the picked setting on the held-out problems, and say so.

    Args:
        rows: From ``judge_grid``.
        greedy_test: Greedy's scores [n] on the held-out problems.
        best_test: The picked setting's.
        greedy_dev: Greedy's scores [m] on the dev problems.
        best_dev: The picked setting's.
        confidence: Of the intervals.
        seed: Of the resampling.
        changes: From ``find_changes``.
        notes: What the run has to say.
        serve: Gives the command line for a setting, or for greedy.
        run: What was run.
    """
    level = level_of(confidence)
    best = pick(rows)
    dev = next(row.dev for row in rows if row.setting == best)
    assert dev is not None
    test = stats.compare(best_test, greedy_test, confidence, seed)
    gain = test.p < level and test.difference > 0.0 and dev.difference > 0.0

    differences = np.concatenate([best_test - greedy_test, best_dev - greedy_dev])
    variance = stats.spread(differences)
    binary = all(map(stats.is_binary, (greedy_test, best_test, greedy_dev, best_dev)))
    detectable = stats.detectable(test.count, variance, level, binary)
    ladder = tuple(
        (test.count * factor, stats.detectable(test.count * factor, variance, level, binary))
        for factor in (1, 2, 4, 8, 16)
    )
    needed = None
    if dev.difference > 0.0:
        # For that difference at least as many have to differ.
        differing = max(variance, dev.difference) if binary else variance
        needed = stats.problems_needed(dev.difference, differing, level)

    on_test = (
        f"{percent(test.cold)} against {percent(test.greedy)} on {test.count} held-out "
        f"problems, a difference of {points(test.difference)} points "
        f"({100 * confidence:g} % interval {interval(test)}, {p_text(test.p)})"
    )
    details: list[str] = []
    if gain:
        headline = f"CoLD with {best} beats greedy decoding: {on_test}."
        details.append(
            f"On the {dev.count} dev problems, which picked it, the difference was "
            f"{points(dev.difference)} points; that figure is biased upwards, because the best "
            f"of {sum(row.dev is not None for row in rows)} settings was taken."
        )
    else:
        headline = "No setting beats greedy decoding significantly."
        if dev.difference > 0.0:
            details.append(
                f"The best on the {dev.count} dev problems, {best}, was {points(dev.difference)} "
                "points from greedy there, which is biased upwards. It does not hold beyond "
                f"chance: {on_test}."
            )
        else:
            details.append(
                f"Not even on the {dev.count} dev problems, which pick the best, was a setting "
                f"better than greedy. The nearest, {best}: {on_test}."
            )
        if test.p < level and test.difference < 0.0:
            details.append("That is significantly worse than greedy.")
        if detectable is None:
            details.append(
                f"{test.count} held-out problems are too few to find any difference reliably."
            )
        else:
            details.append(
                f"{test.count} held-out problems find a true difference of about "
                f"{size(detectable)} points four times in five. CoLD may still gain less "
                "than that; to find it, bring more problems."
            )
        if needed is not None and needed > test.count:
            details.append(
                f"If the {points(dev.difference)} points were true, about {needed} held-out "
                "problems would find them four times in five."
            )

    return Report(
        gain=gain,
        headline=headline,
        details=tuple(details),
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
