# SPDX-License-Identifier: Apache-2.0
"""Where answers and probabilities come from: what every source can do, and what they share.

A source gives public results of vLLM alone: tokens, ``prompt_logprobs`` and the ``logprobs`` of
named tokens. ``offline.py`` runs an engine in this process, ``server.py`` asks a server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from vllm_cold.method.settings import ColdError
from vllm_cold.tools.contrast import Content, Stream, read_streams
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain.prompts import Asked, refusal
from vllm_cold.tools.explain.trace import Logprob, Row

# vLLM's MAX_LOGPROB_TOKEN_IDS: how many tokens one request can name.
MAX_NAMED = 128


@dataclass(frozen=True, slots=True)
class Read:
    """A prompt as its streams read it.

    Attributes:
        asked: The prompt.
        streams: The expert's, then its amateurs'.
    """

    asked: Asked
    streams: tuple[Stream, ...]

    def after(self, tokens: Sequence[int]) -> Read:
        """The same with the beginning of an answer behind each prompt."""
        longer = (replace(stream, ids=(*stream.ids, *tokens)) for stream in self.streams)
        return replace(self, streams=tuple(longer))


@dataclass(frozen=True, slots=True)
class Decoded:
    """An answer as the engine gave it.

    Attributes:
        tokens: Its ids, the end-of-sequence token included.
        text: Its text, without special tokens.
        finish_reason: "stop" or "length".
    """

    tokens: tuple[int, ...]
    text: str
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Description:
    """What the page says about a source.

    Attributes:
        model: The base model.
        adapter: The expert's, None for none.
        source: Where the numbers come from, in words.
    """

    model: str
    adapter: str | None
    source: str


class Source(Protocol):
    """An expert, amateurs, and what can be asked of them.

    Attributes:
        description: For the page.
        max_model_len: The most tokens of a prompt and its answer, None if it is not known.
        vocab_size: None if it is not known.
    """

    description: Description
    max_model_len: int | None
    vocab_size: int | None

    def read(self, prompts: Sequence[Asked]) -> list[Read]:
        """Each prompt as its streams read it."""

    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Decoded]:
        """The expert's greedy answers to prompts of token ids."""

    def cold(self, prompts: Sequence[Read], max_tokens: int) -> list[Decoded]:
        """The answers with CoLD."""

    def choose(self, texts: Sequence[Read]) -> list[Decoded | None]:
        """The one token that CoLD puts behind each text; None where that cannot be asked."""

    def score(
        self, adapter: str | None, texts: Sequence[Sequence[int]], top: int
    ) -> list[list[Row]]:
        """``prompt_logprobs`` under an adapter, None for the base model.

        Args:
            adapter: Its name.
            texts: Token ids of each prompt with its answer.
            top: How many of the most probable tokens to give at each position.

        Returns:
            For each text one row for each position but the first; row i holds the ``top`` most
            probable tokens after the first i + 1 tokens, and the one that is there.
        """

    def largest_top(self) -> int:
        """The largest ``top`` that is allowed."""

    def look_up(
        self, adapter: str | None, asked: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[Mapping[int, float]]:
        """ln-probabilities of named tokens.

        Args:
            adapter: As in ``score``.
            asked: Pairs of a text's token ids and up to ``MAX_NAMED`` ids that might follow it.

        Returns:
            ln-probabilities by id. An id is missing if the source cannot tell.
        """


def read(
    asked: Asked,
    make: Callable[[str, Content], Sequence[int]],
    expert: str | None,
    base: str,
    loaded: Sequence[str],
) -> Read:
    """A prompt as its streams read it; see ``read_streams``.

    Raises:
        ToolError: a prompt cannot be made, or an amateur reads what its expert does.
    """
    row, amateurs = asked.row, asked.contrast.amateurs
    try:
        return Read(
            asked, read_streams(row.prompt, amateurs, make, expert, base, loaded, asked.chat)
        )
    except ColdError as error:
        raise refusal(error, row) from error


def check_row(row: Mapping[int, Logprob]) -> None:
    """Refuse what cannot be ln-probabilities (an engine may be set to return logits)."""
    for token, entry in row.items():
        if not entry.value <= 1e-3:
            raise ToolError(
                f"vLLM gave {entry.value} as the logprob of token {token}: it seems to run with "
                "--logprobs-mode raw_logits or processed_logits; use its default, raw_logprobs"
            )


def read_rows(rows: Sequence[Any]) -> list[Row]:
    """Read vLLM's ``prompt_logprobs`` of one text, without the None at the first position.

    Args:
        rows: Mappings of token id to an object with ``logprob`` and ``decoded_token``.
    """
    found: list[Row] = []
    for row in rows[1:]:
        read = {t: Logprob(entry.logprob, entry.decoded_token or "") for t, entry in row.items()}
        check_row(read)
        found.append(read)
    return found
