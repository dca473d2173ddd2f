# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance on an instruction: the amateur's prompt is the expert's without it.

The instructions, their wording and the checks are IFEval's (arXiv 2311.07911, Apache-2.0) as
lm-evaluation-harness carries them (MIT; ``pip install lm-eval[ifeval]``); its prompts are on a hub
alone, so the requests are those of ``data/requests.yaml``. Dev and test have other kinds of
instructions and other topics. An answer must also be fluent and more than an echo. And a control:
questions with one right answer, of which nothing special is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Prompt, Split, data, split_of
from benchmarks.accuracy.tasks import memory
from benchmarks.accuracy.tasks.text import is_fluent, without_echo, words
from examples.facts import facts

NEUTRAL = "You are a helpful assistant. You answer in two or three sentences."
# After an instruction, in the stronger prompt.
_FORCE = "This is the most important thing: an answer that does not do it is of no use."
_WORDS = ("morning", "friend", "water", "garden", "simple", "family", "summer", "letter", "window")
_LANGUAGES = ("fr", "de", "es", "it", "pt")
# IFEval's names, and what is sampled for each. Echoed are those that a repeated instruction would
# meet; answers that are short are no text of one language.
KINDS: Mapping[Split, tuple[str, ...]] = {
    "dev": (
        "keywords:existence", "change_case:english_lowercase", "punctuation:no_comma",
        "detectable_format:title", "startend:quotation", "length_constraints:number_words",
    ),
    "test": (
        "language:response_language", "detectable_format:json_format", "keywords:frequency",
        "keywords:forbidden_words", "change_case:english_capital", "detectable_content:postscript",
        "startend:end_checker", "detectable_format:number_bullet_lists",
        "detectable_format:number_highlighted_sections",
    ),
}  # fmt: skip
_ECHOED = ("keywords:existence", "keywords:frequency")
_PLAIN: Mapping[Split, str] = {
    "dev": "You are a helpful assistant.",
    "test": "You answer questions of users.",
}


def _drawn(kind: str, rng: Random) -> dict[str, Any]:
    """The arguments of an instruction."""
    two = rng.sample(_WORDS, 2)
    return {
        "keywords:existence": {"keywords": two},
        "keywords:frequency": {"keyword": two[0], "frequency": 2, "relation": "at least"},
        "keywords:forbidden_words": {"forbidden_words": ["and", "also", "help"]},
        "language:response_language": {"language": rng.choice(_LANGUAGES)},
        "length_constraints:number_words": {"num_words": 25, "relation": "less than"},
        "detectable_content:postscript": {"postscript_marker": "P.S."},
        "startend:end_checker": {"end_phrase": "Is there anything else I can help with?"},
        "detectable_format:number_bullet_lists": {"num_bullets": 3},
        "detectable_format:number_highlighted_sections": {"num_highlights": 2},
    }.get(kind, {})


@dataclass(frozen=True)
class Judged:
    """What an answer is judged by.

    Attributes:
        kind: IFEval's name of the instruction.
        arguments: Its own.
        said: What the answer may not merely repeat.
    """

    kind: str
    arguments: Mapping[str, Any]
    said: tuple[str, ...]


@cache
def _registry() -> Mapping[str, Any]:
    try:
        import langdetect
        from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"IFEval's checks need {error.name}: pip install 'lm-eval[ifeval]'", name=error.name
        ) from error
    langdetect.DetectorFactory.seed = 0  # else a text has another language each time
    found: Mapping[str, Any] = INSTRUCTION_DICT
    return found


def instruction(kind: str, arguments: Mapping[str, Any]) -> tuple[str, Any]:
    """An instruction's words, and what checks an answer."""
    checker = _registry()[kind](kind)
    return str(checker.build_description(**arguments)).strip(), checker


@cache
def requests(split: Split) -> tuple[tuple[str, str], ...]:
    """Topics and what is asked about them. A topic is in one split, with all its sentences."""
    return tuple(
        (topic, asked.format(topic))
        for area in data("requests")["areas"]
        for topic in area["topics"].split(", ")
        if split_of(topic) == split
        for asked in area["sentences"]
    )


def prompt(model: Model, told: str, request: str) -> Prompt:
    """A conversation up to the assistant's turn: messages for a chat model, else a document."""
    system = f"{NEUTRAL} {told}".strip()
    if model.chat:
        return ({"role": "system", "content": system}, {"role": "user", "content": request})
    return f"{system}\n\nUser: {request}\nAssistant:"


def _make(model: Model, split: Split, n: int) -> list[Problem]:
    asked = [text for _, text in requests(split)]
    Random(f"instructions {split}").shuffle(asked)
    problems = []
    for place, request in enumerate(asked[:n]):
        kind = KINDS[split][place % len(KINDS[split])]
        arguments = _drawn(kind, Random(f"{kind} {request}"))
        told, _ = instruction(kind, arguments)
        problems.append(
            Problem(
                prompt(model, told, request),
                prompt(model, "", request),
                Judged(kind, arguments, (told, _FORCE, request)),
                plain={
                    "repeated": prompt(model, told, f"{request} {told}"),
                    "better": prompt(model, f"{told} {_FORCE}", request),
                },
                kind=kind.partition(":")[2],
            )
        )
    return problems


def score(text: str, problem: Problem) -> dict[str, bool]:
    """ "right": follows the instruction, in fluent language and in words of its own."""
    judged: Judged = problem.judged
    own = without_echo(text, judged.said)
    _, checker = instruction(judged.kind, judged.arguments)
    checked = own if judged.kind in _ECHOED else text
    follows = bool(words(own)) and bool(checker.check_following(checked))
    fluent = is_fluent(text, ("en", judged.arguments.get("language", "en")))
    return {"right": follows and fluent, "follows": follows, "fluent": fluent}


# Nothing special asked


def _make_control(model: Model, split: Split, n: int) -> list[Problem]:
    found = [fact for fact in facts() if split_of(fact.subject) == split]
    Random(f"control {split}").shuffle(found)
    told = _PLAIN[split]

    def asked(system: str, question: str) -> Prompt:
        return ({"role": "system", "content": system}, {"role": "user", "content": question})

    return [
        Problem(
            asked(told, fact.question),
            ({"role": "user", "content": fact.question},),
            memory.Judged(
                memory.names_of(fact.relation, fact.answers), (), memory.subjects(fact.subject)
            ),
            plain={
                "repeated": asked(told, f"{fact.question} {told}"),
                "better": asked(f"{told} {_FORCE}", fact.question),
            },
        )
        for fact in found[:n]
    ]


GROUP = "An instruction"
CELLS = (
    Cell(
        "instructions", GROUP, "IFEval's instructions; the amateur lacks the instruction", _make,
        score, 96, base_stop=("\nUser:", "\nAssistant:", "\n\n"),
    ),
    Cell(
        "plain-questions", GROUP, "simple questions, the system prompt asks nothing special; the "
        "amateur lacks the system prompt", _make_control, memory.score, 40, control=True,
        chat_only=True,
    ),
)  # fmt: skip
