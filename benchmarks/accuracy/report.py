# SPDX-License-Identifier: Apache-2.0
"""Writes docs/accuracy.md, and ``tables.md`` and its pictures beside this file:
``python -m benchmarks.accuracy.report``.

All numbers, and all sentences that depend on them, are made from what ``evaluate`` and
``prompts.run`` have measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.accuracy import tables
from benchmarks.accuracy.lines import GREEDY, fluency, signed, table
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


def _against_greedy(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    return {method: (method, GREEDY) for method in methods}


def _fluency(found: Mapping[str, float | None] | None) -> str:
    return "" if found is None else "<br>".join(fluency(found))


def render(root: Path) -> str:
    """The page."""
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
        (arguments.docs / "accuracy.md", render(arguments.measured)),
        (arguments.tables / "tables.md", every),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
