# SPDX-License-Identifier: Apache-2.0
"""What vLLM's schedulers call or do differently from release to release. Nothing else in this
folder asks for an attribute that some release lacks, or which release is installed; the table has a
row of each (``scheduler_places``).

0.23 is that of vllm-ascend; what it alone lacks says so.
"""

from collections.abc import Iterable
from typing import Any

from vllm.v1.request import RequestStatus

from vllm_cold.compat import versions
from vllm_cold.scheduler.lockstep import Request

IS_0_23 = versions.is_before("0.31")


def ignore_prefix_cache(request: Request) -> None:
    """Have a request compute all of its tokens: it finds none of them, here or at a connector."""
    if hasattr(request, "prefix_cache_hit_limit"):
        request.prefix_cache_hit_limit = 0
    else:  # before 0.34
        request.skip_reading_prefix_cache = True


def ignores_connector(request: Request) -> bool:
    """Whether a connector is not asked for a request."""
    if hasattr(request, "skip_reading_external_kv"):
        return bool(request.skip_reading_external_kv)
    return bool(request.skip_reading_prefix_cache)  # before 0.34


def longest_hit(request: Request) -> int:
    """Return how many tokens a request may find in the prefix cache."""
    if hasattr(request, "get_max_cache_hit_length"):
        return int(request.get_max_cache_hit_length())
    return 0 if request.skip_reading_prefix_cache else request.num_tokens - 1  # before 0.34


def num_in_flight_tokens(request: Any) -> int:
    """Return how many of a request's computed tokens are of steps that are not back yet."""
    return 0 if IS_0_23 else int(request.num_in_flight_tokens)


def is_late(request: Any) -> bool:
    """Whether tokens of before a request's preemption are still to come, and count."""
    return not IS_0_23 and request.num_stale_output_tokens > 0 and not request.drop_stale_output


def is_dropped(request: Any) -> bool:
    """Whether the tokens of a request's steps in flight count for nothing."""
    return not IS_0_23 and request.num_stale_output_tokens > 0 and request.drop_stale_output


def num_replayed_tokens(scheduler: Any) -> int:
    """Return how many tokens of a hit some models compute again."""
    return 0 if IS_0_23 else int(scheduler.prefix_replay_tokens)


def num_watermark_blocks(manager: Any) -> int:
    """Return how many blocks of the KV cache are kept free when a request is admitted."""
    return 0 if IS_0_23 else int(manager.watermark_blocks)


def most_blocks(manager: Any) -> int | None:
    """Return how many blocks of one kind a request takes at most; None for no limit."""
    if IS_0_23:
        return getattr(manager, "_max_admission_blocks_per_request", None)
    limit: int | None = manager.max_admission_blocks_per_request
    return limit


def most_active(scheduler: Any) -> int:
    """Return how many sequence slots there are."""
    return int(scheduler.max_num_running_reqs if IS_0_23 else scheduler.max_num_active_reqs)


def prefill_interval(scheduler: Any) -> int:
    """Return every how many steps prompts get tokens."""
    return 1 if versions.is_before("0.33") else int(scheduler.local_prefill_interval)


def has_capacity_bound(scheduler: Any) -> bool:
    """Whether prompts are not held back, as they have waited for capacity."""
    return not IS_0_23 and bool(scheduler.prefill_capacity_bound)


def drops_stale_output(scheduler: Any) -> bool:
    """Whether a preempted request's tokens in flight count for nothing."""
    return not IS_0_23 and bool(scheduler.requires_kv_delivery)


def holding_queue(scheduler: Any) -> Any:
    """Return the queue of those that wait with blocks; nobody does in 0.23."""
    return () if IS_0_23 else scheduler.kv_holding_waiting


def deferred(scheduler: Any) -> set[Request]:
    """Return those that wait for something else than capacity, to be changed in place."""
    return set() if IS_0_23 else scheduler.deferred_waiting


def take_skipped(scheduler: Any) -> list[Request]:
    """Take those out of 0.23's queue of requests that it has passed over; nobody elsewhere."""
    if not IS_0_23:
        return []
    skipped = list(scheduler.skipped_waiting)
    scheduler.skipped_waiting.remove_requests(skipped)
    return skipped


def promote(scheduler: Any, request: Any) -> bool:
    """Make a request whose grammar is compiled, or whose KV has come, an ordinary one that waits,
    as vLLM does; whether it may start now. ``scheduler``: its methods, without ours.
    """
    if IS_0_23:
        compiles = request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        return not compiles or bool(scheduler._try_promote_blocked_waiting_request(request))
    return bool(scheduler._handle_blocked_waiting_request(request))


def unsend(scheduler: Any, request_id: str) -> None:
    """Have a V1 worker be sent the tokens of a request that leaves its step, or runs on without
    one.
    """
    if hasattr(scheduler, "prev_step_scheduled_req_ids"):  # before 0.34
        scheduler.prev_step_scheduled_req_ids.discard(request_id)


def strip_columns(output: Any, request_id: str) -> None:
    """Take a request out of a step's columns that not all releases have."""
    if not versions.is_before("0.33"):
        output.encoder_input_updates.pop(request_id, None)
    if not IS_0_23 and output.kv_connector_block_state is not None:
        output.kv_connector_block_state.req_ids.discard(request_id)
    cached = output.scheduled_cached_reqs
    if hasattr(cached, "resumed_req_ids"):  # before 0.34
        cached.resumed_req_ids.discard(request_id)
        cached.all_token_ids.pop(request_id, None)


def unreserve(scheduler: Any, request: Request) -> None:
    """Have vLLM keep no blocks free for a request that is loaded."""
    scheduler._inflight_prefills.discard(request)
    if hasattr(scheduler, "_unreserve_parked"):  # since 0.34
        scheduler._unreserve_parked(request)


def reserved_blocks(scheduler: Any, but_for: Iterable[Request]) -> int:
    """Return how many blocks are kept free for requests that load or prefill, without these."""
    own = set(but_for)
    others = scheduler._inflight_prefills.difference(own)
    reserved = sum(map(scheduler._request_remaining_blocks, others))
    if hasattr(scheduler, "_parked_reservations"):  # since 0.34
        parked = scheduler._parked_reservations
        reserved += scheduler._parked_reserved_blocks
        reserved -= sum(parked.get(request, 0) for request in own)
    return int(reserved)


def forget_embeds(manager: Any, identifier: str) -> None:
    """Have the encoder's cache forget the size of a medium that leaves it."""
    if not IS_0_23:
        manager.num_embeds_by_hash.pop(identifier, None)


def keeps_rests_whole() -> bool:
    """Whether a step that begins inside a medium is not to end inside it, if none may be split."""
    return not versions.is_before("0.34")
