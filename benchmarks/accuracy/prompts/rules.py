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

from benchmarks.accuracy.prompts.problem import Split, split_of
from benchmarks.accuracy.prompts.requests import Request
from benchmarks.accuracy.prompts.text import (
    are_forms,
    is_finished,
    is_said,
    language_of,
    sentences,
    without_asides,
    without_echo,
    words,
)
from benchmarks.accuracy.prompts.voices import PERSONAS, TONE_WORDS, TONES


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
    return _is_kept(answer.strip(), own, judged)


def _is_kept(answer: str, own: str, judged: Judged) -> bool:
    # In a language or a voice, one may speak of the task.
    kind = judged.rule.kind
    rest = own if kind in ("language", "voice") else without_asides(own)
    return _JUDGES[kind](answer, rest, judged)


def languages(rule: Rule) -> tuple[str, ...]:
    """In which languages an answer can be fluent: the wanted one, and the user's."""
    parts = rule.wanted if rule.kind == "several" else (rule,)
    return ("en", *(part.wanted for part in parts if part.kind == "language"))


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
_LANGUAGE_WORDINGS: dict[Split, tuple[str, ...]] = {
    "dev": ("Reply in {}.", "Write your whole answer in {}.", "Write nothing that is not {}."),
    "test": ("Always answer in {}.", "Speak {} to the user.", "Use {} for everything you say."),
}  # fmt: skip


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
    # To say in the language that one speaks it is an echo.
    names = _NAMES[judged.rule.wanted]
    said = [word for part in map(words, sentences(own)) if not names & set(part) for word in part]
    return len(said) >= 6 and all(
        language_of(" ".join(part)) == judged.rule.wanted for part in parts
    )


# Persona and tone: by words that they have in common with nobody else

_PERSONA_WORDINGS: dict[Split, tuple[str, ...]] = {
    "dev": ("Talk like {}.", "Play the part of {}."),
    "test": ("Answer as {} would.", "In all you say, sound like {}."),
}
_TONE_WORDINGS: dict[Split, tuple[str, ...]] = {
    "dev": ("You are very {}.", "You are {} and let everybody notice it."),
    "test": ("You are always extremely {}.", "You feel very {} and talk like it."),
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
        (TONE_WORDS, TONES[tone]),
        rng.choice(_TONE_WORDINGS[split]).format(tone),
        f"Every sentence of yours must sound extremely {tone}. Exaggerate: whoever reads any part "
        f"of your answer must notice how {tone} you are.",
        tone,
    )


# Of every refusal.
_EXCUSES = ("sorry", "unfortunately")


def marks(own: str, judged: Judged) -> list[str]:
    """The voice's words (one form of each) that neither the instruction nor the request has."""
    rule = judged.rule
    given = f"{rule.instruction} {rule.better} {judged.request}"
    found: list[str] = []
    for phrase in rule.wanted[1]:
        said = "!" in own if phrase == "!" else is_said(phrase, own) and not is_said(phrase, given)
        if said and phrase not in _EXCUSES and not any(are_forms(phrase, each) for each in found):
            found.append(phrase)
    return found


def _has_voice(answer: str, own: str, judged: Judged) -> bool:
    return len(marks(own, judged)) >= int(judged.rule.wanted[0])


# A forbidden word

_FORBIDDEN_WORDINGS: dict[Split, tuple[str, ...]] = {
    "dev": ('Do not use the word "{}".', 'Avoid the word "{}" altogether.'),
    "test": (
        'Never use the word "{}" in your answer.',
        'The word "{}" is forbidden: do without it.',
    ),
}


def draw_forbidden(rng: Random, split: Split, request: Request) -> Rule:
    """A word that plain answers to such requests often have."""
    word = rng.choice(request.likely)
    return Rule(
        "forbidden",
        word,
        rng.choice(_FORBIDDEN_WORDINGS[split]).format(word),
        f'It is strictly forbidden to write the word "{word}". Find other words, however odd they '
        "sound.",
    )


def _is_avoided(answer: str, own: str, judged: Judged) -> bool:
    # Whoever says next to nothing avoids everything.
    return not is_said(judged.rule.wanted, answer) and len(words(own)) >= 10


# A required word

_THINGS = """
    river lantern purple umbrella mountain whisper silver breakfast garden pocket thunder button
    winter mirror ladder orange blanket window piano forest candle pepper island feather basket
    kitchen rainbow hammer velvet cloud bottle engine summer pencil butter castle monkey curtain
    market shoulder bicycle yellow hospital carpet neighbour dragon pillow tunnel cousin violin
    station lemon wallet diamond ticket planet shower bridge teacher balloon
    """
_REQUIRED_WORDINGS: dict[Split, tuple[str, ...]] = {
    "dev": ('Use the word "{}" in your answer.', 'Work the word "{}" into your answer.'),
    "test": (
        'Your answer must contain the word "{}".',
        'Make sure that "{}" occurs in your answer.',
    ),
}


def draw_required(rng: Random, split: Split, request: Request) -> Rule:
    """A word that has nothing to do with the request."""
    thing = rng.choice(
        [word for word in _THINGS.split() if split_of(word) == split and word not in request.text]
    )
    return Rule(
        "required",
        thing,
        rng.choice(_REQUIRED_WORDINGS[split]).format(thing),
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

_SENTENCE_WORDINGS: dict[Split, tuple[str, ...]] = {
    "dev": ("Answer in {}.", "Keep to {}."),
    "test": ("Your whole answer must be {}.", "Say it in {} and then stop."),
}
_SHORT_WORDINGS: dict[Split, tuple[str, ...]] = {
    "dev": ("Use at most {} words.", "Do not go over {} words."),
    "test": ("Answer in {} words or fewer.", "Your answer must not be longer than {} words."),
}
_MOST_WORDS = (10, 15, 20)


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
    # What is cut off was on its way to be longer.
    return (
        len(words(own)) >= 3 and len(answer.split()) <= judged.rule.wanted and is_finished(answer)
    )


# JSON

_KEYS: dict[Split, tuple[tuple[str, ...], ...]] = {
    "dev": (("answer",), ("topic", "answer"), ("answer", "mood")),
    "test": (("reply",), ("subject", "reply"), ("reply", "tone")),
}
_JSON_WORDINGS: dict[Split, tuple[str, ...]] = {
    "dev": ("Answer in JSON with the {} {}, and be brief.",),
    "test": ("Your reply must be a short JSON object with the {} {}.",),
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
        rng.choice(_JSON_WORDINGS[split]).format("key" if len(keys) == 1 else "keys", quoted),
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


# Several at once


def draw_several(rng: Random, split: Split, request: Request) -> Rule:
    """Two rules that do not get in each other's way."""
    makers = rng.choice(
        (
            (draw_language, draw_length),
            (draw_persona, draw_length),
            (draw_required, draw_length),
            (draw_forbidden, draw_length),
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
        _is_kept(answer, own, Judged(rule, judged.request, judged.earlier))
        for rule in judged.rule.wanted
    )


_JUDGES: dict[str, Callable[[str, str, Judged], bool]] = {
    "language": _in_language,
    "voice": _has_voice,
    "forbidden": _is_avoided,
    "required": _is_used,
    "sentences": _has_sentences,
    "words": _is_short,
    "json": _is_json,
    "several": _are_all_kept,
}
