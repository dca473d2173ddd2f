# SPDX-License-Identifier: Apache-2.0
"""What is asked of a server, and the systems that are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any, Literal

from examples.facts import Fact, facts
from examples.tasks import SORTING, messages

BASE = "base"  # the model, as it is served
ADAPTERS = ("sorting", "orders", "sorting-2", "orders-2")  # two folders, each loaded twice
LENGTHS = (32, 128, 512)  # tokens, in turn
SHARED = 256  # tokens with which the longest prompts all begin
CONTEXT = 1600  # characters, about 400 tokens
OPEN, ASKED = 8, 4  # documents that are asked about in turn, and requests for each
QUESTIONS = (1, 4, 12)  # of a request, in turn

Workload = Literal["mixed", "context"]


@dataclass(frozen=True)
class System:
    """One way to decode.

    Attributes:
        key: Its name on the command line.
        label: As printed.
        server: ``stock``: vLLM without the plugin; ``plugin``.
        workload: What it is asked.
        xargs: What a request says to the plugin.
        reference: Measured at the middle load only, for comparison.
    """

    key: str
    label: str
    server: str
    workload: Workload
    xargs: Mapping[str, Any] = field(default_factory=dict)
    reference: bool = False

    def models(self, adapters: int) -> tuple[str, ...]:
        """The names that requests go to, in turn; contexts are for the base model."""
        return ADAPTERS[:adapters] if self.workload == "mixed" else (BASE,)


SYSTEMS = {
    system.key: system
    for system in (
        System("stock-adapter", "stock adapter", "stock", "mixed"),
        System("adapter", "adapter", "plugin", "mixed", {"cold": 0}),
        System("cold", "CoLD", "plugin", "mixed", {"cold_preset": "cold"}),
        System("context", "base, context", "plugin", "context", {"cold": 0}, reference=True),
        System("cad", "CAD, context", "plugin", "context", {"cold_preset": "cad"}),
    )
}


class Prompts:
    """The prompts of both workloads; the same ones in each process.

    ``mixed``: sorting problems with their answers, cut to ``LENGTHS`` tokens in turn; the longest
    begin with the same ``SHARED`` tokens. ``context``: a chat with a document of ``CONTEXT``
    characters and questions about it. ``OPEN`` documents are asked about in turn, each ``ASKED``
    times, then others take their place.

    Attributes:
        part: Where the document lies in a prompt of ``context``, as ``cold_part``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        text: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": "DOCUMENT\n\nQUESTIONS"}],
            tokenize=False,
            add_generation_prompt=True,
        )
        self._before, rest = text.split("DOCUMENT")
        self._between, self._after = rest.split("QUESTIONS")
        self.part = f"{len(self._before)}:{len(self._before) + CONTEXT}"
        self._shared = self._cut(_solved("train", 0, 12), SHARED)

    def xargs(self, system: System) -> dict[str, Any]:
        """What its requests say to the plugin."""
        said = dict(system.xargs)
        return said | {"cold_part": self.part} if said.get("cold_preset") == "cad" else said

    def make(self, workload: Workload, count: int) -> list[str]:
        """The first ``count`` prompts."""
        one = self._mixed if workload == "mixed" else self._context
        return [one(index) for index in range(count)]

    def _cut(self, text: str, length: int) -> str:
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) >= length, f"{len(ids)} tokens of {length}"
        cut: str = self._tokenizer.decode(ids[:length])
        return cut

    def _mixed(self, index: int) -> str:
        length = LENGTHS[index % len(LENGTHS)]
        own = _solved("test", index, 8)
        if length < LENGTHS[-1]:
            return self._cut(own, length)
        return self._cut(f"{self._shared}\n\n{own}", length)

    def _context(self, index: int) -> str:
        number = index // (OPEN * ASKED) * OPEN + index % OPEN
        known = _shuffled(number)
        document = " ".join(fact.said() for fact in known)[:CONTEXT]
        told = [fact for fact in known if fact.said() in document]
        many = QUESTIONS[index % len(QUESTIONS)]
        asked = Random(f"questions {index}").sample(told, many)
        questions = "\n".join(fact.question for fact in asked)
        return f"{self._before}{document}{self._between}{questions}{self._after}"


@cache
def _shuffled(number: int) -> list[Fact]:
    return Random(f"document {number}").sample(facts(), 60)


@cache
def _problems(split: Literal["train", "test"], count: int) -> list[str]:
    made = SORTING.prompts(split, count)
    return [f"{messages(each)[0]['content']}\n{each.answer}" for each in made]


def _solved(split: Literal["train", "test"], first: int, count: int) -> str:
    """Problems with their answers; more than there are begin again."""
    known = _problems(split, 1000 if split == "test" else count)
    return "\n\n".join(known[(first + i) % len(known)] for i in range(count))
