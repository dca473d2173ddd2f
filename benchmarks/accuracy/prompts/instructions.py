# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance on an instruction: the amateur's prompt is the expert's without it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from random import Random
from typing import Any

from benchmarks.accuracy.prompts import rules
from benchmarks.accuracy.prompts.problem import Cell, ModelName, Problem, Prompt, Split
from benchmarks.accuracy.prompts.questions import is_right, questions
from benchmarks.accuracy.prompts.requests import Request, Style, requests
from benchmarks.accuracy.prompts.rules import Judged, Rule
from benchmarks.accuracy.prompts.text import is_fluent
from benchmarks.accuracy.prompts.voices import SMALL_TALK

NEUTRAL = "You are a helpful assistant."

Draw = Callable[[Random, Split, Request], Rule]
# What user and assistant said before, in turns.
Turns = tuple[tuple[str, str], ...]


def prompt(model: ModelName, instruction: str, request: str, turns: Turns = ()) -> Prompt:
    """A conversation up to the assistant's turn.

    Args:
        model: A chat model gets messages, a base model a document.
        instruction: What the assistant is told; "" for nothing.
        request: The user's last message.
        turns: Before that.
    """
    if model == "smollm2":
        messages = [{"role": "system", "content": f"{NEUTRAL} {instruction}".strip()}]
        for user, assistant in turns:
            messages.append({"role": "user", "content": user})
            messages.append({"role": "assistant", "content": assistant})
        return (*messages, {"role": "user", "content": request})
    lines = ["A conversation between a user and a helpful assistant."]
    if instruction:
        lines.append(f"Instructions for the assistant: {instruction}")
    lines.append("")
    for user, assistant in turns:
        lines += [f"User: {user}", f"Assistant: {assistant}"]
    return "\n".join([*lines, f"User: {request}", "Assistant:"])


def _problem(model: ModelName, rule: Rule, request: str, turns: Turns = ()) -> Problem:
    return Problem(
        prompt(model, rule.instruction, request, turns),
        prompt(model, "", request, turns),
        Judged(rule, request, tuple(assistant for _, assistant in turns)),
        plain={
            "repeated": prompt(model, rule.instruction, f"{request} {rule.instruction}", turns),
            "better": prompt(model, rule.better, request, turns),
        },
    )


def _first(problems: list[Any], n: int, split: Split) -> list[Any]:
    if n > len(problems):
        raise ValueError(f"n={n}: the split {split!r} has {len(problems)} different problems")
    return problems[:n]


def _shuffled(name: str, split: Split, style: Style = "information") -> list[Request]:
    found = list(requests(split, style))
    Random(f"{name} {split}").shuffle(found)
    return found


def _make(
    model: ModelName, split: Split, n: int, *, name: str, draw: Draw, style: Style
) -> list[Problem]:
    return [
        _problem(model, draw(Random(f"{name} {request.text}"), split, request), request.text)
        for request in _first(_shuffled(name, split, style), n, split)
    ]


def _make_json(model: ModelName, split: Split, n: int) -> list[Problem]:
    problems = []
    for request in _first(_shuffled("json", split), n, split):
        rule = rules.draw_json(Random(f"json {request.text}"), split, request)
        # A small model needs an example. The amateur lacks it, too.
        problem = _problem(model, rule, request.text, (rules.json_example(rule, split),))
        problems.append(replace(problem, without=prompt(model, "", request.text)))
    return problems


def _score(text: str, problem: Problem) -> dict[str, bool]:
    follows = rules.follows(text, problem.judged)
    fluent = is_fluent(text, rules.languages(problem.judged.rule))
    return {"right": follows and fluent, "follows": follows, "fluent": fluent}


# Several turns

_GREETINGS = ("Hello!", "Hi there!", "Good morning!", "Hey, are you there?")
_ANNOUNCEMENTS = ("Can you help me?", "I have a question for you.", "May I ask you something?")
_FORGOTTEN = ("Hello! How can I help you today?", "Of course. What would you like to know?")


def _make_turns(model: ModelName, split: Split, n: int) -> list[Problem]:
    problems = []
    for request in _first(_shuffled("turns", split, "opinion"), n, split):
        rng = Random(f"turns {request.text}")
        draw = rng.choice((rules.draw_language, rules.draw_persona, rules.draw_tone))
        rule = draw(rng, split, request)
        # In half of them the assistant has forgotten the rule already.
        replies = SMALL_TALK[rule.name] if rng.random() < 0.5 else _FORGOTTEN
        users = (rng.choice(_GREETINGS), rng.choice(_ANNOUNCEMENTS))
        turns = tuple(islice(zip(users, replies, strict=True), rng.choice((1, 2))))
        problems.append(_problem(model, rule, request.text, turns))
    return problems


# Nothing special asked

_PLAIN: dict[Split, tuple[str, ...]] = {
    "dev": ("You are a helpful assistant.", "You are an assistant who answers questions."),
    "test": ("You are a helpful and friendly assistant.", "You answer questions of users."),
}


def _make_control(model: ModelName, split: Split, n: int) -> list[Problem]:
    found = questions(split)
    # Each in one way: problems are to be independent.
    order = list(range(len(found) // 2))
    Random(f"control {split}").shuffle(order)
    problems = []
    for place in order[:n]:
        question = found[place]
        user = {"role": "user", "content": question.text}
        system = {"role": "system", "content": _PLAIN[split][place % 2]}
        problems.append(Problem((system, user), (user,), question))
    return problems


def _score_control(text: str, problem: Problem) -> dict[str, bool]:
    follows = is_right(text, problem.judged)
    # "12 + 8 = 20" answers a sum.
    is_equation = problem.judged.is_sum and re.fullmatch(r"[\d\s+*/=.-]{1,20}", text) is not None
    fluent = is_equation or is_fluent(text)
    return {"right": follows and fluent, "follows": follows, "fluent": fluent}


_STOP: dict[ModelName, tuple[str, ...]] = {"gemma": ("\nUser:", "\nAssistant:", "\n\n")}


def _cell(
    name: str,
    about: str,
    draw: Draw,
    models: tuple[ModelName, ...] = ("smollm2",),
    max_tokens: int = 40,
    style: Style = "information",
) -> Cell:
    make = partial(_make, name=name, draw=draw, style=style)
    return Cell(name, about, "gain", models, make, _score, max_tokens, _STOP)


CELLS: tuple[Cell, ...] = (
    _cell("language", "reply in another language", rules.draw_language, ("smollm2", "gemma")),
    _cell("persona", "speak as somebody else", rules.draw_persona, ("smollm2", "gemma")),
    _cell("tone", "a mood or a manner", rules.draw_tone, ("smollm2", "gemma"), style="opinion"),
    _cell("forbidden", "without a word that is likely", rules.draw_forbidden),
    _cell("required", "with a given word", rules.draw_required, style="writing"),
    _cell("length", "one or two sentences, or a limit in words", rules.draw_length, max_tokens=48),
    Cell(
        "json", "JSON with given keys, and an example of it", "gain",
        ("smollm2",), _make_json, _score, 48,
    ),
    _cell(
        "several", "two instructions at once", rules.draw_several, max_tokens=48, style="writing"
    ),
    Cell(
        "turns", "a language, a persona or a tone, in the second or third turn of a chat", "gain",
        ("smollm2",), _make_turns, _score, 40,
    ),
    Cell(
        "plain-questions", "simple questions, the system prompt asks nothing special", "control",
        ("smollm2",), _make_control, _score_control, 40,
    ),
)  # fmt: skip
