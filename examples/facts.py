# SPDX-License-Identifier: Apache-2.0
"""Facts that most people have read somewhere, and sentences that say so or otherwise.

They lie in ``facts.txt``. Whoever wants to know whether a model believes its text or its memory
tells it a false one: :func:`others` has the wrong answers of the right kind.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FILE = Path(__file__).with_name("facts.txt")
# Of the group's subjects: the question, and the same said.
_WORDING = {
    "countries capital": ("What is the capital of {}?", "The capital of {} is {}."),
    "countries continent": ("On which continent is {}?", "{} is a country in {}."),
    "countries currency": ("What is the currency of {}?", "The currency of {} is the {}."),
    "countries language": (
        "Which language is spoken by most people in {}?",
        "Most people in {} speak {}.",
    ),
    "elements symbol": ("What is the chemical symbol of {}?", "The chemical symbol of {} is {}."),
    "states capital": (
        "What is the capital of the US state of {}?",
        "The capital of the US state of {} is {}.",
    ),
    "books author": ('Who wrote "{}"?', '"{}" was written by {}.'),
    "works maker": ('Who made the artwork "{}"?', '"{}" is a work of art by {}.'),
    "music composer": ('Who composed "{}"?', '"{}" was composed by {}.'),
    "inventions inventor": (
        "Who is famous for the invention or discovery of {}?",
        "The invention or discovery of {} is the work of {}.",
    ),
    "cities country": ("In which country is the city of {}?", "The city of {} is in {}."),
    "animals young": ("What is the young of a {} called?", "The young of a {} is called a {}."),
}


@dataclass(frozen=True)
class Fact:
    """A subject and what is so about it.

    Attributes:
        relation: What it is about, such as "countries capital".
        subject: Such as "France".
        answers: Names of the one right answer, the usual one first.
    """

    relation: str
    subject: str
    answers: tuple[str, ...]

    @property
    def question(self) -> str:
        """It, asked."""
        return _WORDING[self.relation][0].format(self.subject)

    def said(self, answer: str | None = None) -> str:
        """It in a sentence, or with another answer."""
        text = _WORDING[self.relation][1].format(self.subject, answer or self.answers[0])
        return text[0].upper() + text[1:]


@cache
def facts() -> tuple[Fact, ...]:
    """All facts, in the file's order."""
    found: list[Fact] = []
    group, relations = "", list[str]()
    for line in _FILE.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        subject, _, answers = line.partition(": ")
        if subject.startswith("== "):
            group, relations = subject.removeprefix("== "), answers.split(" | ")
            continue
        for relation, names in zip(relations, answers.split(" | "), strict=True):
            found.append(Fact(f"{group} {relation}", subject, tuple(names.split(" / "))))
    return tuple(found)


def others(fact: Fact, among: Iterable[Fact]) -> list[str]:
    """Answers to the same question about other subjects, none of which is right for ``fact``."""
    found = {
        other.answers[0]
        for other in among
        if other.relation == fact.relation and not set(other.answers) & set(fact.answers)
    }
    return sorted(found)


def _plain(text: str) -> str:
    """Without accents."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


@cache
def _pattern(answer: str) -> re.Pattern[str]:
    short = len(answer) <= 2
    # "As an AI", "I'm sorry" and "He was" name no element.
    ending = r"(?!'|\s+[a-z])" if answer in ("As", "Be", "He", "I") else "" if short else "s?"
    return re.compile(
        rf"(?<!\w){re.escape(_plain(answer))}{ending}(?!\w)", 0 if short else re.IGNORECASE
    )


def names(text: str, answers: Iterable[str]) -> bool:
    """Whether ``text`` has one of ``answers`` in it, as words of their own; a chemical symbol in
    its own letters' case, anything else in any.
    """
    return any(_pattern(answer).search(_plain(text)) for answer in answers)


def named(text: str, known: Iterable[str]) -> set[str]:
    """Which of ``known`` ``text`` has in it. Of those that overlap it is the one that begins first,
    and then the longest: "New Mexico" names no Mexico where it is known, too.
    """
    plain = _plain(text)
    found = [
        (match.start(), -match.end(), -len(name), name)
        for name in set(known)
        for match in _pattern(name).finditer(plain)
    ]
    told, end = set[str](), 0
    for start, minus_end, _, name in sorted(found):
        if start >= end:
            told.add(name)
            end = -minus_end
    return told
