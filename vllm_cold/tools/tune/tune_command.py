# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold tune`` from its options to its report."""

import argparse
import itertools
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.text import Text

from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.contrast_args import as_json
from vllm_cold.tools.server import Server
from vllm_cold.tools.tune import tune_report, verdict
from vllm_cold.tools.tune.answers import Answers, Job, Output, ask, open_answers
from vllm_cold.tools.tune.baselines import BEST
from vllm_cold.tools.tune.grid import GREEDY, Setting
from vllm_cold.tools.tune.problems import Problem
from vllm_cold.tools.tune.task import Task, read_task

CUT = 0.05  # above this share of answers that --max-tokens cut off, a note says so


@dataclass
class Tuning:
    """One run: which answers are wanted, which are there, and how they score."""

    task: Task
    answers: Answers
    console: Console  # for progress
    stack: ExitStack  # ends a server that is started
    scored: dict[tuple[Setting, str], float] = field(default_factory=dict)

    @cached_property
    def server(self) -> Server:
        """What is asked; it starts when it is needed."""
        return self.stack.enter_context(self.task.open())

    def _score(self, setting: Setting, problem: Problem) -> float:
        """Return the score of an answer that is there."""
        at = (setting, problem.id)
        if at not in self.scored:
            text = self.answers[Job(setting, problem).key].text
            self.scored[at] = self.task.matcher(text, problem)
        return self.scored[at]

    def _results(
        self, settings: Sequence[Setting], problems: Sequence[Problem], than: Setting = GREEDY
    ) -> dict[Setting, verdict.Result]:
        """Compare settings with another one."""

        def scores(setting: Setting) -> verdict.Scores:
            return np.array([self._score(setting, problem) for problem in problems])

        answers = np.array([problem.has_answer for problem in problems])
        return {
            setting: verdict.result(setting, scores(setting), scores(than), answers)
            for setting in settings
        }

    def judge(self) -> tuple[list[str], verdict.Verdict]:
        """Decode what is missing: greedy and the baselines on all problems, whose findings it
        prints; the grid on the dev ones, also with the best baseline if that gains there; and the
        picked setting on the held-out ones. Without a grid a baseline is picked.

        The other settings are never decoded on held-out problems: it saves time, and nobody can
        pick by them. A problem comes first with each: what is refused is refused at once.
        """
        task, dev, held_out = self.task, self.task.dev, self.task.held_out
        self._need(
            [
                *itertools.product(task.grid, dev[:1]),
                *itertools.product([GREEDY, *task.baselines], task.problems),
            ]
        )
        untested = task.lacks == "text" and all(problem.has_answer for problem in task.problems)
        baselines = list(self._results(task.baselines, task.problems).values())
        findings = verdict.findings(baselines, task.lacks or "", untested) + task.untried
        findings += self._add_threshold()
        task, dev, held_out = self.task, self.task.dev, self.task.held_out
        for finding in findings:
            Console().print(Text(finding))
        rows = self._results(task.baselines, dev)
        added = list(rows.values())[1:]  # the first one lacks what the amateur lacks
        gains = [row for row in added if row.whole.difference > 0.0]
        grid = list(task.grid)
        if gains:
            more = verdict.pick(gains).setting.baseline
            grid += [msgspec.structs.replace(setting, baseline=more) for setting in task.single]
        self._need(itertools.product(grid, dev))
        rows |= self._results(grid, dev)
        best = verdict.pick([rows[setting] for setting in grid or task.baselines]).setting
        self._need(itertools.product([best], held_out))
        return findings, verdict.Verdict(
            dev=rows,
            picked=best,
            held_out=self._results([*task.baselines, best], held_out),
            against={
                baseline: self._results([best], held_out, baseline)[best].answered
                for baseline in task.baselines
            },
            untested=untested,
        )

    def _add_threshold(self) -> list[str]:
        """Add the baseline that shows no passage below a score, that with which most dev problems
        are right. Its answers are there already. Return a sentence if there is none.
        """
        task = self.task
        if not any(problem.passages for problem in task.problems):
            return []
        untried = "Baseline not tried: no passage below a score. "
        unknown = next((problem for problem in task.problems if problem.score is None), None)
        if unknown is not None:
            return [f"{untried}In {unknown.place} not all passages have one."]
        shown = Setting(baseline=BEST) if Setting(baseline=BEST) in task.baselines else GREEDY
        none = task.baselines[0]

        def choose(problem: Problem, least: float) -> Setting:
            return none if problem.score is None or problem.score < least else shown

        def right(least: float) -> float:
            return sum(self._score(choose(problem, least), problem) for problem in task.dev)

        # Of several with which as many are right, the lowest.
        scores = sorted({problem.score for problem in task.dev if problem.score is not None})
        least = max(scores, key=right)
        if least == scores[0]:
            return [f"{untried}On the dev problems no score does better than showing it always."]
        name = f"{shown.baseline or 'the passage'}, or none below {least}"

        def added(problems: Sequence[Problem]) -> list[Problem]:
            return [
                replace(
                    problem,
                    baselines={
                        **problem.baselines,
                        name: Job(choose(problem, least), problem).reads,
                    },
                )
                for problem in problems
            ]

        self.task = replace(
            task,
            problems=added(task.problems),
            dev=added(task.dev),
            held_out=added(task.held_out),
            baselines=[*task.baselines, Setting(baseline=name)],
        )
        return []

    def _need(self, wanted: Iterable[tuple[Setting, Problem]]) -> None:
        """Decode what is missing."""
        jobs = itertools.starmap(Job, wanted)
        missing = {job.key: job for job in jobs if job.key not in self.answers}.values()
        if not missing:
            return
        server = self.server  # starts before the bar, over which it would print
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        hidden = not self.console.is_terminal
        with Progress(*columns, console=self.console, disable=hidden) as progress:
            bar = progress.add_task("answers", total=len(missing))

            def done(job: Job, answer: Output) -> None:
                self.answers.add(job, answer)
                # At once, so that a callable that fails does so now and not in an hour.
                self._score(*job)
                progress.advance(bar)

            ask(self.task, server, list(missing), done)

    def changes(self, best: Setting) -> list[dict[str, Any]]:
        """List the held-out problems on which ``best`` scores higher than greedy decoding, then
        those where it scores lower.
        """
        changes = []
        for problem in self.task.held_out:
            change = {"id": problem.id, "prompt": as_json(problem.prompt), "answer": problem.answer}
            for name, setting in (("greedy", GREEDY), ("cold", best)):
                change[name] = self.answers[Job(setting, problem).key].text
                change[f"{name}_score"] = self._score(setting, problem)
            if change["greedy_score"] != change["cold_score"]:
                changes.append(change)
        return sorted(changes, key=lambda change: change["cold_score"] < change["greedy_score"])

    def notes(self, best: Setting) -> list[str]:
        """Write what a reader has to know of the answers."""
        notes, problems = [], self.task.problems
        for setting, name in ((GREEDY, "greedy"), (best, "the picked setting")):
            ends = [self.answers[Job(setting, problem).key].finish for problem in problems]
            if (cut := ends.count("length") / len(ends)) > CUT:
                notes.append(
                    f"{verdict.percent(cut)} of the answers of {name} were cut off at "
                    f"{self.task.options.max_tokens} tokens; a larger --max-tokens may change "
                    "scores."
                )
            if withheld := ends.count("content_filter"):
                notes.append(
                    f"{withheld} of the answers of {name} were ended by the server's content "
                    "filter, and are judged as they came; answers.jsonl has them."
                )
        if not any(self.scored.values()):
            notes.append(
                "Nothing is right, with or without a contrast. Compare answers.jsonl with the "
                "answers that you expect: --match, --chat, --stop or --max-tokens may be wrong."
            )
        return notes


def run(options: argparse.Namespace) -> int:
    """Decode what is missing, judge, write the report and print it; see ``tune.run``."""
    task = read_task(options)
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    with open_answers(options.output, task.made_with()) as answers, ExitStack() as stack:
        progress.print(
            f"{len(task.problems)} problems ({len(task.dev)} dev, {len(task.held_out)} held out), "
            f"{f'{len(task.grid)} settings' if task.grid else 'baselines alone'}. {len(answers)} "
            "answers are there already."
        )
        tuning = Tuning(task, answers, progress, stack)
        try:
            first, judged = tuning.judge()
        except (KeyboardInterrupt, ToolError):
            print(
                f"vllm-cold tune: stopped; {len(answers)} answers are kept in {answers.path}, and "
                "the same command goes on from there",
                file=sys.stderr,
            )
            raise
    best = judged.best.setting
    report = tune_report.make_report(
        tuning.task, first, judged, tuning.changes(best), tuning.notes(best)
    )
    path = Path(options.output, "report.json")
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    tune_report.show(Console(), report, judged, str(path))
    return 0 if judged.gain else 1
