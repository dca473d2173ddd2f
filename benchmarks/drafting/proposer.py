# SPDX-License-Identifier: Apache-2.0
"""``drafters.Recall`` as vLLM's ``"method": "custom_class"`` calls it.

Nothing is kept of a row of the batch: its tokens are in vLLM's array, the last of them those that
``sampled_token_ids`` says are new. So rows may be moved, and requests come and go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.drafting.drafters import Memory, Source

Tokens = npt.NDArray[np.int32]
# Runs that are remembered before the older half is forgotten: some 20,000 tokens of answers.
CAPACITY = 120_000


def longest_match(tokens: Tokens, longest: int) -> tuple[int, int]:
    """The last place of the longest end of ``tokens`` in them, up to ``longest`` tokens.

    Returns:
        The match's length and the place behind it; 0, 0 if the last token is nowhere else.
    """
    places = np.flatnonzero(tokens[:-1] == tokens[-1])
    if not len(places):
        return 0, 0
    size = 1
    while size < longest:
        further = places[places >= size]
        further = further[tokens[further - size] == tokens[-1 - size]]
        if not len(further):
            break
        places, size = further, size + 1
    return size, int(places[-1]) + 1


class RecallProposer:
    """Drafts for a batch.

    Args:
        config: vLLM's; ``num_speculative_tokens`` and ``max_model_len`` are read.
    """

    LEAST = 0.1

    def __init__(self, config: Any) -> None:
        self._k: int = config.speculative_config.num_speculative_tokens
        self._most: int = config.model_config.max_model_len
        self._memory, self._old = Memory(), Memory()

    def propose(
        self,
        sampled_token_ids: list[list[int]],
        num_tokens_no_spec: Sequence[int] | npt.NDArray[Any],
        token_ids_cpu: Tokens,
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """Drafts of each row; none for a row that emitted nothing or is full."""
        drafts: list[list[int]] = []
        for i, new in enumerate(sampled_token_ids):
            n = int(num_tokens_no_spec[i])
            row = token_ids_cpu[i, :n]
            self._learn(row, len(new))
            k = min(self._k, self._most - n)
            drafts.append(self._draft(row, k) if new and k > 0 else [])
        return drafts

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """There is none."""

    def _recall(self, before: list[int]) -> tuple[int, int]:
        size, token = self._memory.find(before)
        older, other = self._old.find(before)
        return (size, token) if size >= older else (older, other)

    def _found(self, row: Tokens) -> list[tuple[Source, int, int]]:
        """What the sources know: source, length of the match, and the next token."""
        found: list[tuple[Source, int, int]] = []
        size, place = longest_match(row, self._memory.longest)
        if size:
            found.append(("own", size, int(row[place])))
        size, token = self._recall(row[-self._memory.longest :].tolist())
        if size:
            found.append(("answers", size, token))
        return found

    def _learn(self, row: Tokens, new: int) -> None:
        """The last ``new`` tokens of a row were emitted."""
        memory = self._memory
        for n in range(max(len(row) - new, 1), len(row)):
            token = int(row[n])
            for source, size, predicted in self._found(row[:n]):
                memory.judge(source, size, predicted == token)
            memory.learn(row[max(0, n - memory.longest) : n].tolist(), token)
        if len(memory.next) > CAPACITY // 2:
            self._old.next, memory.next = memory.next, {}

    def _draft(self, row: Tokens, k: int) -> list[int]:
        found = self._found(row)
        if not found:
            return []
        memory, drafted, chance = self._memory, list[int](), 1.0
        source, size, token = max(found, key=lambda each: memory.rate(*each[:2]))
        copied: list[int] = []
        if source == "own":
            place = longest_match(row, memory.longest)[1]
            copied = row[place : place + k].tolist()
        before = row[-memory.longest :].tolist()
        for i in range(k):
            chance *= memory.rate(source, size)
            if chance < self.LEAST:
                break
            drafted.append(token)
            if source == "own":
                if i + 1 == len(copied):
                    break
                size, token = min(size + 1, memory.longest), copied[i + 1]
            else:
                before = [*before, token][-memory.longest :]
                size, token = self._recall(before)
                if not size:
                    break
        return drafted
