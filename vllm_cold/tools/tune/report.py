# SPDX-License-Identifier: Apache-2.0
"""The report: as JSON, as one HTML file that needs nothing beside it, and on a terminal."""

from __future__ import annotations

import json
import os.path
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune import verdict
from vllm_cold.tools.tune.verdict import Comparison, Row, interval, percent, points

FORMAT = 3
SHOWN = 100  # problems that changed, of each kind, on the page; it has the ids of all others


def build(
    rows: Sequence[Row],
    test: Comparison,
    confidence: float,
    changes: Sequence[dict[str, Any]],
    notes: Sequence[str],
    serve: str,
    run: dict[str, Any],
) -> dict[str, Any]:
    """The content of report.json, which the page and the terminal show.

    Args:
        rows: All settings.
        test: The picked one on the held-out problems.
        confidence: Of the intervals.
        changes: The held-out problems on which the two score differently.
        notes: What else a reader has to know.
        serve: The line to paste: with CoLD if there is a gain, greedy otherwise.
        run: What was run.
    """
    best = verdict.pick(rows)
    return {
        "format": FORMAT,
        "gain": verdict.is_gain(best.dev, test, verdict.level_of(confidence)),
        "headline": verdict.headline(rows, test, confidence),
        "details": verdict.details(rows, test),
        "best": {"name": str(best.setting), **best.setting.values},
        "test": msgspec.to_builtins(test),
        "settings": [
            {
                "name": str(row.setting),
                "picked": row is best,
                "setting": row.setting.values,
                "dev": msgspec.to_builtins(row.dev),
            }
            for row in rows
        ],
        "confidence": confidence,
        "changes": list(changes),
        "notes": list(notes),
        "serve": serve,
        "run": run,
    }


def kinds(changes: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Those for the better and those for the worse, each with what it is called; none is empty."""
    plain = all({one["greedy_score"], one["cold_score"]} == {0.0, 1.0} for one in changes)
    names = ("Wrong to right", "Right to wrong") if plain else ("Better", "Worse")
    found = [
        (name, [one for one in changes if (one["cold_score"] > one["greedy_score"]) is better])
        for name, better in zip(names, (True, False), strict=True)
    ]
    return [(name, those) for name, those in found if those]


def write(report: dict[str, Any], folder: Path) -> str:
    """Write report.json and report.html; returns a sentence that says where.

    Raises:
        ToolError: a file cannot be written.
    """
    content = {"report.json": json.dumps(report, indent=2) + "\n", "report.html": render(report)}
    for name, text in content.items():
        try:
            # Half a surrogate pair, alone, has no UTF-8.
            (folder / name).write_text(text, encoding="utf-8", errors="replace")
        except OSError as error:
            raise ToolError(f"{folder / name}: cannot be written: {error.strerror}") from error
    return "Written: " + ", ".join(str(folder / name) for name in content)


def render(report: dict[str, Any]) -> str:
    """The page of a report."""
    # Names, prompts and outputs are anybody's text: escaped wherever they stand.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vllm_cold.tools.tune", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        r=report,
        kinds=kinds(report["changes"]),
        shown=SHOWN,
        common=lambda one: os.path.commonprefix([one["greedy"], one["cold"]]),
        judged=lambda score: {0.0: "wrong", 1.0: "right"}.get(score, f"{score:.3g}"),
        percent=percent,
        points=points,
    )


def show(console: Console, report: dict[str, Any], files: str) -> None:
    """Print table, notes and the line to paste, and at the end the verdict.

    Args:
        console: Where to.
        report: What.
        files: Where the written reports are.
    """
    console.print(_table(report))
    console.print()
    for text in report["details"]:
        console.print(Text(text))
    for note in report["notes"]:
        console.print(Text(f"Note: {note}", style="dim"))
    console.print()
    how = "Serve it" if report["run"]["server"] is None else "Ask for it"
    console.print(Text(f"{how} {'with' if report['gain'] else 'without'} CoLD:", style="bold"))
    # As it is, without wrapping: it is to be copied.
    console.print(Text(report["serve"]), soft_wrap=True)
    console.print()
    console.print(Text(files), soft_wrap=True)
    style = "bold green" if report["gain"] else "bold yellow"
    console.print(Text(report["headline"], style=style), soft_wrap=True)


def _table(report: dict[str, Any]) -> Table:
    """All settings on the dev problems."""
    first = Comparison(**report["settings"][0]["dev"])
    table = Table(
        title=f"{first.count} dev problems, which pick a setting; greedy: {percent(first.greedy)}",
        caption="points: to greedy; what is picked from several is biased upwards",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("setting", overflow="fold")
    last = f"{100 * report['confidence']:g} % interval"
    for name in ("score", "points", "better/worse", last):
        table.add_column(name, justify="right", overflow="fold")
    for row in report["settings"]:
        found = Comparison(**row["dev"])
        table.add_row(
            row["name"] + (" (picked)" if row["picked"] else ""),
            percent(found.cold),
            points(found.difference),
            f"{found.better}/{found.worse}",
            interval(found),
            style="bold" if row["picked"] else "",
        )
    return table
