# SPDX-License-Identifier: Apache-2.0
"""What ``run`` has measured: rows of the report, and all of it in ``tables.md``, which
``python -m benchmarks.accuracy.prompts.report`` writes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from benchmarks.accuracy.compare import CONFIDENCE, LEVEL, bits
from benchmarks.accuracy.lines import ADAPTIVE, Line, fluency, interval, signed
from benchmarks.accuracy.prompts import methods
from benchmarks.accuracy.prompts.methods import METHODS, Method
from benchmarks.accuracy.prompts.problem import Cell, ModelName, Split
from benchmarks.accuracy.prompts.run import MODELS, MODULES
from benchmarks.accuracy.prompts.store import MEASURED, Store
from benchmarks.accuracy.templates import environment
from vllm_cold.method.presets import PRESETS, PresetName
from vllm_cold.tools.tune.stats import compare

HERE = Path(__file__).parent
NAMES: dict[ModelName, str] = {"smollm2": "SmolLM2", "gemma": "Gemma"}


def _values(name: PresetName) -> tuple[Mapping[str, Any], tuple[float, ...]]:
    return PRESETS[name].knobs, PRESETS[name].weights


# By a module's name; others are headed by theirs.
GROUPS = {
    "memory": "A text against memory; the amateur lacks the text",
    "instructions": "An instruction; the amateur lacks it",
    "documents": "Pages and documents",
    "others": "Other people's data",
    "summaries": "Summaries; the amateur lacks the text",
    "adapted": "With an adapter; what the amateur lacks is said",
}
# Whose cells are a sample of one thing: the line with all of those that may gain.
TOGETHER = {"instructions": "these instructions together, without the control"}
AMATEURS: dict[str, str] = {
    "without": "with the same adapter",
    "base without": "without the adapter, too",
    "base": "without the adapter, with the same prompt",
}
# Columns of the report for contrasts: by preset, those of equal values in one; and others.
HEADINGS: dict[PresetName, str] = {
    name: ", ".join(f"`{other}`" for other in PRESETS if _values(other) == _values(name))
    for name in PRESETS
}
# Of what is no preset.
WORTH_A_LOOK = (methods.fixed(0.1, 1.0).key,)
COLUMNS = tuple(dict.fromkeys([*HEADINGS.values(), ADAPTIVE, *WORTH_A_LOOK]))


def column(method: Method) -> str:
    """The name that a method's outcomes have on a line: that of its column, if it has one."""
    if method.preset is not None:
        return HEADINGS[method.preset]
    if not method.contrasts or method.unasked is not None or method.sampling:
        return method.key
    if method.knobs == methods.ADAPTIVE.knobs:
        return ADAPTIVE
    same = (name for name in PRESETS if _values(name) == (method.knobs, ()))
    return next((HEADINGS[name] for name in same), method.key)


def group_of(module: ModuleType) -> str:
    """The heading of a module's cells."""
    name = module.__name__.rpartition(".")[2]
    return GROUPS.get(name, name.capitalize())


def about(cell: Cell) -> str:
    """A cell in words."""
    return cell.about + (" (control)" if cell.nature == "control" else "")


def fluency_of(model: ModelName, split: Split, root: Path) -> dict[str, Any]:
    """By cell and method, how fluent answers are; empty if it was not measured."""
    path = root / f"fluency-{model}-{split}.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found


def lines(split: Split, root: Path = MEASURED) -> Iterator[Line]:
    """What there is of a split: a line for a cell, a model, and a kind of amateur."""
    fluent = {model: fluency_of(model, split, root) for model in MODELS}
    for module in MODULES:
        for cell in module.CELLS:
            for model in MODELS:
                outcomes = Store(model, cell.name, split, root=root).outcomes
                if methods.GREEDY.key not in outcomes:
                    continue
                there = [method for method in METHODS if method.key in outcomes]
                kinds = list(dict.fromkeys(m.amateur for m in there if m.contrasts))
                for kind in kinds:
                    # What is no contrast stands on the cell's first line.
                    mine = [
                        m for m in there
                        if (m.amateur == kind if m.contrasts else kind == kinds[0])
                        or m == methods.GREEDY
                    ]  # fmt: skip
                    measured = fluent[model].get(cell.name, {})
                    yield Line(
                        group_of(module),
                        about(cell)
                        + (f"; amateur {AMATEURS.get(kind, kind)}" if len(kinds) > 1 else ""),
                        NAMES[model],
                        {column(m): bits(_main(outcomes[m.key].measures)) for m in mine},
                        {column(m): measured[m.key] for m in mine if m.key in measured},
                    )
        if module.__name__.rpartition(".")[2] in TOGETHER:
            yield from _together(module, split, root)


def _together(module: ModuleType, split: Split, root: Path) -> Iterator[Line]:
    """A line for each model: the cells that may gain as one, by the methods that all had."""
    for model in MODELS:
        stores = [
            Store(model, c.name, split, root=root).outcomes
            for c in module.CELLS
            if c.nature == "gain"
        ]
        found = [outcomes for outcomes in stores if methods.GREEDY.key in outcomes]
        if len(found) < 2:
            continue
        right = {
            column(m): bits("".join(_main(outcomes[m.key].measures) for outcomes in found))
            for m in METHODS
            if all(m.key in outcomes for outcomes in found)
        }
        about = TOGETHER[module.__name__.rpartition(".")[2]]
        yield Line(group_of(module), about, NAMES[model], right)


def _main(measures: dict[str, str]) -> str:
    return next(iter(measures.values()))


def points(right: str, greedy: str) -> str:
    """A difference in points with its interval; bold where it is significant."""
    found = compare(bits(right), bits(greedy), CONFIDENCE, seed=0)
    text = signed(100 * found.difference)
    return f"{f'**{text}**' if found.p < LEVEL else text} ({interval(found)})"


def _tables(split: Split, root: Path) -> Iterator[dict[str, Any]]:
    """All outcomes: a table for a module and model."""
    for module in MODULES:
        for model in MODELS:
            stores = {c.name: Store(model, c.name, split, root=root).outcomes for c in module.CELLS}
            found = {name: there for name, there in stores.items() if methods.GREEDY.key in there}
            if not found:
                continue
            greedy = {name: there[methods.GREEDY.key].measures for name, there in found.items()}
            rows = {
                method.key: [
                    points(_main(there[method.key].measures), _main(greedy[name]))
                    if method.key in there
                    else ""
                    for name, there in found.items()
                ]
                for method in METHODS
                if method != methods.GREEDY
            }
            others = [
                (name, measure) for name in found for measure in list(greedy[name])[1:]
            ]  # fmt: skip
            yield {
                "group": group_of(module),
                "model": NAMES[model],
                "cells": list(found),
                "problems": [len(_main(measures)) for measures in greedy.values()],
                "greedy": [100 * bits(_main(measures)).mean() for measures in greedy.values()],
                "rows": {key: row for key, row in rows.items() if any(row)},
                "others": others,
                "percents": {
                    method.key: [
                        f"{100 * bits(found[name][method.key].measures[measure]).mean():.1f}"
                        if method.key in found[name]
                        else ""
                        for name, measure in others
                    ]
                    for method in METHODS
                },
            }


def render(root: Path = MEASURED) -> str:
    """All tables."""
    pages = environment(HERE)
    pages.filters["fluency"] = lambda found: " | ".join(fluency(found))
    splits: tuple[Split, ...] = get_args(Split)
    return pages.get_template("tables.md.j2").render(
        splits={split: list(_tables(split, root)) for split in splits},
        fluent={
            (NAMES[model], split): found
            for split in splits for model in MODELS if (found := fluency_of(model, split, root))
        },
        cells={cell.name: about(cell) for module in MODULES for cell in module.CELLS},
    )  # fmt: skip


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write all tables of contrasts with prompts.")
    parser.add_argument("--measured", type=Path, default=MEASURED, help="folder of the outcomes")
    parser.add_argument("--tables", type=Path, default=HERE, help="folder to write to")
    arguments = parser.parse_args()
    path = arguments.tables / "tables.md"
    path.write_text(render(arguments.measured), encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
