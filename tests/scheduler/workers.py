# SPDX-License-Identifier: Apache-2.0
"""Workers without a model: they keep the state that vLLM's model runners keep, from the same
messages, and a KV cache of hashes.

The "KV" of a position is a hash of all tokens up to it and of the adapter, as in attention. A
position is computed only if the blocks hold the right hash for every position before it; a token
is sampled from the hash of its row, and for a group from all its rows. So a wrong block, a block
that nobody wrote, a lost token or a row without the others ends in an error here or in a wrong
token.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm.v1.outputs import DraftTokenIds, KVConnectorOutput

from tests.scheduler.connector import BAD, ConnectorWorkers
from tests.scheduler.media import Encoder, seen
from tests.scheduler.ssm import States
from vllm_cold.compat.versions import vllm_version
from vllm_cold.rules import Parameter, Rule, registry
from vllm_cold.wire.step_stats import Explained, RowStats
from vllm_cold.wire.stream import Stream, from_extra_args

if TYPE_CHECKING:
    from tests.scheduler.harness import Setup

RELEASE = tuple(int(part) for part in vllm_version().split(".")[:2])
"""Major and minor version of the installed vLLM."""

_MASK = (1 << 61) - 1
FIRST_TOKEN, NUM_TOKENS = 3, 50
WINDOW = 8
"""Tokens that layers with a sliding window read, the last one included."""
GARBAGE = 2
"""What is sampled from KV that was not loaded."""


def extend(chain: int, token: int, adapter: int) -> int:
    """The hash of a position, from that of the position before it."""
    return (chain * 1_000_003 + token * 7_919 + adapter * 104_729 + 1) & _MASK


def hash_of(tokens: Sequence[int], adapter: int) -> int:
    """The hash of the last position of ``tokens``."""
    chain = 0
    for token in tokens:
        chain = extend(chain, token, adapter)
    return chain


class Lives(Rule):
    """A rule that needs its i-th amateur for ``life_i`` tokens, and ends it then."""

    name = "lives"
    parameters = {f"life_{i}": Parameter(1e6, 1.0, 1e6) for i in range(1, 5)}
    retires = True


class LivesWithState(Lives):
    """The same, with state, which has to be that of the step before."""

    name = "lives_with_state"
    state = 1


registry._added.update({rule.name: rule() for rule in (Lives, LivesWithState)})


def sample(expert: int, amateurs: Sequence[int | None] = ()) -> int:
    """The next token of a row, or of a group's rows; None for an amateur that has ended."""
    mixed = expert
    for index, amateur in enumerate(amateurs):
        if amateur is None:
            continue
        mixed = (mixed * 31 + amateur * (17 + index)) & _MASK
    return FIRST_TOKEN + (mixed >> 7) % NUM_TOKENS


def solo(
    prompt: Sequence[int],
    adapter: int,
    amateurs: Sequence[tuple[int, Sequence[int]]],
    max_tokens: int,
    stop: int | None,
    lives: Sequence[int] = (),
) -> list[int]:
    """What a request gets on an idle engine.

    Args:
        prompt: The expert's.
        adapter: The expert's.
        amateurs: Of each, adapter and prompt; none for a regular request.
        max_tokens: The most that it gets.
        stop: The token that ends it.
        lives: Of each amateur, for how many tokens it is needed; none if all are to the end.
    """
    output: list[int] = []
    while len(output) < max_tokens and stop not in output[-1:]:
        others = [
            None if lives and len(output) >= lives[i] else hash_of([*own, *output], number)
            for i, (number, own) in enumerate(amateurs)
        ]
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
    lives: Sequence[int] = ()
    slot: int | None = None
    chain: list[int] = field(default_factory=lambda: [0])
    drafts: list[int] = field(default_factory=list)  # for the next step
    decodes: bool = False  # whether it was sampled in the last step that it was in
    rejected: list[int] = field(default_factory=list)  # drafts of its last steps, that were wrong
    bad: bool = False  # whether it read KV in this step that a connector did not load
    window_blocks: list[list[int]] = field(default_factory=list)  # of each group
    state_blocks: list[list[int]] = field(default_factory=list)
    state_at: int | None = None
    read: list[int] = field(default_factory=list)  # of the prompt: tokens, and images' embeddings

    def hash_at(self, position: int) -> int:
        """The right KV of a position."""
        while (at := len(self.chain) - 1) <= position:
            token = self.read[at] if at < len(self.read) else self.tokens[at]
            self.chain.append(extend(self.chain[-1], token, self.adapter))
        return self.chain[position + 1]

    def set_tokens(self, tokens: list[int]) -> None:
        if self.tokens != tokens:
            self.tokens, self.chain = tokens, [0]


def lives_of(stream: Stream) -> tuple[int, ...]:
    """For how many tokens each amateur is needed; empty if all are to the end."""
    given = stream.settings.rule_parameters
    if not given:
        return ()
    return tuple(int(given[f"life_{i}"]) for i in range(1, 1 + len(stream.amateurs)))


def weights_of(lives: Sequence[int], step: int) -> list[float]:
    """What the rule chooses at a step, 0 for those that it needs no more."""
    return [0.0 if step >= life else -1.0 - step - i / 8 for i, life in enumerate(lives)]


class Workers:
    """All workers of an engine, which follow vLLM's V2 model runner or V1."""

    def __init__(self, setup: "Setup") -> None:
        self.block_size = setup.block_size
        self.max_loras = setup.max_loras
        self.num_windows = setup.windows
        self.is_async = setup.is_async
        self.v2 = setup.v2
        self.num_drafts = setup.drafts
        self.right = setup.right  # how many of the drafts are
        self.rng = random.Random(self.num_drafts)
        self.accepted = self.drafted = 0
        self.rows: dict[str, Row] = {}
        self.batch: set[str] = set()  # V1: the rows of the step before
        self.kv: dict[tuple[int, int], int] = {}
        self.scored: list[tuple[str, RowStats]] = []  # the groups of the last step
        self.loads: ConnectorWorkers | None = None
        self.rule_states: dict[tuple[int, int], tuple[str, int]] = {}  # by slot and step
        self.layers = setup.layers
        self.states = States(self.layers, self.block_size, self.kv) if self.layers else None
        self.encoder = Encoder(setup.media) if setup.media else None

    def execute(self, output: Any) -> tuple[dict[str, list[int]], KVConnectorOutput | None]:
        """Run a step.

        Returns:
            The tokens sampled for each request, none for a prompt chunk; what a connector did.
        """
        for block in output.new_block_ids_to_zero or ():
            self._clear(block)
        if self.loads is None:
            return self._execute(output), None
        meta = output.kv_connector_metadata
        told = self.loads.before_step(meta)
        sampled = self._execute(output)
        self.loads.after_step(meta, told, self.rows)
        return sampled, told

    def _execute(self, output: Any) -> dict[str, list[int]]:
        scheduled: dict[str, int] = output.num_scheduled_tokens
        gone = set(output.finished_req_ids)
        if self.v2:
            gone |= output.preempted_req_ids or set()
        for request_id in gone:
            self.rows.pop(request_id, None)
        self.batch -= gone
        resumed = set(getattr(output.scheduled_cached_reqs, "resumed_req_ids", ()))  # before 0.34
        self.batch &= scheduled.keys() - resumed

        # V1's of before a preemption would lead to blocks that it has no more.
        for request_id in {*(output.preempted_req_ids or ()), *resumed} & self.rows.keys():
            self.rows[request_id].state_at = None
        for copy in getattr(output, "kv_cache_block_copies", None) or ():
            self._copy(copy.src_block_id, copy.dst_block_id)
        if self.encoder is not None:
            for request_id in gone:
                self.encoder.features.pop(request_id, None)
            self.encoder.before_step(output)
        computed = self._add(output.scheduled_new_reqs)
        computed.update(self._update(output.scheduled_cached_reqs))
        assert computed.keys() == scheduled.keys(), "some scheduled requests were not sent"
        self.batch = set(scheduled)
        adapters = {self.rows[i].adapter for i in scheduled} - {0}
        assert len(adapters) <= self.max_loras, "more adapters in a batch than slots"

        if self.states is not None:
            of_step = [(self.rows[i], computed[i], computed[i] + n) for i, n in scheduled.items()]
            self.states.prepare(of_step)
        chains: dict[str, list[int]] = {}
        verified: dict[str, list[int]] = {}
        for request_id, count in scheduled.items():
            row, start = self.rows[request_id], computed[request_id]
            drafts = list(output.scheduled_spec_decode_tokens.get(request_id, ()))
            if row.decodes:
                # With asynchronous scheduling all drafts count as right until it is heard of them.
                true = len(row.tokens) - 1
                late = sum(row.rejected[-2:]) if self.is_async else 0
                assert true <= start <= true + late, f"{request_id} is at {true}, not {start}"
                start = true
                if self.is_async:
                    assert set(drafts) <= {-1}
                    drafts = row.drafts[: len(drafts)]
            elif drafts:  # padding: all the same length is faster
                alone = sum(r.group == row.group for r in self.rows.values()) == 1
                assert set(drafts) == {-1} and (row.group is None or alone)
            verified[request_id] = drafts
            if self.encoder is not None:
                in_step = row.group is not None and not row.lives  # else it may be alone by now
                self.encoder.compute(request_id, start, start + count, in_step)
            if self.states is not None:
                self.states.compute(request_id, row, start, start + count)
            hashes = self._compute(request_id, row, start, start + count - len(drafts), drafts)
            if hashes:
                chains[request_id] = hashes
            row.decodes = bool(hashes)
        return self._sample(scheduled, chains, verified)

    def _clear(self, block: int) -> None:
        for offset in range(self.block_size):
            self.kv.pop((block, offset), None)
        if self.states is not None:
            self.states.drop(block)

    def _copy(self, source: int, target: int) -> None:
        self._clear(target)
        for offset in range(self.block_size):
            if (source, offset) in self.kv:
                self.kv[target, offset] = self.kv[source, offset]
        if self.states is not None:
            self.states.copy(source, target)

    def _state_blocks(self, block_ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Those of the groups of SSM layers, which are the last ones."""
        groups = self.layers.groups if self.layers else 0
        return [list(ids) for ids in block_ids[len(block_ids) - groups :]]

    def _window_blocks(self, block_ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Those of the groups with sliding windows, which follow the first one."""
        return [list(ids) for ids in block_ids[1 : 1 + self.num_windows]]

    def _add(self, new: Sequence[Any]) -> dict[str, int]:
        computed = {}
        for request in new:
            request_id = request.req_id
            if self.v2 and RELEASE == (0, 23):
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
                window_blocks=self._window_blocks(request.block_ids),
                adapter=request.lora_request.lora_int_id if request.lora_request else 0,
                group=stream.group if stream else None,
                index=(stream.index or 0) if stream else 0,
                size=1 + len(stream.amateurs) if stream else 1,
                lives=lives_of(stream) if stream else (),
                slot=stream.slot if stream else None,
                state_blocks=self._state_blocks(request.block_ids),
                read=seen(prompt, request.mm_features),
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
                    if self.loads and computed[request_id] < len(row.tokens) - 1:
                        row.decodes = False  # its load has failed: it computes some once more
                if request_id not in self.batch and self.is_async and num_output > 0:
                    known = cached.all_token_ids[request_id]
                    row.set_tokens(row.tokens[: row.num_prompt] + list(known[-num_output:]))
            if request_id in getattr(cached, "resumed_req_ids", ()):
                assert not self.v2 and request_id not in self.batch
                assert blocks is not None
                row.blocks = list(blocks[0])
                row.window_blocks = self._window_blocks(blocks)
                row.state_blocks = self._state_blocks(blocks)
                row.decodes, row.rejected = False, []
            elif blocks is not None:
                row.blocks += blocks[0]
                for ids, more in zip(row.window_blocks, self._window_blocks(blocks), strict=True):
                    ids += more
                for ids, more in zip(row.state_blocks, self._state_blocks(blocks), strict=True):
                    ids += more
        return computed

    def _compute(
        self, request_id: str, row: Row, start: int, end: int, drafts: Sequence[int]
    ) -> list[int]:
        """Attention over everything before, then this step's KV into the blocks.

        Returns:
            The hashes that tokens are sampled from: after the last token and after each draft;
            none for a prompt chunk.
        """
        assert end <= len(row.tokens), f"{request_id} computes tokens that are not known"
        last = end + len(drafts)
        attends = self.layers is None or self.layers.attention
        assert not attends or last <= len(row.blocks) * self.block_size, (
            f"{request_id} has too few blocks"
        )
        assert end == len(row.tokens) or not drafts, "a prompt chunk has drafts"
        held = row.blocks if attends else ()
        size = self.block_size
        slots = [(held[i // size], i % size) for i in range(last if attends else 0)]
        row.bad = any(self.kv.get(slot) == BAD for slot in slots[:start])
        hashes = [row.hash_at(end - 1)]
        for draft in drafts:
            hashes.append(extend(hashes[-1], draft, row.adapter))
        for position, slot in enumerate(slots):
            if position < start:
                assert self.kv.get(slot) in (row.hash_at(position), BAD), (
                    f"{request_id} reads wrong KV at position {position} of {start}"
                )
            elif row.bad:
                self.kv[slot] = BAD
            else:
                if self.states is not None:
                    self.states.drop(slot[0])
                self.kv[slot] = (
                    row.hash_at(position) if position < end else hashes[position - end + 1]
                )
        for ids in row.window_blocks:
            for position in range(max(start - WINDOW + 1, 0), last):
                slot = ids[position // size], position % size
                if position >= start:
                    assert slot[0], f"{request_id} has no block for position {position}"
                    self.kv[slot] = self.kv[slots[position]]
                else:
                    assert self.kv.get(slot) == row.hash_at(position), (
                        f"{request_id} reads wrong KV at position {position} of {start} in a window"
                    )
        return hashes if end == len(row.tokens) else []

    def _sample(
        self,
        scheduled: dict[str, int],
        chains: dict[str, list[int]],
        verified: dict[str, list[int]],
    ) -> dict[str, list[int]]:
        groups: dict[str, dict[int, str]] = {}
        for request_id in chains:
            row = self.rows[request_id]
            groups.setdefault(row.group or request_id, {})[row.index] = request_id
        self.scored = []
        sampled: dict[str, list[int]] = {i: [] for i in scheduled}
        for name, of_group in groups.items():
            first = self.rows[next(iter(of_group.values()))]
            streams = [of_group.get(i) for i in range(first.size)]
            assert None not in streams or first.lives, f"{name} samples without the other streams"
            expert = streams[0]
            assert expert is not None, f"{name} samples without its expert"
            ids = [stream for stream in streams if stream is not None]
            bad = any(self.rows[i].bad for i in ids)
            drafts = verified[expert]
            assert all(verified[i] == drafts for i in ids), f"streams of {name} verify other drafts"
            tokens: list[int] = []
            known = len(self.rows[expert].tokens) - self.rows[expert].num_prompt
            for at in range(1 + len(drafts)):
                if at == len(tokens) and (not at or drafts[at - 1] == tokens[-1]):
                    others = self._needed(name, streams, chains, known + at, at)
                    tokens.append(GARBAGE if bad else sample(chains[expert][at], others))
                if self.rows[expert].group is not None:
                    figures = self._figures(first, streams, known + at)
                    self.scored.append((name, figures._replace(nonfinite=int(bad))))
            if first.slot is not None:
                self._keep_state(name, first.slot, known, tokens)
            self.drafted += len(drafts)
            self.accepted += len(tokens) - 1
            for request_id in ids:
                row = self.rows[request_id]
                sampled[request_id] = list(tokens)
                row.tokens += tokens
                row.rejected.append(len(drafts) + 1 - len(tokens))
            self._draft(ids)
        return sampled

    def _needed(
        self,
        name: str,
        streams: Sequence[str | None],
        chains: dict[str, list[int]],
        step: int,
        at: int,
    ) -> list[int | None]:
        """The hashes of the amateurs that a group's token is sampled with."""
        lives = self.rows[str(streams[0])].lives
        hashes: list[int | None] = []
        for index, stream in enumerate(streams[1:]):
            if lives and step >= lives[index]:
                hashes.append(None)
                continue
            assert stream is not None, f"{name} lost an amateur that it needs at token {step}"
            hashes.append(chains[stream][at])
        return hashes

    def _figures(self, row: Row, streams: Sequence[str | None], step: int) -> RowStats:
        here = [i for i, stream in enumerate(streams[1:]) if stream is not None]
        done = [i for i in here if row.lives and step + 1 >= row.lives[i]]
        bits, present = (sum(1 << i for i in each) for each in (done, here))
        told = None
        if row.lives:
            weights = [weights_of(row.lives, step)[i] for i in here]
            told = Explained([], [], [[]] * (1 + len(here)), [0.0], weights, weights)
        return RowStats(1, 0, 0, bits, 0, present, told)

    def _keep_state(self, name: str, slot: int, step: int, tokens: Sequence[int]) -> None:
        """What a rule keeps: it must find what it wrote at the step before, for the same text."""
        assert len(tokens) == 1, "a rule with state verifies drafts"
        before = self.rule_states.get((slot, step - 1), ("", 0))
        assert not step or before[0] == name, f"{name} finds the state of {before[0]} in its slot"
        self.rule_states[slot, step] = name, tokens[0]

    def _draft(self, ids: Sequence[str]) -> None:
        """Drafts for the next step; an amateur is told its expert's."""
        rows = [self.rows[i] for i in ids]
        hashes = [row.hash_at(len(row.tokens) - 1) for row in rows]
        # With asynchronous scheduling there are always as many.
        count = self.num_drafts if self.is_async else self.rng.randint(0, self.num_drafts)
        drafts: list[int] = []
        while len(drafts) < count:
            step = len(rows[0].tokens) - rows[0].num_prompt + len(drafts)
            others: list[int | None] = [None] * (rows[0].size - 1)
            for row, chain in zip(rows[1:], hashes[1:], strict=True):
                if not row.lives or step < row.lives[row.index - 1]:
                    others[row.index - 1] = chain
            token = sample(hashes[0], others)
            drafts.append(token if self.rng.random() < self.right else FIRST_TOKEN)
            hashes = [extend(h, drafts[-1], r.adapter) for h, r in zip(hashes, rows, strict=True)]
        for row in rows:
            row.drafts = list(drafts)

    def take_drafts(self, scheduled: Iterable[str]) -> DraftTokenIds:
        """What the scheduler is told of the drafts of a step, without asynchronous scheduling."""
        ids = [i for i in scheduled if i in self.rows]
        return DraftTokenIds(ids, [list(self.rows[i].drafts) for i in ids])


class FirstStage(Workers):
    """The first stage of a pipeline on the V1 runner without asynchronous scheduling: it samples
    nothing and appends what ``new_token_ids`` brings.
    """

    def _update(self, cached: Any) -> dict[str, int]:
        assert len(cached.new_token_ids) == len(cached.req_ids)
        # What the last stage does with num_output_tokens is not done here.
        known = {i: list(self.rows[i].tokens) for i in cached.req_ids}
        computed = super()._update(cached)
        for request_id, new in zip(cached.req_ids, cached.new_token_ids, strict=True):
            row, tokens = self.rows[request_id], known[request_id]
            count = computed[request_id] + len(new) - len(tokens)
            row.set_tokens(tokens + (list(new[-count:]) if count > 0 else []))
        return computed

    def _sample(self, *args: Any) -> dict[str, list[int]]:
        return {}
