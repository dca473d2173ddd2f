# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark: ``python -m benchmarks.accuracy list``, ``train``, ``run``, ``report``.

Settings are chosen on dev problems, and what is claimed is measured on test problems, once. What is
decoded already is not decoded again, so ``run`` goes on where it was stopped. Two processes with
other models or cells may run side by side, each on one core.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from tqdm import tqdm

from benchmarks.accuracy import models
from benchmarks.accuracy.answers import Answer, Folder, add, read
from benchmarks.accuracy.methods import GRID, METHODS, Method
from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Split
from benchmarks.accuracy.report import PROBLEMS, picked, render
from benchmarks.accuracy.tasks import MODULES, chosen
from benchmarks.accuracy.tasks.adapters import BENCHMARKS, RANKS
from vllm_cold.tools.engine import prepare_environment

RUNS = Path(__file__).parent / "runs"


class Runner:
    """Decodes what is not decoded yet, with an engine that is started when it is needed."""

    def __init__(self, model: Model, folder: Folder, *, adapters: bool) -> None:
        self._model, self._folder, self._adapters = model, folder, adapters
        self._engine: Any = None

    def run(self, cell: Cell, split: Split, methods: Sequence[Method], count: int) -> None:
        """Decode the first ``count`` problems of a cell's split with methods that are for it."""
        path = self._folder.answers(self._model, cell, split)
        problems = cell.make(self._model, split, count)
        kept, adapters = set(read(path)), self._folder.adapters(self._model)
        with tqdm(methods, desc=f"{cell.name}, {split}", unit="method", leave=False) as bar:
            for method in bar:
                if not all(method.is_for(cell, problem) for problem in problems):
                    continue
                requests = [method.request(self._model, cell, each, adapters) for each in problems]
                left = {each.mark: each for each in requests if each.mark not in kept}
                if not left:
                    continue
                bar.set_postfix_str(method.key)
                self._engine = self._engine or self._start()
                found = self._engine.run(list(left.values()))
                by = self._engine.versions
                add(path, (Answer(mark, method.key, text, tokens, by)
                           for mark, (text, tokens) in zip(left, found, strict=True)))  # fmt: skip
                kept |= left.keys()

    def _start(self) -> Any:
        prepare_environment()
        from benchmarks.accuracy.engine import Engine

        return Engine(self._model, adapters=self._adapters)


def ready(model: Model, cells: Sequence[Cell], folder: Folder) -> list[Cell]:
    """The cells for a model whose problems and adapters are there. Says which are left out, before
    hours are spent on the others.
    """
    found = []
    for cell in cells:
        if not cell.is_for(model):
            continue
        try:
            problem = cell.make(model, "dev", 1)[0]
            METHODS["greedy"].request(model, cell, problem, folder.adapters(model)).mark  # noqa: B018
        except (FileNotFoundError, ModuleNotFoundError) as error:
            print(f"{model.name}, {cell.name} is left out: {error}")
        else:
            found.append(cell)
    return found


def run(arguments: argparse.Namespace) -> None:
    """Decode."""
    methods = [METHODS[key] for key in dict.fromkeys(["greedy", *arguments.methods])]
    for model in arguments.models:
        cells = ready(model, arguments.cells, arguments.folder)
        runner = Runner(model, arguments.folder, adapters=any(cell.adapter for cell in cells))
        for split in arguments.splits:
            count = arguments.problems or PROBLEMS[split]
            for cell in tqdm(cells, desc=f"{model.name}, {split}", unit="cell"):
                more: tuple[Method, ...] = ()
                if arguments.grid and split == "dev":
                    more = GRID
                elif arguments.grid:
                    best = picked(arguments.folder, model, cell)
                    if best is None:
                        raise ValueError(
                            f"{cell.name}: no setting can be picked for test, as dev is not "
                            "complete: run with --grid --splits dev test"
                        )
                    more = (best,)
                runner.run(cell, split, [*methods, *more], count)


def report(arguments: argparse.Namespace) -> None:
    """Write the report of a split."""
    for split in arguments.splits:
        count = arguments.problems or PROBLEMS[split]
        text = render(arguments.folder, arguments.models, arguments.cells, split, count)
        path = arguments.folder.root / f"report-{split}.md"
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")


def train(arguments: argparse.Namespace) -> None:
    """Train the tasks' adapters."""
    from benchmarks.accuracy.train import train_all

    for model in arguments.models:
        folder = arguments.folder.adapters(model)
        train_all(model, arguments.tasks, arguments.ranks, folder, arguments.steps)


def show(arguments: argparse.Namespace) -> None:
    """Say which models, cells and methods there are."""
    print("models:", *(f"  {each.name}: {each.title}" for each in arguments.models), sep="\n")
    for name, module in MODULES.items():
        print(f"cells of {name}:", *(f"  {c.name}: {c.about}" for c in module.CELLS), sep="\n")
    print("methods:", *(f"  {key}" for key in METHODS), sep="\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, does: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=does.__doc__, description=does.__doc__)
        found.set_defaults(does=does, cells=[], splits=["test"], problems=None, adapter=None)
        found.add_argument("--table", type=Path, default=models.TABLE, help="the models (TOML)")
        found.add_argument("--models", nargs="+", metavar="MODEL", help="of the table; all")
        found.add_argument("--folder", type=lambda text: Folder(Path(text)), default=Folder(RUNS),
                           help=f"of adapters, answers and reports ({RUNS})")  # fmt: skip
        return found

    command("list", show)
    trains = command("train", train)
    trains.add_argument("--tasks", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    trains.add_argument("--ranks", nargs="+", type=int, choices=RANKS, default=RANKS)
    trains.add_argument("--steps", type=int, help="for all tasks (each has its own)")
    runs, reports = command("run", run), command("report", report)
    for each, splits in ((runs, list(PROBLEMS)), (reports, ["test"])):
        each.add_argument("--cells", nargs="+", default=[], metavar="CELL",
                          help="cells or their modules; see list; all")  # fmt: skip
        each.add_argument("--splits", nargs="+", choices=get_args(Split), default=splits)
        each.add_argument("--problems", type=int, help=f"of each cell, at most ({PROBLEMS})")
        each.add_argument("--adapter", type=Path, help="a folder: what the experts wear, instead "
                          "of the cells' own adapters")  # fmt: skip
    runs.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS),
                      metavar="METHOD", help="see list; all")  # fmt: skip
    runs.add_argument("--grid", action="store_true", help="on dev, settings of alpha and beta; on "
                      "test, the one of them that is best on dev")  # fmt: skip
    arguments = parser.parse_args(argv)
    try:
        table = models.read(arguments.table)
        unknown = set(arguments.models or ()) - table.keys()
        if unknown:
            raise ValueError(f"no models of {arguments.table}: {', '.join(sorted(unknown))}; "
                             f"there are {', '.join(table)}")  # fmt: skip
        arguments.cells = chosen(arguments.cells)
    except ValueError as error:
        parser.error(str(error))
    arguments.models = [table[name] for name in arguments.models or table]
    if arguments.adapter:
        worn = arguments.adapter.resolve()
        arguments.cells = [
            replace(cell, name=f"{cell.name}+{worn.name}", adapter=str(worn), models=())
            for cell in arguments.cells
        ]
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    arguments = parse(argv)
    try:
        arguments.does(arguments)
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
