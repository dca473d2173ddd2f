# SPDX-License-Identifier: Apache-2.0
"""The workloads: prompts, what their amateurs lack, and how they are contrasted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.accuracy.prompts import documents, instructions
from benchmarks.accuracy.prompts.problem import Cell, ModelName, Problem, Prompt
from benchmarks.accuracy.prompts.requests import requests
from examples import tasks
from examples.facts import facts
from examples.tasks import ORDERS, SORTING, Task, messages

ADAPTERS = Path(tasks.__file__).resolve().with_name("adapters")
# The expert's adapter without a word on the amateur: the base model with the same prompt.
BASE: Mapping[str, Any] = {"alpha": 0.1, "beta": 0.5}


@dataclass(frozen=True)
class Request:
    """What the expert reads, and what each amateur reads; none: the base model reads the same."""

    prompt: Prompt
    amateurs: tuple[Prompt, ...] = ()


@dataclass(frozen=True)
class Workload:
    """Requests of one kind.

    Attributes:
        name: For files and tables.
        about: What is asked and contrasted, in some words.
        model: That decodes it.
        make: Gives the first n requests.
        preset: Of ``ColdParams``; None for ``BASE``.
        adapter: The expert's folder below ``ADAPTERS``; the base model is its amateur.
        max_tokens: Of an answer.
        count: Of requests.
        stop: Strings that end an answer.
    """

    name: str
    about: str
    model: ModelName
    make: Callable[[int], list[Request]]
    preset: str | None = None
    adapter: str | None = None
    max_tokens: int = 128
    count: int = 40
    stop: tuple[str, ...] = field(default=())


def _cell(name: str) -> Cell:
    return next(cell for cell in documents.CELLS if cell.name == name)


def _paragraphs(problem: Problem) -> list[str]:
    """Those of the page that a problem of SmolLM2's asks about."""
    said: str = problem.prompt[-1]["content"]  # type: ignore[index,assignment]
    return said.removeprefix("Text: ").partition("\n\nQuestion:")[0].split("\n\n")


@cache
def paragraphs() -> tuple[str, ...]:
    """Paragraphs of pages, one of each pattern: nothing repeats itself from text to text."""
    kept: list[set[str]] = []
    found = []
    for page in map(_paragraphs, _cell("page").make("smollm2", "test", 120)):
        for text in page:
            words = set(text.split())
            if all(len(words & other) < 0.5 * len(words) for other in kept):
                kept.append(words)
                found.append(text)
    return tuple(found)


def _lists(n: int) -> list[str]:
    """Facts of several kinds, some sentences a text; none is in two of them."""
    known = list(facts())
    Random(0).shuffle(known)
    return [" ".join(fact.said() for fact in known[6 * i : 6 * i + 6]) for i in range(n)]


# Copying and editing

_NEW = ("umbrella", "pelican", "Henrietta", "1066", "marmalade", "Lake Baikal", "velvet", "twelve")


def _misspelled(text: str, rng: Random) -> str:
    """Every seventh word or so with two letters exchanged."""
    words = text.split(" ")
    for place, word in enumerate(words):
        if len(word) > 4 and word.isalpha() and rng.random() < 0.25:
            cut = rng.randrange(1, len(word) - 2)
            words[place] = word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :]
    return " ".join(words)


def _edit(index: int, text: str) -> tuple[str, str]:
    """An instruction, and the text to be edited."""
    rng = Random(f"edit {index}")
    word = rng.choice([word for word in text.split() if word.isalpha() and len(word) > 5])
    new = rng.choice(_NEW)
    kinds = (
        (f'Repeat the text, but write "{new}" instead of "{word}".', text),
        ("Correct the spelling mistakes in the text.", _misspelled(text, rng)),
        ("Repeat the text, with each sentence on a line of its own.", text),
        (f'Repeat the text and add one sentence about "{new}" at the end.', text),
        ("Repeat the text word for word.", text),
        (f'Repeat the text without the sentence that has the word "{word}".', text),
        ("Repeat the text in the present tense.", text),
        ("Repeat the text, with every number written in words.", text),
    )
    return kinds[index % len(kinds)]


def _edits(model: ModelName) -> Callable[[int], list[Request]]:
    def make(n: int) -> list[Request]:
        found = []
        texts = [*paragraphs(), *_lists(n)][:n]
        Random(0).shuffle(texts)
        for index, each in enumerate(texts):
            ask, text = _edit(index, each)
            if model == "gemma":
                end = "\n\nThe edited text:\n\n"
                prompt: Prompt = f"Text: {text}\n\n{ask}{end}"
                found.append(Request(prompt, (ask + end,)))
            else:
                chats = f"{ask}\n\n{text}", ask
                expert, amateur = (({"role": "user", "content": said},) for said in chats)
                found.append(Request(expert, (amateur,)))
        return found

    return make


# Answers and summaries


def _answers(model: ModelName) -> Callable[[int], list[Request]]:
    def make(n: int) -> list[Request]:
        half = n // 2
        problems = _cell("page").make(model, "test", n - half)
        problems += _cell("documents").make(model, "test", half)
        Random(0).shuffle(problems)
        return [Request(p.prompt, (p.without, p.unasked or "")) for p in problems]

    return make


def _summaries(n: int) -> list[Request]:
    ask = "Summarize the text in one sentence."
    found = []
    for text in paragraphs()[:n]:
        chats = f"{ask}\n\n{text}", ask
        expert, amateur = (({"role": "user", "content": said},) for said in chats)
        found.append(Request(expert, (amateur,)))
    return found


# Adapters


def _adapted(task: Task) -> Callable[[int], list[Request]]:
    return lambda n: [Request(tuple(messages(each))) for each in task.prompts("test", n)]


# Free text

_STYLES = (
    "Answer as a pirate would.",
    "Write as for a child of six.",
    "Be gloomy.",
    "Use many comparisons with the sea.",
)


def _free(n: int) -> list[Request]:
    asked = [each.text for each in requests("test", "information")]
    told = [f"Write a short story about {each.topic}." for each in requests("test", "writing")]
    Random(1).shuffle(asked)
    Random(2).shuffle(told)
    chosen = [text for pair in zip(asked, told, strict=False) for text in pair][:n]
    return [
        Request(
            instructions.prompt("smollm2", _STYLES[index % len(_STYLES)], text),
            (instructions.prompt("smollm2", "", text),),
        )
        for index, text in enumerate(chosen)
    ]


WORKLOADS: tuple[Workload, ...] = (
    Workload("edit", "a text repeated with changes; the amateur lacks the text",
             "smollm2", _edits("smollm2"), "cad", max_tokens=192),
    Workload("answers", "questions about texts; one amateur lacks the texts, another the question",
             "smollm2", _answers("smollm2"), "grounded", max_tokens=32, count=60),
    Workload("summaries", "a paragraph in a sentence; the amateur lacks the paragraph",
             "smollm2", _summaries, "cad", max_tokens=64, count=25),
    Workload("orders", "orders as JSON, with an adapter; the amateur is the base model",
             "smollm2", _adapted(ORDERS), adapter="orders", max_tokens=80, count=60),
    Workload("sorting", "numbers sorted, with an adapter; the amateur is the base model",
             "smollm2", _adapted(SORTING), adapter="sorting", max_tokens=128),
    Workload("free", "stories and explanations in a style; the amateur is not told the style",
             "smollm2", _free, "cfg"),
    Workload("edit-gemma", "as edit, as documents", "gemma", _edits("gemma"), "cad",
             max_tokens=192, stop=("\n",)),
    Workload("answers-gemma", "as answers, as documents", "gemma", _answers("gemma"), "grounded",
             max_tokens=32, count=60, stop=("\n",)),
)  # fmt: skip
