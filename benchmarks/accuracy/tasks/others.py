# SPDX-License-Identifier: Apache-2.0
"""Other people's texts and questions, from the data of OpenAI's ``evals`` package.

``pip install --no-deps evals==3.0.1.post1``: a wheel of 46 MB, MIT, which lists the licences of its
data sets. It is read and not imported, as it would need its dependencies.

* Stories: ToMi (github.com/facebookresearch/ToMi, CC BY-NC 4.0), 999 short ones in which a thing is
  moved from one place to another. Questions for what is so are used, not those for what somebody
  believes, and "at the beginning" is made "at the beginning of the story".
* Summaries of abstracts: 497 medical ones of ``population_span_extraction`` and 253 about solar
  cells of ``abstract2title`` (both contributed to evals, MIT), the shorter ones of them. An answer
  is checked for entity-level consistency (arXiv 2102.09130): each name and number stands in its
  source. Copies are consistent, so no copy is right, and neither is what names nothing. Whether a
  summary makes sense is not judged. There is no prompt without what is asked: what a text makes
  likely by itself is much of what its summary says.
"""

from __future__ import annotations

import importlib.util
import json
import re
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Prompt, Split, split_of
from benchmarks.accuracy.tasks.documents import Judged, problem_of, score_found
from benchmarks.accuracy.tasks.text import DISTINCT, distinct, sentences

_PACKAGE = "pip install --no-deps evals==3.0.1.post1"
_ABSTRACTS = ("population_span_extraction/samples.jsonl", "abstract2title/samples.jsonl")
# Words of an abstract: about 600 tokens.
_LONGEST = 320
_ASK = "Summarize the text in one sentence."
# A summary has so many words, and this share of the longer ones stand in the abstract; it is a copy
# if this share of its words stands there in one piece.
_WORDS, _KNOWN, _COPIED = 8, 0.5, 0.8
_LONGER = 5
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
            "twelve")  # fmt: skip


@cache
def _items(name: str) -> list[dict[str, Any]]:
    """The lines of a file of the package's data."""
    spec = importlib.util.find_spec("evals")
    folders = (spec and spec.submodule_search_locations) or ()
    found = [file for folder in folders if (file := Path(folder, "registry/data", name)).is_file()]
    if not found:
        raise ModuleNotFoundError(
            f"evals/registry/data/{name} is missing: {_PACKAGE}", name="evals"
        )
    lines = found[0].read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


def _of_split(texts: set[str], split: Split) -> list[str]:
    found = sorted(text for text in texts if split_of(text) == split)
    Random(split).shuffle(found)
    return found


# Stories


@cache
def _stories() -> dict[str, tuple[str, Judged]]:
    """A question about each story: where the thing is, or where it was first."""
    found: dict[str, dict[str, tuple[str, Judged]]] = {}
    for item in _items("theory_of_mind/tomi/test.jsonl"):
        # Places such as treasure_chest are written as words.
        said, right = (
            text.replace("_", " ") for text in (item["input"][0]["content"], item["ideal"])
        )
        parts = re.fullmatch(
            r"(.*?) (Where (?:is|was) the [^?]* (really|at the beginning)\?)", said
        )
        if parts is None:
            continue
        text, question, which = parts.groups()
        question = question.replace("beginning?", "beginning of the story?")
        places = re.findall(
            r"The [\w -]+ is in the ([\w ]+)\.|moved the [\w -]+ to the ([\w ]+)\.", text
        )
        others = {first or moved for first, moved in places} - {right}
        judged = Judged((right,), tuple(sorted(others)))
        found.setdefault(text, {})[which] = (question, judged)
    return {text: Random(text).choice(sorted(by.values(), key=str)) for text, by in found.items()}


def _make_stories(model: Model, split: Split, n: int) -> list[Problem]:
    stories = _stories()
    texts = _of_split(set(stories), split)[:n]
    return [problem_of(model, [text], *stories[text]) for text in texts]


# Summaries


@cache
def _abstracts(split: Split) -> list[str]:
    found = {
        text
        for name in _ABSTRACTS
        for item in _items(name)
        if len((text := " ".join(item["input"][-1]["content"].split())).split()) <= _LONGEST
    }
    return _of_split(found, split)


def _prompt(model: Model, text: str = "", ask: str = _ASK, before: bool = False) -> Prompt:
    parts = [ask] * before
    if model.chat:
        parts += [text] * bool(text)
        return ({"role": "user", "content": "\n\n".join([*parts, ask])},)
    parts += [f"Text: {text}"] * bool(text)
    return "\n\n".join([*parts, f"{ask}\nSummary:"])


def _make_summaries(model: Model, split: Split, n: int) -> list[Problem]:
    return [
        Problem(
            prompt=_prompt(model, text),
            without=_prompt(model),
            judged=text,
            # The text twice would be too long.
            plain={
                "better": _prompt(
                    model, text, f"{_ASK} Use only names and numbers that are in the text."
                ),
                "repeated": _prompt(model, text, before=True),
            },
        )
        for text in _abstracts(split)[:n]
    ]


def _words(text: str) -> list[str]:
    """Words and numbers as they stand; what has a hyphen is several."""
    return re.findall(r"\d+(?:[.,]\d+)*|[^\W_]+", text)


def _form(word: str) -> str:
    """A word in one form, whatever its case, its number, and the commas of its thousands."""
    return word.replace(",", "") if word[0].isdigit() else word.lower().removesuffix("s")


def _named(summary: str) -> list[str]:
    """The numbers and names: what is written with a capital letter that no sentence asks for."""
    found = []
    for sentence in sentences(summary):
        for index, word in enumerate(_words(sentence)):
            capitals = sum(letter.isupper() for letter in word)
            if word[0].isdigit() or capitals > (1 if index == 0 else 0):
                found.append(_form(word))
    return found


def score_summary(answer: str, problem: Problem) -> dict[str, bool]:
    """ "right": a consistent summary in words of its own; "consistent": whatever else it is."""
    summary = answer.strip()
    if not summary.endswith((".", "!", "?", ")")):  # cut off, maybe within a word
        summary = summary.rpartition(" ")[0]
    mine, theirs = ([_form(word) for word in _words(text)] for text in (summary, problem.judged))
    known = set(theirs)
    known |= {str(number) for number, word in enumerate(_NUMBERS, 1) if word in known}
    named = _named(summary)
    consistent = bool(mine) and all(form in known for form in named)
    longer = [form for form in mine if len(form) >= _LONGER]
    about = sum(form in known for form in longer) >= _KNOWN * len(longer)
    piece = SequenceMatcher(None, mine, theirs, autojunk=False).find_longest_match().size
    copied = bool(mine) and piece >= _COPIED * len(mine)
    real = len(mine) >= _WORDS and about and distinct(mine) >= DISTINCT
    # Where there is something to name.
    real = real and (bool(named) or not _named(problem.judged))
    return {
        "right": consistent and real and not copied, "consistent": consistent, "copied": copied,
    }  # fmt: skip


_GROUP = "Other people's data"
CELLS = (
    Cell(
        "stories", _GROUP, "where a thing is or was at the beginning of a short story (ToMi); the "
        "amateur lacks the story", _make_stories, score_found, 16,
    ),
    Cell(
        "summaries", _GROUP, "the abstract of a paper in a sentence, whose names and numbers are "
        "to be the abstract's; the amateur lacks the abstract", _make_summaries, score_summary, 64,
    ),
)  # fmt: skip
