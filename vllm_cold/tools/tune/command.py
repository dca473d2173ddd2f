# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold tune`` from its options to its reports."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import vllm_cold
from vllm_cold.tools.adapters import Adapter, lora_rank, read_adapters, read_model
from vllm_cold.tools.engine import prepare_environment, start_llm
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune import stats
from vllm_cold.tools.tune.data import (
    Problem,
    answers_digest,
    digest,
    load_problems,
    split_problems,
)
from vllm_cold.tools.tune.decode import Decoder, Job
from vllm_cold.tools.tune.grid import Setting, make_grid
from vllm_cold.tools.tune.match import Matcher, load_matcher
from vllm_cold.tools.tune.progress import Part, Watch, watch
from vllm_cold.tools.tune.report import (
    CUT,
    Report,
    Row,
    conclude,
    find_changes,
    judge_grid,
    level_of,
    percent,
    pick,
)
from vllm_cold.tools.tune.serve import serve_line
from vllm_cold.tools.tune.store import (
    Output,
    Store,
    cached_commit,
    file_digests,
    file_stamps,
    open_store,
    write_atomically,
)

# Options that are arguments of vllm.LLM and of vllm serve alike.
ENGINE_OPTIONS = (
    "dtype",
    "max_model_len",
    "max_num_seqs",
    "gpu_memory_utilization",
    "tensor_parallel_size",
)
OWN_ARGUMENTS = {"model", "enable_lora", "max_loras", "disable_log_stats", "use_tqdm_on_load"}
VERSIONS = ("vllm", "torch", "transformers")


@dataclass
class Task:
    """What the options ask for, checked, before anything is started.

    Attributes:
        options: The options.
        grid: The settings.
        problems: All problems.
        repeated: Rows that were left out because they repeat a prompt.
        dev: Indices of the dev problems, which pick a setting.
        test: Indices of the held-out problems, which judge it.
        matcher: Scores an output.
        expert: The adapter.
        amateur: Another adapter, or None for the base model.
        model: Folder (absolute) or hub name.
        engine: Further arguments of ``vllm.LLM``.
        seconds: That the engine decoded.
    """

    options: argparse.Namespace
    grid: list[Setting]
    problems: list[Problem]
    repeated: int
    dev: list[int]
    test: list[int]
    matcher: Matcher
    expert: Adapter
    amateur: Adapter | None
    model: str
    engine: dict[str, Any]
    seconds: float = 0.0

    @property
    def adapters(self) -> list[Adapter]:
        """The expert, then the amateur if it is an adapter."""
        return [self.expert] + ([] if self.amateur is None else [self.amateur])

    @property
    def decoded(self) -> list[Setting]:
        """The settings that have to be decoded."""
        return [setting for setting in self.grid if not setting.is_greedy]

    @property
    def passes(self) -> list[Part]:
        """What is decoded, but for the last pass: the picked setting on the held-out problems."""
        greedy: list[Part] = [(None, "dev"), (None, "test")]
        return greedy + [(setting, "dev") for setting in self.decoded]


def read_task(options: argparse.Namespace) -> Task:
    """Check all options and read all small files.

    Raises:
        ToolError: names the first mistake.
    """
    grid = make_grid(options.alpha, options.beta, options.beta_max)
    if not 0.5 <= options.confidence < 1.0:
        raise ToolError(f"--confidence={options.confidence}: must be at least 0.5 and below 1")
    if options.max_tokens < 1:
        raise ToolError(f"--max-tokens={options.max_tokens}: must be 1 or more")
    if "" in (options.stop or ()):
        raise ToolError("--stop='': a stop string must not be empty")
    problems, repeated = load_problems(options.data, options.limit)
    fewest = stats.fewest_problems(level_of(options.confidence))
    dev, test = split_problems(len(problems), options.test_fraction, options.seed, fewest)
    matcher = load_matcher(options.match, problems)
    adapters = read_adapters(options.adapter, options.amateur)
    model = read_model(options.model)
    engine = _engine_arguments(options, adapters)
    expert, amateur = adapters[0], adapters[1] if len(adapters) > 1 else None
    return Task(
        options, grid, problems, repeated, dev, test, matcher, expert, amateur, model, engine
    )


def _engine_arguments(options: argparse.Namespace, adapters: Sequence[Adapter]) -> dict[str, Any]:
    engine: dict[str, Any] = {"max_lora_rank": lora_rank(adapters, options.max_lora_rank)}
    if len(adapters) > 1:
        engine["max_loras"] = len(adapters)
    for name in ENGINE_OPTIONS:
        if (value := getattr(options, name)) is not None:
            engine[name] = value
    if options.enforce_eager:
        engine["enforce_eager"] = True
    if options.engine_args is None:
        return engine
    try:
        more = json.loads(options.engine_args)
    except json.JSONDecodeError as error:
        raise ToolError(f"--engine-args={options.engine_args!r}: not JSON ({error})") from None
    if not isinstance(more, dict):
        raise ToolError(f"--engine-args={options.engine_args!r}: must be a JSON object")
    if "hf_token" in more:
        raise ToolError(
            "--engine-args: hf_token would stand in results and reports; set HF_TOKEN instead"
        )
    additional = more.get("additional_config")
    if isinstance(additional, dict) and "cold" in additional:
        raise ToolError(
            f"--engine-args={options.engine_args!r}: additional_config's cold is a server's "
            "default, and this command sets alpha and beta itself; leave it out"
        )
    if twice := sorted(more.keys() & (engine.keys() | OWN_ARGUMENTS)):
        raise ToolError(
            f"--engine-args={options.engine_args!r}: {', '.join(twice)} is set by this command"
        )
    return engine | more


def versions() -> dict[str, str]:
    """Versions of what decodes."""
    found = {"vllm_cold": vllm_cold.__version__}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def fingerprint(task: Task) -> dict[str, Any]:
    """Everything that the outputs depend on, as JSON."""
    return {
        "problems": digest(task.problems),
        "--model": task.model,
        "the model's files": file_stamps(task.model),
        "the adapter": file_digests(task.expert.folder),
        "the amateur": None if task.amateur is None else file_digests(task.amateur.folder),
        "--max-tokens": task.options.max_tokens,
        "--stop": task.options.stop or [],
        "--chat": task.options.chat,
        "the engine's arguments": task.engine,
        **{f"version of {name}": version for name, version in versions().items()},
    }


class Tuning:
    """One run: which outputs are wanted, which are there, and what they are worth."""

    def __init__(self, task: Task, store: Store, console: Console) -> None:
        self._task = task
        self._store = store
        self._console = console
        self._splits = {
            "dev": [task.problems[index] for index in task.dev],
            "test": [task.problems[index] for index in task.test],
        }
        self._scores: dict[tuple[Setting | None, str], float] = {}
        self._decoder: Decoder | None = None
        self._rows: tuple[Row, ...] = ()

    def _missing(self, setting: Setting | None, split: str) -> list[Job]:
        return [
            Job(setting, problem)
            for problem in self._splits[split]
            if (setting, problem.id) not in self._store.outputs
        ]

    def _score(self, setting: Setting | None, problem: Problem) -> float:
        key = (setting, problem.id)
        if key not in self._scores:
            text = self._store.outputs[key].text
            self._scores[key] = self._task.matcher(text, problem)
        return self._scores[key]

    def _scores_of(self, setting: Setting | None, split: str) -> stats.Scores:
        """Scores [n] of what is decoded, in the order of the split's problems."""
        return np.array([self._score(setting, problem) for problem in self._splits[split]])

    def decode_all(self) -> None:
        """Decode what is missing: greedy on all problems and the grid on the dev problems, then the
        picked setting on the held-out ones.

        The other settings are never decoded on held-out problems: it saves time, and nobody can
        pick by them.
        """
        first = self._task.passes
        sizes = {split: len(problems) for split, problems in self._splits.items()}
        total = sum(sizes[split] for _, split in first) + sizes["test"]
        # The engine starts before the bars, so that nothing of it is drawn over them.
        if any(self._missing(*part) for part in first):
            self._start()
        started = time.monotonic()
        found = total - sizes["test"] - sum(len(self._missing(*part)) for part in first)
        with watch(self._console, total, found, len(first) + 1) as watcher:
            self._decode(first, watcher)
            self._rows = self._judge_grid()
            best = pick(self._rows)
            if self._missing(best, "test") and self._decoder is None:
                self._start()
            self._decode([(best, "test")], watcher)
        if self._decoder is not None:
            self._task.seconds = time.monotonic() - started

    def _judge_grid(self) -> tuple[Row, ...]:
        options = self._task.options
        return judge_grid(
            lambda setting: self._scores_of(setting, "dev"),
            self._task.grid,
            options.confidence,
            options.seed,
        )

    def _start(self) -> None:
        task = self._task
        self._console.print("Starting the engine ...", highlight=False)
        llm = start_llm(task.model, task.options.verbose, **task.engine)
        self._decoder = Decoder(
            llm,
            task.expert,
            task.amateur,
            task.options.max_tokens,
            task.options.stop or (),
            task.options.chat,
        )
        self._decoder.tokenize(task.problems)
        self._store.note_commit(cached_commit(task.model, task.engine))
        self._store.note_penalties(self._decoder.penalties)

    def _decode(self, parts: Sequence[Part], watcher: Watch) -> None:
        jobs: list[Job] = []
        part_of: dict[tuple[Setting | None, str], Part] = {}
        for part in parts:
            missing = self._missing(*part)
            jobs += missing
            part_of |= {(job.setting, job.problem.id): part for job in missing}
            watcher.expect(part, missing, len(self._splits[part[1]]) - len(missing))
            for problem in self._splits[part[1]]:
                if (part[0], problem.id) in self._store.outputs:
                    self._score(part[0], problem)

        def done(job: Job, output: Output) -> None:
            self._store.add(job.setting, job.problem.id, output)
            # At once, so that a callable that fails does so now and not in an hour.
            self._score(job.setting, job.problem)
            if watcher.count(part_of[job.setting, job.problem.id]):
                self._store.sync()

        if jobs:
            assert self._decoder is not None
            self._decoder.run(jobs, done)

    def report(self) -> Report:
        """Judge what is decoded."""
        task, options = self._task, self._task.options
        best = pick(self._rows)
        self._store.add_analysis(
            {
                "match": options.match,
                "answers": answers_digest(task.problems),
                "seed": options.seed,
                "test_fraction": options.test_fraction,
                "settings": [
                    [s.alpha, s.beta] + ([] if s.beta_max is None else [s.beta_max])
                    for s in task.grid
                ],
            }
        )
        greedy_test, best_test = self._scores_of(None, "test"), self._scores_of(best, "test")

        def line(setting: Setting | None) -> str:
            return serve_line(task.model, task.adapters, task.engine, setting)

        return conclude(
            rows=self._rows,
            greedy_test=greedy_test,
            best_test=best_test,
            greedy_dev=self._scores_of(None, "dev"),
            best_dev=self._scores_of(best, "dev"),
            confidence=options.confidence,
            seed=options.seed,
            changes=find_changes(
                self._splits["test"],
                lambda setting, problem: self._store.outputs[setting, problem].text,
                best,
                greedy_test,
                best_test,
            ),
            notes=self._notes(best),
            serve=line,
            run=self._run(),
        )

    def _notes(self, best: Setting) -> list[str]:
        task, notes = self._task, []
        sent = ["temperature 0", f"max_tokens {task.options.max_tokens}"]
        if task.options.stop:
            sent.append(f"stop {json.dumps(task.options.stop)}")
        notes.append(
            "Measured at temperature 0; requests that sample are another matter. A server with "
            "this line decodes the same way, up to rounding, where requests send "
            f"{', '.join(sent[:-1])} and {sent[-1]}."
        )
        if task.amateur is not None:
            notes.append(
                "The amateur is another adapter, which a server has no default for: each request "
                f'must send "vllm_xargs": {{"cold_amateur": {json.dumps(task.amateur.name)}}}.'
            )
        if task.repeated:
            notes.append(
                f"{task.repeated} {'row repeats' if task.repeated == 1 else 'rows repeat'} an "
                f"earlier prompt and {'was' if task.repeated == 1 else 'were'} left out."
            )
        if len(self._store.analyses) > 1:
            notes.append(
                f"These outputs were judged in {len(self._store.analyses)} ways (answers, split, "
                "grid or rule of matching). To choose among the reports is to pick by luck again: "
                "confirm the result on new problems."
            )
        for setting, name in ((None, "greedy"), (best, "the best setting")):
            outputs = [
                self._store.outputs[setting, problem.id]
                for split in self._splits.values()
                for problem in split
            ]
            cut = sum(output.finish == "length" for output in outputs) / len(outputs)
            if cut > CUT:
                notes.append(
                    f"{percent(cut)} of the outputs of {name} were cut off at "
                    f"{task.options.max_tokens} tokens; a larger --max-tokens may change scores."
                )
        if self._store.penalties:
            shown = ", ".join(f"{name} {value:g}" for name, value in self._store.penalties.items())
            notes.append(
                f"The model's generation_config.json sets {shown}, which was used, as a server "
                "would."
            )
        return notes

    def _run(self) -> dict[str, Any]:
        task, options = self._task, self._task.options
        return {
            "data": Path(options.data).name,
            "model": task.model,
            "adapter": task.expert.name,
            "amateur": None if task.amateur is None else task.amateur.name,
            "match": options.match,
            "chat_template": options.chat,
            "max_tokens": options.max_tokens,
            "stop": options.stop or [],
            "seed": options.seed,
            "test_fraction": options.test_fraction,
            "problems": {
                "dev": len(task.dev),
                "held_out": len(task.test),
                "left_out": task.repeated,
            },
            "outputs": {
                "found": self._store.found,
                "decoded_now": len(self._store.outputs) - self._store.found,
            },
            "seconds_decoding": round(task.seconds, 1),
            "engine": task.engine,
            "versions": versions(),
        }


def write_reports(report: Report, folder: Path) -> list[Path]:
    """Write report.json, heatmap.png and report.html; returns their paths."""
    from vllm_cold.tools.tune import heatmap, page

    png = heatmap.draw(report.rows, report.best, report.confidence)
    content = {
        "report.json": (json.dumps(report.as_json(), indent=2) + "\n").encode(),
        "heatmap.png": png,
        # Half a surrogate pair, alone, has no UTF-8.
        "report.html": page.render(report, png).encode(errors="replace"),
    }
    for name, data in content.items():
        try:
            write_atomically(folder / name, data)
        except OSError as error:
            raise ToolError(f"{folder / name}: cannot be written: {error.strerror}") from error
    return [folder / name for name in content]


def run(options: argparse.Namespace) -> int:
    """Decode what is missing, judge, write the reports and print them.

    Returns:
        0 if a setting beats greedy significantly, 1 if none does.

    Raises:
        ToolError: a mistake in the options, the files or the scoring callable.
    """
    from vllm_cold.tools.tune.show import show

    prepare_environment(options.verbose)
    task = read_task(options)
    console, progress = Console(), Console(stderr=True)
    with open_store(options.output, fingerprint(task), options.restart) as store:
        tuning = Tuning(task, store, progress)
        progress.print(
            f"{len(task.problems)} problems: {len(task.dev)} dev, {len(task.test)} held out; "
            f"{len(task.decoded)} settings. {store.found} outputs are there already.\n"
            f"{len(task.passes) + 1} passes: greedy on dev and held-out problems, each setting on "
            "dev ones, the best on held-out ones.",
            highlight=False,
            soft_wrap=True,
        )
        try:
            tuning.decode_all()
        except KeyboardInterrupt:
            print(
                f"vllm-cold tune: stopped; {len(store.outputs)} outputs are kept in "
                f"{store.path}, and the same command"
                f"{' without --restart' if options.restart else ''} goes on from there",
                file=sys.stderr,
            )
            raise
        report = tuning.report()
    paths = write_reports(report, Path(options.output))
    show(console, report, "Written: " + ", ".join(map(str, paths)))
    return 0 if report.gain else 1
