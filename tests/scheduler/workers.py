# SPDX-License-Identifier: Apache-2.0
"""Workers without a model: they keep the state that vLLM's model runners keep, from the same
messages, and a KV cache of hashes.

The "KV" of a position is a hash of all tokens up to it and of the adapter, as in attention. A
position is computed only if the blocks hold the right hash for every position before it; a token
is sampled from the hash of its row, and for a group from all its rows. So a wrong block, a block
that nobody wrote, a lost token or a row without the others ends in an error here or in a wrong
token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_cold.group.stream import from_extra_args
from vllm_cold.vllm.versions import vllm_version

RELEASE = tuple(int(part) for part in vllm_version().split(".")[:2])
"""Major and minor version of the installed vLLM."""

_MASK = (1 << 61) - 1
FIRST_TOKEN, NUM_TOKENS = 3, 50


def extend(chain: int, token: int, adapter: int) -> int:
    """The hash of a position, from that of the position before it."""
    return (chain * 1_000_003 + token * 7_919 + adapter * 104_729 + 1) & _MASK


def hash_of(tokens: Sequence[int], adapter: int) -> int:
    """The hash of the last position of ``tokens``."""
    chain = 0
    for token in tokens:
        chain = extend(chain, token, adapter)
    return chain


def sample(expert: int, amateurs: Sequence[int] = ()) -> int:
    """The next token of a row, or of a group's rows."""
    mixed = expert
    for index, amateur in enumerate(amateurs):
        mixed = (mixed * 31 + amateur * (17 + index)) & _MASK
    return FIRST_TOKEN + (mixed >> 7) % NUM_TOKENS


def solo(
    prompt: Sequence[int],
    adapter: int,
    amateurs: Sequence[tuple[int, Sequence[int]]],
    max_tokens: int,
    stop: int | None,
) -> list[int]:
    """What a request gets on an idle engine.

    Args:
        prompt: The expert's.
        adapter: The expert's.
        amateurs: Of each, adapter and prompt; none for a plain request.
        max_tokens: The most that it gets.
        stop: The token that ends it.
    """
    output: list[int] = []
    while len(output) < max_tokens and stop not in output[-1:]:
        others = [hash_of([*own, *output], number) for number, own in amateurs]
        output.append(sample(hash_of([*prompt, *output], adapter), others))
    return output


@dataclass
class Row:
    """What a worker knows of a request."""

    tokens: list[int]
    num_prompt: int
    blocks: list[int]
    adapter: int
    group: str | None
    index: int
    size: int
    chain: list[int] = field(default_factory=lambda: [0])

    def hash_at(self, position: int) -> int:
        """The right KV of a position."""
        while len(self.chain) <= position + 1:
            self.chain.append(
                extend(self.chain[-1], self.tokens[len(self.chain) - 1], self.adapter)
            )
        return self.chain[position + 1]

    def set_tokens(self, tokens: list[int]) -> None:
        if self.tokens != tokens:
            self.tokens, self.chain = tokens, [0]


class Workers:
    """All workers of an engine. ``v2`` follows vLLM's V2 model runner, else V1."""

    def __init__(self, block_size: int, max_loras: int, *, is_async: bool, v2: bool) -> None:
        self.block_size = block_size
        self.max_loras = max_loras
        self.is_async = is_async
        self.v2 = v2
        self.rows: dict[str, Row] = {}
        self.batch: set[str] = set()  # V1: the rows of the step before
        self.kv: dict[tuple[int, int], int] = {}
        self.scored: list[str] = []  # the groups of the last step

    def execute(self, output: Any) -> dict[str, list[int]]:
        """Run a step; the tokens sampled for each request, none for a prompt chunk."""
        scheduled: dict[str, int] = output.num_scheduled_tokens
        gone = set(output.finished_req_ids)
        if self.v2:
            gone |= output.preempted_req_ids or set()
        for request_id in gone:
            self.rows.pop(request_id, None)
        self.batch -= gone
        resumed = output.scheduled_cached_reqs.resumed_req_ids
        self.batch &= scheduled.keys() - resumed

        cleared = set(output.new_block_ids_to_zero or ())
        self.kv = {slot: kv for slot, kv in self.kv.items() if slot[0] not in cleared}
        computed = self._add(output.scheduled_new_reqs)
        computed.update(self._update(output.scheduled_cached_reqs))
        assert computed.keys() == scheduled.keys(), "some scheduled requests were not sent"
        self.batch = set(scheduled)
        adapters = {self.rows[i].adapter for i in scheduled} - {0}
        assert len(adapters) <= self.max_loras, "more adapters in a batch than slots"

        last: dict[str, int] = {}
        for request_id, count in scheduled.items():
            row, start = self.rows[request_id], computed[request_id]
            self._compute(request_id, row, start, start + count)
            if start + count == len(row.tokens):
                last[request_id] = row.hash_at(start + count - 1)
        return self._sample(scheduled, last)

    def _add(self, new: Sequence[Any]) -> dict[str, int]:
        computed = {}
        for request in new:
            request_id = request.req_id
            if self.v2 and RELEASE < (0, 25):
                # There a reset with running requests reports no preemption; that runner drops
                # the row when the request comes as new.
                self.rows.pop(request_id, None)
            assert request_id not in self.rows, f"{request_id} was sent as new twice"
            prompt = list(request.prompt_token_ids)
            stream = from_extra_args(request.sampling_params.extra_args)
            self.rows[request_id] = Row(
                tokens=list(request.prefill_token_ids) if self.v2 else list(prompt),
                num_prompt=len(prompt),
                blocks=list(request.block_ids[0]),
                adapter=request.lora_request.lora_int_id if request.lora_request else 0,
                group=stream.group if stream else None,
                index=(stream.index or 0) if stream else 0,
                size=1 + len(stream.amateurs) if stream else 1,
            )
            computed[request_id] = request.num_computed_tokens
        return computed

    def _update(self, cached: Any) -> dict[str, int]:
        computed = {}
        for index, request_id in enumerate(cached.req_ids):
            assert request_id in self.rows, f"{request_id} was never sent as new"
            row = self.rows[request_id]
            computed[request_id] = cached.num_computed_tokens[index]
            blocks, num_output = cached.new_block_ids[index], cached.num_output_tokens[index]
            if not self.v2:
                if num_output < len(row.tokens) - row.num_prompt:
                    row.set_tokens(row.tokens[: row.num_prompt + num_output])
                if request_id not in self.batch and self.is_async and num_output > 0:
                    known = cached.all_token_ids[request_id]
                    row.set_tokens(row.tokens[: row.num_prompt] + list(known[-num_output:]))
            if request_id in cached.resumed_req_ids:
                assert not self.v2 and request_id not in self.batch
                assert blocks is not None
                row.blocks = list(blocks[0])
            elif blocks is not None:
                row.blocks += blocks[0]
        return computed

    def _compute(self, request_id: str, row: Row, start: int, end: int) -> None:
        """Attention over everything before, then this step's KV into the blocks."""
        assert end <= len(row.tokens), f"{request_id} computes tokens that are not known"
        assert end <= len(row.blocks) * self.block_size, f"{request_id} has too few blocks"
        for position in range(end):
            slot = (row.blocks[position // self.block_size], position % self.block_size)
            if position < start:
                assert self.kv.get(slot) == row.hash_at(position), (
                    f"{request_id} reads wrong KV at position {position} of {start}"
                )
            else:
                self.kv[slot] = row.hash_at(position)

    def _sample(self, scheduled: dict[str, int], last: dict[str, int]) -> dict[str, list[int]]:
        chains: dict[str | None, dict[int, int]] = {}
        for request_id, chain in last.items():
            row = self.rows[request_id]
            chains.setdefault(row.group or request_id, {})[row.index] = chain
        self.scored = []
        told: dict[str, int] = {}
        for request_id in last:
            row = self.rows[request_id]
            of_group = chains[row.group or request_id]
            assert len(of_group) == row.size, f"{request_id} samples without the other streams"
            if row.index == 0:
                told[row.group or request_id] = sample(
                    of_group[0], [of_group[i] for i in range(1, row.size)]
                )
                if row.group is not None:
                    self.scored.append(row.group)
        sampled: dict[str, list[int]] = {i: [] for i in scheduled}
        for request_id in last:
            row = self.rows[request_id]
            sampled[request_id] = [told[row.group or request_id]]
            row.tokens += sampled[request_id]
        return sampled
