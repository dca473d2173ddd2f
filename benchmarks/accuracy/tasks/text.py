# SPDX-License-Identifier: Apache-2.0
"""Answers as text: their words and sentences, and what of them only repeats what was said."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any

# Below the first an answer is a loop, below the second no text, below the third in no language.
DISTINCT, LETTERS, KNOWN = 0.7, 0.5, 0.75
# That are told from each other: close relatives that nobody asked for take short texts from others.
LANGUAGES = ("en", "nl", "fr", "de", "es", "it", "pt")
# Fewer words do not tell.
_TELLING = 8


def words(text: str) -> list[str]:
    """The words in small letters."""
    return re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", text.lower().replace("’", "'"))


def sentences(text: str) -> list[str]:
    """The sentences and the lines."""
    return [part for part in re.split(r"(?<=[.!?])[\"'”’)]*\s+|\s*\n\s*", text.strip()) if part]


def _runs(items: list[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(items[start : start + n]) for start in range(len(items) - n + 1)}


def without_echo(answer: str, said: tuple[str, ...]) -> str:
    """The answer without the sentences that repeat one of what was said.

    A sentence does if it shares four words in a row with it (all of a shorter one, where that has
    three), if three quarters of its words, three at least, stand there, or if it is the same.
    """
    known = [words(sentence) for text in said for sentence in sentences(text)]

    def repeats(mine: list[str], theirs: list[str]) -> bool:
        if len(theirs) < 3:
            return mine == theirs
        run = min(4, len(theirs))
        shared = sum(word in theirs for word in mine)
        return bool(_runs(mine, run) & _runs(theirs, run)) or (
            shared >= 3 and shared >= 0.75 * len(mine)
        )

    return " ".join(
        sentence
        for sentence in sentences(answer)
        if not any(repeats(words(sentence), theirs) for theirs in known)
    )


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    found = LanguageIdentifier.from_model_file(MODEL_FILE)
    found.set_languages(list(LANGUAGES))
    return found


@cache
def _dictionary(language: str) -> Any:
    from wordfreq import get_frequency_dict

    return get_frequency_dict(language, "best")


def _is_language(text: str, language: str) -> bool:
    # The identifier alone takes invented words, the dictionary alone those of a relative.
    found = words(text)
    parts = [part for word in found for part in re.split("['-]", word)]
    known = sum(len(part) == 1 or part in _dictionary(language) for part in parts)
    return known >= KNOWN * len(parts) and (
        len(found) < _TELLING or _identifier().classify(text)[0] == language
    )


def distinct(items: Sequence[Hashable], n: int = 3) -> float:
    """The share of n-grams that are no repetition of an earlier one; 1 where there are none."""
    grams = list(zip(*(items[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


def is_fluent(answer: str, languages: tuple[str, ...] = ("en",)) -> bool:
    """Whether it is text in one of the languages (ISO 639-1), and no loop.

    Known words in a senseless order are taken for text.
    """
    found = words(answer)
    shown = [c for c in answer if not c.isspace()]
    return (
        bool(found)
        and distinct(found) >= DISTINCT
        and sum(c.isalpha() for c in shown) >= LETTERS * len(shown)
        and any(_is_language(answer, language) for language in languages)
    )
