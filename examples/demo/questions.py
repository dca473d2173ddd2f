# SPDX-License-Identifier: Apache-2.0
"""Questions behind a text, decoded regularly (greedily) and with the preset ``cad``, which
contrasts the model with the same model without the text: where the text answers, and where not.

The shops are made up, so that nothing but the text tells what is right. A text has one fact and is
a ``tool`` message, as ``NAME:cad`` expects documents. Of the forms that were tried on other shops
(in such a message, in a user's message of its own or in the question's; 1, 2 or 8 facts) this one
gains most. About museums, where most regular answers are right anyway, ``cad`` gained little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from examples.facts import facts, names

MAX_TOKENS = 20
_SHOPS = (
    "Alder Lamps, a lamp shop", "Brightwater Boats, a boat rental", "Crane Ceramics, a pottery",
    "Dunmore Chess, a games shop", "Elmtree Eggs, a farm shop", "Foxglove Hats, a hat shop",
    "Gull Guitars, a guitar shop", "Heron Honey, a beekeeper", "Ivory Keys, a piano shop",
    "Juno Jackets, a tailor",
)  # fmt: skip
# A sentence, what {} may be, and the question.
_FACTS: tuple[tuple[str, Sequence[object], str], ...] = (
    ("We open at {} o'clock.", range(6, 12), "At what time do you open?"),
    ("We are closed on {}s.", ("Monday", "Tuesday", "Thursday"), "On which day are you closed?"),
    ("Returns are accepted within {} days.", range(8, 60), "How many days do I have to return it?"),
    ("Delivery costs {} dollars.", range(13, 50), "How much is delivery?"),
    ("The manager is {}.", ("Ms Novak", "Mr Okafor", "Ms Ferreira"), "Who is the manager?"),
    ("Customers park behind the {}.", ("museum", "stadium", "cinema"), "Where can I park?"),
)


@dataclass
class Case:
    """A question behind a text.

    Attributes:
        text: The text.
        question: The question.
        answers: Names of the right answer.
        alone: What the model answers without the text.
        regular: With it.
        cad: With it, contrasted with the model without it.
    """

    text: str
    question: str
    answers: tuple[str, ...]
    alone: str = ""
    regular: str = ""
    cad: str = ""

    def right(self, answer: str) -> bool:
        """Whether an answer has the right one in it."""
        return names(answer, self.answers)


def user(question: str) -> list[dict[str, str]]:
    """Write it as a chat."""
    return [{"role": "user", "content": question}]


def private() -> list[Case]:
    """Make 60 questions that only the text answers."""
    random, cases = Random(0), []
    for shop in _SHOPS:
        for sentence, values, question in _FACTS:
            value = str(random.choice(values))
            text = f"{shop}. {sentence.format(value)}"
            name = value.split()[-1]
            cases.append(Case(text, question, (name, f"{name}am")))  # an hour may be written so
    return cases


def beside() -> list[Case]:
    """Make as many that the same texts do not answer, and memory may."""
    capitals = [fact for fact in facts() if fact.relation == "countries capital"]
    texts = [case.text for case in private()]
    drawn = Random(0).sample(capitals, len(texts))
    return [
        Case(text, fact.question, fact.answers) for text, fact in zip(texts, drawn, strict=True)
    ]


def answer(llm: Any, cases: Sequence[Case]) -> None:
    """Let an engine answer all cases in all three ways, in one batch."""
    from vllm import SamplingParams

    from vllm_cold import Amateur, ColdParams

    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": MAX_TOKENS}
    regular = SamplingParams(**options)
    cad = ColdParams.preset("cad", amateur=Amateur(without="tool"), **options)
    without_text = [user(case.question) for case in cases]
    texts = [{"role": "tool", "tool_call_id": "0", "content": case.text} for case in cases]
    with_text = [[text, *chat] for text, chat in zip(texts, without_text, strict=True)]
    params = [*[regular] * 2 * len(cases), *[cad] * len(cases)]
    outputs = llm.chat([*without_text, *with_text, *with_text], params, use_tqdm=False)
    answers = [" ".join(output.outputs[0].text.split()) for output in outputs]
    for i, case in enumerate(cases):
        case.alone, case.regular, case.cad = answers[i :: len(cases)]


def count(cases: Sequence[Case], way: str) -> str:
    """Say how many answers of a way ("alone", "regular", "cad") are right."""
    return f"{sum(case.right(getattr(case, way)) for case in cases)} of {len(cases)}"


def example(cases: Sequence[Case]) -> Case:
    """Pick the first case that the contrast turned right; the first of all if there is none."""
    turned = (c for c in cases if c.right(c.cad) and not c.right(c.regular))
    return next(turned, cases[0])
