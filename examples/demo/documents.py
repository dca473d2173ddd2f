# SPDX-License-Identifier: Apache-2.0
"""Documents that contradict what the model remembers, answered greedily and with a contrast.

The contrast is context-aware decoding: the same model, without the document. Picked cases are
shown; a hundred that nobody picked are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from textwrap import shorten
from typing import Any

from rich.table import Table
from rich.text import Text

from benchmarks.accuracy.problem import split_of
from examples.facts import Fact, facts, names, others

HELD_OUT = 100
MAX_TOKENS = 20
PRESET = "cad"
# For their looks, among the facts on which the preset was chosen: three that a contrast turns
# around, and one that it does not.
PICKED = (
    ("cities country", "Chicago", "Germany"),
    ("countries capital", "South Korea", "Asuncion"),
    ("states capital", "Colorado", "Phoenix"),
    ("countries currency", "Turkey", "dollar"),
)


@dataclass
class Case:
    """A fact, what a document says instead, and what the model answers.

    Attributes:
        fact: What is so.
        claim: The document's answer.
        memory: The model's without the document.
        greedy: With it.
        contrast: With it, contrasted with the model without it.
    """

    fact: Fact
    claim: str
    memory: str = ""
    greedy: str = ""
    contrast: str = ""

    @property
    def document(self) -> str:
        """What it says."""
        return self.fact.said(self.claim)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The document and the question, as a chat."""
        texts = f"Text: {self.document}", self.fact.question
        return [{"role": "user", "content": text} for text in texts]

    @property
    def remembered(self) -> bool:
        """Whether the model knows what is so."""
        return names(self.memory, self.fact.answers)

    def follows(self, answer: str) -> bool:
        """Whether an answer is the document's: it names that, and not what is so."""
        return names(answer, [self.claim]) and not names(answer, self.fact.answers)


def picked() -> list[Case]:
    """The cases that are shown."""
    known = {(fact.relation, fact.subject): fact for fact in facts()}
    return [Case(known[relation, subject], claim) for relation, subject, claim in PICKED]


def held_out(count: int = HELD_OUT) -> list[Case]:
    """Cases that are counted: drawn once, from facts on which nothing was chosen."""
    rng = Random(0)
    drawn = rng.sample([fact for fact in facts() if split_of(fact.subject) == "test"], count)
    return [Case(fact, rng.choice(others(fact, facts()))) for fact in drawn]


def answer(llm: Any, cases: Sequence[Case]) -> None:
    """Let an engine answer all cases three times, in one batch."""
    from vllm import SamplingParams

    from vllm_cold import Amateur, ColdParams

    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": MAX_TOKENS}
    chats, params = [], []
    for case in cases:
        question = case.messages[1:]
        chats += [question, case.messages, case.messages]
        greedy = SamplingParams(**options)
        contrast = ColdParams.preset(PRESET, amateur=Amateur(prompt=question), **options)
        params += [greedy, greedy, contrast]
    texts = [one.outputs[0].text.strip() for one in llm.chat(chats, params, use_tqdm=False)]
    for i, case in enumerate(cases):
        case.memory, case.greedy, case.contrast = texts[3 * i : 3 * i + 3]


def table(shown: Sequence[Case], counted: Sequence[Case]) -> Table:
    """The shown cases with their answers, and below them the counts over the others."""

    def judged(case: Case, text: str) -> Text:
        mark = ("✓ ", "green") if case.follows(text) else ("✗ ", "red")
        return Text.assemble(mark, " ".join(text.split()))

    found = Table(show_lines=True, expand=True)
    for title in ("document", "without it", "with it, greedy", "with contrast"):
        found.add_column(title, ratio=1)
    for case in shown:
        found.add_row(
            case.document,
            Text(shorten(case.memory, 50, placeholder=" ..."), "dim"),
            judged(case, case.greedy),
            judged(case, case.contrast),
        )
    known = [case for case in counted if case.remembered]
    found.add_row(
        f"{len(counted)} held out",
        f"{len(known)} remembered",
        *(Text(f"✓ {n} of {len(counted)}", "bold") for n in followed(counted)),
    )
    found.add_row(
        "", f"of these {len(known)}", *(f"✓ {n} of {len(known)}" for n in followed(known))
    )
    return found


def note(shown: Sequence[Case], counted: Sequence[Case]) -> str:
    """How the table came about."""
    return (
        f'[dim]Asked as in "{shown[0].fact.question}". ✓ names the document\'s answer and not the '
        f"usual one. The {len(shown)} shown are picked; the {len(counted)} were drawn by lot, and "
        "nothing was chosen on them. The contrast is with the same model that has not read the "
        f"document (preset {PRESET}). It makes any document believed, one that is beside the point "
        "too (docs/accuracy.md).[/]"
    )


def followed(cases: Sequence[Case]) -> tuple[int, int]:
    """How many answers follow the document: greedy, with contrast."""
    return (
        sum(case.follows(case.greedy) for case in cases),
        sum(case.follows(case.contrast) for case in cases),
    )
