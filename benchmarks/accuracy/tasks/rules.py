# SPDX-License-Identifier: Apache-2.0
"""What a system prompt can demand of every answer: how it is worded, and who has kept to it.

No model judges. What an answer repeats of the instruction or says about it does not count
(``without_echo``, ``without_asides``). Whether the rest makes sense is not judged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from benchmarks.accuracy.problem import Split, data, split_of
from benchmarks.accuracy.tasks.text import (
    is_finished,
    is_said,
    language_of,
    sentences,
    without_asides,
    without_echo,
    words,
)


@dataclass(frozen=True)
class Request:
    """A user's message.

    Attributes:
        text: The message.
        topic: What it is about, as the message says it.
        likely: Words that every second to tenth plain answer has, and the message has not.
    """

    text: str
    topic: str
    likely: tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """A demand.

    Attributes:
        kind: What is demanded; names its judge.
        wanted: What the judge needs to know.
        instruction: The demand in words.
        better: The same with more force.
    """

    kind: str
    wanted: Any
    instruction: str
    better: str


@dataclass(frozen=True)
class Judged:
    """What an answer is judged by.

    Attributes:
        rule: What it must keep to.
        request: What was asked.
        earlier: The assistant's turns of an example: to repeat them counts as little as the
            instruction.
    """

    rule: Rule
    request: str
    earlier: tuple[str, ...] = ()


def follows(answer: str, judged: Judged) -> bool:
    """Whether an answer keeps to its rule, in its own words."""
    rule = judged.rule
    own = without_echo(answer, (rule.instruction, rule.better, *judged.earlier))
    # In another language, one may speak of the task.
    own = own if rule.kind == "language" else without_asides(own)
    return _JUDGES[rule.kind](answer.strip(), own, judged)


def languages(rule: Rule) -> tuple[str, ...]:
    """In which languages an answer can be fluent: the wanted one, and the user's."""
    return ("en", rule.wanted) if rule.kind == "language" else ("en",)


def _worded(kind: str, rng: Random, split: Split, *values: Any) -> str:
    return str(rng.choice(data("wordings")[kind][split])).format(*values)


# Reply language

# Name, ISO 639-1, the demand in the language itself.
_LANGUAGES = (
    ("French", "fr", "Réponds uniquement en français, quelle que soit la langue de la question."),
    ("German", "de", "Antworte nur auf Deutsch, ganz gleich, in welcher Sprache gefragt wird."),
    ("Spanish", "es", "Responde solo en español, sea cual sea el idioma de la pregunta."),
    ("Italian", "it", "Rispondi solo in italiano, qualunque sia la lingua della domanda."),
    ("Portuguese", "pt", "Responda só em português, seja qual for o idioma da pergunta."),
)  # fmt: skip
# What it is called in English, and in the fourth word of the demand.
_NAMES = {code: {name.lower(), words(native)[3]} for name, code, native in _LANGUAGES}


def draw_language(rng: Random, split: Split, request: Request) -> Rule:
    """Another language than the user's."""
    name, code, native = rng.choice(_LANGUAGES)
    instruction = _worded("language", rng, split, name)
    return Rule("language", code, instruction, f"Answer only in {name}. {native}")


def _in_language(answer: str, own: str, judged: Judged) -> bool:
    found = own.split()
    parts = [found]
    # Each half by itself: an answer often begins in one language and goes on in another. A few
    # words alone are too little to tell relatives from each other.
    if len(found) >= 12:
        parts = [found[: len(found) // 2], found[len(found) // 2 :]]
    # To say in the language that one speaks it is an echo.
    names = _NAMES[judged.rule.wanted]
    said = [word for part in map(words, sentences(own)) if not names & set(part) for word in part]
    return len(said) >= 6 and all(
        language_of(" ".join(part)) == judged.rule.wanted for part in parts
    )


# A forbidden and a required word


def draw_forbidden(rng: Random, split: Split, request: Request) -> Rule:
    """A word that plain answers to such requests often have."""
    word = rng.choice(request.likely)
    return Rule(
        "forbidden",
        word,
        _worded("forbidden", rng, split, word),
        f'It is strictly forbidden to write the word "{word}". Find other words, however odd they '
        "sound.",
    )


def _is_avoided(answer: str, own: str, judged: Judged) -> bool:
    # Whoever says next to nothing avoids everything.
    return not is_said(judged.rule.wanted, answer) and len(words(own)) >= 10


def draw_required(rng: Random, split: Split, request: Request) -> Rule:
    """A word that has nothing to do with the request."""
    things = data("wordings")["things"].split()
    thing = rng.choice(
        [word for word in things if split_of(word) == split and word not in request.text]
    )
    return Rule(
        "required",
        thing,
        _worded("required", rng, split, thing),
        f'However odd it sounds, write a sentence in which "{thing}" is used naturally, as a word '
        "of your answer. An answer without it is wrong.",
    )


def _is_used(answer: str, own: str, judged: Judged) -> bool:
    forms = {judged.rule.wanted, f"{judged.rule.wanted}s"}
    # In quotes it is spoken of, not used.
    own = re.sub(rf"[\"“'‘]{judged.rule.wanted}[\"”'’]", "", own, flags=re.IGNORECASE)
    # In a sentence with other words: the word alone, or again and again, is no use of it.
    return any(
        forms & set(found) and len(set(found) - forms) >= 4 for found in map(words, sentences(own))
    )


# Length


def draw_length(rng: Random, split: Split, request: Request) -> Rule:
    """So many sentences, or a limit in words."""
    if rng.random() < 0.5:
        number = rng.choice((1, 2))
        text: int | str = ("one single sentence", "exactly two sentences")[number - 1]
        kind, shape = "sentences", f"{text}, with a full stop at the end"
    else:
        text = number = rng.choice((10, 15, 20))
        kind, shape = "words", f"{number} words at the very most"
    better = f"Be extremely brief, since there is very little room: {shape}. Nothing may follow."
    return Rule(kind, number, _worded(kind, rng, split, text), better)


def _has_sentences(answer: str, own: str, judged: Judged) -> bool:
    found = sentences(answer)
    return (
        len(found) == judged.rule.wanted
        and all(len(words(sentence)) >= 3 for sentence in found)
        and is_finished(answer)
        and len(words(own)) >= 3
    )


def _is_short(answer: str, own: str, judged: Judged) -> bool:
    # What is cut off was on its way to be longer.
    return (
        len(words(own)) >= 3 and len(answer.split()) <= judged.rule.wanted and is_finished(answer)
    )


# JSON

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


def draw_json(rng: Random, split: Split, request: Request) -> Rule:
    """An object with given keys."""
    keys = rng.choice(_KEYS[split])
    quoted = " and ".join(f'"{key}"' for key in keys)
    shape = json.dumps(dict.fromkeys(keys, "..."))
    return Rule(
        "json",
        keys,
        _worded("json", rng, split, "key" if len(keys) == 1 else "keys", quoted),
        "A program reads your answer, and it fails if there is anything but JSON. Fill in this "
        f"form, with a few words for each value: {shape}",
    )


def json_example(rule: Rule, split: Split) -> tuple[str, str]:
    """A request and an answer that keeps to a rule of ``draw_json``."""
    user, (said, topic, mood) = _EXAMPLES[split]
    values = {"topic": topic, "subject": topic, "mood": mood, "tone": mood}
    return user, json.dumps({key: values.get(key, said) for key in rule.wanted})


def _is_json(answer: str, own: str, judged: Judged) -> bool:
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", answer, re.DOTALL)
    try:
        found = json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        return False
    rule = judged.rule
    # A mood may well be that of the example, the whole may not.
    return (
        isinstance(found, dict)
        and set(found) == set(rule.wanted)
        and json.dumps(found.get(rule.wanted[0])) not in "".join(judged.earlier)
        and all(
            isinstance(value, str | int | float)
            and (text := str(value).strip(" .").lower()) not in (*_PLACEHOLDERS, key)
            and not is_said(text, f"{rule.instruction} {rule.better}")
            for key, value in found.items()
        )
    )


_JUDGES: dict[str, Callable[[str, str, Judged], bool]] = {
    "language": _in_language,
    "forbidden": _is_avoided,
    "required": _is_used,
    "sentences": _has_sentences,
    "words": _is_short,
    "json": _is_json,
}
