# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold tune`` from its options to its reports."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from vllm_cold.method.settings import PREFIX
from vllm_cold.tools.contrast import ROW_KEYS
from vllm_cold.tools.engine import prepare_environment, start_llm
from vllm_cold.tools.tune import report, verdict
from vllm_cold.tools.tune.advice import request_args, serve_line
from vllm_cold.tools.tune.answers import Answer, Answers, open_answers
from vllm_cold.tools.tune.decode import Decoder, Job, ServerDecoder
from vllm_cold.tools.tune.grid import Setting
from vllm_cold.tools.tune.problems import Problem
from vllm_cold.tools.tune.task import Task, read_task

CUT = 0.05  # share of answers cut off by --max-tokens that is worth a word
LINES = 100  # answers, after which a log has another line
SMALL = 50  # held-out problems; with fewer, only large differences can be found


class Tuning:
    """One run: which answers are wanted, which are there, and how they score."""

    def __init__(self, task: Task, answers: Answers, console: Console) -> None:
        self._task = task
        self._answers = answers
        self._console = console
        self._scores: dict[tuple[Setting | None, str], float] = {}
        self._decoder: Decoder | ServerDecoder | None = task.server

    def _score(self, setting: Setting | None, problem: Problem) -> float:
        key = (setting, problem.id)
        if key not in self._scores:
            self._scores[key] = self._task.matcher(self._answers[key].text, problem)
        return self._scores[key]

    def _compare(self, setting: Setting, problems: Sequence[Problem]) -> verdict.Comparison:
        cold, greedy = (
            np.array([self._score(one, problem) for problem in problems]) for one in (setting, None)
        )
        return verdict.compare(cold, greedy, self._task.options.confidence, self._task.options.seed)

    def judge(self) -> tuple[list[verdict.Row], verdict.Comparison]:
        """Decode what is missing: greedy on all problems and the grid on the dev problems, then the
        picked setting on the held-out ones.

        The other settings are never decoded on held-out problems: it saves time, and nobody can
        pick by them.

        Returns:
            All settings on the dev problems, and the picked one on the held-out problems.
        """
        dev, held_out = self._task.dev, self._task.held_out
        first = [Job(None, problem) for problem in self._task.problems]
        first += [Job(setting, problem) for setting in self._task.grid for problem in dev]
        total = len(first) + len(held_out)
        # The engine starts before the bar, so that nothing of it is drawn over that.
        if any(map(self._is_missing, first)):
            self._start()
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        hidden = not self._console.is_terminal
        with Progress(*columns, console=self._console, disable=hidden) as progress:
            progress.add_task("answers", total=total)
            self._decode(first, progress)
            rows = [verdict.Row(one, self._compare(one, dev)) for one in self._task.grid]
            best = verdict.pick(rows).setting
            self._decode([Job(best, problem) for problem in held_out], progress)
        return rows, self._compare(best, held_out)

    def _is_missing(self, job: Job) -> bool:
        return (job.setting, job.problem.id) not in self._answers

    def _start(self) -> None:
        task = self._task
        if self._decoder is not None:
            return
        self._console.print("Starting the engine ...", highlight=False)
        llm = start_llm(task.model, task.options.verbose, **task.engine)
        self._decoder = decoder = Decoder(
            llm,
            task.model,
            task.adapters,
            task.expert,
            task.options.max_tokens,
            task.options.stop or (),
            task.options.chat,
        )
        decoder.tokenize(task.problems, task.grid)

    def _decode(self, jobs: Sequence[Job], progress: Progress) -> None:
        (bar,) = progress.tasks
        missing = [job for job in jobs if self._is_missing(job)]
        progress.advance(bar.id, len(jobs) - len(missing))

        def done(job: Job, answer: Answer) -> None:
            self._answers.add(job.setting, job.problem, answer)
            # At once, so that a callable that fails does so now and not in an hour.
            self._score(job.setting, job.problem)
            progress.advance(bar.id)
            if progress.disable and bar.completed % LINES == 0:
                self._console.print(f"{bar.completed:g} of {bar.total:g} answers", highlight=False)

        if missing:
            self._start()
            assert self._decoder is not None
            self._decoder.run(missing, done)

    def changes(self, best: Setting) -> list[dict[str, Any]]:
        """The held-out problems on which ``best`` scores higher than greedy decoding, then those
        where it scores lower.
        """
        changes = [
            {
                "id": problem.id,
                "prompt": problem.text,
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


def _line(task: Task, setting: Setting | None) -> str:
    """What to paste: a command, or the fields of a request's body."""
    if task.server is not None:
        return json.dumps(task.server.fields(setting, task.args, task.own_contrasts))
    return serve_line(
        task.model, task.adapters, task.engine, setting, task.args, task.own_contrasts
    )


def _must_send(task: Task, setting: Setting) -> list[str]:
    """What requests say themselves, beside the line, where it is decoded with CoLD."""
    told = request_args(setting, task.args, task.own_contrasts) if task.server is None else {}
    must = [f'"vllm_xargs": {json.dumps(told)}'] if told else []
    if not task.own_contrasts:
        return must
    keys = "the cold_* keys of its problem's row"
    if replaced := [key for key in ROW_KEYS if key in task.args]:
        keys += f", if it has any, in place of {', '.join(replaced)}"
    elif task.server is not None and PREFIX + "amateur" not in task.args:
        keys += f', or "{PREFIX}amateur": {json.dumps(task.model)} where it has none'
    return [*must, keys]


def _notes(task: Task, tuning: Tuning, best: verdict.Row, test: verdict.Comparison) -> list[str]:
    """What else a reader has to know."""
    options, dev = task.options, best.dev
    stop = f", stop {json.dumps(options.stop)}" if options.stop else ""
    notes = [
        "Measured with temperature 0 in each request; requests that sample are another matter. "
        f"The requests had max_tokens {options.max_tokens}{stop}."
    ]
    if must := _must_send(task, best.setting):
        notes.append(f"With CoLD each request must also send {' and '.join(must)}.")
    if task.server is not None:
        notes.append(
            "The server's files cannot be looked at: that its model and adapters were the same "
            "throughout, and are what their names say, is for you to know."
        )
    if task.repeated:
        notes.append(f"Rows that repeat an earlier prompt and were left out: {task.repeated}.")
    for setting, name in ((None, "greedy"), (best.setting, "the picked setting")):
        if (cut := tuning.share_cut(setting)) > CUT:
            notes.append(
                f"{verdict.percent(cut)} of the answers of {name} were cut off at "
                f"{options.max_tokens} tokens; a larger --max-tokens may change scores."
            )
    if test.greedy == dev.greedy == 1.0:
        notes.append("Greedy decoding is right everywhere: there is nothing to gain here.")
    if test.greedy == dev.greedy == test.cold == dev.cold == 0.0:
        notes.append(
            "Nothing is right, with either kind of decoding. Compare answers.jsonl with the "
            "answers that you expect: --match, --chat, --stop or --max-tokens may be wrong."
        )
    if test.count < SMALL:
        notes.append(
            f"Only {test.count} problems are held out: nothing but a large difference can be found."
        )
    if (test.low > 0.0 or test.high < 0.0) != (test.p < verdict.level_of(options.confidence)):
        notes.append("Interval and p disagree about zero: p decides, the interval is of size.")
    return notes


def _run(task: Task) -> dict[str, Any]:
    """What was run."""
    options, made_with = task.options, task.made_with()
    return {
        "data": Path(options.data).name,
        "server": None if task.server is None else task.server.root,
        "model": task.model,
        "adapter": task.expert,
        "contrast": task.args,
        "match": options.match,
        "chat_template": options.chat,
        "max_tokens": options.max_tokens,
        "stop": options.stop or [],
        "seed": options.seed,
        "test_fraction": options.test_fraction,
        "engine": task.engine,
        "versions": {name: made_with[name] for name in ("vllm", "vllm-cold")},
    }


def run(options: argparse.Namespace) -> int:
    """Decode what is missing, judge, write the reports and print them.

    Returns:
        0 if a setting beats greedy significantly, 1 if none does.

    Raises:
        ToolError: a mistake in the options, the files or the scoring callable.
    """
    prepare_environment(options.verbose)
    task = read_task(options)
    progress = Console(stderr=True)
    with open_answers(options.output, task.made_with, task.problems, options.restart) as answers:
        progress.print(
            f"{len(task.problems)} problems ({len(task.dev)} dev, {len(task.held_out)} held out), "
            f"{len(task.grid)} settings. {len(answers)} answers are there already.",
            highlight=False,
            soft_wrap=True,
        )
        tuning = Tuning(task, answers, progress)
        try:
            rows, test = tuning.judge()
        except KeyboardInterrupt:
            print(
                f"vllm-cold tune: stopped; {len(answers)} answers are kept in {answers.path}, and "
                f"the same command{' without --restart' if options.restart else ''} goes on from "
                "there",
                file=sys.stderr,
            )
            raise
        best = verdict.pick(rows)
        gain = verdict.is_gain(best.dev, test, verdict.level_of(options.confidence))
        found = report.build(
            rows=rows,
            test=test,
            confidence=options.confidence,
            changes=tuning.changes(best.setting),
            notes=_notes(task, tuning, best, test),
            serve=_line(task, best.setting if gain else None),
            run=_run(task),
        )
    report.show(Console(), found, report.write(found, Path(options.output)))
    return 0 if gain else 1
