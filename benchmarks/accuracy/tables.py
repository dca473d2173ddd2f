# SPDX-License-Identifier: Apache-2.0
"""What ``evaluate`` has measured of adapters against the base model: rows of docs/accuracy.md, and
all of it in ``tables.md`` with pictures.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy import methods
from benchmarks.accuracy.choose import FAMILIES, FEWER
from benchmarks.accuracy.compare import LEVEL, Compared, Row, compared, together
from benchmarks.accuracy.evaluate import PROBLEMS, cells
from benchmarks.accuracy.lines import ADAPTIVE as ADAPTIVE_COLUMN
from benchmarks.accuracy.lines import COLD, Line, p_value, signed
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
from benchmarks.accuracy.store import HERE, Cell
from benchmarks.accuracy.tasks import BENCHMARKS
from benchmarks.accuracy.templates import environment
from benchmarks.accuracy.train import RANKS, STEPS
from vllm_cold.tools.tune.stats import holm

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

# Of docs/accuracy.md.
COLUMNS = {
    GREEDY.key: GREEDY.key,
    DEFAULT.key: COLD,
    ADAPTIVE[0].key: ADAPTIVE_COLUMN,
    BASE.key: "base model",
    BEAM.key: f"beam search of {methods.BEAMS}",
    VOTE.key: f"vote of {methods.SAMPLES}, nucleus {methods.TOP_P:g}",
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


def found_in(root: Path) -> list[Compared]:
    """What there is, from strong to weak, whatever the order it was measured in; harder problems
    second.
    """
    return compared(_ordered(), root)


def _ordered() -> list[Cell]:
    return sorted(
        cells(list(BENCHMARKS)),
        key=lambda cell: (
            not cell.is_main, cell.level != "hard", -cell.adapter.rank, -cell.adapter.percent,
        ),
    )  # fmt: skip


def lines(found: list[Compared]) -> Iterator[Line]:
    """A line for the adapters of a strength: their tasks together, whose problems are distinct."""
    for (rank, percent, level), group in groupby(
        found, lambda each: (each.cell.adapter.rank, each.cell.adapter.percent, each.cell.level)
    ):
        there = list(group)
        yield Line(
            "An adapter of so much training against the base model; both read the same prompt",
            f"rank {rank}, {percent} %, {len(there)} task{'s' * (len(there) > 1)}"
            + (", harder problems" if level == "hard" else ""),
            "SmolLM2",
            {
                name: np.concatenate([each.right[key] for each in there])
                for key, name in COLUMNS.items()
                if all(key in each.right for each in there)
            },
        )


def pooled(found: list[Compared]) -> dict[str, Any]:
    """All answers together, by how beta was chosen."""
    return {
        label: {"cells": tally([cell.rows[key(cell)] for cell in found]), **together(found, key)}
        for label, key in {
            "default": lambda cell: DEFAULT.key,
            "best_fixed": lambda cell: cell.picked,
            "adaptive": lambda cell: ADAPTIVE[0].key,
        }.items()
    }


def most_changed(found: list[Compared]) -> float:
    """Tokens that the adaptive beta changes, at most, in percent of those of the default."""
    return max(
        (
            100 * cell.adaptive.changed / cell.default.changed
            for cell in found
            if cell.adaptive.changed is not None and (cell.default.changed or 0) > SELDOM
        ),
        default=0.0,
    )


def render(root: Path, folder: Path) -> str:
    """Write the pictures to ``folder`` and return the page.

    Raises:
        ValueError: nothing has been measured yet.
    """
    found = found_in(root)
    main = [cell for cell in found if cell.cell.is_main]
    if not main:
        raise ValueError(
            f"no test results of an adapter with rank {RANKS[0]} and 100 % of the steps in {root}: "
            "run benchmarks.accuracy.train and benchmarks.accuracy.evaluate first"
        )
    hard = [cell for cell in found if cell.cell.level == "hard"]
    weaker = [cell for cell in found if cell not in main and cell not in hard]
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    forest(found, pictures / "accuracy-differences.svg")
    doses([cell.cell for cell in main], ADAPTIVE[0], pictures / "accuracy-beta.svg", root)
    pages = environment(HERE)
    pages.filters |= {
        "signed": signed, "p": p_value, "share": _share, "name": name_of,
        "labels": lambda group: "; ".join(cell.cell.label for cell in group) or "none",
    }  # fmt: skip
    others = {}
    for key in (BEAM.key, VOTE.key):
        measured = [cell for cell in main if key in cell.rows]
        if measured:
            others[key] = together(measured, lambda cell, key=key: key)  # type: ignore[misc]
    refused = {key: why for cell in main for key, why in cell.not_offered.items()}
    return pages.get_template("tables.md.j2").render(
        benchmarks=BENCHMARKS, main=main, hard=hard, weaker=weaker, found=found, every=_ordered(),
        pooled=pooled(found), aim=aim(found), allowed=ALLOWED, refused=refused,
        screening=screening(root), table_rows=table_rows, floor=FLOOR,
        others=others,
        same_cells=[cell for cell in found if not cell.default.better and not cell.default.worse],
        floor_cells=[cell for cell in found if cell.rows[GREEDY.key].accuracy < FLOOR],
        default=DEFAULT, adaptive=ADAPTIVE[0], problems=PROBLEMS, ranks=RANKS, steps=STEPS,
        grid_sizes=[len(group["cold"]) for group in (FAMILIES, FEWER)],
    )  # fmt: skip
