# SPDX-License-Identifier: Apache-2.0
"""The report on a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console, JustifyMethod
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from vllm_cold.tools.tune.report import Report, Row, interval, p_value, percent, points


def _table(title: str, columns: list[str], first: JustifyMethod = "right") -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column(columns[0], justify=first, no_wrap=True)
    for name in columns[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(row: Row, is_best: bool) -> list[str]:
    name = [f"{row.setting.alpha:g}", f"{row.setting.beta:g}"]
    if row.dev is None:
        return [*name, "", "greedy"]
    assert row.p_holm is not None
    return [
        *name,
        "best" if is_best else "",
        percent(row.dev.cold),
        points(row.dev.difference) + ("*" if row.significant else " "),
        interval(row.dev),
        f"{row.dev.better}/{row.dev.worse}",
        p_value(row.dev.p),
        p_value(row.p_holm),
    ]


def grid_table(report: Report) -> Table:
    """All settings on the dev problems."""
    dev = next(row.dev for row in report.rows if row.dev is not None)
    table = _table(
        f"{dev.count} dev problems, which pick the best setting; greedy: {percent(dev.greedy)}",
        ["alpha", "beta", "", "score", "points", _interval_name(report), "+/-", "p", "p (Holm)"],
    )
    table.caption = (
        "points: to greedy; +/-: better/worse; *: significant after Holm's\n"
        "correction. The best of several is biased upwards."
    )
    for row in report.rows:
        is_best = row.setting == report.best
        table.add_row(*_cells(row, is_best), style="bold" if is_best else "")
    return table


def _interval_name(report: Report) -> str:
    return f"{100 * report.confidence:g} % interval"


def test_table(report: Report) -> Table:
    """The picked setting and greedy on the held-out problems."""
    test = report.test
    table = _table(
        f"{test.count} held-out problems, which judge it",
        ["", "score", "points", _interval_name(report), "+/-", "p"],
        first="left",
    )
    table.caption = f"p: {test.test}, two-sided"
    table.add_row("greedy", percent(test.greedy))
    table.add_row(
        f"CoLD, {report.best}",
        percent(test.cold),
        points(test.difference),
        interval(test),
        f"{test.better}/{test.worse}",
        p_value(test.p),
    )
    return table


def show(console: Console, report: Report, files: str) -> None:
    """Print tables, verdict, notes and the line to paste.

    Args:
        console: Where to.
        report: What.
        files: Where the written reports are.
    """

    def sentence(text: str, style: str = "") -> None:
        console.print(Text(text, style=style))

    console.print(grid_table(report))
    console.print()
    console.print(test_table(report))
    console.print()
    sentence(report.headline, "bold green" if report.gain else "bold yellow")
    for text in report.details:
        sentence(text)
    for note in report.notes:
        console.print(Padding(Text(f"Note: {note}", style="dim"), (0, 0, 0, 2)))
    console.print()
    sentence("Serve it with CoLD:" if report.gain else "Serve it without CoLD:", "bold")
    # As it is, without wrapping: it is to be copied.
    console.print(Text(report.serve), soft_wrap=True)
    if not report.gain:
        sentence("With the best setting, for which there is no evidence, it would be:", "dim")
        console.print(Text(report.serve_best, style="dim"), soft_wrap=True)
    console.print(Rule(style="dim"))
    console.print(Text(files), soft_wrap=True)
