# SPDX-License-Identifier: Apache-2.0
"""Where answers and probabilities come from: what every source can do, and what they share.

A source gives public results of vLLM alone: tokens, ``prompt_logprobs`` and the ``logprobs`` of
named tokens. ``offline.py`` runs an engine in this process, ``server.py`` asks a server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vllm_cold.method.settings import ColdSettings
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain.trace import Logprob, Row

EXPERT, AMATEUR = "expert", "amateur"

# vLLM's MAX_LOGPROB_TOKEN_IDS: how many tokens one request can name.
MAX_NAMED = 128


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
        adapter: The expert.
        amateur: What it is contrasted with.
        source: Where the numbers come from, in words.
    """

    model: str
    adapter: str
    amateur: str
    source: str


class Source(Protocol):
    """An expert, an amateur, and what can be asked of them.

    Attributes:
        description: For the page.
        max_model_len: The most tokens of a prompt and its answer, None if it is not known.
        vocab_size: None if it is not known.
    """

    description: Description
    max_model_len: int | None
    vocab_size: int | None

    def encode(self, prompts: Sequence[str], chat: bool) -> list[list[int]]:
        """Each prompt as the model reads it: token ids, those of the chat template included."""

    def decode(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, settings: ColdSettings | None
    ) -> list[Decoded]:
        """The expert's greedy answers; with CoLD if there are ``settings``."""

    def score(self, stream: str, texts: Sequence[Sequence[int]], top: int) -> list[list[Row]]:
        """``prompt_logprobs`` of one stream.

        Args:
            stream: ``EXPERT`` or ``AMATEUR``.
            texts: Token ids of each prompt with its answer.
            top: How many of the most probable tokens to give at each position.

        Returns:
            For each text one row for each position but the first; row i holds the ``top`` most
            probable tokens after the first i + 1 tokens, and the one that is there.
        """

    def largest_top(self) -> int:
        """The largest ``top`` that is allowed."""

    def look_up(
        self, stream: str, asked: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[Mapping[int, float]]:
        """ln-probabilities of named tokens.

        Args:
            stream: ``EXPERT`` or ``AMATEUR``.
            asked: Pairs of a text's token ids and up to ``MAX_NAMED`` ids that might follow it.

        Returns:
            ln-probabilities by id. An id is missing if the source cannot tell.
        """


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
