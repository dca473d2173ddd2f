# SPDX-License-Identifier: Apache-2.0
"""Several passages that a search found, of which one answers, or none.

A collection has near texts about every subject (``memory``), and of a third of the facts a sentence
that contradicts memory, of a third one that agrees, of a third nothing. A question is asked with
the five passages that TF-IDF (scikit-learn) ranks first, as it ranks them. What the passage says is
right, or memory's answer where none answers. The amateur reads the question alone.

Free baselines: the best passage alone, and that with no passage at all where its score is below a
threshold, which the dev problems' scores fit, with no model (``fitted``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from random import Random

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Split, data, split_of
from benchmarks.accuracy.tasks import memory
from examples.facts import Fact, facts, names

PASSAGES = 5
KINDS = ("contradicts", "agrees", "none answers")


@dataclass(frozen=True)
class Passage:
    """A text of the collection, what it is about, and the names of the answer in it."""

    text: str
    fact: Fact
    said: tuple[str, ...]
    answers: bool


@dataclass(frozen=True)
class Found:
    """What the search finds for a question: passages, the best first, and their scores."""

    fact: Fact
    kind: str
    passages: tuple[Passage, ...]
    scores: tuple[float, ...]


def _pool(split: Split) -> list[Fact]:
    pool = [fact for fact in facts() if split_of(fact.subject) == split]
    # Every relation is among the first.
    return sorted(pool, key=lambda fact: Random(f"found {fact.relation} {fact.subject}").random())


@cache
def found(split: Split) -> tuple[Found, ...]:
    """What the search finds for each question of a split."""
    # Only who asks for these problems needs scikit-learn.
    from sklearn.feature_extraction.text import (  # type: ignore[import-untyped,unused-ignore]
        TfidfVectorizer,
    )

    pool = _pool(split)
    # A text that repeats its question is found by that alone.
    forms = [form for form in data("forms")["forms"][split] if form != "question and answer"]
    collection = list[Passage]()
    for place, fact in enumerate(pool):
        rng = Random(f"passages {split} {fact.relation} {fact.subject}")
        false = memory.false_answer(fact, pool, rng)
        near = memory.near(fact, split, false[0])
        collection.append(Passage(near, fact, memory.names_of(fact.relation, false), answers=False))
        kind = KINDS[place % len(KINDS)]
        if kind != "none answers":
            said = false if kind == "contradicts" else fact.answers
            text = memory.sentence(fact, rng.choice(forms), said[0])
            theirs = memory.names_of(fact.relation, said)
            collection.append(Passage(text, fact, theirs, answers=True))
    search = TfidfVectorizer(stop_words="english")
    passages = search.fit_transform([each.text for each in collection])
    scores = (search.transform([fact.question for fact in pool]) @ passages.T).toarray()
    return tuple(
        _ranked(fact, KINDS[place % len(KINDS)], collection, scores[place])
        for place, fact in enumerate(pool)
    )


def _ranked(
    fact: Fact, kind: str, collection: Sequence[Passage], scores: NDArray[np.float64]
) -> Found:
    """The best passages, without others that name the right answer by chance."""
    mine = (each for each in collection if each.answers and each.fact == fact)
    right = next((each.said for each in mine), memory.names_of(fact.relation, fact.answers))
    best = list[int]()
    for place in map(int, np.argsort(-scores, kind="stable")):
        each = collection[place]
        if (each.answers and each.fact == fact) or not names(each.text, right):
            best.append(place)
        if len(best) == PASSAGES:
            break
    return Found(fact, kind, tuple(collection[i] for i in best), tuple(scores[i] for i in best))


@cache
def fitted() -> float:
    """The score at which the best passage of most dev questions is one that answers, or is not."""
    best = [
        (f.scores[0], f.passages[0].answers and f.passages[0].fact == f.fact) for f in found("dev")
    ]
    return max(
        (score for score, _ in best), key=lambda t: sum((s >= t) == is_it for s, is_it in best)
    )


def _make(model: Model, split: Split, n: int) -> list[Problem]:
    problems = []
    for each in found(split)[:n]:
        fact, texts = each.fact, [passage.text for passage in each.passages]
        answers = [p for p in each.passages if p.answers and p.fact == fact]
        mine = memory.names_of(fact.relation, fact.answers)
        right = answers[0].said if answers else mine
        others = tuple(name for p in each.passages if p not in answers for name in p.said)
        wrong = others + (mine if each.kind == "contradicts" else ())
        enough = texts[0] if each.scores[0] >= fitted() else ""
        together = "\n\n".join(texts)
        asked = partial(memory.prompt_of, model, question=fact.question)
        problems.append(
            Problem(
                asked(together),
                asked(""),
                memory.Judged(right, wrong, memory.subjects(fact.subject)),
                plain={
                    "better": memory.prompt_of(model, together, fact.question, trust=True),
                    "best": asked(texts[0]),
                    "enough": asked(enough),
                },
                unasked=memory.unasked(model, together),
                kind=each.kind,
            )
        )  # fmt: skip
    return problems


CELLS = (
    Cell(
        "retrieved", "A text against memory", "five passages that a search found; the amateur "
        "lacks them", _make, memory.score, 16, stop=("\n",),
    ),
)  # fmt: skip
