# SPDX-License-Identifier: Apache-2.0
"""Abstracts of papers in a sentence, judged by whether its names and numbers are the abstract's.

An answer is checked for the entity-level consistency of Nan et al. (2021, arXiv 2102.09130): each
name and number of a summary stands in its source. It needs neither a model nor a reference. Copies
are consistent, so no copy is right, and neither is what names nothing. Whether a summary makes
sense is not judged. There is no prompt without what is asked: what a text makes
likely by itself is much of what its summary says.

The texts are other people's, from the data of OpenAI's ``evals`` package (see ``others``): the 497
medical abstracts of ``population_span_extraction`` and the 253 about perovskite solar cells of
``abstract2title`` (both contributed to evals under its MIT licence). The shorter ones are used: 214
for dev and 457 for test.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from functools import cache
from random import Random

from benchmarks.accuracy.prompts.others import abstracts_of
from benchmarks.accuracy.prompts.problem import Cell, ModelName, Problem, Prompt, Split, split_of
from benchmarks.accuracy.prompts.text import DISTINCT, distinct, sentences

_FILES = ("population_span_extraction/samples.jsonl", "abstract2title/samples.jsonl")
# Words of an abstract: about 600 tokens.
_LONGEST = 320
_ASK = "Summarize the text in one sentence."
_BETTER = f"{_ASK} Use only names and numbers that are in the text."
# A summary has so many words, and this share of the longer ones stand in the abstract; it is a copy
# if this share of its words stands there in one piece.
_WORDS, _KNOWN, _COPIED = 8, 0.5, 0.8
_LONGER = 5
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
            "twelve")  # fmt: skip


@cache
def _texts(split: Split) -> list[str]:
    found = {text for file in _FILES for text, _ in abstracts_of(file, _LONGEST)}
    texts = sorted(text for text in found if split_of(text) == split)
    Random(split).shuffle(texts)
    return texts


def _prompt(model: ModelName, text: str = "", ask: str = _ASK, before: bool = False) -> Prompt:
    parts = [ask] * before + [text] * bool(text)
    if model == "gemma":
        parts = [ask] * before + [f"Text: {text}"] * bool(text)
        return "\n\n".join([*parts, f"{ask}\nSummary:"])
    return ({"role": "user", "content": "\n\n".join([*parts, ask])},)


def _make(model: ModelName, split: Split, n: int) -> list[Problem]:
    return [
        Problem(
            prompt=_prompt(model, text),
            without=_prompt(model),
            judged=text,
            # The text twice would be too long.
            plain={
                "better": _prompt(model, text, _BETTER),
                "repeated": _prompt(model, text, before=True),
            },
        )
        for text in _texts(split)[:n]
    ]


def _words(text: str) -> list[str]:
    """Words and numbers as they stand; what has a hyphen is several."""
    return re.findall(r"\d+(?:[.,]\d+)*|[^\W_]+", text)


def _form(word: str) -> str:
    """A word in one form, whatever its case, its number, and the commas of its thousands."""
    if word[0].isdigit():
        return word.replace(",", "")
    return word.lower().removesuffix("s")


def _forms(text: str) -> list[str]:
    return [_form(word) for word in _words(text)]


def _known(forms: list[str]) -> set[str]:
    """The forms, and the digits of numbers that are written out."""
    known = set(forms)
    return known | {str(number) for number, word in enumerate(_NUMBERS, 1) if word in known}


def _whole(answer: str) -> str:
    """An answer without the word that it was cut off in."""
    answer = answer.strip()
    return answer if answer.endswith((".", "!", "?", ")")) else answer.rpartition(" ")[0]


def _named(summary: str) -> list[str]:
    """The numbers and names: what is written with a capital letter that no sentence asks for."""
    found = []
    for sentence in sentences(summary):
        for index, word in enumerate(_words(sentence)):
            capitals = sum(letter.isupper() for letter in word)
            if word[0].isdigit() or capitals > (1 if index == 0 else 0):
                found.append(_form(word))
    return found


def _longest_piece(mine: list[str], theirs: list[str]) -> int:
    return SequenceMatcher(None, mine, theirs, autojunk=False).find_longest_match().size


def score(answer: str, problem: Problem) -> dict[str, bool]:
    """ "right": a consistent summary in words of its own; "consistent": whatever else it is."""
    summary = _whole(answer)
    named = _named(summary)
    mine, theirs = _forms(summary), _forms(problem.judged)
    known = _known(theirs)
    consistent = bool(mine) and all(form in known for form in named)
    longer = [form for form in mine if len(form) >= _LONGER]
    about = sum(form in known for form in longer) >= _KNOWN * len(longer)
    copied = bool(mine) and _longest_piece(mine, theirs) >= _COPIED * len(mine)
    real = len(mine) >= _WORDS and about and distinct(mine) >= DISTINCT
    # Where there is something to name.
    real = real and (bool(named) or not _named(problem.judged))
    return {
        "right": consistent and real and not copied, "consistent": consistent, "copied": copied,
    }  # fmt: skip


CELLS: tuple[Cell, ...] = (
    Cell(
        "summaries", "the abstract of a paper in a sentence, whose names and numbers are to be the "
        "abstract's; the amateur lacks the abstract",
        "gain", ("smollm2", "gemma"), _make, score, 64, {"gemma": ("\n",)},
    ),
)  # fmt: skip
