# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold tune`` from its options to its reports."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from vllm_cold.method.settings import PREFIX
from vllm_cold.tools.contrast import ROW_KEYS
from vllm_cold.tools.engine import prepare_environment, start_llm
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune import changes, stats
from vllm_cold.tools.tune.contrasts import amateurs_text
from vllm_cold.tools.tune.data import Problem, answers_digest
from vllm_cold.tools.tune.decode import Decoder, Job
from vllm_cold.tools.tune.fingerprint import cached_commit, fingerprint, versions
from vllm_cold.tools.tune.grid import Setting
from vllm_cold.tools.tune.progress import Part, Watch, watch
from vllm_cold.tools.tune.report import (
    CUT,
    Report,
    Row,
    conclude,
    judge_grid,
    percent,
    pick,
)
from vllm_cold.tools.tune.serve import cold_options, request_args, serve_line
from vllm_cold.tools.tune.store import Output, Store, open_store
from vllm_cold.tools.tune.task import Task, read_task

if TYPE_CHECKING:
    from vllm_cold.tools.tune.remote import ServerDecoder


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
        self._decoder: Decoder | ServerDecoder | None = task.server
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
        if task.server is not None:
            return
        self._console.print("Starting the engine ...", highlight=False)
        llm = start_llm(task.model, task.options.verbose, **task.engine)
        decoder = self._decoder = Decoder(
            llm,
            task.model,
            task.adapters,
            task.expert,
            task.options.max_tokens,
            task.options.stop or (),
            task.options.chat,
        )
        decoder.tokenize(task.problems)
        self._store.note_commit(cached_commit(task.model, task.engine))
        self._store.note_penalties(decoder.penalties)

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
        greedy_test, best_test = self._scores_of(None, "test"), self._scores_of(best, "test")
        self._store.add_analysis(
            {
                "match": options.match,
                "answers": answers_digest(task.problems),
                "seed": options.seed,
                "test_fraction": options.test_fraction,
                "confidence": options.confidence,
                "settings": [setting.values for setting in task.grid],
            }
        )
        return conclude(
            rows=self._rows,
            scores=self._scores_of,
            confidence=options.confidence,
            seed=options.seed,
            changes=changes.find(
                self._splits["test"],
                lambda setting, problem: self._store.outputs[setting, problem].text,
                best,
                greedy_test,
                best_test,
            ),
            notes=self._notes(best),
            serve=self._line,
            use=self._use,
            run=self._run(),
        )

    def _line(self, setting: Setting | None) -> str:
        """What to paste: a command, or the fields of a request's body."""
        task = self._task
        if task.server is not None:
            return json.dumps(task.server.fields(setting, task.args, task.own_contrasts))
        return serve_line(
            task.model, task.adapters, task.engine, setting, task.args, task.own_contrasts
        )

    def _use(self, setting: Setting | None) -> str:
        """The same for a sentence, without what does not depend on the setting."""
        task = self._task
        if task.server is not None:
            fields = f"`{self._line(setting)}`"
            return (
                f"with {fields}" if setting is None else " and ".join([fields, *self._row_keys()])
            )
        if setting is None:
            return "without `--sampler cold`"
        options = f"`{shlex.join(cold_options(setting, task.args, task.own_contrasts))}`"
        must = self._must_send(setting)
        return f"{options} and, in each request, {' and '.join(must)}" if must else options

    def _must_send(self, setting: Setting) -> list[str]:
        """What a request to an engine's server says itself, with CoLD."""
        told = request_args(setting, self._task.args, self._task.own_contrasts)
        return ([f'`"vllm_xargs": {json.dumps(told)}`'] if told else []) + self._row_keys()

    def _notes(self, best: Setting) -> list[str]:
        task, notes = self._task, []
        sent = ["temperature 0", f"max_tokens {task.options.max_tokens}"]
        if task.options.stop:
            sent.append(f"stop {json.dumps(task.options.stop)}")
        if task.server is not None:
            sent += [f"with CoLD {keys}" for keys in self._row_keys()]
        what = "A server with this line decodes" if task.server is None else "These fields decode"
        notes.append(
            f"Measured at temperature 0; requests that sample are another matter. {what} the same "
            f"way, up to rounding, where requests send {', '.join(sent[:-1])} and {sent[-1]}."
        )
        if task.server is not None:
            notes.append(
                "The server's files cannot be looked at: that its model and adapters were the same "
                "throughout, and are what their names say, is for you to know."
            )
        if task.server is None and (must := self._must_send(best)):
            notes.append(
                "A server has no default for this contrast: with CoLD, each request must send "
                f"{' and '.join(must)}."
            )
        if task.repeated:
            notes.append(
                f"{task.repeated} {'row repeats' if task.repeated == 1 else 'rows repeat'} an "
                f"earlier prompt and {'was' if task.repeated == 1 else 'were'} left out."
            )
        if len(self._store.analyses) > 1:
            notes.append(
                f"These outputs were judged in {len(self._store.analyses)} ways (answers, split, "
                "grid, confidence or rule of matching). To choose among the reports is to pick by "
                "luck again: confirm the result on new problems."
            )
        for setting, name in ((None, "greedy"), (best, "the picked setting")):
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

    def _row_keys(self) -> list[str]:
        """What requests say of the contrast where a row does so itself, in words."""
        task, keys = self._task, "the cold_* keys of its problem's row"
        if not task.own_contrasts:
            return []
        if replaced := [key for key in ROW_KEYS if key in task.args]:
            return [f"{keys}, if it has any, in place of {', '.join(replaced)}"]
        every = all(problem.own_keys for problem in task.problems)
        if task.server is None or every or PREFIX + "amateur" in task.args:
            return [keys]
        return [f'{keys}, or "{PREFIX}amateur": {json.dumps(task.model)} where it has none']

    def _run(self) -> dict[str, Any]:
        task, options = self._task, self._task.options
        return {
            "data": Path(options.data).name,
            "server": None if task.server is None else task.server.root,
            "model": task.model,
            "adapter": task.expert,
            "contrast": amateurs_text(task.args, task.model, task.own_contrasts),
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
            "versions": versions(task),
        }


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old or the new content, whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
    belongs = fingerprint(task)
    if task.server is not None:
        task.server.close()  # to decode it opens connections of its own
    with open_store(options.output, belongs, options.restart) as store:
        tuning = Tuning(task, store, progress)
        progress.print(
            f"{len(task.problems)} problems: {len(task.dev)} dev, {len(task.test)} held out; "
            f"{len(task.decoded)} settings. {store.found} outputs are there already.\n"
            f"{len(task.passes) + 1} passes: greedy on dev and held-out problems, each setting on "
            "dev ones, the picked one on held-out ones.",
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
