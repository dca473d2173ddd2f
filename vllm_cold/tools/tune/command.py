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
from vllm_cold.tools.tune.plain import BETTER, NAMES
from vllm_cold.tools.tune.problems import Problem
from vllm_cold.tools.tune.task import Task, read_task

FORMAT = 5  # of report.json
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

    def _compare(
        self, setting: Setting, problems: Sequence[Problem], other: Setting | None = None
    ) -> verdict.Comparison:
        """A setting against another one, or greedy decoding."""
        found, than = (
            np.array([self._score(one, problem) for problem in problems])
            for one in (setting, other)
        )
        return verdict.compare(found, than)

    def _row(self, setting: Setting, problems: Sequence[Problem]) -> verdict.Row:
        kinds = ([p for p in problems if p.has_answer is kind] for kind in (True, False))
        found, silent = (self._compare(setting, part) if part else None for part in kinds)
        assert found is not None  # a split has some
        return verdict.Row(setting, found, silent)

    def judge(self) -> tuple[list[str], verdict.Verdict]:
        """Decode what is missing: greedy and the plain prompts on all problems, of which it tells,
        the grid on the dev ones, and the picked setting on the held-out ones.

        The other settings are never decoded on held-out problems: it saves time, and nobody can
        pick by them. A problem comes first with each: what is refused is refused at once.

        Returns:
            What plain prompts tell, and the verdict.
        """
        task, dev, held_out = self._task, self._task.dev, self._task.held_out
        plain = [Setting(plain=name) for name in task.plain]
        refused = [Job(setting, dev[0]) for setting in task.grid]
        self._need([*refused, *(Job(one, p) for one in (None, *plain) for p in task.problems)])
        blind = task.lacks == "text" and all(problem.has_answer for problem in task.problems)
        told = [self._row(one, task.problems) for one in plain]
        findings = verdict.findings(told, task.lacks or "", blind)
        report.tell(Console(), findings)
        self._need([Job(setting, problem) for setting in task.grid for problem in dev])
        rows = [self._row(one, dev) for one in (*plain, *task.grid)]
        best = verdict.pick(rows[len(plain) :]).setting
        self._need([Job(best, problem) for problem in held_out])
        answering = [problem for problem in held_out if problem.has_answer]
        return findings, verdict.Verdict(
            rows,
            [self._row(one, held_out) for one in plain],
            self._row(best, held_out),
            [self._compare(best, answering, one) for one in plain],
            blind,
        )

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

    @property
    def any_right(self) -> bool:
        """Whether any answer scores above 0."""
        return any(self._scores.values())

    def share_cut(self, setting: Setting | None) -> float:
        """The share of a setting's answers, dev and held-out, that ``--max-tokens`` cut off."""
        found = [self._answers[setting, problem.id].finish for problem in self._task.problems]
        return found.count("length") / len(found)


def _advice(task: Task, judged: verdict.Verdict) -> tuple[str, list[str]]:
    """What to paste, a command or the fields of a request's body, and what requests have to send
    beside it where they are decoded with CoLD.
    """
    args, gain = {**task.args, **judged.best.setting.args}, judged.gain
    own = any(problem.own_keys for problem in task.problems)
    rows = [f"the cold_* keys of its problem's row, in place of other {', '.join(ROW_KEYS)}"]
    rows = rows if own else []
    told = request_args(args, None if own else task.model)
    must = [f'"vllm_xargs": {json.dumps(told)}', *rows]
    if task.server is not None:
        sent = told if gain else {"cold": 0}
        line = json.dumps({"model": task.expert or task.model, "vllm_xargs": sent})
        return line, must if judged.only else rows
    defaults = None if own else server_defaults(args)
    if defaults is not None and not judged.only:
        must = []
    line = serve_line(task.model, task.adapters, task.engine, (defaults or {}) if gain else None)
    return line, must


def _notes(task: Task, tuning: Tuning, judged: verdict.Verdict, must: list[str]) -> list[str]:
    """What else a reader has to know."""
    options, best = task.options, judged.best
    stop = f", stop {json.dumps(options.stop)}" if options.stop else ""
    notes = [
        "Measured with temperature 0 in each request; requests that sample are another matter. "
        f"The requests had max_tokens {options.max_tokens}{stop}."
    ]
    if must:
        which = "Where the text is known to answer," if judged.only else "With CoLD"
        notes.append(f"{which} requests must also send {' and '.join(must)}.")
    if task.repeated:
        notes.append(f"Rows that repeat an earlier prompt and were left out: {task.repeated}.")
    for setting, name in ((None, "greedy"), (best.setting, "the picked setting")):
        if (cut := tuning.share_cut(setting)) > CUT:
            notes.append(
                f"{verdict.percent(cut)} of the answers of {name} were cut off at "
                f"{options.max_tokens} tokens; a larger --max-tokens may change scores."
            )
    for name in task.plain:
        if task.lacks is not None and name == NAMES[task.lacks].better:
            said = options.better or BETTER[task.lacks]
            notes.append(f"A better prompt has {json.dumps(said)} before the question; --better.")
    if not tuning.any_right:
        notes.append(
            "Nothing is right, with either kind of decoding. Compare answers.jsonl with the "
            "answers that you expect: --match, --chat, --stop or --max-tokens may be wrong."
        )
    test = best.found
    if (test.low > 0.0 or test.high < 0.0) != (test.p < verdict.LEVEL):
        notes.append("Interval and p disagree about zero: p decides, the interval is of size.")
    return notes


def _figures(part: str, row: verdict.Row | None) -> dict[str, Any]:
    """A row's figures on a part of the problems, by kind, for JSON."""
    found, silent = (None, None) if row is None else row[1:]
    return {part: msgspec.to_builtins(found), f"{part}_silent": msgspec.to_builtins(silent)}


def _report(task: Task, tuning: Tuning, told: list[str], judged: verdict.Verdict) -> dict[str, Any]:
    """The content of report.json, which the terminal shows."""
    best, options = judged.best, task.options
    serve, must = _advice(task, judged)
    held_out = {row.setting: row for row in (*judged.plain, best)}
    return {
        "format": FORMAT,
        "gain": judged.gain,
        "headline": judged.headline(),
        "first": told,
        "details": [judged.details()],
        "best": {"name": str(best.setting), **best.setting.values},
        **_figures("test", best),
        "settings": [
            {
                "name": str(row.setting),
                "picked": row.setting == best.setting,
                "setting": row.setting.values,
                **_figures("dev", row),
                **_figures("test", held_out.get(row.setting)),
            }
            for row in judged.dev
        ],
        "changes": tuning.changes(best.setting),
        "notes": _notes(task, tuning, judged, must),
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
            told, judged = tuning.judge()
        except KeyboardInterrupt:
            print(
                f"vllm-cold tune: stopped; {len(answers)} answers are kept in {answers.path}, and "
                "the same command goes on from there",
                file=sys.stderr,
            )
            raise
        found = _report(task, tuning, told, judged)
    path = Path(options.output, "report.json")
    try:
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ToolError(f"{path}: cannot be written: {error.strerror}") from error
    report.show(Console(), found, str(path))
    return 0 if found["gain"] else 1
