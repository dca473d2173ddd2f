# SPDX-License-Identifier: Apache-2.0
"""What the answers come to: tables of differences to greedy decoding, made by jinja2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from scipy import stats

from benchmarks.accuracy.answers import Bits, Folder, Judged, judged
from benchmarks.accuracy.methods import GRID, METHODS, Method
from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Split

LEVEL = 0.05
CONFIDENCE = 1 - LEVEL
GREEDY = "greedy"
PICKED = "picked on dev"
TOGETHER = "together, without controls"
# At most: some cells have fewer problems.
PROBLEMS: dict[Split, int] = {"dev": 200, "test": 520}


@dataclass
class Difference:
    """Paired right answers of two methods, compared.

    Attributes:
        points: Of accuracy, from -100 to 100.
        low: Lower end of the interval, in points.
        high: Upper end.
        p: Two-sided, of McNemar's exact test.
        corrected: It, when all entries of the report are allowed for.
    """

    points: float
    low: float
    high: float
    p: float
    corrected: float = 1.0

    def __str__(self) -> str:
        text = signed(self.points)
        if self.corrected < LEVEL:
            text = f"**{text}**"
        elif self.p < LEVEL:
            text += "?"
        return f"{text} ({signed(self.low)} to {signed(self.high)})"


def compare(mine: Bits, other: Bits) -> Difference:
    """Compare right answers to the same problems.

    The interval is that of the share of the better among the problems that differ (Clopper and
    Pearson), times how many these are: it has 0 in it where the test does not reject. Where none
    differ, it says how many may, unseen.

    Args:
        mine: [problems] 1.0 for right answers.
        other: [problems] of the method that is compared with.

    Raises:
        ValueError: there are not as many of the one as of the other, or none.
    """
    if len(mine) != len(other) or not len(mine):
        raise ValueError(f"{len(mine)} answers against {len(other)}: no pairs")
    better, worse = int((mine > other).sum()), int((mine < other).sum())
    differ = better + worse
    if differ:
        test = stats.binomtest(better, differ)
        p, share = float(test.pvalue), test.proportion_ci(CONFIDENCE, method="exact")
        ends = [(2 * end - 1) * differ / len(mine) for end in (share.low, share.high)]
    else:
        unseen = stats.binomtest(0, len(mine)).proportion_ci(CONFIDENCE, method="exact").high
        p, ends = 1.0, [-unseen, unseen]
    return Difference(100 * (better - worse) / len(mine), 100 * ends[0], 100 * ends[1], p)


def correct(found: Sequence[Difference]) -> None:
    """Holm's correction, in place (Scandinavian Journal of Statistics 6 (1979), 65-70)."""
    largest = 0.0
    for rank, each in enumerate(sorted(found, key=lambda each: each.p)):
        largest = max(largest, min(1.0, (len(found) - rank) * each.p))
        each.corrected = largest


def signed(value: float) -> str:
    """A difference in points."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


@dataclass
class Column:
    """A cell's outcomes: by method, differences; and percents of the cell's other measures."""

    name: str
    about: str
    problems: int
    percent: Mapping[str, float]
    differences: Mapping[str, Difference]
    measures: Mapping[str, Mapping[str, float]]


@dataclass
class Table:
    """The cells of a group and model."""

    group: str
    model: str
    columns: list[Column] = field(default_factory=list)

    def methods(self) -> list[str]:
        """Those with an entry."""
        return [
            key for key in (*METHODS, PICKED) if any(key in c.differences for c in self.columns)
        ]

    def measures(self) -> list[str]:
        """The names of the cells' other measures."""
        return list(dict.fromkeys(name for column in self.columns for name in column.measures))


def picked(folder: Folder, model: Model, cell: Cell, count: int = PROBLEMS["dev"]) -> Method | None:
    """The setting of the grid that is right most often on dev; None where dev is not complete."""
    problem = cell.make(model, "dev", 1)[0]
    grid = [method for method in GRID if method.is_for(cell, problem)]
    found = judged(folder, model, cell, "dev", grid, count)
    if not grid or any(method.key not in found for method in grid):
        return None
    return max(grid, key=lambda method: found[method.key].right.sum())


def column(cell: Cell, found: Mapping[str, Judged]) -> Column:
    """Compare a cell's methods."""
    return Column(
        cell.name,
        cell.about + " (control)" * cell.control,
        len(found[GREEDY].right),
        {key: 100 * float(each.right.mean()) for key, each in found.items()},
        _differences({key: each.right for key, each in found.items()}),
        {
            f"{cell.name}: {name}": {
                key: 100 * float(each.measures[name].mean()) for key, each in found.items()
            }
            for name in list(found[GREEDY].measures)[1:]
        },
    )


def _differences(right: Mapping[str, Bits]) -> dict[str, Difference]:
    return {key: compare(bits, right[GREEDY]) for key, bits in right.items() if key != GREEDY}


def together(cells: Sequence[tuple[Cell, Mapping[str, Judged]]]) -> Column | None:
    """The pooled cells that may gain as one, by the methods that all of them had."""
    found = [each for cell, each in cells if cell.pooled and not cell.control]
    if len(found) < 2:
        return None
    right = {
        key: np.concatenate([each[key].right for each in found])
        for key in found[0]
        if all(key in each for each in found)
    }
    percent = {key: 100 * float(bits.mean()) for key, bits in right.items()}
    return Column(
        TOGETHER, "all problems of these as one", len(right[GREEDY]), percent,
        _differences(right), {},
    )  # fmt: skip


def tables(
    folder: Folder, models: Iterable[Model], cells: Sequence[Cell], split: Split, count: int
) -> tuple[list[Table], set[str]]:
    """All that there is of a split, and the versions that decoded it."""
    found, versions = [], set[str]()
    methods = list(METHODS.values())
    for model in models:
        for group, members in groupby(cells, key=lambda cell: cell.group):
            there: list[tuple[Cell, Mapping[str, Judged]]] = []
            for cell in members:
                if not cell.is_for(model) or not folder.answers(model, cell, split).exists():
                    continue
                outcomes = judged(folder, model, cell, split, methods, count)
                best = picked(folder, model, cell) if split == "test" else None
                if best is not None:
                    again = judged(folder, model, cell, split, [best], count)
                    if best.key in again:
                        outcomes[PICKED] = again[best.key]
                if GREEDY in outcomes:
                    there.append((cell, outcomes))
                    versions |= {by for each in outcomes.values() for by in each.by}
            columns = [column(cell, outcomes) for cell, outcomes in there]
            pooled = together(there)
            if columns:
                columns += [pooled] if pooled is not None else []
                found.append(Table(group, model.title, columns))
    correct([each for t in found for c in t.columns for each in c.differences.values()])
    return found, versions


def render(
    folder: Folder, models: Iterable[Model], cells: Sequence[Cell], split: Split, count: int
) -> str:
    """The report in Markdown.

    Raises:
        ValueError: there are no answers.
    """
    found, versions = tables(folder, models, cells, split, count)
    if not found:
        raise ValueError(
            f"{folder.root}: no answers of greedy decoding to {split} problems: run first "
            "python -m benchmarks.accuracy run"
        )
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    pages.filters["percent"] = lambda value: "" if value is None else f"{value:.1f}"
    context: dict[str, Any] = {"tables": found, "split": split, "versions": sorted(versions)}
    return pages.get_template("report.md.j2").render(
        context, entries=sum(len(c.differences) for t in found for c in t.columns)
    )
