# SPDX-License-Identifier: Apache-2.0
"""The KV connector of vLLM's scheduler, which brings KV from elsewhere.

Loads that a step waits for (synchronous) count as found in the prefix cache. Loads that take steps
(asynchronous) are started for all streams as soon as there is room for the group, which goes on
when all have come. Then a stream that has its last token left waits until its group goes, with its
blocks. What it relies on, besides what ``scheduler`` and the table say:

- ``connector.get_num_new_matched_tokens`` may be asked any number of times before a request is
  admitted, and may say that it does not know yet (None).
- A request whose KV is under way has the status WAITING_FOR_REMOTE_KVS and waits in
  ``kv_holding_waiting``, where vLLM looks for it when its load has failed.
- ``_handle_blocked_waiting_request`` makes it an ordinary one that waits when its KV has come.
- ``_build_kv_connector_meta(connector, output)``: called when all requests of a step are chosen; so
  it is where groups that were split are taken out, before the connector hears of the step.
- ``_handle_invalid_blocks(ids, num_scheduled_tokens)``: the requests that ran on KV that did not
  come, of which vLLM drops the step's tokens.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from vllm.v1.request import RequestStatus

from vllm_cold.compat import places, versions
from vllm_cold.scheduler import releases
from vllm_cold.scheduler.kv_blocks import CachedPrefix, KVBlocks
from vllm_cold.scheduler.lockstep import Group, Request
from vllm_cold.wire import transfer_params

_WAITS = (RequestStatus.WAITING, RequestStatus.PREEMPTED)


class Loads:
    """What the connector of one scheduler brings; nothing where there is none.

    Args:
        scheduler: The engine's.
        blocks: Its KV cache.
        num_ended: Says how many requests have ended and still hold blocks.

    Attributes:
        possible: Whether there is a connector.
        streams: Those of groups whose KV is under way, or has come while they wait: between passes
            they wait in ``kv_holding_waiting``.
        asked_in_vain: Whether the connector did not know yet, in this pass.
    """

    def __init__(self, scheduler: Any, blocks: KVBlocks, num_ended: Callable[[], int]) -> None:
        self._scheduler = scheduler
        self._num_ended = num_ended
        self._blocks = blocks
        self._connector = scheduler.connector
        self.possible = self._connector is not None
        if self.possible and versions.is_before(release := places.since(places.CONNECTOR)):
            raise ValueError(
                f"vllm-cold does not support KV connectors with vLLM before {release}."
            )
        self.streams: dict[Request, None] = {}
        self._are_queued = True  # as it is between passes
        self._written: dict[Request, int] = {}  # see num_written; of steps that are not back yet
        self.asked_in_vain = False

    # ---- a pass ------------------------------------------------------------------------------

    def begin_pass(self, promote: Callable[[Request], bool]) -> None:
        """Take streams out of vLLM's queue, and ``promote`` those whose load is over, or failed, to
        ordinary ones that wait.
        """
        for request in [r for r in self._written if r.status != RequestStatus.RUNNING]:
            del self._written[request]
        self.asked_in_vain = False
        self._are_queued = False
        if not self.streams:
            return
        self._scheduler.kv_holding_waiting.remove_requests(list(self.streams))
        for stream in tuple(self.streams):
            if stream.status == RequestStatus.WAITING_FOR_REMOTE_KVS:
                promote(stream)
            if not self.waits(stream):
                self.forget_promise(stream)
                del self.streams[stream]

    def end_pass(self, came: Iterable[Request]) -> None:
        """Note which of ``came``, the streams that vLLM was to admit in this pass, are loaded."""
        if self._are_queued:
            return  # no group took part
        for stream in came:
            if stream.status == RequestStatus.WAITING_FOR_REMOTE_KVS:
                self.streams[stream] = None
        for stream in tuple(self.streams):
            if not self.waits(stream):
                del self.streams[stream]

    def queue(self) -> None:
        """Put the streams where vLLM looks for them between passes."""
        self._are_queued = True
        for stream in self.streams:
            self._scheduler.kv_holding_waiting.add_request(stream)

    def end_step(self, request_ids: Container[str]) -> None:
        """Note that a step with these requests is back: what it loaded is there, or is not."""
        for request in [r for r in self._written if r.request_id in request_ids]:
            del self._written[request]

    def abort(self, request_ids: Container[str]) -> None:
        """End these requests. What is loaded for them in a step that is not back yet may not come:
        vLLM hears of it when they have no blocks any more, and nobody may find these.
        """
        for request, num_local in self._written.items():
            if request.request_id in request_ids and not request.is_finished():
                self._blocks.uncache_unwritten(request, num_local)

    @property
    def num_queued(self) -> int:
        """How many of ``streams`` are in vLLM's queue."""
        return len(self.streams) if self._are_queued else 0

    def look_up(self, request: Request) -> CachedPrefix:
        """Return what the prefix cache and the connector have of a request that holds no blocks."""
        cached = self._blocks.look_up(request)
        if self._connector is None or releases.ignores_connector(request):
            return cached
        tail = cached.num_tokens % self._scheduler.block_size
        aligned = cached.num_tokens - tail
        external, takes_steps = self._connector.get_num_new_matched_tokens(request, aligned)
        if external is None:
            self.asked_in_vain = True
            return cached._replace(is_known=False)
        if external <= tail:
            return cached  # which has as much
        if tail:
            manager = self._scheduler.kv_cache_manager
            blocks = manager.truncate_computed_blocks(cached.blocks, aligned)
            cached = cached._replace(blocks=blocks, num_tokens=aligned)
        return cached._replace(num_external=external, takes_steps=takes_steps)

    def forget_promise(self, request: Request) -> None:
        """Have vLLM keep no more blocks free for a request whose load has failed, and which holds
        none. It keeps them free also from that request itself: where they are more than half of
        the cache, it never loads or runs again.
        """
        if self.possible:
            releases.unreserve(self._scheduler, request)

    def admitted(self, request: Request, num_local: int, num_external: int) -> None:
        """Note that of a request's tokens ``num_external`` are loaded as the step starts."""
        if num_external:
            self._written[request] = num_local

    def num_written(self, request: Request) -> int:
        """Return how many of the request's computed tokens have their KV in its blocks before this
        step.
        """
        return self._written.get(request, request.num_computed_tokens)

    # ---- streams that are loaded or under way ------------------------------------------------

    def is_under_way(self, request: Request) -> bool:
        """Whether a request's KV is."""
        return (
            request.status == RequestStatus.WAITING_FOR_REMOTE_KVS
            and request.request_id not in self._scheduler.finished_recving_kv_req_ids
        )

    def waits(self, request: Request) -> bool:
        """Whether a stream waits with blocks that are filled, or are being filled."""
        loads = request.status == RequestStatus.WAITING_FOR_REMOTE_KVS
        return loads or self.waits_with_blocks(request)

    def waits_with_blocks(self, request: Request) -> bool:
        """Whether a request's KV has come and it does not run yet."""
        return self.possible and request.status in _WAITS and request.num_computed_tokens > 0

    def frees_blocks(self) -> bool:
        """Whether blocks get free without anybody being scheduled, or requests can go on."""
        return self.possible and (
            self._connector.has_pending_block_frees()
            or any(map(self.is_under_way, self._waiting()))
            or self._num_ended() > 0
        )

    def release(self, request: Request) -> None:
        """Take the blocks of a stream that waits with them: it begins anew."""
        if request in self.streams and self.waits_with_blocks(request):
            self._scheduler._free_request_blocks(request)
            releases.unreserve(self._scheduler, request)
            request.num_computed_tokens = 0
            del self.streams[request]
            if self._are_queued:
                self._scheduler.kv_holding_waiting.remove_request(request)

    def holding(self) -> list[Request]:
        """Return the streams that wait with blocks."""
        return [stream for stream in self.streams if self.waits_with_blocks(stream)]

    def _waiting(self) -> Iterable[Request]:
        """Return all that wait with blocks, filled or being filled, also those of no group."""
        waiting = self._scheduler.kv_holding_waiting
        return waiting if self._are_queued else (*waiting, *self.streams)

    def has_room(self, group: Group, cached: Mapping[Request, CachedPrefix]) -> bool:
        """Whether all streams' tokens fit besides what is promised to others that load or prefill:
        a load holds its blocks until the group can begin.
        """
        promised = releases.reserved_blocks(self._scheduler, group.streams)
        return self._blocks.has_room(group, cached, promised)

    def hand_on(self, outputs: Iterable[Any], groups: Mapping[str, Group]) -> None:
        """Send the client, with what the engine that decodes needs to find an expert's KV, what it
        needs for the amateurs'. Of a step: all ``outputs``, and ``groups`` by the expert's id.
        """
        transfers = {o.request_id: o.kv_transfer_params for o in outputs if o.kv_transfer_params}
        for output in outputs:
            group = groups.get(output.request_id)
            if group is not None and output.request_id in transfers:
                of_amateurs = [transfers.get(request_id) for request_id in group.bits]
                if any(of_amateurs):
                    output.kv_transfer_params = transfer_params.with_ours(
                        output.kv_transfer_params, amateurs=of_amateurs
                    )

    # ---- loads that failed -------------------------------------------------------------------

    def not_loaded(self, model_runner_output: Any) -> set[int]:
        """Return the blocks that were to be loaded and were not."""
        output = model_runner_output.kv_connector_output if self.possible else None
        return set() if output is None else set(output.invalid_block_ids or ())

    def cut(self, invalid: set[int]) -> None:
        """Count loads that are under way as failed if they hold a block that is not there: they
        found it in the prefix cache, and it was to be loaded in time, or written. Of several such
        requests vLLM lets the first compute it, and the others may run before.

        Args:
            invalid: Blocks that were not loaded; or of a request that was taken out of its step.
        """
        for request in self._waiting():
            loads = request.status == RequestStatus.WAITING_FOR_REMOTE_KVS
            if loads and self.uses(request, invalid):
                request.num_computed_tokens = 0
                self._scheduler.failed_recving_kv_req_ids.add(request.request_id)
                # Or a stream that finds more once another one has blocks holds it up for ever.
                releases.ignore_prefix_cache(request)

    def uses(self, request: Request, blocks: set[int]) -> bool:
        """Whether a request has one of these blocks."""
        ids = self._scheduler.kv_cache_manager.get_block_ids(request.request_id)
        return any(not blocks.isdisjoint(of_kind) for of_kind in ids)

    def uncache(self, request: Request, invalid: set[int]) -> None:
        """Take out of the prefix cache what was computed from a block that was not loaded, on."""
        manager = self._scheduler.kv_cache_manager
        for ids in manager.get_block_ids(request.request_id):
            first = next((i for i, block in enumerate(ids) if block in invalid), len(ids))
            manager.evict_blocks({block for block in ids[first:] if block})
