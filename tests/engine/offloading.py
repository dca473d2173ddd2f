# SPDX-License-Identifier: Apache-2.0
"""What vLLM's OffloadingConnector copies blocks with, for engines on a CPU: all else is its own."""

import random
from typing import Any

import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec

from tests.engine.memory_connector import COUNTS

LONGEST = 3  # steps that a copy takes


class Copies(OffloadingWorker):
    """Copies that are done some steps later, or when they are waited for."""

    def __init__(self, caches: CanonicalKVCaches, num_blocks: int) -> None:
        self.blocks = [each.tensor for each in caches.tensors]
        self.kept = [
            torch.zeros(num_blocks, each.shape[1], dtype=each.dtype) for each in self.blocks
        ]
        self.chance = random.Random(0)
        self.due: dict[int, int] = {}  # steps to go, by job
        self.jobs: dict[int, tuple[bool, Any, Any]] = {}
        self.done: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._submit(job_id, True, src_spec, dst_spec)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._submit(job_id, False, src_spec, dst_spec)

    def get_finished(self) -> list[TransferResult]:
        self.wait({job for job, steps in self.due.items() if steps == 0})
        self.due = {job: steps - 1 for job, steps in self.due.items()}
        done, self.done = self.done, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        for job_id in job_ids & self.jobs.keys():
            is_store, source, target = self.jobs.pop(job_id)
            del self.due[job_id]
            for block, kept in zip(self.blocks, self.kept, strict=True):
                of, to = (block, kept) if is_store else (kept, block)
                to[target] = of[source]
            COUNTS["offload"]["stores" if is_store else "loads"] += len(source)
            self.done.append(TransferResult(job_id, success=True))

    def _submit(self, job_id: int, is_store: bool, source: Any, target: Any) -> bool:
        ids = (torch.tensor(each.block_ids, dtype=torch.long) for each in (source, target))
        self.jobs[job_id] = (is_store, *ids)
        self.due[job_id] = self.chance.randint(0, LONGEST)
        return True


class OnCPU(CPUOffloadingSpec):
    """With chunks of one block."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        if self._worker is None:
            self._worker = Copies(kv_caches, self.num_chunks)
        return self._worker
