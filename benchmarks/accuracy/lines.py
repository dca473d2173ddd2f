# SPDX-License-Identifier: Apache-2.0
"""Rows of tables: methods compared on problems of one kind, in figures and in a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.accuracy.compare import CONFIDENCE, LEVEL, Bits
from vllm_cold.tools.tune.stats import Comparison, compare, holm

GREEDY = "greedy"
# Of columns for methods that both benchmarks have.
COLD, ADAPTIVE = "`cold`", "*adaptive*"


@dataclass(frozen=True)
class Line:
    """Problems of one kind, and what methods made of them.

    Attributes:
        group: The heading that it stands under.
        about: What is asked, and what the amateur lacks.
        model: Whose answers, for people.
        right: By method, 1.0 for right answers [problems]; greedy decoding's are among them.
        fluency: By method, measures of its answers' language; empty where not measured.
    """

    group: str
    about: str
    model: str
    right: Mapping[str, Bits]
    fluency: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)

    @property
    def problems(self) -> int:
        """How many."""
        return len(self.right[GREEDY])

    def percent(self, method: str = GREEDY) -> float:
        """Right answers of a method."""
        return float(100 * self.right[method].mean())


def signed(value: float) -> str:
    """A difference in points."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def p_value(value: float) -> str:
    """A p without its leading zero."""
    if value < 0.001:
        return "< .001"
    # Not ".050", which says nothing of which side it is on.
    digits = 4 if f"{value:.3f}" == f"{LEVEL:.3f}" else 3
    return "1" if value >= 0.9995 else f"{value:.{digits}f}".lstrip("0")


def interval(found: Comparison) -> str:
    """The interval of a difference, in points."""
    return f"{signed(100 * found.low)} to {signed(100 * found.high)}"


def fluency(found: Mapping[str, float | None]) -> list[str]:
    """Perplexity, distinct 3-grams and share of fluent answers; "-" where there is none."""
    forms = {"perplexity": "{:.1f}", "distinct": "{:.2f}", "fluent": "{:.0%}"}
    values = {name: found.get(name) for name in forms}
    return [
        "-" if value is None else forms[name].format(value).replace("%", " %")
        for name, value in values.items()
    ]


def verdict(found: Comparison, corrected: float) -> str:
    """In a word: what the corrected p lets one say, or with a question mark the p alone."""
    if found.p >= LEVEL:
        return "nothing"
    word = "helps" if found.difference > 0 else "harms"
    return word if corrected < LEVEL else f"{word}?"


def _cell(found: Comparison, corrected: float) -> str:
    said = f"{verdict(found, corrected)} {signed(100 * found.difference)}"
    if corrected < LEVEL:
        said = f"**{said}**"
    return f"{said}<br>{interval(found)}<br>p {p_value(found.p)}"


def table(
    lines: Sequence[Line], columns: Mapping[str, tuple[str, str]]
) -> tuple[list[str], list[tuple[Line, list[str]]]]:
    """Compare methods on each line.

    Args:
        lines: The rows.
        columns: By heading, a method and what it is compared with.

    Returns:
        The headings of the columns with an entry, and the lines with one, each with its entries,
        "" where there is none. Words allow for all comparisons of the table, by Holm's correction.
    """
    found = {
        (row, heading): compare(line.right[mine], line.right[other], CONFIDENCE, seed=0)
        for row, line in enumerate(lines)
        for heading, (mine, other) in columns.items()
        if mine in line.right and other in line.right
    }
    corrected = holm([each.p for each in found.values()])
    said = {at: _cell(each, p) for (at, each), p in zip(found.items(), corrected, strict=True)}
    headings = [heading for heading in columns if any(at[1] == heading for at in said)]
    rows = {row for row, _ in said}
    return headings, [
        (line, [said.get((row, heading), "") for heading in headings])
        for row, line in enumerate(lines)
        if row in rows
    ]
