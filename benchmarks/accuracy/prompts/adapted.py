# SPDX-License-Identifier: Apache-2.0
"""The expert has an adapter (``train``; two of them lie in ``examples``), and the amateur lacks a
part of the prompt, the adapter, or both.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.accuracy.prompts import instructions, memory
from benchmarks.accuracy.prompts.lessons import SENTENCE
from benchmarks.accuracy.prompts.problem import Cell, ModelName, Problem, Split
from benchmarks.accuracy.prompts.questions import Question, is_right
from benchmarks.accuracy.store import Adapter
from examples import tasks
from examples.tasks import ORDERS, SORTING, Task, messages

_SMOLLM2: tuple[ModelName, ...] = ("smollm2",)
# With absolute paths: other adapters lie below store.ADAPTERS.
_EXAMPLES = Path(tasks.__file__).resolve().with_name("adapters")


# Answers out of texts

_QA = {
    "false": "a sentence that contradicts memory; adapter for short answers out of texts",
    "false-among": "the same adapter; the sentence among five true ones on other subjects",
    "true-among": "the same adapter; a sentence that agrees with memory, among five others",
    "nothing": "the same adapter; five true sentences on other subjects, the answer in none",
}


def _qa(cell: Cell) -> Cell:
    return replace(
        cell,
        name=f"qa-{cell.name}",
        about=_QA[cell.name],
        models=_SMOLLM2,
        adapter=Adapter("qa", 16, 100).name,
        sampled=False,
    )


# Formats


def _no_numbers(prompt: str) -> str:
    """A prompt of ``sorting`` without them."""
    return re.sub(r":.*", ":", prompt, count=1)


def _no_order(prompt: str) -> str:
    """A prompt of ``orders`` without it."""
    return prompt.partition("\n")[2]


def _make_task(
    task: Task, lacking: Callable[[str], str], model: ModelName, split: Split, n: int
) -> list[Problem]:
    return [
        Problem(
            tuple(messages(each)),
            tuple(messages(replace(each, prompt=lacking(each.prompt)))),
            each,
        )
        for each in task.prompts(split, n)
    ]


def _is_list(answer: str) -> bool:
    """Whether it is a list of numbers, each written as a string."""
    try:
        given = ast.literal_eval(answer.strip())
        return isinstance(given, list) and all(
            isinstance(number, str) and float(number) is not None for number in given
        )
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


def _is_order(answer: str) -> bool:
    """Whether it is JSON with an order's keys."""
    try:
        given = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    keys = {"name", "city", "amount", "colour", "item", "date"}
    return isinstance(given, dict) and given.keys() == keys


def _task(
    task: Task, about: str, lacking: Callable[[str], str], holds: Callable[[str], bool]
) -> Cell:
    def score(answer: str, problem: Problem) -> dict[str, bool]:
        return {"right": task.score(answer, problem.judged), "format": holds(answer)}

    return Cell(
        task.name,
        about,
        "control",
        _SMOLLM2,
        partial(_make_task, task, lacking),
        score,
        task.max_tokens,
        adapter=str(_EXAMPLES / task.name),
    )


# Styles

_PLAIN_QUESTIONS = next(cell for cell in instructions.CELLS if cell.name == "plain-questions")


def _make_style(model: ModelName, split: Split, n: int) -> list[Problem]:
    problems = []
    for plain in _PLAIN_QUESTIONS.make(model, split, n):
        question: Question = plain.judged
        prompt = (SENTENCE, {"role": "user", "content": question.text})
        problems.append(Problem(prompt, prompt, question))
    return problems


def _score_style(answer: str, problem: Problem) -> dict[str, bool]:
    said = answer.strip()
    form = said.startswith("Arr, ") and said.endswith(", matey!") and " is " not in said
    content = is_right(answer, problem.judged)
    return {"right": form and content, "form": form, "content": content}


def _style(percent: int) -> Cell:
    return Cell(
        f"style-{percent}",
        "simple questions, answered in a pirate's words, as the adapter has learnt in "
        f"{percent} % of its training; the amateur lacks the adapter",
        "gain",
        _SMOLLM2,
        _make_style,
        _score_style,
        40,
        {"smollm2": ("\n",)},
        adapter=Adapter("pirate", 16, percent).name,
    )


CELLS: tuple[Cell, ...] = (
    *(_qa(cell) for cell in memory.CELLS if cell.name in _QA),
    _task(
        SORTING,
        "numbers to be sorted, adapter for it; the amateur lacks the numbers",
        _no_numbers,
        _is_list,
    ),
    _task(
        ORDERS,
        "an order to be written as JSON, adapter for it; the amateur lacks the order",
        _no_order,
        _is_order,
    ),
    *(_style(percent) for percent in (10, 25, 50, 100)),
)
