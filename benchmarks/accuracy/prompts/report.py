# SPDX-License-Identifier: Apache-2.0
"""Writes docs/prompts.md: ``python -m benchmarks.accuracy.prompts.report``.

All its numbers are made from what ``run`` has measured.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.accuracy.prompts.methods import CONTRASTS, GREEDY, PLAIN, UNASKED
from benchmarks.accuracy.prompts.problem import Cell, ModelName, Split
from benchmarks.accuracy.prompts.run import CELLS, MODELS
from benchmarks.accuracy.prompts.store import MEASURED, Outcome, Store
from vllm_cold.tools.tune.stats import Comparison, compare

HERE = Path(__file__).parent
DOCS = HERE.parents[2] / "docs"
NAMES: dict[ModelName, str] = {"smollm2": "SmolLM2-135M-Instruct", "gemma": "Gemma 3 270M"}
LEVEL = 0.05


@dataclass(frozen=True)
class Measured:
    """A model's outcomes on a cell and split.

    Attributes:
        model: Whose.
        cell: Which.
        greedy: Greedy decoding's accuracy in percent.
        problems: How many.
        against: Other methods against it, by key.
    """

    model: ModelName
    cell: Cell
    greedy: float
    problems: int
    against: dict[str, Comparison]


def _bits(outcome: Outcome) -> np.typing.NDArray[np.float64]:
    main = next(iter(outcome.measures.values()))
    return np.array([float(letter) for letter in main])


def measured(split: Split, root: Path = MEASURED) -> list[Measured]:
    """All that there is of a split, in the order of the cells."""
    found = []
    for cell in CELLS.values():
        for model in MODELS:
            outcomes = Store(model, cell.name, split, root=root).outcomes
            if GREEDY.key not in outcomes:
                continue
            greedy = _bits(outcomes[GREEDY.key])
            against = {
                key: compare(_bits(outcome), greedy, 1 - LEVEL, seed=0)
                for key, outcome in outcomes.items()
                if key != GREEDY.key
            }
            found.append(Measured(model, cell, 100 * greedy.mean(), len(greedy), against))
    return found


def points(found: Comparison | None) -> str:
    """A difference in points with its interval; bold where it is significant."""
    if found is None:
        return ""
    difference, low, high = (f"{100 * x:+.1f}" for x in (found.difference, found.low, found.high))
    text = f"**{difference}**" if found.p < LEVEL else difference
    return f"{text} ({low} to {high})"


def render(root: Path = MEASURED) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["points"] = points
    splits: tuple[Split, ...] = get_args(Split)
    return environment.get_template("report.md.j2").render(
        splits={split: measured(split, root) for split in splits},
        contrasts=[method.key for method in (*CONTRASTS, *UNASKED)],
        plain=[method.key for method in PLAIN],
        names=NAMES,
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write the page on contrasts with prompts.")
    parser.add_argument("--measured", type=Path, default=MEASURED, help="folder of the outcomes")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder to write to")
    arguments = parser.parse_args()
    path = arguments.docs / "prompts.md"
    path.write_text(render(arguments.measured), encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
