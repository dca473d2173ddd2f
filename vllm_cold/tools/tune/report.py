# SPDX-License-Identifier: Apache-2.0
"""The report on a terminal; ``report.json`` has the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vllm_cold.tools.tune.verdict import Comparison, interval, percent, points


def tell(console: Console, texts: Sequence[str]) -> None:
    """Print sentences."""
    for text in texts:
        console.print(Text(text))


def show(console: Console, report: dict[str, Any], path: str) -> None:
    """Print table, notes and the line to paste, and at the end the verdict.

    Args:
        console: Where to.
        report: The content of report.json, as ``command`` makes it.
        path: Where that file is.
    """
    if report["first"]:
        console.print()
    console.print(_table(report))
    console.print()
    tell(console, report["details"])
    for note in report["notes"]:
        console.print(Text(f"Note: {note}", style="dim"))
    console.print()
    how = "Serve it" if report["run"]["server"] is None else "Ask for it"
    console.print(Text(f"{how} {'with' if report['gain'] else 'without'} CoLD:", style="bold"))
    # As it is, without wrapping: it is to be copied.
    console.print(Text(report["serve"]), soft_wrap=True)
    console.print()
    console.print(Text(f"Written: {path}"), soft_wrap=True)
    style = "bold green" if report["gain"] else "bold yellow"
    console.print(Text(report["headline"], style=style), soft_wrap=True)


def _table(report: dict[str, Any]) -> Table:
    """All settings on the dev problems."""
    first, silent = report["settings"][0]["dev"], report["settings"][0]["dev_silent"]
    title = (
        f"{first['count']} dev problems, which pick a setting; greedy: {percent(first['greedy'])}"
    )
    if silent:
        title += (
            f"\n{silent['count']} whose text does not answer; greedy: {percent(silent['greedy'])}"
        )
    table = Table(
        title=title,
        caption="points: to greedy; what is picked from several is biased upwards",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("setting", overflow="fold")
    more = ("no answer: points",) if silent else ()
    for name in ("score", "points", "better/worse", "95 % interval", *more):
        table.add_column(name, justify="right", overflow="fold")
    for row in report["settings"]:
        found = Comparison(**row["dev"])
        table.add_row(
            row["name"] + (" (picked)" if row["picked"] else ""),
            percent(found.cold),
            points(found.difference),
            f"{found.better}/{found.worse}",
            interval(found),
            *([points(row["dev_silent"]["difference"])] if silent else []),
            style="bold" if row["picked"] else "",
        )
    return table
