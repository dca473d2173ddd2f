# SPDX-License-Identifier: Apache-2.0
"""The KV cache as a group sees it: what is found in it, what still fits, what must leave it. vLLM's
``KVCacheManager`` and its coordinator are asked the way that vLLM's scheduler asks them.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

from vllm.v1.request import RequestStatus

from vllm_cold.compat import engine
from vllm_cold.scheduler.lockstep import Group
from vllm_cold.scheduler.vllm_scheduler import Request, Scheduler


class Found(NamedTuple):
    """What the prefix cache, and a KV connector, have of a request.

    Attributes:
        blocks: As vLLM hands them on.
        num_tokens: How many tokens are in them.
        num_external: How many more a connector has.
        takes_steps: Whether it brings them between steps, and not at the start of one.
        is_known: Whether it knew.
    """

    blocks: Any
    num_tokens: int
    num_external: int = 0
    takes_steps: bool = False
    is_known: bool = True

    @property
    def total(self) -> int:
        """Tokens that need not be computed."""
        return self.num_tokens + self.num_external


class KVBlocks:
    """The KV cache of one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        count = scheduler.kv_cache_manager.coordinator.get_num_blocks_to_allocate
        self._counted_by = inspect.signature(count).parameters
        self._steps_at_once = getattr(scheduler.vllm_config, "max_concurrent_batches", 1)
        self._nonfinite: set[int] = set()  # to be cleared as soon as they are nobody's

    def look_up(self, request: Request) -> Found:
        """What the prefix cache has of a request that holds no blocks. As vLLM does where it looks,
        it notes up to where some layers have more: there a step ends, and leaves an SSM state.
        """
        blocks, num_tokens, *junction = self._scheduler.kv_cache_manager.get_computed_blocks(
            request
        )
        if junction:  # older releases say nothing of it
            (request.shared_prefix_boundary,) = junction
        return Found(blocks, num_tokens)

    def restored(self, num_cached: int) -> int:
        """Cached tokens that are not computed again: some models replay a window of the hit."""
        return max(num_cached - getattr(self._scheduler, "prefix_replay_tokens", 0), 0)

    def leaves(self, stream: Request, start: int, later: Request, found: Found) -> bool:
        """Of a model with SSM layers: whether a stream that gets from ``start`` to its sampling
        position leaves a block in the prefix cache that ``later``, another one, would find after,
        or in place of, what it finds now. An SSM state at the start counts as one of it.
        """
        unit: int = cast(Any, self._scheduler).hash_block_size  # not in 0.23
        first = max(-(-start // unit), found.num_tokens // unit, 1)
        last = min(stream.num_tokens, later.num_tokens - 1) // unit
        if stream is later or later.skip_reading_prefix_cache or first > last:
            return False
        # A block's hash is one of all tokens up to its end.
        return stream.block_hashes[first - 1] == later.block_hashes[first - 1]

    def fit(self, group: Group[Request], found: Mapping[Request, Found], promised: int = 0) -> bool:
        """Whether all streams' known tokens fit the free blocks, of which so many are ``promised``
        to others. ``found``: of its streams that hold no blocks, as far as it is known.
        """
        scheduler = self._scheduler
        if not scheduler.running and not self._others_hold_blocks(group):
            return True  # allocation itself decides; see _MAX_FAILED_ALONE
        starts = all(each.status != RequestStatus.RUNNING for each in group.streams)
        needed = sum(self.to_come(each, found.get(each), starts) for each in group.streams)
        free: int = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        free -= promised + getattr(scheduler.kv_cache_manager, "watermark_blocks", 0)
        return needed <= free

    def _others_hold_blocks(self, group: Group[Request]) -> bool:
        """Whether requests that do not run have blocks which they will free, or have ended."""
        scheduler = self._scheduler
        if scheduler.connector is None:
            return scheduler.num_waiting_for_streaming_input > 0
        return bool(scheduler.deferred_frees) or any(
            each.num_computed_tokens or each.is_finished()
            for each in scheduler.requests.values()
            if each not in group.streams
        )

    def to_come(self, request: Request, found: Found | None = None, starts: bool = False) -> int:
        """Blocks that the request's known tokens still take from the free ones, as vLLM counts, and
        those that vLLM does not; of these, maybe more than it takes. SSM states' count if its
        group starts: one that has begun holds up others until its other streams run.
        """
        scheduler, manager = self._scheduler, self._scheduler.kv_cache_manager
        holds = request.status == RequestStatus.RUNNING or request.num_computed_tokens > 0
        if holds:
            found = Found(manager.empty_kv_cache_blocks, request.num_computed_tokens)
        elif found is None:
            found = self.look_up(request)
        terms: dict[str, Any] = {
            "request_id": request.request_id,
            "num_tokens": min(
                request.num_tokens + scheduler.num_lookahead_tokens, scheduler.max_model_len
            ),
            "new_computed_blocks": found.blocks.blocks,
            "num_encoder_tokens": 0,
            "total_computed_tokens": found.total,
            "num_tokens_main_model": request.num_tokens,
            "apply_admission_cap": True,
        }
        later = {  # than 0.23
            "num_local_computed_tokens": found.num_tokens,
            "prefill_end": max(request.num_prompt_tokens, request.num_tokens - 1),
        }
        terms |= {name: value for name, value in later.items() if name in self._counted_by}
        counted = int(manager.coordinator.get_num_blocks_to_allocate(**terms))
        for kind, cached in zip(
            manager.coordinator.single_type_managers, found.blocks.blocks, strict=True
        ):
            if starts and getattr(kind, "mamba_cache_mode", "") == "align":
                # A step's SSM state is computed from that of the step before, which is given back
                # when the step is over.
                counted += self._steps_at_once
            in_0_23 = getattr(kind, "_max_admission_blocks_per_request", None)
            most = getattr(kind, "max_admission_blocks_per_request", in_0_23)
            if most is not None and found.total and not holds:
                # vLLM takes off all that is in front of the end of a hit, also what sliding windows
                # have passed, which is not held.
                counted += min(-(-terms["num_tokens"] // kind.block_size) - len(cached), most)
        return counted

    def uncache_unwritten(self, request: Request, num_written: int) -> set[int]:
        """Blocks that were hashed for tokens of this pass are not written if the request does
        not run in it: nobody may find them in the prefix cache. Nobody has found them yet: a
        pass admits nobody after a preemption, or after a stream that could not be admitted.
        ``num_written``: tokens whose KV is there.

        Returns:
            The blocks.
        """
        manager = self._scheduler.kv_cache_manager
        unwritten: set[int] = set()
        block_ids = manager.get_block_ids(request.request_id)
        for kind, ids in zip(manager.coordinator.single_type_managers, block_ids, strict=True):
            unwritten.update(ids[num_written // kind.block_size :])
        unwritten.discard(0)  # the null block
        if unwritten:
            manager.evict_blocks(unwritten)
        return unwritten

    def mark_nonfinite(self, streams: Iterable[Request]) -> None:
        """These requests' blocks may hold NaN. vLLM's attention on CPU reads a sequence's last
        block to its end and weighs what stands after the sequence with 0, which makes NaN of NaN.
        """
        scheduler = self._scheduler
        if engine.can_clear(v2=getattr(scheduler, "use_v2_model_runner", False)):
            for request in streams:
                for blocks in scheduler.kv_cache_manager.get_block_ids(request.request_id):
                    self._nonfinite.update(blocks)

    def release_nonfinite(self) -> list[int]:
        """Blocks that hold NaN and are nobody's now; they leave the prefix cache."""
        if not self._nonfinite:
            return []
        manager = self._scheduler.kv_cache_manager
        pool = manager.block_pool
        blocks = {block for block in self._nonfinite if pool.blocks[block].ref_cnt == 0}
        self._nonfinite -= blocks
        manager.evict_blocks(blocks)
        return sorted(blocks)
