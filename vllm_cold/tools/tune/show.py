# SPDX-License-Identifier: Apache-2.0
"""The report on a terminal."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence

from rich import box
from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from vllm_cold.method.settings import ADAPTIVE
from vllm_cold.tools.tune.report import Report, Row, interval, p_value, percent, points

# What a narrow terminal has no room for, the first to go first: columns, and in the second table
# the setting, which the first one shows.
_LEAST_OF_GRID = ("+/-", "p", "interval", "score", "p (Holm)")
_LEAST_OF_TEST = ("setting", "+/-", "interval", "score")


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
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else first, no_wrap=True)
    return table


def fitted(
    console: Console, make: Callable[[Collection[str]], Table], least: Sequence[str]
) -> Table:
    """The table without what the console has no room for, so that no figure is cut off.

    Args:
        console: Where it goes.
        make: Makes it without the columns of these names.
        least: What may go, the first to go first.
    """
    unlimited = console.options.update(width=10_000)
    for count in range(len(least) + 1):
        table = make(least[:count])
        if Measurement.get(console, unlimited, table).maximum <= console.width:
            break
    return table


def _cells(row: Row, is_best: bool) -> list[str]:
    beta = row.setting.beta_text.removesuffix(f" up to {row.setting.strength:g}")
    name = [row.setting.preset or "", f"{row.setting.alpha:g}", beta, "best" if is_best else ""]
    if row.dev is None:
        return [*name, "greedy", "", "", "", "", ""]
    assert row.p_holm is not None
    return [
        *name,
        percent(row.dev.cold),
        points(row.dev.difference) + ("*" if row.significant else " "),
        interval(row.dev),
        f"{row.dev.better}/{row.dev.worse}",
        p_value(row.dev.p),
        p_value(row.p_holm),
    ]


def grid_table(report: Report, without: Collection[str] = ()) -> Table:
    """All settings on the dev problems, without some of the columns."""
    dev = next(row.dev for row in report.rows if row.dev is not None)
    names = ("preset", "alpha", "beta", "", "score", "points", "interval", "+/-", "p", "p (Holm)")
    columns = _columns(report, *names)
    presets = any(row.setting.preset for row in report.rows)
    if not presets:
        without = {*without, "preset"}
    table = _table(
        f"{dev.count} dev problems, which pick the best setting; greedy: {percent(dev.greedy)}",
        [title for name, title in columns.items() if name not in without],
        first="left" if presets else "right",
    )
    notes = ["points: to greedy"] + ([] if "+/-" in without else ["+/-: better/worse"])
    table.caption = (
        f"{'; '.join(notes)}; *: significant after Holm's\n"
        "correction. The best of several is biased upwards."
    )
    weighted = [row.setting for row in report.rows if row.setting.weights]
    most = {row.setting.beta_max for row in report.rows if row.setting not in weighted}
    for what, values in (
        (f"{ADAPTIVE}: up to", {f"{value:g}" for value in most if value is not None}),
        ("weights:", dict.fromkeys(setting.weights_text for setting in weighted)),
        ("top-k:", {str(cap) for row in report.rows if (cap := row.setting.expert_top_k)}),
    ):
        if values:
            table.caption += f"\n{what} {' or '.join(values)}."
    for row in report.rows:
        is_best = row.setting == report.best
        cells = dict(zip(columns, _cells(row, is_best), strict=True))
        if row.dev is None and "score" in without:
            cells["points"] = cells["score"]  # that it is greedy decoding
        kept = [cell for name, cell in cells.items() if name not in without]
        table.add_row(*kept, style="bold" if is_best else "")
    return table


def _columns(report: Report, *names: str) -> dict[str, str]:
    """Titles of columns by name."""
    return dict(zip(names, names, strict=True)) | {
        "interval": f"{100 * report.confidence:g} % interval"
    }


def test_table(report: Report, without: Collection[str] = ()) -> Table:
    """The picked setting and greedy on the held-out problems, without some of the columns."""
    test = report.test
    columns = _columns(report, "", "score", "points", "interval", "+/-", "p")
    table = _table(
        f"{test.count} held-out problems, which judge it",
        [title for name, title in columns.items() if name not in without],
        first="left",
    )
    table.caption = f"p: {test.test}, two-sided"
    table.add_row("greedy", percent(test.greedy))
    cells = [
        "CoLD" if "setting" in without else f"CoLD, {report.best}",
        percent(test.cold),
        points(test.difference),
        interval(test),
        f"{test.better}/{test.worse}",
        p_value(test.p),
    ]
    table.add_row(*(c for n, c in zip(columns, cells, strict=True) if n not in without))
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

    console.print(fitted(console, functools.partial(grid_table, report), _LEAST_OF_GRID))
    console.print()
    console.print(fitted(console, functools.partial(test_table, report), _LEAST_OF_TEST))
    console.print()
    sentence(report.headline, "bold green" if report.gain else "bold yellow")
    for text in report.details:
        sentence(text)
    for note in report.notes:
        console.print(Padding(Text(f"Note: {note}", style="dim"), (0, 0, 0, 2)))
    console.print()
    how = "Serve it" if report.run["server"] is None else "Ask for it"
    sentence(f"{how} with CoLD:" if report.gain else f"{how} without CoLD:", "bold")
    # As it is, without wrapping: it is to be copied.
    console.print(Text(report.serve), soft_wrap=True)
    if not report.gain:
        sentence("With the best setting, for which there is no evidence, it would be:", "dim")
        console.print(Text(report.serve_best, style="dim"), soft_wrap=True)
    console.print(Rule(style="dim"))
    console.print(Text(files), soft_wrap=True)
