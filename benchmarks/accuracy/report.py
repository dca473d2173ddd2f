# SPDX-License-Identifier: Apache-2.0
"""What the answers come to: tables of differences to greedy decoding and rivals, by jinja2."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks import machine
from benchmarks.accuracy.answers import Bits, Folder, Judged, judge_of, judged
from benchmarks.accuracy.methods import METHODS
from benchmarks.accuracy.models import Model
from benchmarks.accuracy.plan import COMPARED, COSTS
from benchmarks.accuracy.problem import Cell, Split
from benchmarks.accuracy.tasks import CELLS
from benchmarks.accuracy.tasks.instructions import GROUP as INSTRUCTION
from vllm_cold.tools.tune import verdict
from vllm_cold.tools.tune.verdict import LEVEL

GREEDY = "greedy"
# By model and split, cell and method.
Outcomes = dict[tuple[str, str], dict[str, dict[str, Judged]]]
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
        low: Lower end of the interval of 95 %, in points.
        high: Upper end.
        p: Two-sided, of McNemar's exact test.
        declared: Whether ``plan.COMPARED`` has it. Others bear no mark: they were not asked for.
        corrected: p, when all declared comparisons of the report are allowed for.
    """

    points: float
    low: float
    high: float
    p: float
    declared: bool = False
    corrected: float = 1.0

    @property
    def marked(self) -> str:
        """The points with what was shown."""
        text = signed(self.points)
        if self.declared and self.corrected < LEVEL:
            return f"**{text}**"
        return text + "?" * (self.declared and self.p < LEVEL)

    def __str__(self) -> str:
        return f"{self.marked} ({signed(self.low)}..{signed(self.high)})"


def compare(mine: Bits, other: Bits) -> Difference:
    """Compare right answers to the same problems; tests and intervals are those of
    ``vllm-cold tune``.

    Args:
        mine: [problems] 1.0 for right answers.
        other: [problems] of the method that is compared with.

    Raises:
        ValueError: there are not as many of the one as of the other, or none.
    """
    if len(mine) != len(other) or not len(mine):
        raise ValueError(f"{len(mine)} answers against {len(other)}: no pairs")
    found = verdict.compare(mine, other)
    return Difference(100 * found.difference, 100 * found.low, 100 * found.high, found.p)


def differences(
    cell: str,
    split: Split,
    right: Mapping[str, Bits],
    measures: Mapping[str, Mapping[str, Bits]] | None = None,
) -> dict[str, Difference]:
    """A cell's methods compared with greedy decoding, and with the rivals that are declared on
    test: "cad - better prompt"; what is declared of other measures is behind: "cad: right".
    """
    found = {key: compare(bits, right[GREEDY]) for key, bits in right.items() if key != GREEDY}
    for cells, keys, rival in COMPARED if split == "test" else ():
        for key in keys if cell in cells and rival in right else ():
            if key in right:
                name = key if rival == GREEDY else f"{key} - {rival}"
                found.setdefault(name, compare(right[key], right[rival])).declared = True
    for cells, keys, rival, measure in COSTS if split == "test" and measures else ():
        of = (measures or {}).get(measure, {})
        for key in keys if cell in cells and rival in of else ():
            if key in of:
                name = f"{key}: {measure}" if rival == GREEDY else f"{key} - {rival}: {measure}"
                found[name] = compare(of[key], of[rival])
                found[name].declared = True
    return found


def correct(found: Iterable[Difference]) -> None:
    """Holm's correction (Scandinavian Journal of Statistics 6 (1979), 65-70) over the declared
    ones, in place.
    """
    declared = sorted((each for each in found if each.declared), key=lambda each: each.p)
    largest = 0.0
    for rank, each in enumerate(declared):
        largest = max(largest, min(1.0, (len(declared) - rank) * each.p))
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
        """Those with an entry, and then the rivals'."""
        found = dict.fromkeys(key for c in self.columns for key in c.differences)
        return sorted(found, key=lambda key: ([*METHODS, key].index(key), key))

    def rows(self) -> list[list[str]]:
        """The headings, and a row for each method."""
        cells = self.columns
        return [
            ["", *(cell.name for cell in cells)],
            ["problems", *(str(cell.problems) for cell in cells)],
            ["greedy, %", *(_shown(cell.percent[GREEDY]) for cell in cells)],
            *([label(key, self.group), *(str(cell.differences.get(key, "")) for cell in cells)]
              for key in self.methods()),
        ]  # fmt: skip

    def measured(self, cell: Column) -> list[list[str]]:
        """The same of a cell's other measures."""
        return [
            [f"{cell.name}, %", *cell.measures],
            *([label(key, self.group), *(_shown(by.get(key)) for by in cell.measures.values())]
              for key in cell.percent),
        ]  # fmt: skip


def label(key: str, group: str) -> str:
    """What a method is called in a group: with instructions ``cad`` is ``cfg``."""
    return re.sub(r"\bcad\b", "cfg", key) if group == INSTRUCTION else key


def column(
    cell: Cell,
    split: Split,
    right: Mapping[str, Bits],
    measures: Mapping[str, Mapping[str, Bits]],
) -> Column:
    """Compare a cell's methods; ``measures`` are others, by name and method."""
    return Column(
        cell.name,
        cell.about + " (control)" * cell.control,
        len(right[GREEDY]),
        {key: _percent(bits) for key, bits in right.items()},
        differences(cell.name, split, right, measures),
        {name: {key: _percent(bits) for key, bits in by.items()} for name, by in measures.items()},
    )


def _shown(percent: float | None) -> str:
    return "" if percent is None else f"{percent:.1f}"


def _percent(bits: Bits) -> float:
    return 100 * float(bits.mean())


def _measures(found: Mapping[str, Judged]) -> dict[str, dict[str, Bits]]:
    """All but right answers: other measures, and right answers by kind."""
    greedy = found[GREEDY]
    return {
        **{name: {k: each.measures[name] for k, each in found.items() if name in each.measures}
           for name in list(greedy.measures)[1:]},
        **{kind: {k: each.right[np.array(each.kinds) == kind] for k, each in found.items()}
           for kind in dict.fromkeys(greedy.kinds) if kind},
    }  # fmt: skip


# Of the first table: headings, and the methods that they are of.
OVERVIEW = {
    "closed book": "without the part",
    "better prompt": "better prompt",
    "part repeated": "part repeated",
    "`cad`, `cfg`": "cad",
    "`cold`": "cold",
}


def overview(columns: Iterable[tuple[str, Column]]) -> list[list[str]]:
    """One table of all cells and models: the headings, and a row for each cell and model. Methods
    without an entry have no column.

    Args:
        columns: Names of models, and what came of a cell, with corrected differences.
    """
    by_cell: dict[str, list[tuple[str, Column]]] = {}
    for model, each in columns:
        by_cell.setdefault(each.name, []).append((model, each))
    found = [each for there in by_cell.values() for each in there]
    headings = {
        heading: key
        for heading, key in OVERVIEW.items()
        if any(key in each.differences for _, each in found)
    }
    rows = [["problems", "n", "greedy, %", *headings]]
    for there in by_cell.values():
        for place, (model, each) in enumerate(there):
            about = "" if place else f"{each.about.partition(';')[0]}: "
            entries = (each.differences.get(key) for key in headings.values())
            rows.append([
                f"{about}*{model}*", str(each.problems), _shown(each.percent[GREEDY]),
                *(str(entry or "") for entry in entries),
            ])  # fmt: skip
    return rows


# Of the second table: cells in which a text is right, and in which it is of no use.
TEXTS = ("false", "nothing")


def of_texts(columns: Iterable[tuple[str, Column]]) -> list[list[str]]:
    """All other methods on ``TEXTS`` that all models have, like ``overview``: a row for each
    method and cell.
    """
    found = {(each.name, model): each.differences for model, each in columns}
    models = list(dict.fromkeys(model for name, model in found if name in TEXTS))
    rows = [["", *(f"*{model}*" for model in models)]]
    for key in [key for key in METHODS if models and key not in OVERVIEW.values()]:
        about = f"{key}: "
        for name in TEXTS:
            entries = [str(found.get((name, model), {}).get(key, "")) for model in models]
            if all(entries):
                rows.append([f"{about}*{name}*", *entries])
                about = ""
    return rows


def outcomes(
    folder: Folder, model: Model, cells: Sequence[Cell], split: Split, asked: int | None
) -> dict[str, dict[str, Judged]]:
    """What a model's answers are worth, by cell and method; of all cells that have some."""
    methods, count = list(METHODS.values()), count_of(model, split, asked)
    dev = count_of(model, "dev", asked)
    # One judge, whichever cells are asked for; of an adapter of one's own, one of what it wears.
    chosen = CELLS.values() if {cell.name for cell in cells} <= CELLS.keys() else cells
    judge = judge_of(folder, model, chosen, dev) if split == "test" else None
    found = {}
    for cell in cells:
        if cell.is_for(model) and folder.answers(model, cell, split).exists():
            told = judged(folder, model, cell, split, methods, count, judge)
            if GREEDY in told:
                found[cell.name] = told
    return found


def read_outcomes(path: Path) -> Outcomes:
    """Read outcomes that a report wrote.

    Raises:
        ValueError: it has others, such as those of before.
    """
    found: Outcomes = {}
    try:
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            cells = found.setdefault((line["model"], line["split"]), {})
            cells[line["cell"]] = _read_cell(line)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not what a report wrote: {error!r}") from error
    return found


def _read_cell(line: Mapping[str, Any]) -> dict[str, Judged]:
    found = {}
    for key, told in line["outcomes"].items():
        measures = {
            name: np.array([float(bit) for bit in bits]) for name, bits in told["measures"].items()
        }
        kinds = line.get("kinds") or [""] * len(next(iter(measures.values())))
        found[key] = Judged(measures, tuple(kinds), told["tokens"], frozenset(told["by"]))
    return found


def joined(
    cells: Iterable[Cell],
    before: Mapping[str, Mapping[str, Judged]],
    now: Mapping[str, Mapping[str, Judged]],
) -> dict[str, dict[str, Judged]]:
    """Outcomes of two runs, by cell and method; of what both have, the new ones.

    Raises:
        ValueError: they are not of the same problems, or greedy decoding gave other answers.
    """
    found = {}
    for name in (cell.name for cell in cells if cell.name in {**before, **now}):
        old, new = before.get(name, {}), now.get(name, {})
        same = (
            not old
            or not new
            or (
                old[GREEDY].kinds == new[GREEDY].kinds
                and np.array_equal(old[GREEDY].right, new[GREEDY].right)
            )
        )
        if not same:
            raise ValueError(
                f"{name}: greedy decoding is right elsewhere than in the outcomes of before: these "
                "are of other problems, versions or hardware, and cannot be compared: leave the "
                "cell out by --cells, or leave out --before; what was decoded is kept"
            )
        both = {**old, **new}
        found[name] = {key: both[key] for key in METHODS if key in both}
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
    before: Outcomes | None = None,
) -> tuple[str, str]:
    """The report in Markdown, and the outcomes as lines of JSON.

    Args:
        folder: With the answers.
        models: Whose.
        cells: To which problems.
        split: Of these problems.
        asked: How many of each cell; by default the model's number.
        before: Outcomes of other runs, of which what the folder has no answers to is reported, too.

    Raises:
        ValueError: there are no answers, or they are not of the same problems as those of before.
    """
    found: list[Table] = []
    versions, raw, used = set[str](), list[str](), list[Model]()
    columns: list[tuple[str, Column]] = []
    for model in models:
        told = outcomes(folder, model, cells, split, asked)
        if before:
            told = joined(cells, before.get((model.name, split), {}), told)
        raw += lines(model, split, told)
        versions |= {by for each in told.values() for one in each.values() for by in one.by}
        there = [cell for cell in cells if cell.name in told]
        used += [model] if there else []
        for group, members in groupby(there, key=lambda cell: cell.group):
            found.append(Table(group, model.title))
            for cell in members:
                right = {key: each.right for key, each in told[cell.name].items()}
                one = column(cell, split, right, _measures(told[cell.name]))
                found[-1].columns.append(one)
                columns.append((model.name, one))
    if not found:
        raise ValueError(
            f"{folder.root}: no answers of greedy decoding to {split} problems: run first "
            "python -m benchmarks.accuracy run"
        )
    every = [each for _, one in columns for each in one.differences.values()]
    correct(every)
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    machines = [(model, machine.text(each)) for model in used for each in folder.records(model)]
    context: dict[str, Any] = {
        "tables": found, "split": split, "versions": sorted(versions), "machines": machines,
    }  # fmt: skip
    text = pages.get_template("report.md.j2").render(
        context, models=used, overview=overview(columns), of_texts=of_texts(columns),
        declared=sum(each.declared for each in every),
    )  # fmt: skip
    return text, "".join(f"{line}\n" for line in raw)
