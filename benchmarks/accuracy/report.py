# SPDX-License-Identifier: Apache-2.0
"""Writes docs/accuracy.md and its pictures: ``python -m benchmarks.accuracy.report``.

All numbers, and all sentences that depend on them, are made from what ``evaluate`` has measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.accuracy import methods
from benchmarks.accuracy.choose import FAMILIES, FEWER
from benchmarks.accuracy.compare import LEVEL, Compared, Row, compared, together
from benchmarks.accuracy.evaluate import PROBLEMS, cells
from benchmarks.accuracy.methods import (
    ADAPTIVE,
    BASE,
    BEAM,
    CONTRASTIVE_SEARCH,
    DEFAULT,
    DOLA,
    GREEDY,
    VOTE,
)  # fmt: skip
from benchmarks.accuracy.plots import doses, forest
from benchmarks.accuracy.screen import SCREENING
from benchmarks.accuracy.store import HERE, MEASURED
from benchmarks.accuracy.tasks import BENCHMARKS
from benchmarks.accuracy.train import RANKS, STEPS
from vllm_cold.tools.tune.stats import holm

DOCS = HERE.parents[1] / "docs"
# The adaptive beta is to stay within this of the best fixed one, in points.
ALLOWED = 1.0
# Percent right: with fewer, a loss could not be seen.
FLOOR = 2
# Percent of steps: where the default changes fewer, a share of them means nothing.
SELDOM = 1.0

NAMES = {
    BASE.key: "base model, greedy",
    GREEDY.key: "adapter, greedy",
    BEAM.key: f"adapter, beam search of {methods.BEAMS}",
    DOLA.key: "adapter, DoLa",
    CONTRASTIVE_SEARCH.key: "adapter, contrastive search",
    VOTE.key: f"adapter, nucleus {methods.TOP_P:g}, vote of {methods.SAMPLES}",
}


def name_of(method: str) -> str:
    """A method's name for people."""
    family, *values = method.split(" ")
    if method in NAMES:
        return NAMES[method]
    if family == "cfg":
        return f"guidance, scale {values[0]}"
    kind = "adaptive, beta_max" if family.endswith("adaptive") else "beta"
    amateur = "; amateur: 25 % adapter" if family.startswith("quarter") else ""
    return f"CoLD, alpha {values[0]}, {kind} {values[1]}{amateur}"


def _signed(value: float) -> str:
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _p(value: float) -> str:
    if value < 0.001:
        return "< .001"
    # Not ".050", which says nothing of which side it is on.
    digits = 4 if f"{value:.3f}" == f"{LEVEL:.3f}" else 3
    return "1" if value >= 0.9995 else f"{value:.{digits}f}".lstrip("0")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def table_rows(cell: Compared) -> list[Row]:
    """The methods of a main cell in the order of the report."""
    order = [BASE.key, GREEDY.key, BEAM.key, VOTE.key]
    rest = [key for key in cell.rows if key not in order]
    rest.sort(key=lambda key: (key.split(" ")[0] != "cold", key.split(" ")[0], key))
    return [cell.rows[key] for key in [*order, *rest] if key in cell.rows]


def tally(rows: list[Row]) -> dict[str, Any]:
    """How many of ``rows`` are significantly better and worse than greedy, and their mean."""
    return {
        "better": sum(row.verdict == "better" for row in rows),
        "worse": sum(row.verdict == "worse" for row in rows),
        "mean": statistics.fmean(row.difference for row in rows),
        "lowest": min(row.difference for row in rows),
        "highest": max(row.difference for row in rows),
    }


def aim(found: list[Compared]) -> dict[str, list[Compared]]:
    """The cells that meet and miss what the adaptive beta was to reach. Each time by the stricter
    standard: any p below .05 counts as a loss, and a gain must survive Holm's correction.
    """
    corrected = holm([cell.adaptive.p for cell in found])
    return {
        "below": [cell for cell in found if cell.adaptive.verdict == "worse"],
        "above": [
            cell
            for cell, p in zip(found, corrected, strict=True)
            if p < LEVEL and cell.adaptive.difference > 0
        ],
        "behind": [
            cell
            for cell in found
            if cell.best_fixed.difference - cell.adaptive.difference > ALLOWED
        ],
    }


def screening(root: Path) -> dict[str, Any] | None:
    """What ``screen`` found, summed over adapters by rule; None if it was not run."""
    path = root / SCREENING
    if not path.exists():
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    adapters = data["adapters"]
    rules = {}
    for name in next(iter(adapters.values())):
        pairs = {adapter: rows[name] for adapter, rows in adapters.items()}
        worst = min(pairs, key=lambda adapter: pairs[adapter][0] - pairs[adapter][1])
        better, worse = (sum(column) for column in zip(*pairs.values(), strict=True))
        rules[name] = {
            "better": better,
            "worse": worse,
            "p": data["p"][name],
            "worst": worst.replace("-", ", ").replace(", r", ", rank ") + " %",
            "worst_pair": pairs[worst],
        }
    return {**data, "rules": rules}


def render(root: Path, docs: Path) -> str:
    """Write the pictures to ``docs`` and return the page.

    Raises:
        ValueError: nothing has been measured yet.
    """
    # From strong to weak, whatever the order they were measured in; harder problems second.
    every = sorted(
        cells(list(BENCHMARKS)),
        key=lambda cell: (
            not cell.is_main, cell.level != "hard", -cell.adapter.rank, -cell.adapter.percent,
        ),
    )  # fmt: skip
    found = compared(every, root)
    main = [cell for cell in found if cell.cell.is_main]
    if not main:
        raise ValueError(
            f"no test results of an adapter with rank {RANKS[0]} and 100 % of the steps in {root}: "
            "run benchmarks.accuracy.train and benchmarks.accuracy.evaluate first"
        )
    hard = [cell for cell in found if cell.cell.level == "hard"]
    weaker = [cell for cell in found if cell not in main and cell not in hard]
    pictures = docs / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    forest(found, pictures / "accuracy-differences.svg")
    doses([cell.cell for cell in main], ADAPTIVE[0], pictures / "accuracy-beta.svg", root)
    pooled = {
        label: {"cells": tally([cell.rows[key(cell)] for cell in found]), **together(found, key)}
        for label, key in {
            "default": lambda cell: DEFAULT.key,
            "best_fixed": lambda cell: cell.picked,
            "adaptive": lambda cell: ADAPTIVE[0].key,
        }.items()
    }
    environment = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {
        "signed": _signed, "p": _p, "share": _share, "name": name_of,
        "labels": lambda group: "; ".join(cell.cell.label for cell in group) or "none",
    }  # fmt: skip
    others = {}
    for key in (BEAM.key, VOTE.key):
        measured = [cell for cell in main if key in cell.rows]
        if measured:
            others[key] = together(measured, lambda cell, key=key: key)  # type: ignore[misc]
    shares = [
        100 * cell.adaptive.changed / cell.default.changed
        for cell in found
        if cell.adaptive.changed is not None and (cell.default.changed or 0) > SELDOM
    ]
    refused = {key: why for cell in main for key, why in cell.not_offered.items()}
    return environment.get_template("report.md.j2").render(
        benchmarks=BENCHMARKS, main=main, hard=hard, weaker=weaker, found=found, every=every,
        pooled=pooled, aim=aim(found), allowed=ALLOWED, refused=refused,
        screening=screening(root), table_rows=table_rows, floor=FLOOR,
        others=others, seldom=SELDOM, most_changed=max(shares, default=0.0),
        same_cells=[cell for cell in found if not cell.default.better and not cell.default.worse],
        floor_cells=[cell for cell in found if cell.rows[GREEDY.key].accuracy < FLOOR],
        default=DEFAULT, adaptive=ADAPTIVE[0], problems=PROBLEMS, ranks=RANKS, steps=STEPS,
        grid_sizes=[len(group["cold"]) for group in (FAMILIES, FEWER)],
    )  # fmt: skip


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write the accuracy report.")
    parser.add_argument("--measured", type=Path, default=MEASURED, help="folder of the results")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder to write to")
    arguments = parser.parse_args()
    try:
        page = render(arguments.measured, arguments.docs)
    except ValueError as error:
        parser.error(str(error))
    (arguments.docs / "accuracy.md").write_text(page, encoding="utf-8")
    print(f"wrote {arguments.docs / 'accuracy.md'} and its pictures")


if __name__ == "__main__":
    main()
