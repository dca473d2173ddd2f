# SPDX-License-Identifier: Apache-2.0
"""Where answers and probabilities come from: what every source can do, and what they share.

A source gives public results of vLLM alone: tokens, ``prompt_logprobs`` and the ``logprobs`` of
named tokens; and the weights that CoLD tells. ``offline.py`` runs an engine in this process,
``server.py`` asks a server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeVar

from vllm_cold.tools.contrast import Content, Stream
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain.prompts import Asked

# vLLM's MAX_LOGPROB_TOKEN_IDS: how many tokens one request can name.
MAX_NAMED = 128
AT_ONCE = 32  # requests; a server works on them side by side
_T = TypeVar("_T")


class Logprob(NamedTuple):
    """ln of a probability, and the token decoded alone; "" for a part of a character."""

    value: float
    text: str = ""


Row = dict[int, Logprob]
"""One stream's distribution at one position, as far as it is known: by token id."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """An answer as the engine gave it.

    Attributes:
        tokens: Ids, with the end-of-sequence token.
        text: Without special tokens.
        finish_reason: "stop" or "length".
        weights: Where a rule chooses them, of each token those of the amateurs; None for one that
            had ended.
    """

    tokens: tuple[int, ...]
    text: str
    finish_reason: str
    weights: tuple[tuple[float | None, ...], ...] = ()


class Source(Protocol):
    """What can be asked; each method raises ToolError where the source cannot answer.

    Attributes:
        model: The base model's name, as it is shown.
        base: The same, as an amateur calls it.
        expert: The name of the expert's adapter, None for none.
        loaded: The names of all adapters.
        about: Where the numbers come from, in words.
        max_model_len: The most tokens of a prompt and its answer, None if it is not known.
        vocab_size: None if it is not known.
    """

    model: str
    base: str
    expert: str | None
    loaded: list[str]
    about: str
    max_model_len: int | None
    vocab_size: int | None

    async def tokens(self, field: str, reads: Content) -> Sequence[int]:
        """The token ids of what a stream reads; may raise ColdError, which names ``field``."""

    async def decode(
        self, prompts: Sequence[Asked], greedy: bool, max_tokens: int
    ) -> list[Decoded]:
        """The answers with CoLD, with the weights where a rule chooses them, or the expert's greedy
        ones.
        """

    async def score(self, texts: Sequence[Stream], top: int) -> list[list[Row]]:
        """``prompt_logprobs``: for each position but the first the ``top`` most probable tokens and
        the one that is there. Row i is about what follows the first i + 1 tokens.
        """

    async def largest_top(self) -> int:
        """The largest ``top`` that is allowed."""

    async def look_up(
        self, asked: Sequence[tuple[Stream, Sequence[int]]]
    ) -> list[Mapping[int, float]]:
        """ln-probabilities by id, of the up to ``MAX_NAMED`` ids that are named beside each text,
        as what might follow it.
        """


def after(stream: Stream, tokens: Sequence[int]) -> Stream:
    """A stream that has read the beginning of an answer, too."""
    return replace(stream, ids=(*stream.ids, *tokens), answer=(*stream.answer, *tokens))


async def side_by_side(questions: Iterable[Awaitable[_T]]) -> list[_T]:
    """What is answered to each, in their order; the first error ends all."""
    seats = asyncio.Semaphore(AT_ONCE)

    async def seated(question: Awaitable[_T]) -> _T:
        async with seats:
            return await question

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(seated(question)) for question in questions]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def make_row(values: Mapping[int, tuple[float, str | None]]) -> Row:
    """A row of what vLLM gives: logprob and text by id.

    Raises:
        ToolError: they cannot be ln-probabilities (an engine may be set to return logits).
    """
    for token, (value, _) in values.items():
        if not value <= 1e-3:
            raise ToolError(
                f"vLLM gave {value} as the logprob of token {token}: it seems to run with "
                "--logprobs-mode raw_logits or processed_logits; use its default, raw_logprobs"
            )
    return {token: Logprob(value, text or "") for token, (value, text) in values.items()}
