# SPDX-License-Identifier: Apache-2.0
"""The report on a terminal."""

from __future__ import annotations

from collections.abc import Collection

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from vllm_cold.method.settings import ADAPTIVE
from vllm_cold.tools.tune import changes
from vllm_cold.tools.tune.report import Report, Row, interval, p_value, percent, points

_IDS = 10  # of problems that changed, each for the better and for the worse
# Columns that a narrow terminal has no room for, the first to go first.
_LEAST = ("+/-", "p", "interval", "score", "p (Holm)")


def fitted(console: Console, report: Report) -> Table:
    """The table of all settings without what the console has no room for, so that no figure is cut
    off.
    """
    unlimited = console.options.update(width=10_000)
    for count in range(len(_LEAST) + 1):
        table = grid_table(report, _LEAST[:count])
        if Measurement.get(console, unlimited, table).maximum <= console.width:
            break
    return table


def _cells(row: Row, is_picked: bool) -> list[str]:
    beta = row.setting.beta_text.removesuffix(f" up to {row.setting.strength:g}")
    name = [row.setting.preset or "", f"{row.setting.alpha:g}", beta, "pick" if is_picked else ""]
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
    columns = dict(zip(names, names, strict=True))
    columns["interval"] = f"{100 * report.confidence:g} % interval"
    presets = any(row.setting.preset for row in report.rows)
    if not presets:
        without = {*without, "preset"}
    table = Table(
        title=f"{dev.count} dev problems, which pick a setting; greedy: {percent(dev.greedy)}",
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        collapse_padding=True,
        pad_edge=False,
    )
    for name, title in columns.items():
        if name not in without:
            table.add_column(title, justify="left" if name == "preset" else "right", no_wrap=True)
    notes = ["points: to greedy"] + ([] if "+/-" in without else ["+/-: better/worse"])
    table.caption = (
        f"{'; '.join(notes)}; *: significant after Holm's\n"
        "correction. What is picked from several is biased upwards."
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
        is_picked = row.setting == report.best
        cells = dict(zip(columns, _cells(row, is_picked), strict=True))
        if row.dev is None and "score" in without:
            cells["points"] = cells["score"]  # that it is greedy decoding
        kept = [cell for name, cell in cells.items() if name not in without]
        table.add_row(*kept, style="bold" if is_picked else "")
    return table


def show(console: Console, report: Report, files: str) -> None:
    """Print tables, notes and the line to paste, and at the end the verdict.

    Args:
        console: Where to.
        report: What.
        files: Where the written reports are.
    """

    def sentence(text: str, style: str = "") -> None:
        console.print(Text(text, style=style))

    console.print(fitted(console, report))
    console.print()
    for text in report.details:
        sentence(text)
    for name, those in changes.groups(report.changes):
        more = f" and {len(those) - _IDS} more" if len(those) > _IDS else ""
        sentence(f"{name}: {', '.join(one.id for one in those[:_IDS])}{more}.")
    for note in report.notes:
        console.print(Padding(Text(f"Note: {note}", style="dim"), (0, 0, 0, 2)))
    console.print()
    how = "Serve it" if report.run["server"] is None else "Ask for it"
    sentence(f"{how} with CoLD:" if report.gain else f"{how} without CoLD:", "bold")
    # As it is, without wrapping: it is to be copied.
    console.print(Text(report.serve), soft_wrap=True)
    if not report.gain:
        sentence("With the picked setting, for which there is no evidence, it would be:", "dim")
        console.print(Text(report.serve_best, style="dim"), soft_wrap=True)
    console.print(Rule(style="dim"))
    console.print(Text(files), soft_wrap=True)
    style = "bold green" if report.gain else "bold yellow"
    console.print(Text(report.headline, style=style), soft_wrap=True)
