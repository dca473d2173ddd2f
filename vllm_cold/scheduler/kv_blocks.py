# SPDX-License-Identifier: Apache-2.0
"""The KV cache as a group sees it: what is found in it, what still fits, what must leave it. vLLM's
``KVCacheManager`` and its coordinator are asked the way that vLLM's scheduler asks them.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from vllm.v1.request import RequestStatus

from vllm_cold.compat.hardware import is_on
from vllm_cold.scheduler import releases
from vllm_cold.scheduler.lockstep import Group, Request


class CachedPrefix(NamedTuple):
    """What the prefix cache, and a KV connector, have of a request.

    Attributes:
        blocks: As vLLM hands them on.
        num_tokens: How many tokens are in them.
        num_external: How many more a connector has.
        takes_steps: Whether it brings them between steps, and not at the start of one.
        is_known: Whether the connector knows already.
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

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        count = scheduler.kv_cache_manager.coordinator.get_num_blocks_to_allocate
        self._counted_by = inspect.signature(count).parameters
        self._steps_at_once = scheduler.vllm_config.max_concurrent_batches
        self._nonfinite: set[int] = set()  # to be cleared as soon as they are nobody's

    def look_up(self, request: Request) -> CachedPrefix:
        """Return what the prefix cache has of a request that holds no blocks. As vLLM does when it
        looks, note up to where some layers have more: there a step ends, and leaves an SSM state.
        """
        blocks, num_tokens, *junction = self._scheduler.kv_cache_manager.get_computed_blocks(
            request
        )
        if junction:  # older releases say nothing of it
            (request.shared_prefix_boundary,) = junction
        return CachedPrefix(blocks, num_tokens)

    def restored(self, num_cached: int) -> int:
        """Return the cached tokens that are not computed again: some models replay a window of the
        hit.
        """
        return max(num_cached - releases.num_replayed_tokens(self._scheduler), 0)

    def leaves(self, stream: Request, start: int, later: Request, cached: CachedPrefix) -> bool:
        """Whether, in a model with SSM layers, a stream that computes its tokens from ``start`` to
        its sampling position leaves a block in the prefix cache that ``later``, another stream,
        would find instead of, or beyond, what is ``cached`` for it now. An SSM state that the
        stream starts from counts as such a block.
        """
        unit: int = self._scheduler.hash_block_size  # not in 0.23
        first = max(-(-start // unit), cached.num_tokens // unit, 1)
        last = min(stream.num_tokens, releases.longest_hit(later)) // unit
        if stream is later or first > last:
            return False
        # A block's hash is one of all tokens up to its end.
        return stream.block_hashes[first - 1] == later.block_hashes[first - 1]

    def has_room(
        self, group: Group, cached: Mapping[Request, CachedPrefix], promised: int = 0
    ) -> bool:
        """Whether all streams' known tokens fit the free blocks, of which so many are ``promised``
        to others. ``cached``: for its streams that hold no blocks, as far as it is known.
        """
        scheduler = self._scheduler
        if not scheduler.running and not self._others_hold_blocks(group):
            return True  # allocation itself decides; see _MAX_FAILED_ALONE
        starts = all(stream.status != RequestStatus.RUNNING for stream in group.streams)
        needed = sum(self.still_needed(s, cached.get(s), starts) for s in group.streams)
        free: int = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        free -= promised + releases.num_watermark_blocks(scheduler.kv_cache_manager)
        return needed <= free

    def _others_hold_blocks(self, group: Group) -> bool:
        """Whether requests that do not run have blocks which they will free, or have ended."""
        scheduler = self._scheduler
        if scheduler.connector is None:
            return bool(scheduler.num_waiting_for_streaming_input > 0)
        return bool(scheduler.deferred_frees) or any(
            request.num_computed_tokens or request.is_finished()
            for request in scheduler.requests.values()
            if request not in group.streams
        )

    def still_needed(
        self, request: Request, cached: CachedPrefix | None = None, starts: bool = False
    ) -> int:
        """Return how many free blocks the request's known tokens will still take, maybe a few too
        many: as many as vLLM counts when it admits a request, and those that it takes without
        counting them.

        Args:
            request: The request.
            cached: What is cached of one without blocks; looked up if it is left out.
            starts: Whether none of its group's streams runs. Only then blocks for SSM states
                count: a group that has begun holds up others until its other streams run.
        """
        scheduler, manager = self._scheduler, self._scheduler.kv_cache_manager
        holds = request.status == RequestStatus.RUNNING or request.num_computed_tokens > 0
        if holds:
            cached = CachedPrefix(manager.empty_kv_cache_blocks, request.num_computed_tokens)
        elif cached is None:
            cached = self.look_up(request)
        terms: dict[str, Any] = {
            "request_id": request.request_id,
            "num_tokens": min(
                request.num_tokens + scheduler.num_lookahead_tokens, scheduler.max_model_len
            ),
            "new_computed_blocks": cached.blocks.blocks,
            "num_encoder_tokens": 0,
            "total_computed_tokens": cached.total,
            "num_tokens_main_model": request.num_tokens,
            "apply_admission_cap": True,
        }
        later = {  # than 0.23
            "num_local_computed_tokens": cached.num_tokens,
            "prefill_end": max(request.num_prompt_tokens, request.num_tokens - 1),
        }
        terms |= {name: value for name, value in later.items() if name in self._counted_by}
        counted = int(manager.coordinator.get_num_blocks_to_allocate(**terms))
        for kind, blocks in zip(
            manager.coordinator.single_type_managers, cached.blocks.blocks, strict=True
        ):
            if starts and getattr(kind, "mamba_cache_mode", "") == "align":  # SSM layers' alone
                # A step's SSM state is computed from that of the step before, which is given back
                # when the step is over.
                counted += self._steps_at_once
            most = releases.most_blocks(kind)
            if most is not None and cached.total and not holds:
                # vLLM takes off all that is in front of the end of a hit, also what sliding windows
                # have passed, which is not held.
                counted += min(-(-terms["num_tokens"] // kind.block_size) - len(blocks), most)
        return counted

    def uncache_unwritten(self, request: Request, num_written: int) -> set[int]:
        """Take blocks out of the prefix cache that were hashed for tokens of this pass and are not
        written, as the request does not run in it. Nobody has found them yet: a pass admits nobody
        after a preemption, or after a stream that could not be admitted. ``num_written``: tokens
        whose KV is there.

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
        """Note that these requests' blocks may hold NaN. vLLM's attention on CPU reads a sequence's
        last block to its end and weighs what stands after the sequence with 0, which makes NaN of
        NaN.
        """
        scheduler = self._scheduler
        if is_on("cpu"):
            for request in streams:
                for blocks in scheduler.kv_cache_manager.get_block_ids(request.request_id):
                    self._nonfinite.update(blocks)

    def release_nonfinite(self) -> list[int]:
        """Take blocks that hold NaN and are nobody's now out of the prefix cache; return them."""
        if not self._nonfinite:
            return []
        manager = self._scheduler.kv_cache_manager
        pool = manager.block_pool
        blocks = {block for block in self._nonfinite if pool.blocks[block].ref_cnt == 0}
        self._nonfinite -= blocks
        manager.evict_blocks(blocks)
        return sorted(blocks)
