# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark: ``python -m benchmarks.accuracy list``, ``fetch``, ``plan``, ``train``,
``run``, ``report``, ``compare``.

Settings are fixed before test problems are decoded, and so is what is decoded and compared
(``hypotheses.md``). ``run`` takes the cells and methods of that plan in the order of importance, so
that it may be cut off; what is decoded already is not decoded again, so it goes on where it was
stopped. Two processes with other models or cells may run
side by side, each on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from tqdm import tqdm

from benchmarks import machine
from benchmarks.accuracy import comparison, models, packages, plan
from benchmarks.accuracy.answers import Answer, Folder, add, read
from benchmarks.accuracy.choice import scorings
from benchmarks.accuracy.methods import GREEDY, METHODS, Method, Request
from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Split
from benchmarks.accuracy.report import (
    PROBLEMS,
    Outcomes,
    correct,
    count_of,
    outcomes,
    read_outcomes,
    render,
)
from benchmarks.accuracy.tasks import MODULES, chosen
from benchmarks.accuracy.tasks.adapters import STEPS
from examples.engine import prepare_environment

RUNS = Path(__file__).parent / "runs"
# Requests that are decoded before they are written.
CHUNK = 128


class Runner:
    """Decodes what is not decoded yet, with an engine that is started when it is needed. Beside the
    answers it records the machine, before the engine starts and after it has ended.
    """

    def __init__(self, model: Model, folder: Folder, *, adapters: bool) -> None:
        self._model, self._folder, self._adapters = model, folder, adapters
        self._engine: Any = None
        self._facts: machine.Facts = {}
        self._record = folder.record(model, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))

    def run(self, cell: Cell, split: Split, methods: Sequence[Method], count: int) -> None:
        """Decode the first ``count`` problems of a cell's split with methods that are for it."""
        path = self._folder.answers(self._model, cell, split)
        problems = cell.problems(self._model, split, count)
        kept = {mark: answer.text for mark, answer in read(path).items()}
        with tqdm(methods, desc=f"{cell.name}, {split}", unit="method", leave=False) as bar:
            for method in bar:
                if not all(method.is_for(cell, problem) for problem in problems):
                    continue
                requests = self._requests(cell, method, problems, kept)
                left = {each.mark: each for each in requests if each.mark not in kept}
                if not left:
                    continue
                bar.set_postfix_str(method.key)
                if not self._engine:
                    self._facts = machine.look()
                    self._write_facts()  # the run may be cut off
                    self._engine = self._start()
                marks = list(left)
                for start in range(0, len(marks), CHUNK):
                    some = marks[start : start + CHUNK]
                    started = time.perf_counter()
                    found = self._engine.run([left[mark] for mark in some])
                    share = round((time.perf_counter() - started) / len(some), 6)
                    by = self._engine.versions
                    new = [
                        Answer(mark, method.key, text, tokens, by, share)
                        for mark, (text, tokens) in zip(some, found, strict=True)
                    ]
                    add(path, new)
                    kept |= {answer.mark: answer.text for answer in new}

    def close(self) -> None:
        """End the engine, if it was started."""
        if self._engine:
            self._engine.close()
        if self._facts:
            machine.look_again(self._facts)
            self._write_facts()

    def _write_facts(self) -> None:
        self._record.parent.mkdir(parents=True, exist_ok=True)
        self._record.write_text(json.dumps(self._facts, indent=1) + "\n", encoding="utf-8")

    def _requests(
        self, cell: Cell, method: Method, problems: Sequence[Problem], kept: dict[str, str]
    ) -> list[Request]:
        adapters = self._folder.adapters(self._model)
        if not method.chooses:
            return [method.request(self._model, cell, each, adapters) for each in problems]
        asked = [
            scorings(self._model, cell, each, adapters, lambda request: kept.get(request.mark))
            for each in problems
        ]
        return [request for found in asked if found for request in found[1]]

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
            problem = cell.problems(model, "test", 1)[0]
            GREEDY.request(model, cell, problem, folder.adapters(model)).mark  # noqa: B018
        except (FileNotFoundError, ModuleNotFoundError) as error:
            print(f"{model.name}, {cell.name} is left out: {error}")
        else:
            found.append(cell)
    return found


def run(arguments: argparse.Namespace) -> None:
    """Decode, what matters most first, and write the report."""
    if arguments.fetch:
        fetch(arguments)
    decode_all(arguments)
    report(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Decode test problems by the baselines and every preset that is for them, and write a CSV and
    a chart.
    """
    arguments.cells = [cell for cell in arguments.cells if not cell.executes]
    decode_all(arguments)
    found: list[comparison.Row] = []
    for model in arguments.models:
        told = outcomes(arguments.folder, model, arguments.cells, "test", arguments.problems)
        found += comparison.rows(model.title, arguments.cells, told)
    if not any(row.difference.declared for row in found):
        raise ValueError(
            "--cells: nothing to compare with greedy decoding: none of them is for these models, "
            "or what it needs is not there"
        )
    correct(row.difference for row in found)
    for path in comparison.write(found, arguments.folder.root):
        print(f"wrote {path}")


def decode_all(arguments: argparse.Namespace) -> None:
    """Decode the answers of all models."""
    for model in arguments.models:
        model.path()  # is it there?
        cells = ready(model, arguments.cells, arguments.folder)
        adapters = any(cell.adapter for cell in cells)
        with closing(Runner(model, arguments.folder, adapters=adapters)) as runner:
            decode(arguments, runner, model, cells)


def decode(
    arguments: argparse.Namespace, runner: Runner, model: Model, cells: Sequence[Cell]
) -> None:
    """Decode a model's answers."""
    steps = plan.steps(cells, arguments.splits, arguments.methods)
    for members, split, some in tqdm(steps, desc=model.name, unit="step"):
        count = count_of(model, split, arguments.problems)
        # The others are compared with it.
        with_greedy = some if GREEDY in some else [GREEDY, *some]
        for cell in members:
            runner.run(cell, split, with_greedy, count)


def show_plan(arguments: argparse.Namespace) -> None:
    """Say what is decoded in which order, and how long it takes at most."""
    kind, total = plan.MACHINES[arguments.machine], 0.0
    for model in arguments.models:
        cells = ready(model, arguments.cells, arguments.folder)
        for members, split, methods in plan.steps(cells, arguments.splits, arguments.methods):
            count = count_of(model, split, arguments.problems)
            times = {
                method.key: sum(
                    plan.seconds(model, c, c.problems(model, split, count), method, kind)
                    for c in members
                )
                for method in methods
            }
            if not any(times.values()):
                continue  # none of the methods is for these cells
            total += sum(times.values())
            print(
                f"{model.name}, {split}: {', '.join(cell.name for cell in members)}: "
                f"{', '.join(key for key, took in times.items() if took)}: "
                f"{sum(times.values()) / 60:.1f} min, {total / 3600:.1f} h so far"
            )


def report(arguments: argparse.Namespace) -> None:
    """Write the report of a split, and its outcomes. Programs that models wrote are run with
    --run-code alone.
    """
    cells = [cell for cell in arguments.cells if arguments.run_code or not cell.executes]
    for split in arguments.splits:
        found = render(
            arguments.folder, arguments.models, cells, split, arguments.problems, arguments.before
        )
        for name, text in zip(
            (f"report-{split}.md", f"outcomes-{split}.jsonl"), found, strict=True
        ):
            (arguments.folder.root / name).write_text(text, encoding="utf-8")
            print(f"wrote {arguments.folder.root / name}")


def train(arguments: argparse.Namespace) -> None:
    """Train the adapters of a task."""
    from benchmarks.accuracy.train import courses, train_stages

    for model in arguments.models:
        for course in courses(model, arguments.steps)[arguments.task]:
            train_stages(model, arguments.folder.adapters(model), course)


def fetch(arguments: argparse.Namespace) -> None:
    """Show the sizes and licences of models and data; with --yes, download and convert them."""
    models_too, data = arguments.models_named, arguments.data
    if not models_too and not data:
        if arguments.yes:
            raise ValueError("--yes: say what, with --models or --data")
        models_too, data = True, packages.sources()
    for model in arguments.models if models_too else ():
        print(
            f"{model.name}: {model.title}, {model.megabytes:g} MB to download, "
            f"{2 * model.parameters:.1f} GB kept, {model.memory_gib:g} GiB of memory to convert, "
            f"licence: {model.licence}"
        )
        if not arguments.yes:
            continue
        print(f"  {model.fetch()}")
        for name, source in model.adapters.items():
            folder = arguments.folder.adapters(model) / name
            if not folder.is_dir() and not Path(source).is_dir():
                from huggingface_hub import snapshot_download

                # Under its name when it is whole.
                part = Path(snapshot_download(source, local_dir=folder.with_name(f"{name}.part")))
                part.rename(folder)
    for name in data:
        source = packages.sources()[name]
        print(f"{name}: {source.about}, {source.megabytes:g} MB, licence: {source.licence}")
        if arguments.yes:
            print(f"  {packages.fetch(source)}")


def show(arguments: argparse.Namespace) -> None:
    """Say which models, cells and methods there are."""
    print("models:", *(f"  {each.name}: {each.title}" for each in arguments.models), sep="\n")
    for name, module in MODULES.items():
        print(f"cells of {name}:", *(f"  {c.name}: {c.about}" for c in module.CELLS), sep="\n")
    print("methods:", *(f"  {key}" for key in METHODS), sep="\n")


def _outcomes(path: str) -> Outcomes:
    """Read now, and not when hours have been spent."""
    try:
        return read_outcomes(Path(path))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, does: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=does.__doc__, description=does.__doc__)
        found.set_defaults(does=does, cells=[], adapter=None)
        found.add_argument("--model-entry", nargs="+", type=Path, default=[], metavar="FILE",
                           help="your models: entries like models.toml's")  # fmt: skip
        found.add_argument("--models", nargs="+", metavar="MODEL",
                           help="see list; those of --model-entry, or all")  # fmt: skip
        found.add_argument("--folder", type=lambda text: Folder(Path(text)), default=Folder(RUNS),
                           help=f"of adapters, answers and reports ({RUNS})")  # fmt: skip
        return found

    command("list", show)
    fetches = command("fetch", fetch)
    fetches.add_argument("--data", nargs="*", choices=packages.sources(), default=[])
    fetches.add_argument("--yes", action="store_true", help="download")
    trains = command("train", train)
    trains.add_argument("--task", choices=("adapters", "poisoned"), default="adapters")
    trains.add_argument("--steps", type=int, help=f"of training of word problems ({STEPS})")
    runs, reports, plans = (
        command("run", run),
        command("report", report),
        command("plan", show_plan),
    )
    compares = command("compare", compare)
    compares.set_defaults(splits=["test"], methods=comparison.COMPARED)
    for each in (runs, reports, plans, compares):
        each.add_argument("--cells", nargs="+", default=[], metavar="CELL",
                          help="cells or their modules; see list; all")  # fmt: skip
        each.add_argument("--problems", type=int, help=f"of each cell, at most ({PROBLEMS})")
        each.add_argument("--adapter", type=Path, help="a folder: what the experts wear, instead "
                          "of the cells' own adapters")  # fmt: skip
    for each, splits in ((runs, list(PROBLEMS)), (reports, ["test"]), (plans, list(PROBLEMS))):
        each.add_argument("--splits", nargs="+", choices=get_args(Split), default=splits)
    for each in (runs, plans):
        each.add_argument("--methods", nargs="+", choices=("all", *METHODS), metavar="METHOD",
                          help="see list; for all cells and splits, in place of the declared "
                          "plan's (hypotheses.md)")  # fmt: skip
    runs.add_argument("--fetch", action="store_true", help="fetch first what is missing")
    runs.set_defaults(yes=True, data=list(packages.sources()))
    plans.add_argument("--machine", choices=plan.MACHINES, default="cpu-core")
    for each in (runs, reports):
        each.add_argument("--run-code", action="store_true", help="run the programs that models "
                          "wrote, with little time and memory and in no sandbox")  # fmt: skip
        each.add_argument("--before", type=_outcomes, metavar="FILE", help="an outcomes-*.jsonl of "
                          "another run: what is not decoded here comes from it")  # fmt: skip
    arguments = parser.parse_args(argv)
    arguments.models_named = bool(arguments.models or arguments.model_entry)
    try:
        table, own = models.read(), dict[str, Model]()
        for path in arguments.model_entry:
            own |= models.read(path)
        table |= own
        unknown = set(arguments.models or ()) - table.keys()
        if unknown:
            raise ValueError(f"no such models: {', '.join(sorted(unknown))}; there are "
                             f"{', '.join(table)}")  # fmt: skip
        if arguments.does in (run, compare, train, show_plan) and not (arguments.models or own):
            raise ValueError(f"--models: say which; there are {', '.join(table)}")
        arguments.cells = chosen(arguments.cells)
        if arguments.does in (run, show_plan) and (named := arguments.methods):
            keys = METHODS if "all" in named else named
            arguments.methods = [METHODS[key] for key in keys]
    except ValueError as error:
        parser.error(str(error))
    arguments.models = [table[name] for name in arguments.models or own or table]
    if arguments.adapter:
        worn = arguments.adapter.resolve()
        arguments.cells = [
            replace(cell, name=f"{cell.name}+{worn.name}", adapter=str(worn))
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
