# SPDX-License-Identifier: Apache-2.0
"""Answers, kept as lines of JSON: what is there is not decoded again, and judged when it is read.

An answer stands under the hash of its request. One to another prompt, or of another adapter, is
never found, so that no figure can be made from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine
from benchmarks.accuracy.choice import fitted, pairs
from benchmarks.accuracy.methods import GREEDY, Method, Request
from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Split
from examples.choose import Judge

Bits = NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        mark: Of its request.
        method: That asked first, for people.
        text: The answer.
        tokens: Decoded.
        by: Versions of what decoded it.
        seconds: Its share of the time of those that were decoded with it; None where an older run
            did not say.
    """

    mark: str
    method: str
    text: str
    tokens: int
    by: str
    seconds: float | None = None


@dataclass(frozen=True)
class Folder:
    """Where the answers and the adapters of a run lie."""

    root: Path

    def adapters(self, model: Model) -> Path:
        """The folder of a model's adapters."""
        return (self.root / "adapters" / model.name).resolve()

    def answers(self, model: Model, cell: Cell, split: Split) -> Path:
        """The file with the answers of a model to a cell's problems of a split."""
        return self.root / "answers" / model.name / f"{cell.name}-{split}.jsonl"

    def record(self, model: Model, begun: str) -> Path:
        """The file with the machine of a run that decoded with a model, by when it began."""
        return self.root / "machines" / model.name / f"{begun}.json"

    def records(self, model: Model) -> list[machine.Facts]:
        """The machines of all runs that decoded with a model, see ``benchmarks.machine.look``."""
        files = sorted(self.record(model, "any").parent.glob("*.json"))
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def read(path: Path) -> dict[str, Answer]:
    """The answers of a file, by mark. A last line that was cut off is no answer.

    Raises:
        ValueError: a line is none; the message names it.
    """
    if not path.exists():
        return {}
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            answer = Answer(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}:{number}: no answer: {error}; delete the line") from error
        found[answer.mark] = answer
    return found


def add(path: Path, answers: Iterable[Answer]) -> None:
    """Write answers after those of the file, in place of what was cut off there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in answers)


@dataclass(frozen=True)
class Judged:
    """What a method's answers are worth.

    Attributes:
        measures: By name, [problems] 1.0 where it holds; the first is the main one. "cut off" is
            where an answer has all the tokens that it may have; of chosen answers it is not known.
        kinds: [problems] of what kind each is.
        tokens: Decoded, of all answers.
        by: Versions of what decoded them.
        seconds: That decoding all answers took, if each one's share is known.
    """

    measures: dict[str, Bits]
    kinds: tuple[str, ...]
    tokens: int
    by: frozenset[str]
    seconds: float | None = None

    @property
    def right(self) -> Bits:
        """[problems] 1.0 for right answers."""
        return next(iter(self.measures.values()))


def judged(
    folder: Folder,
    model: Model,
    cell: Cell,
    split: Split,
    methods: Sequence[Method],
    count: int,
    judge: Judge | None = None,
) -> dict[str, Judged]:
    """Judge what there is, by method. Greedy decoding's answers say which problems count: the
    first ones up to one that it has not answered. Of another method either all of them are
    there, or it is left out; and answers are selected only by a judge.
    """
    path = folder.answers(model, cell, split)
    if not path.exists():
        return {}
    kept, adapters = read(path), folder.adapters(model)
    problems = cell.problems(model, split, count)

    def known(request: Request) -> str | None:
        answer = kept.get(request.mark)
        return answer and answer.text

    def answers(method: Method, problems: Sequence[Problem]) -> list[Answer]:
        found: list[Answer] = []
        for problem in problems:
            if not method.is_for(cell, problem):
                break
            answer = kept.get(method.request(model, cell, problem, adapters).mark)
            if answer is None:
                break
            found.append(answer)
        return found

    told: dict[str, Judged] = {}
    problems = problems[: len(answers(GREEDY, problems))]
    for method in methods if problems else ():
        if method.chooses:
            if judge is None or not cell.chosen:
                continue
            offered = pairs(model, cell, problems, adapters, known)
            found = [Answer("", method.key, judge.choose(pair), 0, "") for pair in offered]
        else:
            found = answers(method, problems)
        if len(found) < len(problems):
            continue
        scores: list[dict[str, Any]] = [
            cell.score(method.read(answer.text, cell, problem), problem)
            for answer, problem in zip(found, problems, strict=True)
        ]
        measures = {name: np.array([float(each[name]) for each in scores]) for name in scores[0]}
        if not method.chooses:
            cut = [answer.tokens >= cell.max_tokens for answer in found]
            measures["cut off"] = np.array(cut, dtype=float)
        shares = [answer.seconds for answer in found if answer.seconds is not None]
        told[method.key] = Judged(
            measures,
            tuple(problem.kind for problem in problems),
            sum(answer.tokens for answer in found),
            frozenset(answer.by for answer in found if answer.by),
            sum(shares) if len(shares) == len(found) else None,
        )
    return told


def judge_of(folder: Folder, model: Model, cells: Iterable[Cell], count: int) -> Judge | None:
    """The judge of answer selection, from the dev problems of all cells where they are chosen; None
    where these are not decoded.
    """
    found = {}
    for cell in cells:
        kept = read(folder.answers(model, cell, "dev")) if cell.chosen else {}
        if not kept:
            continue
        problems = cell.problems(model, "dev", count)

        def known(request: Request, kept: dict[str, Answer] = kept) -> str | None:
            answer = kept.get(request.mark)
            return answer and answer.text

        offered = pairs(model, cell, problems, folder.adapters(model), known)
        found[cell.name] = (cell, problems[: len(offered)], offered)
    return fitted(found)
