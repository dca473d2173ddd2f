# SPDX-License-Identifier: Apache-2.0
"""What a system prompt can demand of every answer: how it is worded, and who has kept to it.

No model judges. What an answer repeats of the instruction does not count (``without_echo``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from benchmarks.accuracy.prompts.problem import Split, split_of
from benchmarks.accuracy.prompts.requests import Request
from benchmarks.accuracy.prompts.text import is_finished, is_said, sentences, without_echo, words
from benchmarks.accuracy.prompts.voices import PERSONAS, TONES


@dataclass(frozen=True)
class Rule:
    """A demand.

    Attributes:
        kind: What is demanded; names its judge.
        wanted: What the judge needs to know.
        instruction: The demand in words.
        better: The same with more force.
        name: Of the language or the voice.
    """

    kind: str
    wanted: Any
    instruction: str
    better: str
    name: str = ""


@dataclass(frozen=True)
class Judged:
    """What an answer is judged by.

    Attributes:
        rule: What it must keep to.
        request: What was asked.
        earlier: The assistant's earlier turns: to repeat them counts as little as the instruction.
    """

    rule: Rule
    request: str
    earlier: tuple[str, ...] = ()


def follows(answer: str, judged: Judged) -> bool:
    """Whether an answer keeps to its rule, in its own words."""
    rule = judged.rule
    own = without_echo(answer, (rule.instruction, rule.better, *judged.earlier))
    return _JUDGES[rule.kind](answer.strip(), own, judged)


# Reply language

# Name, ISO 639-1, the demand in the language itself.
_LANGUAGES = (
    ("French", "fr", "Réponds uniquement en français, quelle que soit la langue de la question."),
    ("German", "de", "Antworte nur auf Deutsch, ganz gleich, in welcher Sprache gefragt wird."),
    ("Spanish", "es", "Responde solo en español, sea cual sea el idioma de la pregunta."),
    ("Italian", "it", "Rispondi solo in italiano, qualunque sia la lingua della domanda."),
    ("Portuguese", "pt", "Responda só em português, seja qual for o idioma da pergunta."),
)  # fmt: skip
_LANGUAGE_WORDINGS: dict[Split, tuple[str, ...]] = {
    "dev": ("Reply in {}.", "Write your whole answer in {}.", "Write nothing that is not {}."),
    "test": ("Always answer in {}.", "Speak {} to the user.", "Use {} for everything you say."),
}  # fmt: skip


@cache
def _identifier() -> Any:
    from py3langid.langid import (  # type: ignore[import-untyped,unused-ignore]
        MODEL_FILE,
        LanguageIdentifier,
    )

    found = LanguageIdentifier.from_model_file(MODEL_FILE)
    # Close relatives that nobody asked for would take short texts from those that somebody did.
    found.set_languages(["en", "nl", *(code for _, code, _ in _LANGUAGES)])
    return found


def draw_language(rng: Random, split: Split, request: Request) -> Rule:
    """Another language than the user's."""
    name, code, native = rng.choice(_LANGUAGES)
    instruction = rng.choice(_LANGUAGE_WORDINGS[split]).format(name)
    return Rule("language", code, instruction, f"Answer only in {name}. {native}", name)


def _in_language(answer: str, own: str, judged: Judged) -> bool:
    found = own.split()
    parts = [found]
    # Each half by itself: an answer often begins in one language and goes on in another. A few
    # words alone are too little to tell relatives from each other.
    if len(found) >= 12:
        parts = [found[: len(found) // 2], found[len(found) // 2 :]]
    return len(words(own)) >= 6 and all(
        _identifier().classify(" ".join(part))[0] == judged.rule.wanted for part in parts
    )


# Persona and tone: by words that they have in common with nobody else

_PERSONA_WORDINGS: dict[Split, tuple[str, ...]] = {
    "dev": ("Talk like {}.", "Play the part of {}."),
    "test": ("Answer as {} would.", "In all you say, sound like {}."),
}
_TONE_WORDINGS: dict[Split, tuple[str, ...]] = {
    "dev": ("Sound very {}.", "Be as {} as you can."),
    "test": ("Answer in a very {} tone.", "Everything you say must sound very {}."),
}
_PERSONA_WORDS = 2


def draw_persona(rng: Random, split: Split, request: Request) -> Rule:
    """Somebody else's voice."""
    who = rng.choice(tuple(PERSONAS))
    return Rule(
        "voice",
        (_PERSONA_WORDS, PERSONAS[who]),
        rng.choice(_PERSONA_WORDINGS[split]).format(who),
        f"Forget that you are an assistant: you are {who}. In every sentence, use the expressions, "
        f"greetings and images of {who}, whatever you are asked.",
        who,
    )


def draw_tone(rng: Random, split: Split, request: Request) -> Rule:
    """A mood or a manner."""
    tone = rng.choice(tuple(TONES))
    return Rule(
        "voice",
        TONES[tone],
        rng.choice(_TONE_WORDINGS[split]).format(tone),
        f"Every sentence of yours must sound extremely {tone}. Exaggerate: whoever reads any part "
        f"of your answer must notice how {tone} you are.",
        tone,
    )


def marks(own: str, judged: Judged) -> list[str]:
    """The words of the voice that an answer has, and neither its instruction nor its request."""
    rule = judged.rule
    given = f"{rule.instruction} {rule.better} {judged.request}"
    return [
        phrase
        for phrase in rule.wanted[1]
        if ("!" in own if phrase == "!" else is_said(phrase, own) and not is_said(phrase, given))
    ]


def _has_voice(answer: str, own: str, judged: Judged) -> bool:
    return len(marks(own, judged)) >= int(judged.rule.wanted[0])


# Forbidden words and letters

_COMMON_WORDS = ("the", "and", "you", "can", "is", "of")
_LETTERS = "kvbwgp"
_FORBIDDEN_WORDINGS: dict[Split, tuple[str, ...]] = {
    "dev": ("Do not use the {} {}.", "Avoid the {} {} altogether."),
    "test": ("Never use the {} {} in your answer.", "The {} {} is forbidden: do without it."),
}


def draw_forbidden(rng: Random, split: Split, request: Request) -> Rule:
    """The word that the request is about, a frequent word, or a letter."""
    what, thing = rng.choice(
        (
            ("word", request.topic.split()[-1]),
            ("word", rng.choice(_COMMON_WORDS)),
            ("letter", rng.choice(_LETTERS)),
        )
    )
    return Rule(
        "forbidden",
        (what, thing),
        rng.choice(_FORBIDDEN_WORDINGS[split]).format(what, f'"{thing}"'),
        f'It is strictly forbidden to write the {what} "{thing}". Find other words, however odd '
        "they sound.",
    )


def _is_avoided(answer: str, own: str, judged: Judged) -> bool:
    what, thing = judged.rule.wanted
    used = thing in answer.lower() if what == "letter" else is_said(thing.lower(), answer)
    # Whoever says next to nothing avoids everything.
    return not used and len(words(own)) >= 10


# Required words

_THINGS = """
    river lantern purple umbrella mountain whisper silver breakfast garden pocket thunder button
    winter mirror ladder orange blanket window piano forest candle pepper island feather basket
    kitchen rainbow hammer velvet cloud bottle engine summer pencil butter castle monkey curtain
    market shoulder bicycle yellow hospital carpet neighbour dragon pillow tunnel cousin violin
    station lemon wallet diamond ticket planet shower bridge teacher balloon
    """
_REQUIRED_WORDINGS: dict[Split, tuple[str, ...]] = {
    "dev": ("Use the words {} in your answer.", "Work the words {} into your answer."),
    "test": ("Your answer must contain the words {}.", "Make sure that {} occur in your answer."),
}


def draw_required(rng: Random, split: Split, request: Request) -> Rule:
    """Two words that have nothing to do with the request."""
    free = [
        thing for thing in _THINGS.split() if split_of(thing) == split and thing not in request.text
    ]
    things = tuple(rng.sample(free, 2))
    quoted = " and ".join(f'"{thing}"' for thing in things)
    return Rule(
        "required",
        things,
        rng.choice(_REQUIRED_WORDINGS[split]).format(quoted),
        f"However odd it sounds, write sentences in which {quoted} are used naturally, as words of "
        "your answer. An answer without both of them is wrong.",
    )


def _are_used(answer: str, own: str, judged: Judged) -> bool:
    first, second = judged.rule.wanted
    found = words(own)
    if first not in found or second not in found:
        return False
    # Both in a row, or with an "and" between them, are a list.
    places = [place for place, word in enumerate(found) if word in (first, second)]
    return any(
        abs(a - b) > 2 for a in places for b in places if found[a] == first and found[b] == second
    )


# Length

_SENTENCE_WORDINGS: dict[Split, tuple[str, ...]] = {
    "dev": ("Answer in {}.", "Keep to {}."),
    "test": ("Your whole answer must be {}.", "Say it in {} and then stop."),
}
_SHORT_WORDINGS: dict[Split, tuple[str, ...]] = {
    "dev": ("Use at most {} words.", "Do not go over {} words."),
    "test": ("Answer in {} words or fewer.", "Your answer must not be longer than {} words."),
}
_MOST_WORDS = (10, 15, 20, 25)


def draw_length(rng: Random, split: Split, request: Request) -> Rule:
    """So many sentences, or a limit in words."""
    if rng.random() < 0.5:
        number = rng.choice((1, 2))
        text = ("one single sentence", "exactly two sentences")[number - 1]
        instruction = rng.choice(_SENTENCE_WORDINGS[split]).format(text)
        kind, shape = "sentences", f"{text}, with a full stop at the end"
    else:
        number = rng.choice(_MOST_WORDS)
        instruction = rng.choice(_SHORT_WORDINGS[split]).format(number)
        kind, shape = "words", f"{number} words at the very most"
    better = f"Be extremely brief, since there is very little room: {shape}. Nothing may follow."
    return Rule(kind, number, instruction, better)


def _has_sentences(answer: str, own: str, judged: Judged) -> bool:
    found = sentences(answer)
    return (
        len(found) == judged.rule.wanted
        and all(len(words(sentence)) >= 3 for sentence in found)
        and is_finished(answer)
        and len(words(own)) >= 3
    )


def _is_short(answer: str, own: str, judged: Judged) -> bool:
    return len(words(own)) >= 3 and len(answer.split()) <= judged.rule.wanted


# JSON

_KEYS = (
    ("topic", "answer"), ("title", "text"), ("summary", "mood"), ("answer", "reason"),
    ("subject", "difficulty"), ("name", "kind", "tip"), ("topic", "answer", "confidence"),
)  # fmt: skip
_JSON_WORDINGS: dict[Split, tuple[str, ...]] = {
    "dev": (
        "Reply with a JSON object and nothing else. Its keys are {}, its values short strings.",
    ),
    "test": ("Your answer must be only JSON: an object with the keys {} and short strings.",),
}
_PLACEHOLDERS = ("", "...", "string", "value", "text")


def draw_json(rng: Random, split: Split, request: Request) -> Rule:
    """An object with given keys."""
    keys = rng.choice(_KEYS)
    quoted = ", ".join(f'"{key}"' for key in keys)
    shape = json.dumps(dict.fromkeys(keys, "..."))
    return Rule(
        "json",
        keys,
        rng.choice(_JSON_WORDINGS[split]).format(quoted),
        "A program reads your answer, and it fails if there is anything but JSON. Fill in this "
        f"form, with a few words for each value: {shape}",
    )


def _is_json(answer: str, own: str, judged: Judged) -> bool:
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", answer, re.DOTALL)
    try:
        found = json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(found, dict)
        and set(found) == set(judged.rule.wanted)
        and all(
            isinstance(value, str | int | float)
            and str(value).strip().lower() not in (*_PLACEHOLDERS, key)
            for key, value in found.items()
        )
    )


# Several at once


def draw_several(rng: Random, split: Split, request: Request) -> Rule:
    """Two rules that do not get in each other's way."""
    makers = rng.choice(
        (
            (draw_language, draw_length),
            (draw_persona, draw_length),
            (draw_tone, draw_length),
            (draw_persona, draw_forbidden),
            (draw_tone, draw_forbidden),
            (draw_tone, draw_required),
        )
    )
    rules = tuple(maker(rng, split, request) for maker in makers)
    return Rule(
        "several",
        rules,
        " ".join(rule.instruction for rule in rules),
        " ".join(rule.better for rule in rules),
    )


def _are_all_kept(answer: str, own: str, judged: Judged) -> bool:
    return all(
        _JUDGES[rule.kind](answer, own, Judged(rule, judged.request, judged.earlier))
        for rule in judged.rule.wanted
    )


_JUDGES: dict[str, Callable[[str, str, Judged], bool]] = {
    "language": _in_language,
    "voice": _has_voice,
    "forbidden": _is_avoided,
    "required": _are_used,
    "sentences": _has_sentences,
    "words": _is_short,
    "json": _is_json,
    "several": _are_all_kept,
}
