# SPDX-License-Identifier: Apache-2.0
"""Decodes the problems with all methods: ``python -m benchmarks.accuracy.evaluate``.

First dev, where settings are picked (``choose``), then test. What is measured already is not
measured again, so the command goes on where it was stopped. Adapters that are not trained are left
out. Two processes with other ``--tasks``
may run side by side, each on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from tqdm import tqdm

from benchmarks.accuracy.choose import chosen, families
from benchmarks.accuracy.methods import (
    ADAPTIVE,
    BASE,
    BEAM,
    CONTRASTIVE_SEARCH,
    DEFAULT,
    DOLA,
    GREEDY,
    VOTE,
    Method,
)  # fmt: skip
from benchmarks.accuracy.store import ADAPTERS, Adapter, Cell, Split, Store
from benchmarks.accuracy.tasks import BENCHMARKS
from benchmarks.accuracy.train import RANKS
from examples.tasks import Problem
from vllm_cold.tools.engine import prepare_environment

# On a main cell, and on another one.
PROBLEMS: dict[Split, tuple[int, int]] = {"dev": (300, 200), "test": (600, 500)}
# Of what the methods mean: another one where results so far no longer hold.
VERSION = 1
# Rank and percent of the steps.
WEAKER = ((16, 25), (4, 100), (16, 50), (4, 25), (4, 50))
# Slow, and not what a weak adapter is about: last, and on the main cells alone.
SAMPLED = [VOTE]
SEARCHES = [BEAM, DOLA, CONTRASTIVE_SEARCH]


def cells(tasks: list[str]) -> list[Cell]:
    """The main cells first, then their adapters on harder problems, then the weaker adapters."""
    main = [Cell(Adapter(task, RANKS[0], 100), "ordinary") for task in tasks]
    hard: list[Cell] = [
        Cell(cell.adapter, "hard") for cell in main if BENCHMARKS[cell.adapter.task].hard
    ]
    rest = [
        Cell(Adapter(task, rank, percent), "ordinary") for rank, percent in WEAKER for task in tasks
    ]
    return [*main, *hard, *rest]


def methods(cell: Cell, split: Split) -> list[Method]:
    """What is measured on a cell and split. On test, what was picked on dev, and no other setting
    except those that a user would start with.
    """
    if split == "dev":
        return [GREEDY, *families(cell)]
    found = [GREEDY, DEFAULT, *ADAPTIVE[:1]]
    found += [method for method in chosen(cell) if method not in found]
    if cell.adapter.percent == 100 and cell.adapter.rank == RANKS[0]:
        found.append(BASE)
    return found


def is_trained(adapter: Adapter) -> bool:
    """Whether ``train`` has made the adapter."""
    return (ADAPTERS / adapter.name / "training.json").exists()


def problems_of(cell: Cell, split: Split, count: int) -> tuple[list[Problem], str]:
    """The problems, and a hash of what results on them depend on."""
    task = BENCHMARKS[cell.adapter.task].task(cell.level)
    problems = task.prompts(split, count)
    mark = hashlib.sha256(repr((VERSION, task.max_tokens, problems)).encode())
    percents = {cell.adapter.percent, *(m.amateur for m in families(cell) if m.amateur)}
    for percent in sorted(percents):
        folder = ADAPTERS / replace(cell.adapter, percent=percent).name
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            mark.update((folder / name).read_bytes())
    return problems, mark.hexdigest()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure the accuracy of all methods.")
    parser.add_argument("--tasks", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--problems", type=int, help="of each split (default: see PROBLEMS)")
    arguments = parser.parse_args()

    def count(cell: Cell, split: Split) -> int:
        return arguments.problems or PROBLEMS[split][not cell.is_main]

    trained = [cell for cell in cells(arguments.tasks) if is_trained(cell.adapter)]
    missing = {cell.adapter.name for cell in cells(arguments.tasks)} - {
        cell.adapter.name for cell in trained
    }
    if missing:
        print(f"not trained, and left out: {', '.join(sorted(missing))}")

    prepare_environment()
    from benchmarks.accuracy.engine import Engine

    engine: Engine | None = None

    def measure(
        wanted: list[Cell], split: Split, of: Callable[[Cell, Split], list[Method]]
    ) -> None:
        nonlocal engine
        for cell in tqdm(wanted, desc=split, unit="cell"):
            problems, mark = problems_of(cell, split, count(cell, split))
            store = Store(cell, split, mark)
            task = BENCHMARKS[cell.adapter.task].task(cell.level)
            left = [method for method in of(cell, split) if method.key not in store.outcomes]
            for method in tqdm(left, desc=cell.name, unit="method", leave=False):
                engine = engine or Engine()
                store.add(method.key, engine.run(method, cell.adapter, task, problems))

    # What tells most comes first: a run may be stopped at any time.
    main = [cell for cell in trained if cell.is_main]
    strongest = [cell for cell in trained if cell.adapter in {m.adapter for m in main}]
    measure(strongest, "dev", methods)
    measure(strongest, "test", methods)
    measure(main, "test", lambda cell, split: SAMPLED)
    run_searches(main, count)
    for cell in trained:
        if cell not in strongest:
            measure([cell], "dev", methods)
            measure([cell], "test", methods)


def run_searches(main: list[Cell], count: Callable[[Cell, Split], int]) -> None:
    """Beam search and the like, with transformers, on test."""
    from benchmarks.accuracy.search import Search

    for cell in main:
        problems, mark = problems_of(cell, "test", count(cell, "test"))
        store = Store(cell, "test", mark)
        task = BENCHMARKS[cell.adapter.task].task(cell.level)
        search: Search | None = None
        for method in SEARCHES:
            if method.key in store.outcomes or method.key in store.not_offered:
                continue
            search = search or Search(cell.adapter)
            reason = search.why_not(method)
            if reason is not None:
                store.refuse(method.key, reason)
                continue
            with tqdm(total=len(problems), desc=f"{cell.name}: {method.key}") as bar:
                store.add(method.key, search.run(method, task, problems, bar.update))


if __name__ == "__main__":
    main()
