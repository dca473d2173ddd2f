# SPDX-License-Identifier: Apache-2.0
"""Regular requests with contrastive ones among them, and the same as regular ones alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

REGULAR, CONTRASTIVE, EQUAL_WORK = "regular", "contrastive", "equal work"
INSTRUCTION = 16  # tokens, of which each stream of a request without a document has its own
ADAPTERS = ("sorting", "orders")  # which requests name in turn
LOADS, SHARES = (50, 80), (10, 30)  # percent: of the capacity, of the requests


@dataclass(frozen=True)
class Lengths:
    """Tokens, lognormal: most are short, some long, as of chats. The medians are scaled to a model
    of 135 million weights on two cores; what is outside ``least`` and ``most`` is put on them.
    """

    median: float
    sigma: float
    least: int
    most: int

    def draw(self, rng: np.random.Generator) -> int:
        """One of them."""
        drawn = round(float(rng.lognormal(np.log(self.median), self.sigma)))
        return min(max(drawn, self.least), self.most)


PROMPT, ANSWER = Lengths(24, 0.8, 4, 160), Lengths(8, 0.7, 2, 40)
DOCUMENT = Lengths(96, 0.4, 48, 240)
LONGEST = DOCUMENT.most + PROMPT.most + ANSWER.most


@dataclass(frozen=True)
class Stream:
    """What a stream reads: token ids, with an adapter, "" for the base model."""

    prompt: tuple[int, ...]
    adapter: str = ""


@dataclass(frozen=True)
class Request:
    """What is sent.

    Attributes:
        number: Of the client's request that it is, or is a stream of.
        at: Seconds from the start.
        tokens: Generated, whatever they are.
        kind: ``REGULAR``, ``CONTRASTIVE`` or ``EQUAL_WORK``.
        streams: One; of a contrastive request the expert's, then the amateurs'.
    """

    number: int
    at: float
    tokens: int
    kind: str
    streams: tuple[Stream, ...]

    def as_json(self) -> dict[str, Any]:
        """For the process that sends it."""
        streams = [{"prompt": each.prompt, "adapter": each.adapter} for each in self.streams]
        return {"at": self.at, "tokens": self.tokens, "streams": streams}


@dataclass(frozen=True)
class Mix:
    """What share of the requests is contrasted, and with what.

    Attributes:
        workload: ``text``, of the base model, or ``adapters``.
        percent: Of the requests.
        contrast: ``one``: an amateur with another instruction, or without the adapter;
            ``document``: the expert reads one, the amateur does not; ``four`` amateurs, each with
            an instruction of its own; "" where none is contrasted.
    """

    workload: str
    percent: int = 0
    contrast: str = ""

    def __str__(self) -> str:
        return f"{self.workload}, {self.percent} % {self.contrast}".rstrip()


CONTRASTS = {"text": ("one", "document", "four"), "adapters": ("one",)}


def mixes(workload: str, shares: Sequence[int] = SHARES) -> list[Mix]:
    """All of a workload, the one without a contrast first."""
    contrasted = [Mix(workload, share, kind) for kind in CONTRASTS[workload] for share in shares]
    return [Mix(workload), *contrasted]


class Text:
    """Tokens of sentences, of which each prompt is a piece from a random place."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens

    def piece(self, length: int, rng: np.random.Generator) -> tuple[int, ...]:
        """So many tokens in a row."""
        start = int(rng.integers(len(self._tokens) - length))
        return tuple(self._tokens[start : start + length])

    @classmethod
    @cache
    def of_facts(cls, tokenizer: Any) -> Text:
        """The sentences of ``examples.facts``."""
        from examples.facts import facts

        text = " ".join(fact.said() for fact in facts())
        return cls(tokenizer(text, add_special_tokens=False)["input_ids"])


def _streams(mix: Mix, text: Text, rng: np.random.Generator) -> tuple[Stream, ...]:
    """Those of a contrastive request."""
    own = text.piece(PROMPT.draw(rng), rng)
    if mix.workload == "adapters":
        return Stream(own, ADAPTERS[int(rng.integers(len(ADAPTERS)))]), Stream(own)
    if mix.contrast == "document":
        return Stream(text.piece(DOCUMENT.draw(rng), rng) + own), Stream(own)
    num = {"one": 2, "four": 5}[mix.contrast]
    instructions: dict[tuple[int, ...], None] = {}  # no two alike: an amateur is not the expert
    while len(instructions) < num:
        instructions[text.piece(INSTRUCTION, rng)] = None
    return tuple(Stream(instruction + own) for instruction in instructions)


def schedule(mix: Mix, regular: int, rate: float, text: Text, seed: int) -> list[Request]:
    """Traffic with ``regular`` regular requests and as many contrastive ones as their share asks
    for, at random places among them.

    Args:
        mix: What is contrasted.
        regular: So many, whatever the share.
        rate: Of all requests, per second, at random times (Poisson); infinity: all at once.
        text: What prompts are of.
        seed: Of all that is random: the same seed gives the same traffic.
    """
    rng = np.random.default_rng(seed)
    contrasted = round(regular * mix.percent / (100 - mix.percent))
    kinds = [REGULAR] * regular + [CONTRASTIVE] * contrasted
    rng.shuffle(kinds)
    times = np.cumsum(rng.exponential(1 / rate, len(kinds)))
    made = []
    for number, (at, kind) in enumerate(zip(times, kinds, strict=True)):
        if kind == CONTRASTIVE:
            streams = _streams(mix, text, rng)
        else:
            adapter = ADAPTERS[number % len(ADAPTERS)] if mix.workload == "adapters" else ""
            streams = (Stream(text.piece(PROMPT.draw(rng), rng), adapter),)
        made.append(Request(number, float(at), ANSWER.draw(rng), kind, streams))
    return made


def equal_work(requests: Sequence[Request]) -> list[Request]:
    """The same with each contrastive request as so many regular ones as it has streams: at the same
    time, of the same prompts, adapters and length of answer.
    """

    def parts(request: Request) -> Iterator[Request]:
        if request.kind != CONTRASTIVE:
            yield request
            return
        for stream in request.streams:
            yield Request(request.number, request.at, request.tokens, EQUAL_WORK, (stream,))

    return [part for request in requests for part in parts(request)]
