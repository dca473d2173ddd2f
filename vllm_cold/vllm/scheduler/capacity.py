# SPDX-License-Identifier: Apache-2.0
"""What a scheduling pass can offer a group: seats, slots of adapters, blocks.

Asks vLLM's KV cache manager the way vLLM's scheduler does, and changes nothing.
"""

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from vllm_cold.group.lockstep import Capacity, Group, tokens_left

RequestGroup = Group[Request]


class CapacityScheduling(Scheduler):  # type: ignore[misc]
    """The part of the scheduler that looks before it promises anything."""

    running: list[Request]

    _groups: dict[str, RequestGroup]
    _throttled: bool
    _counted_by: Any

    def _capacity(self, group: RequestGroup, waiting: bool) -> Capacity:
        """What this step can offer the group's followers."""
        chunk = max(self.scheduler_config.long_prefill_token_threshold, 0)
        missing = [f.status != RequestStatus.RUNNING for f in group.followers]
        if not any(missing):
            return Capacity([0] * len(missing), missing, chunk=chunk)
        max_active = getattr(self, "max_num_active_reqs", self.max_num_running_reqs)
        seats = len(self.running) + self.num_waiting_for_streaming_input + sum(missing) + waiting
        incomplete = self._incomplete()
        admissible = (
            seats <= max_active
            and self._loras_fit(*group.streams)
            # One after the other, so that nothing gets between a group's streams.
            and (waiting or incomplete[0] is group)
        )
        if waiting and not admissible:
            return Capacity([0] * len(missing), missing, False, chunk)  # whatever is cached
        num_cached = [
            self._restored(self.kv_cache_manager.get_computed_blocks(f)[1]) if away else 0
            for f, away in zip(group.followers, missing, strict=True)
        ]
        admissible = (
            admissible
            and all(
                self._may_begin(f, n)
                for f, n, away in zip(group.followers, num_cached, missing, strict=True)
                if away
            )
            and self._blocks_fit(group)
        )
        return Capacity(num_cached, missing, admissible, chunk, incomplete not in ([], [group]))

    def _may_begin(self, request: Request, num_cached: int) -> bool:
        """Whether vLLM would admit a request, as far as that is the request's matter."""
        late = getattr(request, "num_stale_output_tokens", 0) > 0 and not request.drop_stale_output
        return not late and not (self._throttled and tokens_left(request, num_cached) > 1)

    def _restored(self, num_cached: int) -> int:
        """Cached tokens that are not computed again: some models replay a window of the hit."""
        return max(num_cached - getattr(self, "prefix_replay_tokens", 0), 0)

    def _incomplete(self) -> list[RequestGroup]:
        """Groups whose leader runs without one of its followers."""
        return [
            group
            for r in self.running
            if (group := self._groups.get(r.request_id)) is not None
            and r is group.leader
            and any(f.status != RequestStatus.RUNNING for f in group.followers)
        ]

    def _loras_fit(self, *requests: Request) -> bool:
        """Whether the requests' adapters fit beside those of all running requests. Stock counts
        the scheduled ones only, but a stream that is held in this step needs its slot again.
        """
        if self.lora_config is None:
            return True
        users = (*self.running, *requests)
        adapters = {r.lora_request.lora_int_id for r in users if r.lora_request}
        return bool(len(adapters) <= self.lora_config.max_loras)

    def _blocks_fit(self, group: RequestGroup) -> bool:
        """Whether all streams' known tokens fit the free blocks."""
        if not self.running and not self.num_waiting_for_streaming_input:
            return True  # allocation itself decides; see _MAX_FAILED_ALONE
        needed = sum(map(self._blocks_to_come, group.streams))
        free: int = self.kv_cache_manager.block_pool.get_num_free_blocks()
        return needed <= free - getattr(self.kv_cache_manager, "watermark_blocks", 0)

    def _blocks_to_come(self, request: Request) -> int:
        """Blocks that the request's known tokens still take from the free ones, as vLLM counts."""
        manager = self.kv_cache_manager
        if request.status == RequestStatus.RUNNING:
            found, num_computed = manager.empty_kv_cache_blocks, request.num_computed_tokens
        else:
            found, num_computed = manager.get_computed_blocks(request)[:2]
        terms: dict[str, Any] = {
            "request_id": request.request_id,
            "num_tokens": min(request.num_tokens + self.num_lookahead_tokens, self.max_model_len),
            "new_computed_blocks": found.blocks,
            "num_encoder_tokens": 0,
            "total_computed_tokens": num_computed,
            "num_tokens_main_model": request.num_tokens,
            "apply_admission_cap": True,
        }
        later = {  # since 0.26 and 0.31
            "num_local_computed_tokens": num_computed,
            "prefill_end": max(request.num_prompt_tokens, request.num_tokens - 1),
        }
        terms |= {name: value for name, value in later.items() if name in self._counted_by}
        return int(manager.coordinator.get_num_blocks_to_allocate(**terms))
