# SPDX-License-Identifier: Apache-2.0
"""Decodes the problems with all methods: ``python -m benchmarks.accuracy.prompts.run``.

What is measured already is not measured again, so the command goes on where it was stopped. Two
processes with other ``--models`` or ``--cells`` may run side by side, each on one core. Settings
are chosen on dev, and what is claimed is measured on test, once.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from tqdm import tqdm

from benchmarks.accuracy.prompts import adapted, documents, instructions, memory, others, summaries
from benchmarks.accuracy.prompts.methods import GREEDY, METHODS
from benchmarks.accuracy.prompts.problem import Cell, ModelName, Split
from benchmarks.accuracy.prompts.store import Store, answers, mark_of
from vllm_cold.tools.engine import prepare_environment

MODULES = (memory, instructions, documents, others, summaries, adapted)
CELLS: dict[str, Cell] = {cell.name: cell for module in MODULES for cell in module.CELLS}
# At most: some cells have fewer problems.
PROBLEMS: dict[Split, int] = {"dev": 200, "test": 520}
KEYS = [method.key for method in METHODS]
MODELS: tuple[ModelName, ...] = ("smollm2", "gemma")


def judge_again(model: ModelName, cell: Cell, split: Split) -> None:
    """Judge the kept answers anew, after a change of the cell's ``score``."""
    found = Store(model, cell.name, split).outcomes
    if not found:
        return
    count = len(next(iter(found[GREEDY.key].measures.values())))
    problems = cell.make(model, split, count)
    store = Store(model, cell.name, split, mark_of(model, cell, problems))
    for method, outcome in found.items():
        kept = answers(model, cell.name, split, method)
        if kept is None:
            raise FileNotFoundError(f"{model}, {cell.name}, {split}: no answers of {method!r}")
        store.add(method, cell, problems, replace(kept, seconds=outcome.seconds))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure what contrasts with prompts gain.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--splits", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", choices=KEYS, default=KEYS)
    parser.add_argument(
        "--problems", type=int, help="of each cell, at most (default: see PROBLEMS)"
    )
    parser.add_argument(
        "--judge-again", action="store_true", help="the kept answers, and decode nothing"
    )
    arguments = parser.parse_args()
    if arguments.judge_again:
        for model in arguments.models:
            for name in arguments.cells:
                for split in arguments.splits:
                    judge_again(model, CELLS[name], split)
        return
    prepare_environment()
    from benchmarks.accuracy.prompts.engine import Engine

    for model in arguments.models:
        engine: Engine | None = None
        cells = [CELLS[name] for name in arguments.cells if model in CELLS[name].models]
        for split in arguments.splits:
            for cell in tqdm(cells, desc=f"{model}, {split}", unit="cell"):
                problems = cell.make(model, split, arguments.problems or PROBLEMS[split])
                store = Store(model, cell.name, split, mark_of(model, cell, problems))
                left = [
                    m for m in METHODS
                    if m.key in arguments.methods
                    and m.key not in store.outcomes
                    and all(m.is_for(cell, problem) for problem in problems)
                ]  # fmt: skip
                for method in tqdm(left, desc=cell.name, unit="method", leave=False):
                    engine = engine or Engine(model, adapters=any(c.adapter for c in cells))
                    store.add(method.key, cell, problems, engine.run(method, cell, problems))


if __name__ == "__main__":
    main()
