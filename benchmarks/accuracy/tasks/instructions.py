# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance on an instruction: the amateur's prompt is the expert's without it.

Two instructions that small models follow sometimes: another language, and JSON. No model judges.
What an answer only repeats of the instruction does not count; whether the rest makes sense is not
judged. And a control: simple questions with one right answer, of which nothing special is asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Prompt, Split, data, split_of
from benchmarks.accuracy.tasks.text import (
    is_fluent,
    is_said,
    language_of,
    sentences,
    without_echo,
    words,
)

NEUTRAL = "You are a helpful assistant."
# Name, ISO 639-1, the demand in the language itself.
_LANGUAGES = (
    ("French", "fr", "Réponds uniquement en français, quelle que soit la langue de la question."),
    ("German", "de", "Antworte nur auf Deutsch, ganz gleich, in welcher Sprache gefragt wird."),
    ("Spanish", "es", "Responde solo en español, sea cual sea el idioma de la pregunta."),
    ("Italian", "it", "Rispondi solo in italiano, qualunque sia la lingua della domanda."),
    ("Portuguese", "pt", "Responda só em português, seja qual for o idioma da pergunta."),
)
# What it is called in English, and in the fourth word of the demand.
_NAMES = {code: {name.lower(), words(native)[3]} for name, code, native in _LANGUAGES}
_KEYS: dict[Split, tuple[tuple[str, ...], ...]] = {
    "dev": (("answer",), ("topic", "answer"), ("answer", "mood")),
    "test": (("reply",), ("subject", "reply"), ("reply", "tone")),
}
# A request, and what the example makes of it.
_EXAMPLES: dict[Split, tuple[str, tuple[str, str, str]]] = {
    "dev": ("Why is the sky blue?", ("The air scatters blue light.", "the sky", "curious")),
    "test": ("Why do leaves fall?", ("The trees save water in winter.", "leaves", "calm")),
}
_PLACEHOLDERS = ("", "string", "value", "text")
# What user and assistant said before, in turns.
Turns = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Judged:
    """What an answer is judged by.

    Attributes:
        wanted: A language (ISO 639-1), or the keys of an object.
        instruction: The demand in words.
        better: The same with more force.
        earlier: The assistant's turns of an example: to repeat them counts as little as the
            instruction.
    """

    wanted: str | tuple[str, ...]
    instruction: str
    better: str
    earlier: tuple[str, ...] = ()


# Prompts


@cache
def requests(split: Split) -> tuple[tuple[str, str], ...]:
    """Topics and what is asked about them. A topic is in one split, with all its sentences."""
    return tuple(
        (topic, sentence.format(topic))
        for area in data("requests")["areas"]
        for topic in area["topics"].split(", ")
        if split_of(topic) == split
        for sentence in area["sentences"]
    )


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


def _shuffled(name: str, split: Split, n: int) -> list[tuple[str, Random]]:
    """Requests, each with a source of choices of its own."""
    found = [text for _, text in requests(split)]
    Random(f"{name} {split}").shuffle(found)
    return [(text, Random(f"{name} {text}")) for text in found[:n]]


def _problem(model: Model, judged: Judged, request: str, turns: Turns = ()) -> Problem:
    told = judged.instruction
    return Problem(
        prompt(model, told, request, turns),
        prompt(model, "", request),  # without an example either
        judged,
        plain={
            "repeated": prompt(model, told, f"{request} {told}", turns),
            "better": prompt(model, judged.better, request, turns),
        },
    )


def _make_language(model: Model, split: Split, n: int) -> list[Problem]:
    problems = []
    for request, rng in _shuffled("language", split, n):
        name, code, native = rng.choice(_LANGUAGES)
        told = rng.choice(data("wordings")["language"][split]).format(name)
        judged = Judged(code, told, f"Answer only in {name}. {native}")
        problems.append(_problem(model, judged, request))
    return problems


def _make_json(model: Model, split: Split, n: int) -> list[Problem]:
    problems = []
    for request, rng in _shuffled("json", split, n):
        keys = rng.choice(_KEYS[split])
        quoted = " and ".join(f'"{key}"' for key in keys)
        told = rng.choice(data("wordings")["json"][split])
        # A small model needs an example.
        user, (said, topic, mood) = _EXAMPLES[split]
        values = {"topic": topic, "subject": topic, "mood": mood, "tone": mood}
        example = json.dumps({key: values.get(key, said) for key in keys})
        judged = Judged(
            keys,
            told.format("key" if len(keys) == 1 else "keys", quoted),
            "A program reads your answer, and it fails if there is anything but JSON. Fill in this "
            f"form, with a few words for each value: {json.dumps(dict.fromkeys(keys, '...'))}",
            (example,),
        )
        problems.append(_problem(model, judged, request, ((user, example),)))
    return problems


# Judges


def is_in_language(answer: str, judged: Judged) -> bool:
    """Whether an answer is in the language, in words of its own."""
    own = without_echo(answer, (judged.instruction, judged.better))
    found = own.split()
    parts = [found]
    # Each half by itself: an answer often begins in one language and goes on in another. A few
    # words alone are too little to tell relatives from each other.
    if len(found) >= 12:
        parts = [found[: len(found) // 2], found[len(found) // 2 :]]
    # To say in the language that one speaks it is an echo.
    names = _NAMES[str(judged.wanted)]
    said = [word for part in map(words, sentences(own)) if not names & set(part) for word in part]
    return len(said) >= 6 and all(language_of(" ".join(part)) == judged.wanted for part in parts)


def is_json(answer: str, judged: Judged) -> bool:
    """Whether an answer is an object with the keys and values of its own."""
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", answer.strip(), re.DOTALL)
    try:
        found = json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        return False
    # A mood may well be that of the example, the whole may not.
    return (
        isinstance(found, dict)
        and set(found) == set(judged.wanted)
        and json.dumps(found.get(judged.wanted[0])) not in "".join(judged.earlier)
        and all(
            isinstance(value, str | int | float)
            and (text := str(value).strip(" .").lower()) not in (*_PLACEHOLDERS, key)
            and not is_said(text, f"{judged.instruction} {judged.better}")
            for key, value in found.items()
        )
    )


def score(text: str, problem: Problem) -> dict[str, bool]:
    """ "right": follows the instruction, in language that is fluent."""
    judged: Judged = problem.judged
    if isinstance(judged.wanted, str):
        follows, fluent = is_in_language(text, judged), is_fluent(text, ("en", judged.wanted))
    else:
        follows, fluent = is_json(text, judged), is_fluent(text)
    return {"right": follows and fluent, "follows": follows, "fluent": fluent}


# Nothing special asked


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
    found = list(enumerate(questions(split)))
    Random(f"control {split}").shuffle(found)
    problems = []
    for place, question in found[:n]:
        user = {"role": "user", "content": question.text}
        system = {"role": "system", "content": data("wordings")["plain"][split][place % 2]}
        problems.append(Problem((system, user), (user,), question))
    return problems


def score_control(text: str, problem: Problem) -> dict[str, bool]:
    """ "right": the right answer, in language that is fluent."""
    follows = is_right(text, problem.judged)
    # "12 + 8 = 20" answers a sum.
    is_equation = problem.judged.is_sum and re.fullmatch(r"[\d\s+*/=.-]{1,20}", text) is not None
    fluent = is_equation or is_fluent(text)
    return {"right": follows and fluent, "follows": follows, "fluent": fluent}


_GROUP = "An instruction; the amateur lacks it"
CELLS = (
    Cell(
        "language", _GROUP, "reply in another language", _make_language, score, 40,
        base_stop=("\nUser:", "\nAssistant:", "\n\n"), pooled=True,
    ),
    Cell(
        "json", _GROUP, "JSON with given keys, and an example of it", _make_json, score, 48,
        chat_only=True, pooled=True,
    ),
    Cell(
        "plain-questions", _GROUP, "simple questions, the system prompt asks nothing special",
        _make_control, score_control, 40, control=True, chat_only=True, pooled=True,
    ),
)  # fmt: skip
