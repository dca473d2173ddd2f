# SPDX-License-Identifier: Apache-2.0
"""What a problem is, and a cell: the problems of one kind that methods are compared on."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from benchmarks.accuracy.models import Model

# A document, for a base model, or chat messages.
Prompt = str | tuple[Mapping[str, str], ...]
Split = Literal["dev", "test"]
# Of a hundred subjects, how many are dev's.
DEV_SHARE = 33
_DATA = Path(__file__).parent / "tasks" / "data"


def split_of(subject: str) -> Split:
    """The split that everything about ``subject`` belongs to."""
    return "dev" if zlib.crc32(subject.encode()) % 100 < DEV_SHARE else "test"


@cache
def data(name: str) -> Any:
    """What tasks/data/NAME.yaml says."""
    return yaml.safe_load((_DATA / f"{name}.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Problem:
    """A prompt, the same one without the part in question, and what its answer is judged by.

    Attributes:
        prompt: What the expert reads.
        without: What the amateur reads; the same prompt where no part is in question.
        judged: What the cell's ``score`` needs to know.
        plain: Other prompts for the same answer, by name: a "better" prompt, one with the part
            "repeated".
        unasked: The part without what is asked about it, which a second amateur can read; None
            where there is no such prompt.
        kind: The sentence form or the kind of instruction, by which the report counts, too.
        lacking: What several amateurs read, each without another part.
    """

    prompt: Prompt
    without: Prompt
    judged: Any
    plain: Mapping[str, Prompt] = field(default_factory=dict)
    unasked: Prompt | None = None
    kind: str = ""
    # Tests have digests of problems that were measured before there was such a field.
    lacking: tuple[Prompt, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Cell:
    """Problems of one kind.

    Attributes:
        name: For files and the command line.
        group: The cells that stand in one table of the report.
        about: What is asked and what the amateur lacks, in some words.
        make: Gives the first n problems of a split for a model, or as many as there are. The same
            arguments give the same problems, and the first of more are those of fewer.
        score: Judges an answer: measures by name, all of them in every answer. The first one is
            the cell's main one.
        max_tokens: Of an answer.
        control: Whether a contrast must not harm here; otherwise it is expected to help.
        stop: Strings that end any model's answer.
        base_stop: Strings that end a base model's answer, besides.
        chat_only: Whether base models are left out.
        adapter: What the expert wears: a folder, or a name below the run's adapters.
        chosen: Whether an answer from memory may be the right one, and finished answers are chosen
            between.
        executes: Whether the judge runs what the model wrote.
        filter: Gives what a filter makes of an answer; None for a cell without one.
    """

    name: str
    group: str
    about: str
    make: Callable[[Model, Split, int], list[Problem]]
    score: Callable[[str, Problem], dict[str, bool]]
    max_tokens: int
    control: bool = False
    stop: tuple[str, ...] = ()
    base_stop: tuple[str, ...] = ("\n",)
    chat_only: bool = False
    adapter: str | None = None
    chosen: bool = False
    executes: bool = False
    filter: Callable[[str, Problem], str] | None = None

    def is_for(self, model: Model) -> bool:
        """Whether the model can be asked."""
        return model.chat or not self.chat_only

    # Kept for ever: there are some thirty cells.
    @cache  # noqa: B019
    def problems(self, model: Model, split: Split, count: int) -> list[Problem]:
        """What ``make`` gives, made once."""
        return self.make(model, split, count)

    def stops(self, model: Model) -> list[str]:
        """Strings that end the model's answers."""
        base = () if model.chat else self.base_stop
        return list(dict.fromkeys((*self.stop, *base, *model.stop)))
