# SPDX-License-Identifier: Apache-2.0
"""A text against the model's memory: what it says of a well-known fact is false, and the answer is
to be the text's. And the controls, where the text agrees, says nothing of it, or is about the
subject and says something else. The amateur reads the question alone.

The splits share neither subjects nor forms of sentences (``data/forms.yaml``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Literal

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Prompt, Split, data, split_of
from examples.facts import Fact, facts, named, names, others

SYSTEM = {"role": "system", "content": "You answer questions with a word or two."}
# Sentences on other subjects, of the same relation and of others.
SAME, OTHER = 2, 3

Said = Literal["false", "true", "nothing", "near"]


@dataclass(frozen=True)
class Judged:
    """What an answer is judged by.

    Attributes:
        right: Names of the answer that is right by the text, or by memory where that says nothing.
        wrong: Of the answers that it must not give with it: memory's, the distractors', and what
            a near text names.
        subject: Names of what is asked about: whoever says it again gives no answer by that.
    """

    right: tuple[str, ...]
    wrong: tuple[str, ...]
    subject: tuple[str, ...] = ()


def prompt_of(model: Model, text: str, question: str, *, trust: bool = False) -> Prompt:
    """A question after a text, or alone where that is empty; with ``trust``, it asks for what the
    text says.
    """
    asked = f"According to the text: {question}" if trust else question
    if not model.chat:
        return (f"Text: {text}\n\n" if text else "") + f"Question: {asked}\nAnswer:"
    return (SYSTEM, {"role": "user", "content": f"{text}\n\n{asked}" if text else asked})


def unasked(model: Model, text: str) -> Prompt:
    """A text that nothing is asked about."""
    return (SYSTEM, {"role": "user", "content": text}) if model.chat else f"Text: {text}\n\nAnswer:"


def sentence(fact: Fact, form: str, answer: str | None = None) -> str:
    """A fact in a form of sentence, or the same with another answer."""
    if form == "statement":
        return fact.said(answer)
    said, forms = data("forms")["relations"][fact.relation], data("forms")["forms"]
    subject = {"s": fact.subject}
    text = {**forms["dev"], **forms["test"]}[form].format(
        thing=said["thing"].format(**subject),
        name=said.get("name", "{s}").format(**subject),
        its=said["its"],
        question=fact.question,
        a=f"{said.get('article', '')} {answer or fact.answers[0]}".strip(),
    )
    return text[0].upper() + text[1:]


def near(fact: Fact, split: Split, other: str) -> str:
    """Sentences about the fact's subject that name another answer to something else."""
    said: str = data("forms")["relations"][fact.relation]["near"][split]
    text = said.format(s=fact.subject, o=other)
    return text[0].upper() + text[1:]


def names_of(relation: str, answers: tuple[str, ...]) -> tuple[str, ...]:
    """The ways to give an answer: its names, without an article, and a person's last name."""
    known = [*answers, *(name.removeprefix("the ") for name in answers)]
    if data("forms")["relations"][relation].get("person"):
        known += [last for name in known if len(last := name.split()[-1]) > 3]
    return tuple(dict.fromkeys(known))


def subjects(subject: str) -> tuple[str, ...]:
    """A subject with and without its article."""
    return tuple(dict.fromkeys((subject, re.sub("^the ", "", subject, flags=re.IGNORECASE))))


def false_answer(fact: Fact, pool: list[Fact], rng: Random) -> tuple[str, ...]:
    """A wrong answer: its names, of which the first one is said."""
    first = rng.choice(others(fact, pool))
    # French is no name of Dutch, though Belgium has both.
    same = [f.answers for f in pool if (f.relation, f.answers[0]) == (fact.relation, first)]
    return tuple(name for name in same[0] if all(name in each for each in same))


def _distractors(fact: Fact, taken: tuple[str, ...], pool: list[Fact], rng: Random) -> list[Fact]:
    """True facts about other subjects that name neither the right answer nor the false one."""
    found: list[Fact] = []
    for other in rng.sample(pool, len(pool)):
        alike = other.relation == fact.relation
        wanted = SAME if alike else OTHER
        if sum((known.relation == fact.relation) == alike for known in found) == wanted:
            continue
        if other.subject != fact.subject and not names(other.said(), (*taken, fact.subject)):
            found.append(other)
        if len(found) == SAME + OTHER:
            break
    return found


def _make(said: Said, among: bool, model: Model, split: Split, count: int) -> list[Problem]:
    pool = [fact for fact in facts() if split_of(fact.subject) == split]
    forms = list(data("forms")["forms"][split])
    # Every relation is among the first.
    order = sorted(pool, key=lambda fact: Random(f"{fact.relation} {fact.subject}").random())
    problems = []
    for place, fact in enumerate(order[:count]):
        rng, form = Random(f"{split} {fact.relation} {fact.subject}"), forms[place % len(forms)]
        said_false = false_answer(fact, pool, rng)
        mine, false = (names_of(fact.relation, each) for each in (fact.answers, said_false))
        distractors = _distractors(fact, mine + false, pool, rng)
        sentences = [sentence(each, form) for each in distractors] if among else []
        if said == "near":
            sentences.append(near(fact, split, false[0]))
        elif said != "nothing":
            sentences.append(sentence(fact, form, false[0] if said == "false" else None))
            rng.shuffle(sentences)
        text = " ".join(sentences)
        right, wrong = (false, mine) if said == "false" else (mine, ())
        if said == "near":
            wrong = false
        if among:
            wrong += tuple(name for other in distractors for name in other.answers)
        problems.append(
            Problem(
                prompt=prompt_of(model, text, fact.question),
                without=prompt_of(model, "", fact.question),
                judged=Judged(right, wrong, subjects(fact.subject)),
                plain={
                    "better": prompt_of(model, text, fact.question, trust=True),
                    "repeated": prompt_of(model, f"{text} {text}", fact.question),
                },
                unasked=unasked(model, text),
                kind="" if said == "near" else form,
            )
        )
    return problems


def score(text: str, problem: Problem) -> dict[str, bool]:
    """ "right": the right answer, and none that is wrong; "named": the right one, whatever else."""
    judged: Judged = problem.judged
    # A name may be part of another one, or of the subject's: Guatemala City, York and New York.
    told = named(text, (*judged.right, *judged.wrong, *judged.subject))
    right = bool(told & set(judged.right))
    return {"right": right and not told & set(judged.wrong) - set(judged.right), "named": right}


def _cell(name: str, about: str, said: Said, *, among: bool) -> Cell:
    return Cell(
        name, "A text against memory", f"{about}; the amateur lacks the text",
        partial(_make, said, among), score, max_tokens=16, control=said != "false", stop=("\n",),
        chosen=True,
    )  # fmt: skip


CELLS = (
    _cell("false", "a sentence that contradicts memory", "false", among=False),
    _cell("near", "sentences about the subject that do not answer", "near", among=False),
    _cell("nothing", "five true sentences on other subjects", "nothing", among=True),
    _cell("false-among", "the false sentence among five true ones", "false", among=True),
    _cell("true-among", "a sentence that agrees, among five others", "true", among=True),
)
