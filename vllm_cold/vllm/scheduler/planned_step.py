# SPDX-License-Identifier: Apache-2.0
"""Takes a group out of a step that vLLM has already planned, and out of the prefix cache.

Touched in vLLM: ``SchedulerOutput`` and its columns, and the prefix cache (see ``scheduler``).
"""

import time

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from vllm_cold.group.lockstep import Group
from vllm_cold.group.tally import Counts
from vllm_cold.vllm.worker import block_zeroer

RequestGroup = Group[Request]


class PlannedStepScheduling(Scheduler):  # type: ignore[misc]
    """The part of the scheduler that undoes."""

    running: list[Request]

    _counts: Counts
    _nonfinite_blocks: set[int]

    def _uncache_unwritten(self, request: Request) -> None:
        """Blocks that were hashed for tokens of this pass are not written if the request does
        not run in it: nobody may find them in the prefix cache. Nobody has found them yet: a
        pass admits nobody after a preemption, or after a follower that could not be admitted.
        """
        unwritten: set[int] = set()
        managers = self.kv_cache_manager.coordinator.single_type_managers
        block_ids = self.kv_cache_manager.get_block_ids(request.request_id)
        for manager, ids in zip(managers, block_ids, strict=True):
            unwritten.update(ids[request.num_computed_tokens // manager.block_size :])
        unwritten.discard(0)  # the null block
        if unwritten:
            self.kv_cache_manager.evict_blocks(unwritten)

    def _withdraw(self, group: RequestGroup, output: SchedulerOutput) -> None:
        """Take all streams out of this step and preempt them."""
        for request in (*reversed(group.followers), group.leader):
            never_sent = self._strip(output, request)
            if request.status != RequestStatus.RUNNING:
                continue
            self.running.remove(request)
            self._preempt_request(request, time.monotonic())
            if never_sent:
                # The workers have not heard of it: it must be sent as new again.
                request.status = RequestStatus.WAITING
                request.num_preemptions -= 1
                if request is group.leader:
                    self._counts.sums[group.kind].preemptions -= 1

    def _strip(self, output: SchedulerOutput, request: Request) -> bool:
        """Remove a request from the step; True if the step would have introduced it."""
        request_id = request.request_id
        num_tokens = output.num_scheduled_tokens.pop(request_id, 0)
        if not num_tokens:
            return False
        output.total_num_scheduled_tokens -= num_tokens
        output.scheduled_spec_decode_tokens.pop(request_id, None)
        self.prev_step_scheduled_req_ids.discard(request_id)
        new = [r for r in output.scheduled_new_reqs if r.req_id != request_id]
        if len(new) < len(output.scheduled_new_reqs):
            output.scheduled_new_reqs[:] = new
            return True
        cached = output.scheduled_cached_reqs
        index = cached.req_ids.index(request_id)
        for column in (
            cached.req_ids,
            cached.new_token_ids,
            cached.new_block_ids,
            cached.num_computed_tokens,
            cached.num_output_tokens,
        ):
            if column:  # new_token_ids is filled under pipeline parallelism only
                del column[index]
        cached.resumed_req_ids.discard(request_id)
        cached.all_token_ids.pop(request_id, None)
        return False

    def _mark_nonfinite(self, group: RequestGroup) -> None:
        """The group's blocks may hold NaN. vLLM's attention on CPU reads a sequence's last block to
        its end and weighs what stands behind the sequence with 0, which makes NaN of NaN.
        """
        if not block_zeroer.can_clear(v2=getattr(self, "use_v2_model_runner", False)):
            return
        for request in group.streams:
            for blocks in self.kv_cache_manager.get_block_ids(request.request_id):
                self._nonfinite_blocks.update(blocks)

    def _release_nonfinite_blocks(self) -> list[int]:
        """Blocks that hold NaN and are nobody's now; they leave the prefix cache."""
        pool = self.kv_cache_manager.block_pool
        blocks = {block for block in self._nonfinite_blocks if pool.blocks[block].ref_cnt == 0}
        self._nonfinite_blocks -= blocks
        self.kv_cache_manager.evict_blocks(blocks)
        return sorted(blocks)
