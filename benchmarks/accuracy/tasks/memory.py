# SPDX-License-Identifier: Apache-2.0
"""A text against the model's memory: what it says of a well-known fact is false, and the answer is
to be the text's. And the controls, where the text agrees, distracts, or says nothing of it. The
amateur reads the question alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Literal

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Prompt, Split, split_of
from examples.facts import Fact, facts, names, others, without

SYSTEM = {"role": "system", "content": "You answer questions with a word or two."}
# Sentences on other subjects, of the same relation and of others.
SAME, OTHER = 2, 3

Said = Literal["false", "true", "nothing"]


@dataclass(frozen=True)
class Judged:
    """What an answer is judged by.

    Attributes:
        right: Names of the answer that is right by the text, or by memory where that says nothing.
        wrong: Of the answers that it must not give beside it: memory's and the distractors'.
    """

    right: tuple[str, ...]
    wrong: tuple[str, ...]


def prompt_of(model: Model, text: str, question: str, *, trust: bool = False) -> Prompt:
    """A question after a text, or alone where that is empty; with ``trust``, it asks for what the
    text says.
    """
    asked = f"According to the text: {question}" if trust else question
    if not model.chat:
        return (f"Text: {text}\n\n" if text else "") + f"Question: {asked}\nAnswer:"
    return (SYSTEM, {"role": "user", "content": f"{text}\n\n{asked}" if text else asked})


def _unasked(model: Model, text: str) -> Prompt:
    """A text that nothing is asked about."""
    return (SYSTEM, {"role": "user", "content": text}) if model.chat else f"Text: {text}\n\nAnswer:"


def _distractors(fact: Fact, false: str, pool: list[Fact], random: Random) -> list[Fact]:
    """True facts about other subjects that name neither the right answer nor the false one."""
    taken = (*fact.answers, false, fact.subject)
    found: list[Fact] = []
    for other in random.sample(pool, len(pool)):
        alike = other.relation == fact.relation
        wanted = SAME if alike else OTHER
        if sum((known.relation == fact.relation) == alike for known in found) == wanted:
            continue
        if other.subject != fact.subject and not names(other.said(), taken):
            found.append(other)
        if len(found) == SAME + OTHER:
            break
    return found


def _make(said: Said, among: bool, model: Model, split: Split, count: int) -> list[Problem]:
    pool = [fact for fact in facts() if split_of(fact.subject) == split]
    # Every relation is among the first.
    order = sorted(pool, key=lambda fact: Random(f"{fact.relation} {fact.subject}").random())
    problems = []
    for fact in order[:count]:
        random = Random(f"{split} {fact.relation} {fact.subject}")
        false = random.choice(others(fact, pool))
        distractors = _distractors(fact, false, pool, random)
        sentences = [] if said == "nothing" else [fact.said(false if said == "false" else None)]
        if among:
            sentences += [other.said() for other in distractors]
            if said != "nothing":
                random.shuffle(sentences)
        text = " ".join(sentences)
        right, wrong = ((false,), fact.answers) if said == "false" else (fact.answers, ())
        if among:
            wrong += tuple(name for other in distractors for name in other.answers)
        problems.append(
            Problem(
                prompt=prompt_of(model, text, fact.question),
                without=prompt_of(model, "", fact.question),
                judged=Judged(right, wrong),
                plain={
                    "better": prompt_of(model, text, fact.question, trust=True),
                    "repeated": prompt_of(model, f"{text} {text}", fact.question),
                },
                unasked=_unasked(model, text),
            )
        )
    return problems


def score(text: str, problem: Problem) -> dict[str, bool]:
    """ "right": the right answer, and none that is wrong; "named": the right one, whatever else."""
    judged: Judged = problem.judged
    named = names(text, judged.right)
    # A wrong answer's name may be part of the right one's: Guatemala City, York and New York.
    rest = without(text, judged.right)
    return {"right": named and not names(rest, judged.wrong), "named": named}


def _cell(name: str, about: str, said: Said, *, among: bool) -> Cell:
    return Cell(
        name, "A text against memory", f"{about}; the amateur lacks the text",
        partial(_make, said, among), score, max_tokens=16, control=said != "false", stop=("\n",),
        sampled=said == "false",
    )  # fmt: skip


CELLS = (
    _cell("false", "a sentence that contradicts memory", "false", among=False),
    _cell("false-among", "it, among five true ones on other subjects", "false", among=True),
    _cell("true", "a sentence that agrees with memory", "true", among=False),
    _cell("true-among", "it, among five true ones on other subjects", "true", among=True),
    _cell("nothing", "five true sentences on other subjects", "nothing", among=True),
)
