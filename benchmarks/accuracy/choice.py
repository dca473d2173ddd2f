# SPDX-License-Identifier: Apache-2.0
"""Answer selection: with the text and from memory, both decoded to their end, and each scored
under both prompts. The judge of ``examples.choose`` is fitted on all dev problems at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.accuracy.methods import GREEDY, MEMORY, Request
from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem
from examples.choose import Judge, Pair, fit

# Says the text of an answer to a request, or None where there is none.
Known = Callable[[Request], str | None]


def scorings(
    model: Model, cell: Cell, problem: Problem, adapters: Path, known: Known
) -> tuple[tuple[str, str], list[Request]] | None:
    """Both answers, and requests for the four numbers of ``examples.choose.Pair``; None where an
    answer is not decoded yet.
    """
    asked = [method.request(model, cell, problem, adapters) for method in (GREEDY, MEMORY)]
    answers = [known(each) for each in asked]
    if answers[0] is None or answers[1] is None:
        return None
    requests = [
        replace(prompt, scored=answer, sampling={}) for answer in answers for prompt in asked
    ]
    return (answers[0], answers[1]), requests


def pairs(
    model: Model, cell: Cell, problems: Sequence[Problem], adapters: Path, known: Known
) -> list[Pair]:
    """The pairs of the first problems, up to one of which a number is missing."""
    found: list[Pair] = []
    for problem in problems:
        asked = scorings(model, cell, problem, adapters, known)
        numbers = [known(each) for each in asked[1]] if asked else []
        if asked is None or None in numbers:
            break
        first, second, third, fourth = (float(each or "nan") for each in numbers)
        found.append(Pair(*asked[0], (first, second, third, fourth)))
    return found


def fitted(
    cells: Mapping[str, tuple[Cell, Sequence[Problem], Sequence[Pair]]],
) -> Judge | None:
    """A judge from the dev problems of several cells; None where there is nothing to learn."""
    numbers, gains = [], []
    for cell, problems, found in cells.values():
        for problem, pair in zip(problems, found, strict=True):
            text, memory = (
                next(iter(cell.score(answer, problem).values()))
                for answer in (pair.with_text, pair.from_memory)
            )
            numbers.append(pair.numbers)
            gains.append(int(memory) - int(text))
    if not {1, -1} <= set(gains):
        return None
    return fit(np.array(numbers), np.array(gains))
