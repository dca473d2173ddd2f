# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance on an instruction: the amateur's prompt is the expert's without it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from random import Random
from typing import Literal

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Prompt, Split, data, split_of
from benchmarks.accuracy.tasks import rules
from benchmarks.accuracy.tasks.rules import Judged, Request, Rule
from benchmarks.accuracy.tasks.text import is_fluent, words

NEUTRAL = "You are a helpful assistant."
# What a request is for: to know something, or to have a few lines written.
Style = Literal["information", "writing"]
Draw = Callable[[Random, Split, Request], Rule]
# What user and assistant said before, in turns.
Turns = Sequence[tuple[str, str]]


@cache
def requests(split: Split, style: Style = "information") -> tuple[Request, ...]:
    """All requests of a split: a topic is in one split, with all its sentences.

    Args:
        split: Which.
        style: What they ask for.
    """
    found = []
    for area in data("requests")["areas"]:
        for topic in area["topics"].split(", "):
            if split_of(topic) != split:
                continue
            for sentence in data("requests").get(style, area["sentences"]):
                text = sentence.format(topic)
                likely = [word for word in area["likely"].split() if word not in words(text)]
                found.append(Request(text, topic, tuple(likely)))
    return tuple(found)


def prompt(model: Model, instruction: str, request: str, turns: Turns = ()) -> Prompt:
    """A conversation up to the assistant's turn.

    Args:
        model: A chat model gets messages, a base model a document.
        instruction: What the assistant is told; "" for nothing.
        request: The user's last message.
        turns: Before that.
    """
    if model.chat:
        messages = [{"role": "system", "content": f"{NEUTRAL} {instruction}".strip()}]
        for user, assistant in turns:
            messages.append({"role": "user", "content": user})
            messages.append({"role": "assistant", "content": assistant})
        return (*messages, {"role": "user", "content": request})
    lines = ["A conversation between a user and a helpful assistant."]
    if instruction:
        lines.append(f"Instructions for the assistant: {instruction}")
    for user, assistant in (*turns, (request, "")):
        lines += ["", f"User: {user}", f"Assistant: {assistant}".rstrip()]
    return "\n".join(lines)


def _problem(model: Model, rule: Rule, request: str, turns: Turns = ()) -> Problem:
    return Problem(
        prompt(model, rule.instruction, request, turns),
        prompt(model, "", request, turns),
        Judged(rule, request, tuple(assistant for _, assistant in turns)),
        plain={
            "repeated": prompt(model, rule.instruction, f"{request} {rule.instruction}", turns),
            "better": prompt(model, rule.better, request, turns),
        },
    )


def _shuffled(name: str, split: Split, style: Style, n: int) -> list[Request]:
    found = list(requests(split, style))
    Random(f"{name} {split}").shuffle(found)
    return found[:n]


def _make(name: str, draw: Draw, style: Style, model: Model, split: Split, n: int) -> list[Problem]:
    return [
        _problem(model, draw(Random(f"{name} {request.text}"), split, request), request.text)
        for request in _shuffled(name, split, style, n)
    ]


def _make_json(model: Model, split: Split, n: int) -> list[Problem]:
    problems = []
    for request in _shuffled("json", split, "information", n):
        rule = rules.draw_json(Random(f"json {request.text}"), split, request)
        # A small model needs an example. The amateur lacks it, too.
        problem = _problem(model, rule, request.text, (rules.json_example(rule, split),))
        problems.append(replace(problem, without=prompt(model, "", request.text)))
    return problems


def score(text: str, problem: Problem) -> dict[str, bool]:
    """ "right": follows the instruction, in language that is fluent."""
    follows = rules.follows(text, problem.judged)
    fluent = is_fluent(text, rules.languages(problem.judged.rule))
    return {"right": follows and fluent, "follows": follows, "fluent": fluent}


# Nothing special asked: simple questions with one right answer


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        text: The question.
        answers: Any of these is right.
        is_sum: Whether the answer is a number that the question's numbers lead to.
    """

    text: str
    answers: tuple[str, ...]
    is_sum: bool = False


@cache
def questions(split: Split) -> tuple[Question, ...]:
    """All of a split."""
    found = [
        Question(kind["ask"].format(subject), tuple(answers.split("/")))
        for kind in data("questions")
        for subject, answers in kind["facts"].items()
        if split_of(subject) == split
    ]
    for a in range(2, 13):
        for b in range(2, a + 1):
            for sign, name, result in (
                ("+", "plus", a + b),
                ("-", "minus", a - b),
                ("*", "times", a * b),
            ):
                # Nobody is right who only repeats a number.
                if result not in (0, a, b) and split_of(f"{a} {sign} {b}") == split:
                    found.append(Question(f"What is {a} {name} {b}?", (str(result),), is_sum=True))
    return tuple(found)


def is_right(answer: str, question: Question) -> bool:
    """Whether an answer says it: a word anywhere, the first number that is not the question's."""
    if question.is_sum:
        given = {float(number) for number in re.findall(r"\d+", question.text)}
        # The sign in "12-8" is none of the number's.
        found = map(float, re.findall(r"(?<!\d)-?\d+(?:\.\d+)?", answer.replace(",", "")))
        numbers = [number for number in found if abs(number) not in given]
        return numbers[:1] == [float(question.answers[0])]
    # May is a month, and may is not; He is a symbol, and HE is not.
    return any(
        re.search(rf"(?<!\w){re.escape(form)}(?!\w)", answer, re.IGNORECASE if a.islower() else 0)
        for a in question.answers
        for form in (a, a.upper() if len(a) > 3 else a)
    )


def _make_control(model: Model, split: Split, n: int) -> list[Problem]:
    found = questions(split)
    order = list(range(len(found)))
    Random(f"control {split}").shuffle(order)
    problems = []
    for place in order[:n]:
        user = {"role": "user", "content": found[place].text}
        system = {"role": "system", "content": data("wordings")["plain"][split][place % 2]}
        problems.append(Problem((system, user), (user,), found[place]))
    return problems


def score_control(text: str, problem: Problem) -> dict[str, bool]:
    """ "right": the right answer, in language that is fluent."""
    follows = is_right(text, problem.judged)
    # "12 + 8 = 20" answers a sum.
    is_equation = problem.judged.is_sum and re.fullmatch(r"[\d\s+*/=.-]{1,20}", text) is not None
    fluent = is_equation or is_fluent(text)
    return {"right": follows and fluent, "follows": follows, "fluent": fluent}


def _cell(
    name: str,
    about: str,
    make: Draw | Callable[[Model, Split, int], list[Problem]],
    *,
    max_tokens: int = 40,
    style: Style | None = "information",
    chat_only: bool = True,
    control: bool = False,
) -> Cell:
    return Cell(
        name, "An instruction; the amateur lacks it", about,
        make if style is None else partial(_make, name, make, style),  # type: ignore[arg-type]
        score_control if control else score, max_tokens, control=control, chat_only=chat_only,
        base_stop=("\nUser:", "\nAssistant:", "\n\n"), pooled=True,
    )  # fmt: skip


CELLS = (
    _cell("language", "reply in another language", rules.draw_language, chat_only=False),
    _cell("forbidden", "without a word that is likely", rules.draw_forbidden),
    _cell("required", "with a given word", rules.draw_required, style="writing"),
    _cell("length", "one or two sentences, or a limit in words", rules.draw_length, max_tokens=48),
    _cell("json", "JSON with given keys, and an example of it", _make_json, style=None,
          max_tokens=48),
    _cell("plain-questions", "simple questions, the system prompt asks nothing special",
          _make_control, style=None, control=True),
)  # fmt: skip
