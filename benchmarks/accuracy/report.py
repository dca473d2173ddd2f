# SPDX-License-Identifier: Apache-2.0
"""Writes docs/accuracy.md, and ``report.md``, ``tables.md`` and pictures beside this file:
``python -m benchmarks.accuracy.report``.

All numbers, and all sentences that depend on them, are made from what ``evaluate`` and
``prompts.run`` have measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.accuracy import tables
from benchmarks.accuracy.lines import ADAPTIVE, GREEDY, fluency, signed, table
from benchmarks.accuracy.prompts import report as prompts
from benchmarks.accuracy.prompts.methods import METHODS, SAMPLED
from benchmarks.accuracy.prompts.problem import Split
from benchmarks.accuracy.store import HERE, MEASURED
from benchmarks.accuracy.templates import environment

DOCS = HERE.parents[1] / "docs"
# Without a contrast, but that votes draw.
CONTROLS = [m.key for m in METHODS if not m.contrasts and (m.votes > 1 or not m.sampling)]
CONTROLS += [name for name in tables.COLUMNS.values() if name not in prompts.COLUMNS]
CONTROLS = [name for name in CONTROLS if name != GREEDY]
DRAWN = [m.key for m in SAMPLED if m.contrasts]
REFERENCES = [m.key for m in SAMPLED if not m.contrasts]


# Rows of the page, with what they are called there.
SHOWN = {
    "a sentence that contradicts memory": "one sentence, which contradicts memory",
    "the same among five true sentences on other subjects": "the same among five others",
    "five true sentences on other subjects, the answer in none (control)": (
        "five sentences, of which none answers"
    ),
    "a question about a page of text; the amateur lacks the page": (
        "a page, of which a sentence answers"
    ),
    "a question about one of three short texts that say the like of others; "
    "the amateur lacks them all": "three documents, of which one answers",
    "the abstract of a paper in a sentence, whose names and numbers are to be the abstract's; "
    "the amateur lacks the abstract": "summaries",
    "these instructions together, without the control": "instructions of nine kinds",
    "an order to be written as JSON, adapter for it; the amateur lacks the order (control)": (
        "JSON, by an adapter"
    ),
    "rank 16, 100 %, 7 tasks": "an adapter against the base model, 7 tasks",
}
INSTEAD = "better prompt"


def _against_greedy(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    return {method: (method, GREEDY) for method in methods}


def _fluency(found: Mapping[str, float | None] | None) -> str:
    return "" if found is None else "<br>".join(fluency(found))


def render(root: Path) -> str:
    """The report."""
    found = tables.found_in(root)
    split: Split = "test"
    lines = list(prompts.lines(split, root / "prompts"))
    if not lines:
        split = "dev"
        lines = list(prompts.lines(split, root / "prompts"))
    pages = environment(HERE)
    pages.filters["signed"] = signed
    fluent = [m for m in (GREEDY, *prompts.COLUMNS, *DRAWN, *REFERENCES)
              if any(m in line.fluency for line in lines)]  # fmt: skip
    return pages.get_template("report.md.j2").render(
        split=split, measured=bool(lines), pairs=len(found),
        pooled=tables.pooled(found) if found else {},
        contrasts=table([*lines, *tables.lines(found)], _against_greedy(prompts.COLUMNS)),
        controls=table([*lines, *tables.lines(found)], _against_greedy(CONTROLS)),
        drawn={
            method: table(lines, {f"against {other}": (method, other) for other in REFERENCES})
            for method in DRAWN
        },
        fluent=fluent,
        fluency=[
            (line, [_fluency(line.fluency.get(m)) for m in fluent]) for line in lines
            if line.fluency
        ],
        most_changed=tables.most_changed(found), seldom=tables.SELDOM,
    )  # fmt: skip


def _points(cell: str) -> str:
    """An entry of a table in short: its difference, bold or with a question mark as the word is."""
    said = cell.partition("<br>")[0]
    points = said.strip("*").rpartition(" ")[2]
    return f"**{points}**" if said.startswith("**") else points + "?" * ("?" in said)


def page(root: Path) -> str:
    """docs/accuracy.md: the rows that say most, in short."""
    found = tables.found_in(root)
    every = [*prompts.lines("test", root / "prompts"), *tables.lines(found)]
    headings, contrasts = table(every, _against_greedy(prompts.COLUMNS))
    others, instead = table(every, _against_greedy(CONTROLS))
    entries = {
        (id(line), heading): _points(entry)
        for names, lines in ((headings, contrasts), (others, instead))
        for line, row in lines
        for heading, entry in zip(names, row, strict=True)
    }
    shown = [name for name in headings if name != ADAPTIVE] + [INSTEAD]
    rows = [
        (name, line, [entries.get((id(line), heading), "") for heading in shown])
        for about, name in SHOWN.items()
        for line, _ in contrasts
        if line.about == about
    ]
    return environment(HERE).get_template("accuracy.md.j2").render(
        headings=shown, rows=rows, pairs=len(found),
        pooled=tables.pooled(found) if found else {},
    )  # fmt: skip


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write the accuracy report.")
    parser.add_argument("--measured", type=Path, default=MEASURED, help="folder of the results")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder for the page")
    parser.add_argument("--tables", type=Path, default=HERE, help="folder for tables, pictures")
    arguments = parser.parse_args()
    try:
        every = tables.render(arguments.measured, arguments.tables)
    except ValueError as error:
        parser.error(str(error))
    for path, text in (
        (arguments.docs / "accuracy.md", page(arguments.measured)),
        (arguments.tables / "report.md", render(arguments.measured)),
        (arguments.tables / "tables.md", every),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
