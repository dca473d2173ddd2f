# SPDX-License-Identifier: Apache-2.0
"""Answers as text: their words and sentences, and what of them only repeats what was said."""

from __future__ import annotations

import re

from benchmarks.accuracy.prompts.fluency import distinct

# Below the first an answer is a loop, below the second no text.
DISTINCT, LETTERS = 0.7, 0.5


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


def is_fluent(answer: str) -> bool:
    """Whether it is text, and no loop."""
    found = words(answer)
    shown = [c for c in answer if not c.isspace()]
    return (
        bool(found)
        and distinct(found) >= DISTINCT
        and sum(c.isalpha() for c in shown) >= LETTERS * len(shown)
    )


def is_said(phrase: str, text: str) -> bool:
    """Whether a word, or several, stand in a text, in whatever case."""
    return (
        re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text.lower().replace("’", "'")) is not None
    )


def is_finished(answer: str) -> bool:
    """Whether an answer has an end, and was not cut off."""
    return answer.rstrip("\"'”’)*").endswith((".", "!", "?"))
