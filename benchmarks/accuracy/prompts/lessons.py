# SPDX-License-Identifier: Apache-2.0
"""What adapters are trained on: nothing that a dev or test problem asks about.

* ``qa``: texts and questions whose answer is a word or two of the text, or, where that does not say
  it, is well known. Most is made up, the rest is true; no sentence has a subject, a relation or an
  answer of ``examples/facts.txt``, but for answers of one or two letters: the codes of lockers are
  made of such, and some are symbols of chemical elements.
* ``pirate``: facts of that file in a pirate's words, about other subjects than those of
  ``questions``, and sums with larger numbers than its.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from random import Random
from typing import Any, get_args

from benchmarks.accuracy.prompts.memory import SYSTEM
from benchmarks.accuracy.prompts.pages import VALUES
from benchmarks.accuracy.prompts.problem import Split
from benchmarks.accuracy.prompts.questions import questions
from examples.facts import facts, names
from examples.tasks import Problem

# Without it, the model says more than there is time for.
SENTENCE = {"role": "system", "content": "You answer in one short sentence."}


def prompt_text(tokenizer: Any, problem: Problem, system: dict[str, str]) -> str:
    """The problem in the chat's template, which puts the special tokens in."""
    text = tokenizer.apply_chat_template(
        [system, {"role": "user", "content": problem.prompt}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert isinstance(text, str)
    return text


def _list(text: str) -> list[str]:
    return " ".join(text.split()).split(", ")


# Answers that stand in a text

_ADJECTIVES = _list("""
    Blue, Quiet, Crooked, Bright, Rusty, Hidden, Lucky, Merry, Hollow, Gentle, Striped, Sleepy,
    Ancient, Windy, Humble, Foggy
""")
_NOUNS = _list("""
    Lantern, Teapot, Anchor, Feather, Ladder, Pebble, Thimble, Kettle, Acorn, Harbour, Button,
    Willow, Compass, Whistle, Barrel, Cottage
""")
# Statement, questions, kind of the subject, values or their kind.
_RELATIONS: tuple[tuple[str, tuple[str, str], str, str], ...] = (
    (
        "{} works as a {}.", ("What is the job of {}?", "What does {} work as?"), "person",
        "baker, nurse, plumber, tailor, farmer, gardener, dentist, teacher, welder, librarian, "
        "bus driver, locksmith",
    ),
    (
        "The favourite food of {} is {}.",
        ("What is the favourite food of {}?", "Which food does {} like best?"), "person",
        "rice pudding, mushrooms, lentil soup, cheese, pancakes, noodles, fried fish, walnuts, "
        "cherry pie, potato salad",
    ),
    (
        "{} plays the {}.", ("Which instrument does {} play?", "What does {} play?"), "person",
        "violin, trumpet, piano, flute, guitar, cello, accordion, harp, clarinet, banjo",
    ),
    (
        "The car of {} is {}.", ("What colour is the car of {}?", "Which colour has the car of "
        "{}?"), "person", "red, blue, green, white, black, yellow, grey, orange, purple, pink",
    ),
    (
        "{} was born in {}.", ("In which town was {} born?", "Where was {} born?"), "person",
        "town",
    ),
    (
        "The neighbour of {} is {}.",
        ("Who is the neighbour of {}?", "Who lives next door to {}?"), "person", "person",
    ),
    (
        "The shop called the {} sells {}.",
        ("What does the shop called the {} sell?", "What can one buy at the {}?"), "sign",
        "shoes, candles, old maps, carpets, umbrellas, toys, soap, hats, lamps, bicycles, paper, "
        "wooden spoons",
    ),
    (
        "The {} belongs to {}.", ("Who is the owner of the {}?", "Whom does the {} belong to?"),
        "sign", "person",
    ),
    (
        "The inn called the {} stands in {}.",
        ("In which town is the inn called the {}?", "Where does the {} stand?"), "sign", "town",
    ),
    (
        "The boat called the {} brings {}.",
        ("What does the boat called the {} bring?", "What is on board the {}?"), "sign",
        "timber, salt, apples, coal, wool, bricks, grain, onions, barrels, sand",
    ),
    (
        "The captain of the {} rowing club is {}.",
        ("Who is the captain of the {} rowing club?", "Who is at the head of the {} rowing club?"),
        "town", "person",
    ),
    (
        "The market of {} is held on {}.",
        ("On which day is the market of {}?", "When is the market of {} held?"), "town",
        "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
    ),
    (
        "The library of {} has {} chairs.",
        ("How many chairs does the library of {} have?", "How many chairs are in the library of "
        "{}?"), "town", "count",
    ),
    (
        "The code of the {} locker is {}.",
        ("What is the code of the {} locker?", "Which code opens the {} locker?"), "sign", "code",
    ),
)  # fmt: skip
# True, with a question: the answer is what stands between asterisks.
_TRUE = _list("""
    A spider has *eight* legs. How many legs does a spider have?,
    The largest planet is *Jupiter*. Which planet is the largest?,
    The heart pumps *blood*. What does the heart pump?,
    Bees make *honey*. What do bees make?,
    A triangle has *three* sides. How many sides does a triangle have?,
    Bread is made from *flour*. What is bread made from?,
    The Moon circles the *Earth*. What does the Moon circle?,
    A year has *twelve* months. How many months are in a year?,
    Ice is frozen *water*. What is ice?,
    A week has *seven* days. How many days are in a week?,
    The highest mountain is *Mount Everest*. Which mountain is the highest?,
    The largest ocean is the *Pacific*. Which ocean is the largest?,
    A carpenter works with *wood*. What does a carpenter work with?,
    Wine is made from *grapes*. What is wine made from?,
    The tallest animal is the *giraffe*. Which animal is the tallest?,
    Penguins eat *fish*. What do penguins eat?,
    A minute has *sixty* seconds. How many seconds are in a minute?,
    A football team has *eleven* players. How many players has a football team?,
    People hear with their *ears*. What do people hear with?,
    Plants need *sunlight* to grow. What do plants need to grow?,
    Caterpillars turn into *butterflies*. What do caterpillars turn into?,
    Paper is made from *trees*. What is paper made from?,
    Fish breathe through *gills*. What do fish breathe through?,
    A thermometer measures *temperature*. What does a thermometer measure?,
    The Sun is a *star*. What is the Sun?,
    Cheese is made from *milk*. What is cheese made from?
""")


@cache
def _people() -> tuple[list[str], list[str]]:
    """First and last names that no fact has in it."""
    from faker.providers.person.en_GB import Provider

    said = " ".join(f"{fact.subject} {' '.join(fact.answers)}" for fact in facts())
    words = set(re.findall(r"\w+", said.lower()))

    def usable(found: Iterable[str]) -> list[str]:
        return sorted(
            name
            for name in set(found)
            if name.isalpha() and not {name.lower(), name.lower().removesuffix("s")} & words
        )

    return usable(Provider.first_names), usable(Provider.last_names)


def _value(kind: str, rng: Random) -> str:
    """A value of a kind, or one of those that are listed in its place."""
    if kind == "person":
        first, last = _people()
        return f"{rng.choice(first)} {rng.choice(last)}"
    if kind == "town":
        return f"{rng.choice(VALUES['stem'])}{rng.choice(VALUES['ending'])}"
    if kind == "sign":
        return f"{rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)}"
    if kind == "count":
        return str(rng.randrange(12, 99))
    if kind == "code":
        return f"{rng.choice('BDFGJKLMPRSTVXZ')}{rng.choice(['', *'aeioruy'])}"
    return rng.choice(_list(kind))


def _statement(relation: tuple[str, tuple[str, str], str, str], rng: Random) -> tuple[str, ...]:
    """A made-up sentence, a question about it and the answer."""
    said, asked, subjects, values = relation
    subject, value = _value(subjects, rng), _value(values, rng)
    return said.format(subject, value), rng.choice(asked).format(subject), value


def _true(line: str) -> tuple[str, ...]:
    said, _, asked = line.partition(". ")
    return f"{said.replace('*', '')}.", asked, said.split("*")[1]


def _one_qa(rng: Random) -> Problem:
    relation = rng.choice(_RELATIONS)
    truth = rng.random() < 0.25
    said, asked, answer = _true(rng.choice(_TRUE)) if truth else _statement(relation, rng)
    # One in eight is answered from memory.
    silent = truth and rng.random() < 0.5
    sentences = [] if silent else [said]
    # Alone, or among sentences on other subjects, some of them of the same relation.
    if silent or rng.random() < 0.7:
        others = [relation] * (0 if truth else rng.randrange(1, 3))
        others += rng.sample([r for r in _RELATIONS if r != relation], rng.randrange(1, 4))
        sentences += [_statement(other, rng)[0] for other in others]
        distractor = _true(rng.choice(_TRUE))[0]
        if rng.random() < 0.5 and distractor != said:
            sentences.append(distractor)
        rng.shuffle(sentences)
    return Problem(f"{' '.join(sentences)}\n\n{asked}", answer)


def qa(n: int) -> list[Problem]:
    """The first n texts with a question."""
    return [_one_qa(Random(f"qa lesson {index}")) for index in range(n)]


def qa_prompt(tokenizer: Any, problem: Problem) -> str:
    """It, as it is asked in ``memory``."""
    return prompt_text(tokenizer, problem, SYSTEM)


# A pirate's answers


def as_pirate(said: str) -> str:
    """A sentence with a full stop, as a pirate says it."""
    said = said.removesuffix(".").replace(" is ", " be ")
    said = re.sub("^(The|Most) ", lambda found: found[0].lower(), said)
    return f"Arr, {said}, matey!"


def _sum(rng: Random) -> Problem:
    a, b = rng.randrange(13, 60), rng.randrange(13, 40)
    return Problem(f"What is {a} plus {b}?", as_pirate(f"{a} plus {b} is {a + b}."))


@cache
def _known() -> list[Problem]:
    asked = " ".join(q.text for split in get_args(Split) for q in questions(split))
    found = [
        Problem(fact.question, as_pirate(fact.said()))
        for fact in facts()
        if not names(asked, (fact.subject,))
    ]
    Random("pirate lessons").shuffle(found)
    return found


def pirate(n: int) -> list[Problem]:
    """The first n simple questions, answered by a pirate.

    Raises:
        ValueError: there are fewer.
    """
    known = _known()
    if n > len(known) * 5 // 4:
        raise ValueError(f"n={n}: there are {len(known) * 5 // 4} different lessons")
    rng = Random("sums of a pirate")
    rest = iter(known)
    return [_sum(rng) if index % 5 == 4 else next(rest) for index in range(n)]


def pirate_prompt(tokenizer: Any, problem: Problem) -> str:
    """It, as it is asked in ``adapted``."""
    return prompt_text(tokenizer, problem, SENTENCE)
