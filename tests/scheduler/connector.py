# SPDX-License-Identifier: Apache-2.0
"""A KV connector without a device, for ``Harness``: its scheduler's half, and what its workers do.

It stores every full block under its hash. What is stored is loaded at a step's start or between
steps, late, in vain, or after an abort, as ``Ways`` says.
"""

import random
from dataclasses import dataclass, field, fields
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
)
from vllm.v1.outputs import KVConnectorOutput

BAD = -1
"""KV that was not loaded, or computed from such."""


@dataclass(frozen=True)
class Ways:
    """How a connector behaves.

    Attributes:
        late: How often it loads between steps.
        fails: How often a load fails.
        unknown: How often it does not know yet what it has.
        delay: The most steps that a load takes.
        policy: What becomes of requests whose load failed: "recompute" or "fail".
        by_request: Whether it names requests and not blocks whose load failed; late ones alone.
        saves: How often it keeps the blocks of a request that has ended for some steps.
        delivers: Whether tokens of preempted requests that are under way must be dropped.
        seed: Of what it does.
    """

    late: float = 0.0
    fails: float = 0.0
    unknown: float = 0.0
    delay: int = 2
    policy: str = "recompute"
    by_request: bool = False
    saves: float = 0.0
    delivers: bool = False
    seed: int = 0


@dataclass
class Load:
    """A request's blocks that are to be filled, each with its hash."""

    request_id: str
    blocks: list[tuple[int, bytes]]
    late: bool


@dataclass
class Meta(KVConnectorMetadata):
    """What a step loads, stores and saves."""

    loads: list[Load] = field(default_factory=list)
    stores: list[tuple[str, int, int, bytes]] = field(default_factory=list)
    """Of each: request, number of the block in it, block, hash."""
    saves: list[str] = field(default_factory=list)


class StandIn(KVConnectorBase_V1):
    """The scheduler's half."""

    keyed_by_block_hash = True

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config
        known = {each.name for each in fields(Ways)}
        self.ways = Ways(**{name: value for name, value in extra.items() if name in known})
        self.rng = random.Random(self.ways.seed)
        self.block_size = vllm_config.cache_config.block_size
        self.store: dict[bytes, list[int]] = {}  # of workers
        self.asked: dict[str, int] = {}  # with how many tokens of its own each came
        self.requests: dict[str, Any] = {}
        self.planned: list[Load] = []
        self.saves: list[str] = []
        self.unknown = 0

    @property
    def requires_kv_delivery(self) -> bool:
        return self.ways.delivers

    def bind_kv_cache_manager(self, kv_cache_manager: Any) -> None:
        self.manager = kv_cache_manager

    def on_new_request(self, request: Any) -> None:
        assert request.request_id not in self.requests
        self.requests[request.request_id] = request

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        assert request.request_id in self.requests, "it never heard of this request"
        if self.rng.random() < self.ways.unknown:
            self.unknown += 1
            return None, False
        late = self.rng.random() < self.ways.late
        # A prompt can be loaded to its last token between steps alone. (One token alone cannot:
        # vLLM tells those that were loaded by their number of computed tokens.)
        most = (request.num_tokens - (not late or request.num_tokens == 1)) // self.block_size
        at = first = num_computed_tokens // self.block_size
        hashes = request.block_hashes
        while at < min(most, len(hashes)) and bytes(hashes[at]) in self.store:
            at += 1
        self.asked[request.request_id] = first
        return (at - first) * self.block_size, late and at > first

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if not num_external_tokens:
            return
        first, ids = self.asked[request.request_id], blocks.get_block_ids()[0]
        at = range(first, first + num_external_tokens // self.block_size)
        filled = [(ids[i], bytes(request.block_hashes[i])) for i in at]
        self.planned.append(Load(request.request_id, filled, late=False))

    def build_connector_meta(self, scheduler_output: Any) -> Meta:
        meta = Meta(saves=self.saves)
        scheduled = scheduler_output.num_scheduled_tokens
        for load in self.planned:
            load.late = self.requests[load.request_id].status.name == "WAITING_FOR_REMOTE_KVS"
            if load.late or load.request_id in scheduled:
                meta.loads.append(load)
        self.planned, self.saves = [], []
        cached = scheduler_output.scheduled_cached_reqs
        computed = {r.req_id: r.num_computed_tokens for r in scheduler_output.scheduled_new_reqs}
        computed |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for request_id, count in scheduled.items():
            start, hashes = computed[request_id], self.requests[request_id].block_hashes
            ids = self.manager.get_block_ids(request_id)[0]
            end = min((start + count) // self.block_size, len(hashes))
            for i in range(start // self.block_size, end):
                meta.stores.append((request_id, i, ids[i], bytes(hashes[i])))
        return meta

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        del self.requests[request.request_id]
        self.asked.pop(request.request_id, None)
        saves = (
            bool(block_ids)
            and request.status.name in ("FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED")
            and self.rng.random() < self.ways.saves
        )
        if saves:
            self.saves.append(request.request_id)
        return saves, None

    # The workers' half is below.
    start_load_kv = wait_for_layer_load = save_kv_layer = wait_for_save = None  # type: ignore


class ConnectorWorkers:
    """What the workers' halves do, to the KV of ``Workers``."""

    def __init__(self, connector: StandIn, kv: dict[tuple[int, int], int]) -> None:
        self.connector = connector
        self.ways = connector.ways
        self.rng = random.Random(self.ways.seed + 1)
        self.kv = kv
        self.late: list[tuple[int, Load]] = []  # steps to go
        self.saving: list[tuple[int, str]] = []
        self.loads = self.failed = self.stores = self.after_abort = 0

    def before_step(self, meta: Meta) -> KVConnectorOutput:
        """Loads that a step waits for."""
        told = KVConnectorOutput(invalid_block_ids=set())
        for load in meta.loads:
            self.loads += 1
            if load.late:
                self.late.append((self.rng.randint(0, self.ways.delay), load))
            else:
                told.invalid_block_ids |= self._fill(load)
        self.saving += [(self.rng.randint(0, self.ways.delay), each) for each in meta.saves]
        return told

    def after_step(self, meta: Meta, told: KVConnectorOutput, rows: dict[str, Any]) -> None:
        """Stores, and what arrives now."""
        size = self.connector.block_size
        for request_id, number, block, block_hash in meta.stores:
            values = [self.kv.get((block, i), BAD) for i in range(size)]
            if BAD in values:
                continue
            right = [rows[request_id].hash_at(number * size + i) for i in range(size)]
            assert values == right, f"block {number} of {request_id} is stored, and wrong"
            assert self.connector.store.setdefault(block_hash, right) == right
            self.stores += 1
        due = [load for steps, load in self.late if steps == 0]
        self.late = [(steps - 1, load) for steps, load in self.late if steps > 0]
        told.finished_recving = {load.request_id for load in due}
        for load in due:
            self.after_abort += load.request_id not in self.connector.requests
            if invalid := self._fill(load):
                if self.ways.by_request:
                    told.failed_recving.add(load.request_id)
                else:
                    told.invalid_block_ids |= invalid
        told.finished_sending = {each for steps, each in self.saving if steps == 0}
        self.saving = [(steps - 1, each) for steps, each in self.saving if steps > 0]

    def _fill(self, load: Load) -> set[int]:
        """Write into the blocks; those that failed."""
        first = len(load.blocks)
        if self.rng.random() < self.ways.fails:
            self.failed += 1
            first = self.rng.randrange(first)
        for at, (block, block_hash) in enumerate(load.blocks):
            stored = self.connector.store[block_hash]
            for i, value in enumerate(stored):
                self.kv[block, i] = value if at < first else BAD
        return {block for block, _ in load.blocks[first:]}

    def busy(self) -> bool:
        """Whether something has not arrived yet."""
        return bool(self.late or self.saving)
