# SPDX-License-Identifier: Apache-2.0
"""What a problem is, and a cell: the problems of one kind that methods are compared on."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# A document, for a base model, or chat messages.
Prompt = str | tuple[Mapping[str, str], ...]
Split = Literal["dev", "test"]
ModelName = Literal["smollm2", "gemma"]

# Of a hundred subjects, how many are dev's.
DEV_SHARE = 33


def split_of(subject: str) -> Split:
    """The split that everything about ``subject`` belongs to."""
    return "dev" if zlib.crc32(subject.encode()) % 100 < DEV_SHARE else "test"


@dataclass(frozen=True)
class Problem:
    """A prompt, the same one without the part in question, and what its answer is judged by.

    Attributes:
        prompt: What the expert reads.
        without: What the amateur reads.
        judged: What the cell's ``score`` needs to know.
        plain: Other prompts for the same answer, by name, to be decoded without a contrast: a
            better prompt, one that repeats the part.
        unasked: The part without what is asked about it, which a second amateur can read; None
            where there is no such prompt.
    """

    prompt: Prompt
    without: Prompt
    judged: Any
    plain: Mapping[str, Prompt] = field(default_factory=dict)
    unasked: Prompt | None = None


@dataclass(frozen=True)
class Cell:
    """Problems of one kind.

    Attributes:
        name: For files and the command line.
        about: What is asked and what the amateur lacks, in some words, for the page.
        nature: "gain" where a contrast is expected to help, "control" where it must not harm.
        models: That it is made for: "smollm2" (SmolLM2-135M-Instruct, chat messages), "gemma"
            (Gemma 3 270M, a base model, documents).
        make: Gives the first n problems of a split for a model. The same arguments give the same
            problems, and the first of more are those of fewer.
        score: Judges an answer: measures by name, all of them in every answer. The first one is
            the cell's main one.
        max_tokens: Of an answer.
        stop: Strings that end an answer, besides the model's own end, by model.
        adapter: What the expert wears: a folder, or its name below ``ADAPTERS``; None for the
            bare model.
        sampled: Whether methods that draw are of interest, too.
    """

    name: str
    about: str
    nature: Literal["gain", "control"]
    models: tuple[ModelName, ...]
    make: Callable[[ModelName, Split, int], list[Problem]]
    score: Callable[[str, Problem], dict[str, bool]]
    max_tokens: int
    stop: Mapping[ModelName, tuple[str, ...]] = field(default_factory=dict)
    adapter: str | None = None
    sampled: bool = False
