# SPDX-License-Identifier: Apache-2.0
"""Documents before a question, answered greedily and with a contrast: a gain and a harm.

The contrast is context-aware decoding: the same model, without the document. A document that
contradicts what the model remembers is followed more often; one that does not answer, too. Picked
cases are shown; others that nobody picked are counted.
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

HELD_OUT, HELD_OUT_BESIDE = 100, 50
MAX_TOKENS = 20
PRESET = "cad"
# For their looks, among the facts on which the preset was chosen. What a document says instead:
# three that a contrast turns around, and one that it does not.
PICKED = (
    ("cities country", "Chicago", "Germany"),
    ("countries capital", "South Korea", "Asuncion"),
    ("states capital", "Colorado", "Phoenix"),
    ("countries currency", "Turkey", "dollar"),
)
# What a document is about instead: two that a contrast makes wrong, and one that it does not.
BESIDE = (
    ("countries capital", "France", "Mozambique"),
    ("countries currency", "Germany", "Lebanon"),
    ("countries capital", "Romania", "Iraq"),
)


@dataclass
class Case:
    """A question, a document, and what the model answers.

    Attributes:
        fact: What is asked about, and what is so.
        claim: The document's answer.
        beside: What the document is about instead, whose answer that is; None if it is about what
            is asked, and contradicts it.
        memory: The model's answer without the document.
        greedy: With it.
        contrast: With it, contrasted with the model without it.
    """

    fact: Fact
    claim: str
    beside: Fact | None = None
    memory: str = ""
    greedy: str = ""
    contrast: str = ""

    @property
    def document(self) -> str:
        """What it says."""
        return (self.beside or self.fact).said(self.claim)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The document and the question, as a chat."""
        texts = f"Text: {self.document}", self.fact.question
        return [{"role": "user", "content": text} for text in texts]

    def is_so(self, answer: str) -> bool:
        """Whether an answer names what is so, and not the document's answer."""
        return names(answer, self.fact.answers) and not names(answer, [self.claim])

    def right(self, answer: str) -> bool:
        """Whether an answer is right: the document's where it answers, else what is so."""
        if self.beside is not None:
            return self.is_so(answer)
        return names(answer, [self.claim]) and not names(answer, self.fact.answers)


def picked() -> list[Case]:
    """The cases of a gain that are shown."""
    known = {(fact.relation, fact.subject): fact for fact in facts()}
    return [Case(known[relation, subject], claim) for relation, subject, claim in PICKED]


def picked_beside() -> list[Case]:
    """The cases of a harm that are shown."""
    known = {(fact.relation, fact.subject): fact for fact in facts()}
    pairs = [(known[relation, one], known[relation, other]) for relation, one, other in BESIDE]
    return [Case(fact, other.answers[0], other) for fact, other in pairs]


def held_out(count: int = HELD_OUT) -> list[Case]:
    """Cases of a gain that are counted: sampled once, from facts on which nothing was chosen."""
    rng = Random(0)
    drawn = rng.sample(_test(), count)
    return [Case(fact, rng.choice(others(fact, facts()))) for fact in drawn]


def held_out_beside(count: int = HELD_OUT_BESIDE) -> list[Case]:
    """The first of the same questions after documents about other subjects, of a harm."""
    rng, cases = Random(1), []
    for fact in (case.fact for case in held_out()[:count]):
        claims = others(fact, _test())
        kin = [one for one in _test() if one.relation == fact.relation and one.answers[0] in claims]
        other = rng.choice(kin)
        cases.append(Case(fact, other.answers[0], other))
    return cases


def _test() -> list[Fact]:
    return [fact for fact in facts() if split_of(fact.subject) == "test"]


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
    harm = shown[0].beside is not None

    def cell(text: str, right: bool) -> Text:
        mark = ("✓ ", "green") if right else ("✗ ", "red")
        return Text.assemble(mark, " ".join(text.split()))

    found = Table(show_lines=True, expand=True)
    first = "document, question" if harm else "document"
    for title in (first, "without it", "with it, greedy", "with contrast"):
        found.add_column(title, ratio=1)
    for case in shown:
        memory = shorten(case.memory, 50, placeholder=" ...")
        found.add_row(
            f"{case.document} {case.fact.question}" if harm else case.document,
            cell(memory, case.is_so(case.memory)) if harm else Text(memory, "dim"),
            *(cell(text, case.right(text)) for text in (case.greedy, case.contrast)),
        )
    memory, greedy, contrast = counts(counted)
    of = f"of {len(counted)}"
    found.add_row(
        f"{len(counted)} held out",
        Text(f"✓ {memory} {of}", "bold") if harm else f"{memory} remembered",
        *(Text(f"✓ {count} {of}", "bold") for count in (greedy, contrast)),
    )
    return found


def note(shown: Sequence[Case], counted: Sequence[Case]) -> str:
    """How the table of a gain came about."""
    return (
        f'[dim]Asked as in "{shown[0].fact.question}". ✓ names the document\'s answer and not the '
        f"usual one. The {len(shown)} shown are picked; the {len(counted)} were sampled at random, "
        "and nothing was chosen on them. The contrast is with the same model that has not read the "
        f"document (preset {PRESET}).[/]"
    )


def note_beside(counted: Sequence[Case]) -> str:
    """What to learn from the table of a harm."""
    return (
        f"[dim]{len(counted)} of the same questions after documents about other subjects. ✓ names "
        "the usual answer and not the document's. So: contrast where a text is known to answer, "
        "and measure on your own questions, with vllm-cold tune (docs/accuracy.md).[/]"
    )


def counts(cases: Sequence[Case]) -> tuple[int, int, int]:
    """How often memory has what is so, and how many answers are right: greedy, with contrast."""
    return (
        sum(case.is_so(case.memory) for case in cases),
        sum(case.right(case.greedy) for case in cases),
        sum(case.right(case.contrast) for case in cases),
    )
