# SPDX-License-Identifier: Apache-2.0
"""Other people's questions about other people's texts, from BIG-bench's package (``sources.toml``).

* ``swapped``: Natural Questions whose text names another entity in the place of the answer (Longpre
  et al., arXiv 2109.05052), which is to be answered by the text;
* ``squad``: SQuAD 1.1 (arXiv 1606.05250), with its paragraph;
* ``squad-near``: the same with another paragraph of the article, in which the answer is not.

The amateur reads the question alone. Splits share no article, or no entity that was replaced.
"""

from __future__ import annotations

import json
import re
import string
from dataclasses import dataclass
from functools import cache, partial
from random import Random
from typing import Any, Literal

from benchmarks.accuracy import packages
from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Split, split_of
from benchmarks.accuracy.tasks.memory import prompt_of, unasked

# Words of a text, at most and at least.
LONGEST, SHORTEST = 160, 20
Kind = Literal["swapped", "squad", "squad-near"]


@dataclass(frozen=True)
class Item:
    """A question about a text.

    Attributes:
        subject: By which it is split.
        text: What is read.
        near: Another text about the subject, without the answer; "" where there is none.
        question: What is asked.
        right: Any of these is right.
        wrong: What must not be said with it.
    """

    subject: str
    text: str
    near: str
    question: str
    right: tuple[str, ...]
    wrong: tuple[str, ...] = ()


def _read(name: str) -> Any:
    (path,) = packages.fetched("bigbench").rglob(name)
    return json.loads(path.read_text(encoding="utf-8"))


def _plain(text: str) -> str:
    """Without the spaces that Natural Questions has around punctuation."""
    text = text.replace("``", '"').replace("''", '"')
    return " ".join(re.sub(r" (?=[.,;:?!%)'])|(?<=\() ", "", text).split())


def _fits(text: str) -> bool:
    return SHORTEST <= len(text.split()) <= LONGEST


@cache
def _swapped() -> tuple[Item, ...]:
    found = {}
    for each in _read("task.json")["examples"]:
        question, _, text = each["input"].strip().partition("\nContext: ")
        question, text = question.removeprefix("Question: "), _plain(text)
        old = next((name for name, score in each["target_scores"].items() if not score), "")
        # Where the question or the text (with the new answer) names the old one, an echo of that is
        # no memory.
        if not old or contains(question, (old,)) or contains(text, (old,)):
            continue
        if _fits(text) and contains(text, (each["target"],)):
            asked = question[0].upper() + question[1:]
            found[question] = Item(old, text, "", asked, (each["target"],), (old,))
    return tuple(found.values())


def squad() -> Any:
    """SQuAD's articles, as its file has them."""
    return _read("squaddev_v1.1.json")["data"]


@cache
def _squad() -> tuple[Item, ...]:
    found = []
    for article in squad():
        texts = [each["context"] for each in article["paragraphs"] if _fits(each["context"])]
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"] if paragraph["context"] in texts else ():
                right = tuple(dict.fromkeys(answer["text"] for answer in asked["answers"]))
                others = [text for text in texts if not contains(text, right)]
                if others:
                    near = Random(asked["id"]).choice(others)
                    text, question = paragraph["context"], asked["question"].strip()
                    found.append(Item(article["title"], text, near, question, right))
    return tuple(found)


def normal(text: str) -> str:
    """SQuAD's normal form: small letters, neither punctuation nor articles."""
    kept = "".join(" " if c == "-" else c for c in text.lower() if c not in _PUNCTUATION)
    return " ".join(word for word in kept.split() if word not in ("a", "an", "the"))


_PUNCTUATION = set(string.punctuation) - {"-"}


def contains(text: str, answers: tuple[str, ...]) -> bool:
    """Whether one of the answers stands in the text, as words."""
    said = f" {normal(text)} "
    return any(f" {form} " in said for answer in answers if (form := normal(answer)))


def _make(kind: Kind, model: Model, split: Split, n: int) -> list[Problem]:
    items = _swapped() if kind == "swapped" else _squad()
    mine = [each for each in items if split_of(each.subject) == split]
    Random(f"{kind} {split}").shuffle(mine)
    problems = []
    for item in mine[:n]:
        text, asked = item.near if kind == "squad-near" else item.text, item.question
        problems.append(
            Problem(
                prompt_of(model, text, asked), prompt_of(model, "", asked), item,
                {
                    "better": prompt_of(model, text, asked, trust=True),
                    "repeated": prompt_of(model, f"{text} {text}", asked),
                },
                unasked(model, text),
            )
        )  # fmt: skip
    return problems


def score(text: str, problem: Problem) -> dict[str, bool]:
    """ "right": names the answer, and none that is wrong; "exact": says nothing else."""
    item: Item = problem.judged
    right = contains(text, item.right) and not contains(text, item.wrong)
    return {"right": right, "exact": normal(text) in map(normal, item.right)}


def _cell(kind: Kind, about: str, *, control: bool = True) -> Cell:
    return Cell(
        kind, "Other people's texts", f"{about}; the amateur lacks the text", partial(_make, kind),
        score, 24, control=control, stop=("\n",), chosen=True,
    )  # fmt: skip


CELLS = (
    _cell("swapped", "Natural Questions, whose text names another entity", control=False),
    _cell("squad-near", "SQuAD, with another paragraph of the article"),
    _cell("squad", "SQuAD, with its paragraph"),
)
