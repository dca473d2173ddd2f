# SPDX-License-Identifier: Apache-2.0
"""Other people's texts and questions, from the data of OpenAI's ``evals`` package.

``pip install --no-deps evals==3.0.1.post1``: a wheel of 46 MB, MIT, which lists the licences of its
data sets. It is read and not imported, as it would need its dependencies. Two sets are used:

* ToMi (github.com/facebookresearch/ToMi, CC BY-NC 4.0): 999 short stories in which a thing is moved
  from one place to another, with questions. Those for what is so are used, not those for what
  somebody believes, and "at the beginning" is made "at the beginning of the story";
* ``population_span_extraction`` (contributed to evals, MIT; the texts are abstracts of medical
  papers): 497 abstracts with the words that say who was studied.

Of the abstracts there are 134 short ones for dev and 285 for test.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.accuracy.prompts.documents import Judged, problem_of, score_found
from benchmarks.accuracy.prompts.problem import Cell, ModelName, Problem, Split, split_of

_PACKAGE = "pip install --no-deps evals==3.0.1.post1"
# Words of an abstract: about 600 tokens.
_LONGEST = 320
# An answer is right with this piece of the words in question, and grounded if this share of its
# words stands in the abstract or the question.
_PIECE, _KNOWN = 0.6, 0.9
_STUDIED = "Which people or animals did the study look at?"


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


def _first(
    problems: dict[str, tuple[str, Judged]], model: ModelName, split: Split, n: int
) -> list[Problem]:
    """The first n of a split's problems, if it has so many, from question and answer by text."""
    texts = sorted(text for text in problems if split_of(text) == split)
    Random(split).shuffle(texts)
    return [problem_of(model, [text], *problems[text]) for text in texts[:n]]


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


def _make_stories(model: ModelName, split: Split, n: int) -> list[Problem]:
    return _first(_stories(), model, split, n)


def abstracts_of(name: str, longest: int) -> Iterator[tuple[str, str]]:
    """The abstracts of a file of the package's data, and what it says of them.

    Args:
        name: Of the file.
        longest: Words that an abstract has at most.

    Yields:
        An abstract in one line, and the answer that goes with it.

    Raises:
        ModuleNotFoundError: the package is missing.
    """
    for item in _items(name):
        text = " ".join(item["input"][-1]["content"].split())
        if len(text.split()) <= longest:
            yield text, item["ideal"]


@cache
def _abstracts() -> dict[str, tuple[str, Judged]]:
    """The abstracts, with the words that say who was studied."""
    found = {}
    for text, said in abstracts_of("population_span_extraction/samples.jsonl", _LONGEST):
        spans = said.partition("following spans: ")[2].strip().strip("'").split("', '")
        if all(spans):
            # In the place of other values: what the score looks the answer's words up in.
            found[text] = (_STUDIED, Judged(tuple(spans), (text,)))
    return found


def _make_abstracts(model: ModelName, split: Split, n: int) -> list[Problem]:
    return _first(_abstracts(), model, split, n)


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _run(mine: list[str], theirs: list[str]) -> float:
    """How much of ``theirs``, in one piece, stands in ``mine``."""
    found = SequenceMatcher(None, mine, theirs, autojunk=False).find_longest_match()
    return found.size / len(theirs)


def _score_abstract(answer: str, problem: Problem) -> dict[str, bool]:
    judged: Judged = problem.judged
    mine = _tokens(answer.strip().partition("\n")[0])
    (text,) = judged.others
    known = {*_tokens(text), *_tokens(_STUDIED)}
    return {
        "right": max(_run(mine, _tokens(span)) for span in judged.answer) >= _PIECE,
        "grounded": bool(mine) and sum(word in known for word in mine) >= _KNOWN * len(mine),
    }


_STOP: dict[ModelName, tuple[str, ...]] = {"gemma": ("\n",)}
_BOTH: tuple[ModelName, ...] = ("smollm2", "gemma")

CELLS: tuple[Cell, ...] = (
    Cell(
        "stories", "where a thing is or was at the beginning of a short story (ToMi); the amateur "
        "lacks the story",
        "gain", _BOTH, _make_stories, score_found, 16, _STOP,
    ),
    Cell(
        "abstracts", "who was studied, by the abstract of a medical paper; the amateur lacks the "
        "abstract",
        "gain", _BOTH, _make_abstracts, _score_abstract, 40, _STOP,
    ),
)  # fmt: skip
