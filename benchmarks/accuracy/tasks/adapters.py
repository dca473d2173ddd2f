# SPDX-License-Identifier: Apache-2.0
"""Tasks that adapters are trained for, at several ranks and stages: an adapter against the base
model that reads the same prompt (CoLD), or against itself after a part of its training.

Problems come from seeds and PyPI packages, and a rule says if an answer is right. Splits are
disjoint (``examples.tasks.Task``): a hash of the prompt says to which a problem belongs.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from random import Random
from typing import Any

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Prompt, Split
from examples import tasks
from examples.tasks import Task

# Short, and not the template's default, which would be a third of all tokens.
_SYSTEM = {"role": "system", "content": "Answer exactly."}
RANKS = (16, 4)
# Of the steps: an adapter that has learnt a little, one half-way, and one that is done.
PERCENTS = (25, 50, 100)


@dataclass(frozen=True)
class Benchmark:
    """A task.

    Attributes:
        task: The problems.
        steps: Of training, with 8 examples each.
        without: Takes from a problem's text what an amateur with a prompt of its own lacks.
        holds: Whether an answer has the task's form, right or not.
    """

    task: Task
    steps: int
    without: Callable[[str], str] = str
    holds: Callable[[str], bool] | None = None


def prompt_of(model: Model, text: str) -> Prompt:
    """A problem's text as an adapter is trained and asked."""
    if not model.chat:
        return f"{text}\nAnswer:"
    return (_SYSTEM, {"role": "user", "content": text})


# Multi-step reasoning: sums, worked from left to right


@cache
def _sums() -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(
        "chain_sum", seed=0, size=2**31, min_terms=3, max_terms=3, min_digits=2, max_digits=2
    )


def _make_sum(seed: int) -> tasks.Problem:
    item = _sums()[seed]
    first, *rest = item["metadata"]["expression"].split()
    total, steps = int(first), []
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        before, total = total, total + int(sign + number)
        steps.append(f"{before} {sign} {number} = {total}")
    assert str(total) == item["answer"]
    return tasks.Problem(f"Work out {item['metadata']['expression']}", "; ".join(steps))


def _is_sum_right(answer: str, problem: tasks.Problem) -> bool:
    last, right = (text.rpartition("=")[2].strip() for text in (answer, problem.answer))
    return "=" in answer and last == right


# Formatting: dates as other languages write them

_LANGUAGES = {
    "cs": "Czech", "da": "Danish", "de": "German", "es": "Spanish", "fi": "Finnish",
    "fr": "French", "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "nl": "Dutch",
    "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "sv": "Swedish", "tr": "Turkish",
}  # fmt: skip


def _make_date(seed: int) -> tasks.Problem:
    from babel.dates import format_date

    rng = Random(seed)
    day = datetime.date(1950, 1, 1) + datetime.timedelta(days=rng.randrange(36_500))
    locale = rng.choice(sorted(_LANGUAGES))
    return tasks.Problem(
        f"Write {day.isoformat()} as a long date in {_LANGUAGES[locale]}.",
        format_date(day, "long", locale=locale),
    )


# A format, which a contrast must not break: orders as JSON


def _no_order(prompt: str) -> str:
    """A prompt of ``orders`` without the order."""
    return prompt.partition("\n")[2]


def _is_order(answer: str) -> bool:
    """Whether it is JSON with an order's keys."""
    try:
        given = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    keys = {"name", "city", "amount", "colour", "item", "date"}
    return isinstance(given, dict) and given.keys() == keys


def _is_equal(answer: str, problem: tasks.Problem) -> bool:
    return answer.strip() == problem.answer


def _benchmark(
    name: str,
    about: str,
    steps: int,
    tokens: int,
    make: Callable[[int], tasks.Problem],
    right: Callable[[str, tasks.Problem], bool] = _is_equal,
) -> Benchmark:
    return Benchmark(Task(name, about, tokens, make, right), steps)


BENCHMARKS = {
    benchmark.task.name: benchmark
    for benchmark in (
        _benchmark("sums", "sums, worked step by step", 96, 40, _make_sum, _is_sum_right),
        Benchmark(tasks.SORTING, 96),
        _benchmark("dates", "dates in other languages", 64, 32, _make_date),
        Benchmark(tasks.ORDERS, 80, _no_order, _is_order),
    )
}  # fmt: skip


def adapter_name(task: str, rank: int, percent: int) -> str:
    """The name of an adapter's folder."""
    return f"{task}-r{rank}-{percent}"


def _make(benchmark: Benchmark, model: Model, split: Split, n: int) -> list[Problem]:
    return [
        Problem(
            prompt_of(model, each.prompt), prompt_of(model, benchmark.without(each.prompt)), each
        )
        for each in benchmark.task.prompts(split, n)
    ]


def _score(benchmark: Benchmark, answer: str, problem: Problem) -> dict[str, bool]:
    right = {"right": benchmark.task.score(answer, problem.judged)}
    return right | ({"format": benchmark.holds(answer)} if benchmark.holds else {})


def _cell(benchmark: Benchmark, rank: int, percent: int) -> Cell:
    task = benchmark.task
    name = adapter_name(task.name, rank, percent)
    return Cell(
        name, f"An adapter of rank {rank} after {percent} % of its training",
        f"{task.description}; cold's amateur is without the adapter", partial(_make, benchmark),
        partial(_score, benchmark), task.max_tokens, adapter=name,
        sampled=(rank, percent) == (16, 100), pooled=True,
    )  # fmt: skip


CELLS = tuple(
    _cell(benchmark, rank, percent)
    for rank in RANKS
    for percent in reversed(PERCENTS)
    for benchmark in BENCHMARKS.values()
)
