# SPDX-License-Identifier: Apache-2.0
"""Questions about documents that no model has seen: what they say can be read only there.

The documents are made from the templates of ``data/pages.yaml`` with people, places, dates and
prices. A person or town that occurs in a split's documents occurs in none of the other's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from random import Random
from typing import Literal

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Prompt, Split, data, split_of

# Of a page, after its first.
PARAGRAPHS = 2
# Short texts that one problem has.
_THINGS = 3
_BRIEF = {"role": "system", "content": "You answer questions with a word or two."}
COPY = "Answer only from the text; copy its words."
Kind = Literal["page", "documents"]


@dataclass(frozen=True)
class Judged:
    """What an answer is judged by.

    Attributes:
        answer: The ways to give the right answer.
        others: Values of the same kind that the documents give for something else.
    """

    answer: tuple[str, ...]
    others: tuple[str, ...]


# Names and values


@cache
def _values() -> dict[str, list[str]]:
    return {kind: words.split() for kind, words in data("pages")["values"].items()}


@cache
def _names(split: Split) -> dict[str, list[str]]:
    """The first names, last names and towns of a split's documents."""
    from faker.providers.person.en_GB import Provider

    texts = [page["text"] for page in data("pages")["pages"]]
    for card in data("pages")["cards"]:
        texts += [card["first"], *(said for said, _ in card["sayings"].values())]
    words = set(re.findall(r"\w+", " ".join(texts).lower()))
    words |= {word.lower() for values in _values().values() for word in values}

    def usable(names: Iterable[str], unlike: Iterable[str] = ()) -> list[str]:
        # A name that is also a word of the texts could be found there by chance.
        return sorted(
            name
            for name in set(names)
            if split_of(name) == split
            and re.fullmatch("[A-Z][a-z]{3,}", name)
            and name.lower() not in words
            and name not in unlike
        )

    stems, endings = _values()["stem"], _values()["ending"]
    return {
        "first": usable(Provider.first_names),
        "last": usable(Provider.last_names, unlike=Provider.first_names),
        "town": usable([stem + ending for stem in stems for ending in endings]),
    }


class _Fresh:
    """Values of some kinds, each of them given out once."""

    def __init__(self, split: Split, rng: Random) -> None:
        self.names, self.rng = _names(split), rng
        self.given: set[str] = set()

    def new(self, kind: str) -> str:
        while True:
            value = self._any(kind)
            # Two people of one last name could not be told apart by it.
            key = value.split()[-1] if kind == "person" else f"{kind} {value}"
            if key not in self.given:
                self.given.add(key)
                return value

    def _any(self, kind: str) -> str:
        rng = self.rng
        if kind == "person":
            return f"{rng.choice(self.names['first'])} {rng.choice(self.names['last'])}"
        if kind == "town":
            return rng.choice(self.names["town"])
        if kind == "year":
            return str(rng.randrange(1940, 2016))
        if kind == "count":
            return str(rng.randrange(32, 99))  # more than a month has days
        if kind == "price":
            return f"${rng.randrange(2, 90)}.{rng.randrange(1, 20) * 5:02}"
        if kind == "day":
            return f"{rng.randrange(1, 29)} {rng.choice(_values()['month'])}"
        return rng.choice(_values()[kind])


def _kind(slot: str) -> str:
    return slot.rstrip("0123456789")


def slots(text: str) -> list[str]:
    """The values that a text needs, in the order of their first use."""
    found = dict.fromkeys(re.findall(r"{(\w+)}", text))
    return [slot for slot in found if _kind(slot) != "last"]


def _filled(text: str, values: Mapping[str, str]) -> str:
    last = {
        slot.replace("person", "last"): value.split()[-1]
        for slot, value in values.items()
        if _kind(slot) == "person"
    }
    return text.format(**values, **last)


def _chosen(text: str, rng: Random) -> str:
    """The text with one of each ``[a|b]``."""
    return re.sub(r"\[([^]]*)\]", lambda found: rng.choice(found[1].split("|")), text)


def forms(kind: str, value: str) -> tuple[str, ...]:
    """The ways to write a value."""
    if kind == "day":
        day, month = value.split()
        ends = {"1": "st", "2": "nd", "3": "rd", "21": "st", "22": "nd", "23": "rd"}
        nth = day + ends.get(day, "th")
        return (value, f"{month} {day}", f"{nth} {month}", f"{nth} of {month}", f"{month} {nth}")
    if kind == "person":
        return (value.split()[-1],)
    if kind == "price":
        return (value.removeprefix("$"),)
    return (value,)


# Documents


def _page(split: Split, rng: Random) -> tuple[list[str], str, Judged]:
    """A page, a question about it and its answer."""
    page = rng.choice(data("pages")["pages"])
    text, questions = page["text"], page["questions"]
    asked = rng.choice(sorted(questions))
    first, *rest = text.split("\n\n")
    rng.shuffle(rest)
    # The paragraph with the answer is among those that stay.
    rest = sorted(rest, key=lambda paragraph: f"{{{asked}}}" not in paragraph)[:PARAGRAPHS]
    rng.shuffle(rest)
    text = "\n\n".join([first, *rest])
    new = _Fresh(split, rng).new
    values = {slot: new(_kind(slot)) for slot in slots(text)}
    kind, question = _kind(asked), questions[asked].format(**values)
    others = [
        form
        for slot, value in values.items()
        if _kind(slot) == kind and slot != asked and value not in question
        for form in forms(kind, value)
    ]
    text = _filled(_chosen(text, rng), values)
    return [text], question, Judged(forms(kind, values[asked]), tuple(others))


def _cards(split: Split, rng: Random) -> tuple[list[str], str, Judged]:
    """Short texts about things of one kind, a question about one of them and its answer."""
    card = rng.choice(data("pages")["cards"])
    first, sayings = card["first"], card["sayings"]
    asked = rng.choice(sorted(sayings))
    said = [asked, *rng.sample(sorted(set(sayings) - {asked}), 2)]
    new = _Fresh(split, rng).new
    things = [{slot: new(_kind(slot)) for slot in [*slots(first), *said]} for _ in range(_THINGS)]
    target = rng.randrange(len(things))
    documents = []
    for values in things:
        order = list(said)
        rng.shuffle(order)
        text = " ".join([first, *(sayings[slot][0] for slot in order)])
        documents.append(_filled(_chosen(text, rng), values))
    each = [forms(_kind(asked), values[asked]) for values in things]
    others = [form for index, found in enumerate(each) if index != target for form in found]
    question = sayings[asked][1].format(card["subject"].format(**things[target]))
    return documents, question, Judged(each[target], tuple(others))


# Prompts


def problem_of(
    model: Model,
    documents: list[str],
    question: str,
    judged: Judged,
    *,
    twice: bool = False,
) -> Problem:
    """A question about documents.

    Args:
        model: Whose prompts.
        documents: What the amateur lacks.
        question: About them.
        judged: What the answer is judged by.
        twice: Whether the repeated part is the documents; otherwise it is the question, which then
            comes before them too, as with documents that are too many or too long to come twice.
    """

    asked = f"Question: {question}"

    def prompt(texts: list[str], before: str = "", ask: bool = True) -> Prompt:
        parts = [before] * bool(before) + [f"Text: {text}" for text in texts] + [asked] * ask
        read = "\n\n".join(parts)
        if not model.chat:
            return read + ("\n" if ask else "\n\n") + "Answer:"
        return (_BRIEF, {"role": "user", "content": read})

    return Problem(
        prompt(documents),
        prompt([]),
        judged,
        {
            "repeated": prompt(documents * 2) if twice else prompt(documents, before=asked),
            # After the texts, small models take it for a part of the question.
            "better": prompt(documents, before=COPY),
        },
        unasked=prompt(documents, ask=False),
    )


def _make(kind: Kind, model: Model, split: Split, n: int) -> list[Problem]:
    problems = []
    for index in range(n):
        # Whatever the other problems are.
        rng = Random(f"{kind} {split} {index}")
        if kind == "page":
            problems.append(problem_of(model, *_page(split, rng), twice=True))
        else:
            problems.append(problem_of(model, *_cards(split, rng)))
    return problems


# Scores

_SENTENCE_END = re.compile(r"(?<=[.!?])\s")


def _normal(text: str) -> str:
    return " ".join(text.lower().replace("\u2019", "'").split())


def _names_one(text: str, values: Sequence[str]) -> bool:
    """Whether one of the values stands in the text by itself, not within a word or number."""
    return any(
        re.search(rf"(?<![\w.,]){re.escape(_normal(form))}(?!\w|[.,]\d)", text.replace("$", " "))
        for form in values
    )


def score_found(answer: str, problem: Problem) -> dict[str, bool]:
    """Right: the first sentence that names a value names the answer alone. Mentioned: any does."""
    judged: Judged = problem.judged
    values = (*judged.answer, *judged.others)
    line = answer.strip().partition("\n")[0]
    said = [_normal(sentence) for sentence in _SENTENCE_END.split(line)]
    first = next((sentence for sentence in said if _names_one(sentence, values)), "")
    return {
        "right": _names_one(first, judged.answer) and not _names_one(first, judged.others),
        "mentioned": _names_one(_normal(answer), judged.answer),
    }


_GROUP = "Pages and documents"
CELLS = (
    Cell(
        "page", _GROUP, "a question about a page of text; the amateur lacks the page",
        partial(_make, "page"), score_found, 32,
    ),
    Cell(
        "documents", _GROUP, "a question about one of three short texts that say the like of "
        "others; the amateur lacks them all", partial(_make, "documents"), score_found, 32,
    ),
)  # fmt: skip
