# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold tune`` from its options to its report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from vllm_cold.tools.contrast import ROW_KEYS, kept, request_args
from vllm_cold.tools.engine import prepare_environment
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune import report, verdict
from vllm_cold.tools.tune.advice import serve_line, server_defaults
from vllm_cold.tools.tune.answers import Answer, Answers, open_answers
from vllm_cold.tools.tune.decode import Decode, Job, decoder
from vllm_cold.tools.tune.grid import Setting
from vllm_cold.tools.tune.problems import Problem
from vllm_cold.tools.tune.task import Task, read_task

FORMAT = 4  # of report.json
CUT = 0.05  # share of answers cut off by --max-tokens that is worth a word


class Tuning:
    """One run: which answers are wanted, which are there, and how they score."""

    def __init__(self, task: Task, answers: Answers, console: Console) -> None:
        self._task = task
        self._answers = answers
        self._console = console
        self._scores: dict[tuple[Setting | None, str], float] = {}
        self._decode: Decode | None = None

    def _score(self, setting: Setting | None, problem: Problem) -> float:
        key = (setting, problem.id)
        if key not in self._scores:
            self._scores[key] = self._task.matcher(self._answers[key].text, problem)
        return self._scores[key]

    def _compare(self, setting: Setting, problems: Sequence[Problem]) -> verdict.Comparison:
        cold, greedy = (
            np.array([self._score(one, problem) for problem in problems]) for one in (setting, None)
        )
        return verdict.compare(cold, greedy)

    def judge(self) -> tuple[list[verdict.Row], verdict.Comparison]:
        """Decode what is missing: the grid on the dev problems and greedy on all, then the picked
        setting on the held-out ones.

        The other settings are never decoded on held-out problems: it saves time, and nobody can
        pick by them. CoLD comes first: what is refused is refused at once.

        Returns:
            All settings on the dev problems, and the picked one on the held-out problems.
        """
        dev, held_out = self._task.dev, self._task.held_out
        first = [Job(setting, problem) for setting in self._task.grid for problem in dev]
        self._need(first + [Job(None, problem) for problem in self._task.problems])
        rows = [verdict.Row(one, self._compare(one, dev)) for one in self._task.grid]
        best = verdict.pick(rows).setting
        self._need([Job(best, problem) for problem in held_out])
        return rows, self._compare(best, held_out)

    def _need(self, jobs: Sequence[Job]) -> None:
        """Decode those of the jobs that are missing."""
        missing = [job for job in jobs if (job.setting, job.problem.id) not in self._answers]
        if not missing:
            return
        if self._decode is None:
            # It starts before the bar, so that nothing of it is drawn over that.
            self._decode = decoder(self._task)
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        hidden = not self._console.is_terminal
        with Progress(*columns, console=self._console, disable=hidden) as progress:
            bar = progress.add_task("answers", total=len(missing))

            def done(job: Job, answer: Answer) -> None:
                self._answers.add(job.setting, job.problem, answer)
                # At once, so that a callable that fails does so now and not in an hour.
                self._score(job.setting, job.problem)
                progress.advance(bar)

            self._decode(missing, done)

    def changes(self, best: Setting) -> list[dict[str, Any]]:
        """The held-out problems on which ``best`` scores higher than greedy decoding, then those
        where it scores lower.
        """
        changes = [
            {
                "id": problem.id,
                "prompt": kept(problem.prompt),
                "answers": list(problem.answers),
                "greedy": self._answers[None, problem.id].text,
                "cold": self._answers[best, problem.id].text,
                "greedy_score": self._score(None, problem),
                "cold_score": self._score(best, problem),
            }
            for problem in self._task.held_out
            if self._score(None, problem) != self._score(best, problem)
        ]
        return sorted(changes, key=lambda one: one["cold_score"] < one["greedy_score"])

    def share_cut(self, setting: Setting | None) -> float:
        """The share of a setting's answers, dev and held-out, that ``--max-tokens`` cut off."""
        found = [self._answers[setting, problem.id].finish for problem in self._task.problems]
        return found.count("length") / len(found)


def _advice(task: Task, setting: Setting, gain: bool) -> tuple[str, list[str]]:
    """What to paste, a command or the fields of a request's body, and what requests have to send
    beside it where they are decoded with CoLD.
    """
    args = {**task.args, **setting.args}
    own = any(problem.own_keys for problem in task.problems)
    rows = [f"the cold_* keys of its problem's row, in place of other {', '.join(ROW_KEYS)}"]
    rows = rows if own else []
    told = request_args(args, None if own else task.model)
    if task.server is not None:
        sent = told if gain else {"cold": 0}
        return json.dumps({"model": task.expert or task.model, "vllm_xargs": sent}), rows
    defaults = None if own else server_defaults(args)
    must = [] if defaults is not None else [f'"vllm_xargs": {json.dumps(told)}', *rows]
    line = serve_line(task.model, task.adapters, task.engine, (defaults or {}) if gain else None)
    return line, must


def _notes(
    task: Task, tuning: Tuning, best: verdict.Row, test: verdict.Comparison, must: list[str]
) -> list[str]:
    """What else a reader has to know."""
    options, dev = task.options, best.dev
    stop = f", stop {json.dumps(options.stop)}" if options.stop else ""
    notes = [
        "Measured with temperature 0 in each request; requests that sample are another matter. "
        f"The requests had max_tokens {options.max_tokens}{stop}."
    ]
    if must:
        notes.append(f"With CoLD each request must also send {' and '.join(must)}.")
    if task.repeated:
        notes.append(f"Rows that repeat an earlier prompt and were left out: {task.repeated}.")
    for setting, name in ((None, "greedy"), (best.setting, "the picked setting")):
        if (cut := tuning.share_cut(setting)) > CUT:
            notes.append(
                f"{verdict.percent(cut)} of the answers of {name} were cut off at "
                f"{options.max_tokens} tokens; a larger --max-tokens may change scores."
            )
    if test.greedy == dev.greedy == test.cold == dev.cold == 0.0:
        notes.append(
            "Nothing is right, with either kind of decoding. Compare answers.jsonl with the "
            "answers that you expect: --match, --chat, --stop or --max-tokens may be wrong."
        )
    if (test.low > 0.0 or test.high < 0.0) != (test.p < verdict.LEVEL):
        notes.append("Interval and p disagree about zero: p decides, the interval is of size.")
    return notes


def _report(
    task: Task, tuning: Tuning, rows: list[verdict.Row], test: verdict.Comparison
) -> dict[str, Any]:
    """The content of report.json, which the terminal shows."""
    best, options = verdict.pick(rows), task.options
    gain = verdict.is_gain(best.dev, test)
    serve, must = _advice(task, best.setting, gain)
    return {
        "format": FORMAT,
        "gain": gain,
        "headline": verdict.headline(rows, test),
        "details": verdict.details(rows, test),
        "best": {"name": str(best.setting), **best.setting.values},
        "test": msgspec.to_builtins(test),
        "settings": [
            {
                "name": str(row.setting),
                "picked": row is best,
                "setting": row.setting.values,
                "dev": msgspec.to_builtins(row.dev),
            }
            for row in rows
        ],
        "changes": tuning.changes(best.setting),
        "notes": _notes(task, tuning, best, test, must),
        "serve": serve,
        "run": {
            "data": Path(options.data).name,
            "contrast": task.args,
            "match": options.match,
            "seed": options.seed,
            "test_fraction": options.test_fraction,
            **{name: what for name, what in task.made_with().items() if name != "files"},
        },
    }


def run(options: argparse.Namespace) -> int:
    """Decode what is missing, judge, write the report and print it.

    Returns:
        0 if a setting beats greedy significantly, 1 if none does.

    Raises:
        ToolError: a mistake in the options, the files or the scoring callable.
    """
    prepare_environment(options.verbose)
    task = read_task(options)
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    with open_answers(options.output, task.made_with, task.problems) as answers:
        progress.print(
            f"{len(task.problems)} problems ({len(task.dev)} dev, {len(task.held_out)} held out), "
            f"{len(task.grid)} settings. {len(answers)} answers are there already."
        )
        tuning = Tuning(task, answers, progress)
        try:
            rows, test = tuning.judge()
        except KeyboardInterrupt:
            print(
                f"vllm-cold tune: stopped; {len(answers)} answers are kept in {answers.path}, and "
                "the same command goes on from there",
                file=sys.stderr,
            )
            raise
        found = _report(task, tuning, rows, test)
    path = Path(options.output, "report.json")
    try:
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ToolError(f"{path}: cannot be written: {error.strerror}") from error
    report.show(Console(), found, str(path))
    return 0 if found["gain"] else 1
