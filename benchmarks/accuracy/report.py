# SPDX-License-Identifier: Apache-2.0
"""What the answers come to: tables of differences to greedy decoding, made by jinja2."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from scipy import stats

from benchmarks.accuracy.answers import Bits, Folder, Judged, judge_of, judged
from benchmarks.accuracy.methods import METHODS
from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Split

LEVEL = 0.05
CONFIDENCE = 1 - LEVEL
GREEDY = "greedy"
# At most: some cells have fewer problems.
PROBLEMS: dict[Split, int] = {"dev": 100, "test": 300}


def count_of(model: Model, split: Split, asked: int | None = None) -> int:
    """How many problems of each cell are decoded: what was asked for, or the model's number."""
    return asked or min(PROBLEMS[split], model.problems if split == "test" else PROBLEMS[split])


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
    """A cell's outcomes: by method, differences; and percents of its other measures and kinds."""

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
        return [key for key in METHODS if any(key in c.differences for c in self.columns)]


def column(cell: Cell, found: Mapping[str, Judged]) -> Column:
    """Compare a cell's methods."""
    greedy = found[GREEDY]
    bits = {
        **{name: {k: each.measures[name] for k, each in found.items()}
           for name in list(greedy.measures)[1:]},
        **{kind: {k: each.right[np.array(each.kinds) == kind] for k, each in found.items()}
           for kind in dict.fromkeys(greedy.kinds) if kind},
    }  # fmt: skip
    return Column(
        cell.name,
        cell.about + " (control)" * cell.control,
        len(greedy.right),
        {key: 100 * float(each.right.mean()) for key, each in found.items()},
        {key: compare(o.right, greedy.right) for key, o in found.items() if key != GREEDY},
        {name: {key: 100 * float(each.mean()) for key, each in by.items()}
         for name, by in bits.items()},
    )  # fmt: skip


def outcomes(
    folder: Folder, model: Model, cells: Sequence[Cell], split: Split, asked: int | None
) -> dict[str, dict[str, Judged]]:
    """What a model's answers are worth, by cell and method; of all cells that have some."""
    methods, count = list(METHODS.values()), count_of(model, split, asked)
    dev = count_of(model, "dev", asked)
    judge = judge_of(folder, model, cells, dev) if split == "test" else None
    found = {}
    for cell in cells:
        if cell.is_for(model) and folder.answers(model, cell, split).exists():
            told = judged(folder, model, cell, split, methods, count, judge)
            if GREEDY in told:
                found[cell.name] = told
    return found


def lines(model: Model, split: Split, found: Mapping[str, Mapping[str, Judged]]) -> Iterable[str]:
    """Outcomes as lines of JSON, a character a problem."""
    for name, told in found.items():
        kinds = next(iter(told.values())).kinds
        said = {
            method: {
                "tokens": each.tokens,
                "by": sorted(each.by),
                "measures": {
                    name: "".join(str(int(bit)) for bit in bits)
                    for name, bits in each.measures.items()
                },
            }
            for method, each in told.items()
        }
        line = {"model": model.name, "cell": name, "split": split, "outcomes": said}
        yield json.dumps(line | ({"kinds": kinds} if any(kinds) else {}))


def render(
    folder: Folder,
    models: Iterable[Model],
    cells: Sequence[Cell],
    split: Split,
    asked: int | None = None,
) -> tuple[str, str]:
    """The report in Markdown, and the outcomes as lines of JSON.

    Raises:
        ValueError: there are no answers.
    """
    found: list[Table] = []
    versions, raw, used = set[str](), list[str](), list[Model]()
    for model in models:
        told = outcomes(folder, model, cells, split, asked)
        raw += lines(model, split, told)
        versions |= {by for each in told.values() for one in each.values() for by in one.by}
        there = [cell for cell in cells if cell.name in told]
        used += [model] if there else []
        for group, members in groupby(there, key=lambda cell: cell.group):
            columns = [column(cell, told[cell.name]) for cell in members]
            found.append(Table(group, model.title, columns))
    if not found:
        raise ValueError(
            f"{folder.root}: no answers of greedy decoding to {split} problems: run first "
            "python -m benchmarks.accuracy run"
        )
    correct([each for t in found for c in t.columns for each in c.differences.values()])
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    pages.filters["percent"] = lambda value: "" if value is None else f"{value:.1f}"
    context: dict[str, Any] = {"tables": found, "split": split, "versions": sorted(versions)}
    text = pages.get_template("report.md.j2").render(
        context, models=used, entries=sum(len(c.differences) for t in found for c in t.columns)
    )
    return text, "".join(f"{line}\n" for line in raw)
