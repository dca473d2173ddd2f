# SPDX-License-Identifier: Apache-2.0
"""A KV connector for in-process engines: keyed by block hash, in memory.

Its scheduler's half is that of ``tests.scheduler.connector``; the workers' half copies real KV.
"""

import random
from collections import Counter
from typing import Any

import torch

from tests.scheduler.connector import Load, Meta, StandIn

STORES: dict[str, dict[bytes, Any]] = {}
"""By engine id: by block hash, the block's part of each layer."""
COUNTS: dict[str, Counter[str]] = {}
"""By engine id: what was done."""
GARBAGE = 7.0
"""What stands in a block whose load failed."""


class MemoryConnector(StandIn):
    """Both halves; see ``Ways``."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        # Of several connectors in an engine, each has a seed of its own.
        engine = f"{transfer.engine_id} {transfer.kv_connector_extra_config.get('seed', 0)}"
        self.store = STORES.setdefault(engine, {})
        self.counts = COUNTS.setdefault(engine, Counter())
        self.num_blocks = kv_cache_config.num_blocks
        self.chance = random.Random(self.ways.seed + 1)
        self.layers: list[torch.Tensor] = []
        self.late: list[tuple[int, Load]] = []
        self.saving: list[tuple[int, str]] = []
        self.invalid: set[int] = set()
        self.failed: set[str] = set()

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self.layers = list(kv_caches.values())

    def _meta(self) -> Meta:
        meta = self._get_connector_metadata()
        assert isinstance(meta, Meta)
        return meta

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        meta = self._meta()
        for load in meta.loads:
            self.counts["late" if load.late else "loads"] += 1
            if load.late:
                self.late.append((self.chance.randint(0, self.ways.delay), load))
            else:
                self._fill(load)
        self.saving += [(self.chance.randint(0, self.ways.delay), each) for each in meta.saves]

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        if self.invalid:
            return  # who knows what was computed from them
        for _, _, block, block_hash in self._meta().stores:
            parts = [part.clone() for part in self._parts(block)]
            before = self.store.setdefault(block_hash, parts)
            assert all(map(is_close, parts, before)), "a block's KV is another one now"
            self.counts["stores"] += 1

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults

        due = [load for steps, load in self.late if steps == 0]
        self.late = [(steps - 1, load) for steps, load in self.late if steps > 0]
        for load in due:
            self._fill(load)
        sent = {each for steps, each in self.saving if steps == 0}
        self.saving = [(steps - 1, each) for steps, each in self.saving if steps > 0]
        failed, self.failed = self.failed, set()
        return KVConnectorTransferResults(sent, {load.request_id for load in due}, failed)

    def get_block_ids_with_load_errors(self) -> set[int]:
        invalid, self.invalid = self.invalid, set()
        return invalid

    def _fill(self, load: Load) -> None:
        first = len(load.blocks)
        if self.chance.random() < self.ways.fails:
            self.counts["failed"] += 1
            first = self.chance.randrange(first)
            if load.late and self.ways.by_request:
                self.failed.add(load.request_id)
            else:
                self.invalid.update(block for block, _ in load.blocks[first:])
        for at, (block, block_hash) in enumerate(load.blocks):
            for part, stored in zip(self._parts(block), self.store[block_hash], strict=True):
                part.copy_(stored if at < first else torch.full_like(stored, GARBAGE))

    def _parts(self, block: int) -> list[torch.Tensor]:
        """The block's KV in each layer, as a view."""
        found = []
        for layer in self.layers:
            dim = next(i for i, size in enumerate(layer.shape) if size == self.num_blocks)
            found.append(layer.select(dim, block))
        return found


def is_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(torch.allclose(one, other, atol=1e-3))
