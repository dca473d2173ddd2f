# SPDX-License-Identifier: Apache-2.0
"""The KV connector of vLLM's scheduler, which brings KV from elsewhere.

The streams of a group wait for each other, so also for what a connector loads for one of
them. Loads that a step waits for (synchronous) count as found in the prefix cache. Loads that take
steps (asynchronous) are started for all streams before the leader is admitted, and the group begins
when all have come. A follower whose KV has come waits as any follower does, outside of the queues,
but holds blocks. What it relies on, beside what ``scheduler`` lists:

- ``connector.get_num_new_matched_tokens`` may be asked any number of times before a request is
  admitted, and may say that it does not know yet (None).
- A request whose KV is under way has the status WAITING_FOR_REMOTE_KVS and waits in
  ``kv_holding_waiting``, where vLLM looks for it when its load has failed.
- ``_handle_blocked_waiting_request`` makes it an ordinary one that waits when its KV has come.
- ``_build_kv_connector_meta(connector, output)``: called when all requests of a step are chosen; so
  it is where groups that were split are taken out, before the connector hears of the step.
- ``_handle_invalid_blocks(ids, num_scheduled_tokens)``: the requests that ran on KV that did not
  come, of which vLLM drops the step's tokens.
- ``max_num_active_reqs``: when as many requests run, nobody else is looked at in the pass.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from vllm.v1.request import RequestStatus

from vllm_cold.group import results
from vllm_cold.group.lockstep import Group, Step
from vllm_cold.vllm import versions
from vllm_cold.vllm.scheduler.interface import Request, Scheduler
from vllm_cold.vllm.scheduler.kv_blocks import Found, KVBlocks
from vllm_cold.vllm.scheduler.queues import WaitingQueues

_WAITS = (RequestStatus.WAITING, RequestStatus.PREEMPTED)


class Loads:
    """What the connector of one scheduler brings; nothing where there is none.

    Args:
        scheduler: The engine's.
        queues: Its queues.
        blocks: Its KV cache.
        num_ended: Says how many requests have ended and still hold blocks.

    Attributes:
        starting: Followers that are queued in this pass for their load alone.
        expected: Those that are queued to run in it.
        asked_in_vain: Whether the connector did not know yet, in this pass.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        queues: WaitingQueues,
        blocks: KVBlocks,
        num_ended: Callable[[], int],
    ) -> None:
        self._scheduler = scheduler
        self._num_ended = num_ended
        self._queues = queues
        self._blocks = blocks
        self._connector: Any = getattr(scheduler, "connector", None)
        if self.possible and versions.is_before(0, 31):
            raise ValueError("CoLD does not support KV connectors with vLLM before 0.31.")
        # Followers that are loaded, or were and wait with blocks, in the order in which they began.
        self._loading: dict[Request, None] = {}
        self._written: dict[Request, int] = {}  # see num_written; of steps that are not back yet
        self._released: list[Request] = []  # at the end of the pass
        self._seats: int | None = None  # that the engine has, while it admits nobody any more
        self.starting: set[Request] = set()
        self.expected: set[Request] = set()
        self.asked_in_vain = False

    @property
    def possible(self) -> bool:
        """Whether there is a connector."""
        return self._connector is not None

    # ---- a pass ------------------------------------------------------------------------------

    def begin_pass(self, promote: Callable[[Request], bool]) -> None:
        """Followers whose KV has come, or has not, leave the queue. ``promote`` makes a request
        whose load is over one that waits.
        """
        self.starting.clear()
        self.expected.clear()
        for request in [r for r in self._written if r.status != RequestStatus.RUNNING]:
            del self._written[request]
        self.asked_in_vain = False
        for follower in tuple(self._loading):
            if self.is_under_way(follower):
                continue
            if follower.status == RequestStatus.WAITING_FOR_REMOTE_KVS and promote(follower):
                self._queues.remove(follower)
                if not follower.num_computed_tokens:
                    self._forget_promise(follower)
            if not self.waits_with_blocks(follower):
                del self._loading[follower]

    def end_pass(self, queued: Iterable[Request]) -> None:
        """``queued``: the followers that were put into queues in this pass."""
        if self._seats is not None:
            self._scheduler.max_num_active_reqs, self._seats = self._seats, None
        for follower in queued:
            if follower.status == RequestStatus.WAITING_FOR_REMOTE_KVS:
                self._loading[follower] = None
        released, self._released = self._released, []
        for request in released:
            self.release(request)

    def end_step(self, request_ids: Container[str]) -> None:
        """The results of a step with these requests are here: what it loaded is there, or not."""
        for request in [r for r in self._written if r.request_id in request_ids]:
            del self._written[request]

    def abort(self, request_ids: Container[str]) -> None:
        """These requests end. What is loaded for them in a step that is not back yet may not come:
        vLLM hears of it when they have no blocks any more, and nobody may find these.
        """
        for request, num_local in self._written.items():
            if request.request_id in request_ids and not request.is_finished():
                self._blocks.uncache_unwritten(request, num_local)

    def drop(self, followers: Iterable[Request]) -> None:
        """Their group has ended."""
        for follower in followers:
            self._loading.pop(follower, None)

    def look_up(self, request: Request) -> Found:
        """What the prefix cache and the connector have of a request that holds no blocks."""
        found = self._blocks.look_up(request)
        if self._connector is None or request.skip_reading_prefix_cache:
            return found
        external, takes_steps = self._connector.get_num_new_matched_tokens(
            request, found.num_tokens
        )
        if external is None:
            self.asked_in_vain = True
            return found._replace(is_known=False)
        return found._replace(num_external=external, takes_steps=takes_steps and external > 0)

    def may_start(self, request: Request, step: Step[Request]) -> bool:
        """Whether a request may be admitted: one that is loaded between steps is not asked for its
        tokens, where that is decided otherwise.
        """
        if not self.possible or request.num_computed_tokens > 0:
            return True
        self._forget_promise(request)
        if step.may_admit(self._queues.priority(request)):
            return True
        self._stop_admission()
        return False

    def is_barred(self, request: Request) -> bool:
        """Whether a request could find what is never written: where a follower that was to run is
        passed over, because its KV is now to come later, its group may be taken out of the step.
        """
        runs = RequestStatus.RUNNING
        if request.num_computed_tokens > 0 or request in self.expected:
            return False
        if all(follower.status == runs for follower in self.expected):
            return False
        self._stop_admission()
        return True

    def _stop_admission(self) -> None:
        """Who waits behind a request that may not start holds no blocks and is no more urgent: each
        would be looked at in vain, in every pass.
        """
        scheduler = self._scheduler
        if not scheduler.kv_holding_waiting and self._seats is None:
            self._seats, scheduler.max_num_active_reqs = scheduler.max_num_active_reqs, 0

    def _forget_promise(self, request: Request) -> None:
        """One whose load has failed holds no blocks any more. vLLM still keeps free what it lacks,
        also from itself: where that is more than half of the cache it never loads or runs again.
        """
        self._scheduler._inflight_prefills.discard(request)

    def is_led(self, group: Group[Request], follower: Request, step: Step[Request]) -> bool:
        """Whether a follower in a queue stands behind its leader, as it must before it is loaded:
        an expert waits in its leader's place while its grammar is compiled.
        """
        turn = step.turn_of(group)
        if not self.possible or turn.verdict is not None or follower in self.starting:
            return True
        turn.led_by_other = True
        return False

    def start(self, group: Group[Request], step: Step[Request]) -> bool:
        """Before a leader is admitted: queue those followers whose KV is brought between steps, to
        be loaded and no more.

        Returns:
            Whether the leader goes on: to be loaded too, or to begin.
        """
        if not self.possible:
            return True
        away = [s for s in group.streams if s.status in _WAITS and not s.num_computed_tokens]
        found = {each: self.look_up(each) for each in away}
        if not all(one.is_known for one in found.values()):
            return False
        late = [each for each in away if found[each].takes_steps]
        if not late:
            return True
        if not self._fit(group, found):
            # What they hold would be of no use; the others must not take what they wait for.
            step.block(self._queues.priority(group.leader))
            return False
        followers = [each for each in late if each is not group.leader]
        self.starting.update(followers)
        self._queues.put_followers(group, followers, behind_head=True)
        return len(followers) < len(late)

    def admitted(self, request: Request, num_local: int, num_external: int) -> None:
        """A request is given tokens of which ``num_external`` are loaded at the step's start."""
        if num_external:
            self._written[request] = num_local

    def starting_of(self, group: Group[Request]) -> tuple[Request, ...]:
        """The group's followers that are to be loaded before its leader goes on."""
        return tuple(f for f in group.followers if f in self.starting) if self.starting else ()

    def num_written(self, request: Request) -> int:
        """Of the request's computed tokens those whose KV is in its blocks before this step."""
        return self._written.get(request, request.num_computed_tokens)

    # ---- streams that are loaded or under way ------------------------------------------------

    def is_under_way(self, request: Request) -> bool:
        """Whether a request's KV is."""
        return (
            request.status == RequestStatus.WAITING_FOR_REMOTE_KVS
            and request.request_id not in self._scheduler.finished_recving_kv_req_ids
        )

    def waits_with_blocks(self, request: Request) -> bool:
        """Whether a request's KV has come and it does not run yet."""
        return self.possible and request.status in _WAITS and request.num_computed_tokens > 0

    def num_queued_followers(self) -> int:
        """Followers whose KV is under way: they are in a queue of vLLM's, which counts them."""
        waits = RequestStatus.WAITING_FOR_REMOTE_KVS
        return sum(follower.status == waits for follower in self._loading)

    def frees_blocks(self) -> bool:
        """Whether blocks get free without anybody being scheduled, or requests can go on."""
        return self.possible and (
            self._connector.has_pending_block_frees()
            or any(map(self.is_under_way, self._scheduler.kv_holding_waiting))
            or self._num_ended() > 0
        )

    def release(self, request: Request) -> None:
        """A stream that waits with blocks gives them up, and begins anew."""
        if self.waits_with_blocks(request):
            self._scheduler._free_request_blocks(request)
            self._scheduler._inflight_prefills.discard(request)
            request.num_computed_tokens = 0
            if self._queues.remove(request) is not None:
                self._scheduler.waiting.prepend_request(request)

    def release_later(self, request: Request) -> None:
        """The same, behind the pass."""
        self._released.append(request)

    def release_unled(self, groups: Mapping[str, Group[Request]]) -> None:
        """While admission is paused, followers keep no blocks for a leader that may not begin.
        ``groups``: by the id of each stream.
        """
        for follower in self._loading:
            if not self.waits_with_blocks(follower):
                continue  # it runs by now, or has ended
            leader = groups[follower.request_id].leader
            if leader.status != RequestStatus.RUNNING and not leader.num_computed_tokens:
                self.release(follower)

    def holding(self, groups: Mapping[str, Group[Request]]) -> list[Request]:
        """Streams that wait with blocks, behind a pass. ``groups``: by the id of each stream."""
        if not self.possible:
            return []
        streams = (*self._loading, *self._scheduler.kv_holding_waiting)
        return [s for s in streams if s.request_id in groups and self.waits_with_blocks(s)]

    def release_all(self, streams: Iterable[Request]) -> None:
        """They are computed, and not loaded once more."""
        for stream in streams:
            self.release(stream)
            stream.skip_reading_prefix_cache = True

    def _fit(self, group: Group[Request], found: dict[Request, Found]) -> bool:
        """Whether all streams' tokens fit beside what is promised to others that load or prefill:
        a load holds its blocks until the group can begin.
        """
        others = self._scheduler._inflight_prefills.difference(group.streams)
        promised = sum(map(self._scheduler._request_remaining_blocks, others))
        return self._blocks.fit(group, found, promised)

    def hand_on(self, outputs: Iterable[Any], groups: Mapping[str, Group[Request]]) -> None:
        """What the engine that decodes needs to find the amateurs' KV goes to the client with what
        it needs for their expert's. Of a step: all ``outputs``, and ``groups`` by the expert's id.
        """
        told = {o.request_id: o.kv_transfer_params for o in outputs if o.kv_transfer_params}
        for output in outputs:
            group = groups.get(output.request_id)
            if group is not None and output.request_id in told:
                of_amateurs = [told.get(request_id) for request_id in group.bits]
                if any(of_amateurs):
                    output.kv_transfer_params = results.with_amateurs(
                        output.kv_transfer_params, of_amateurs
                    )

    # ---- loads that failed -------------------------------------------------------------------

    def not_loaded(self, model_runner_output: Any) -> set[int]:
        """Blocks that were to be loaded and were not."""
        told = getattr(model_runner_output, "kv_connector_output", None)
        return set(told.invalid_block_ids or ()) if self.possible and told is not None else set()

    def cut(self, invalid: set[int]) -> None:
        """Loads that are under way keep what is in front of the first block that is not there: they
        found it in the prefix cache, and it was to be loaded in time, or written. Of several such
        vLLM lets the first compute it, and the others may run before.

        Args:
            invalid: Blocks that were not loaded; or of a request that was taken out of its step.
        """
        scheduler = self._scheduler
        for request in scheduler.kv_holding_waiting:
            if request.status == RequestStatus.WAITING_FOR_REMOTE_KVS:
                ids, *others = scheduler.kv_cache_manager.get_block_ids(request.request_id)
                first = next((at for at, block in enumerate(ids) if block in invalid), None)
                most = (len(ids) if first is None else first) * scheduler.block_size
                # Of windows, what is in front may be gone: there, its block is 0.
                if first is not None and 0 in ids[:first]:
                    most = 0
                if any(not invalid.isdisjoint(of_kind) for of_kind in others):
                    most = 0
                if request.num_computed_tokens > most:
                    request.num_computed_tokens = most
                    scheduler.failed_recving_kv_req_ids.add(request.request_id)
                    # Or a follower that finds more once its leader has blocks holds it up for ever.
                    request.skip_reading_prefix_cache = True

    def uses(self, request: Request, blocks: set[int]) -> bool:
        """Whether a request has one of these blocks."""
        ids = self._scheduler.kv_cache_manager.get_block_ids(request.request_id)
        return any(not blocks.isdisjoint(of_kind) for of_kind in ids)

    def uncache(self, request: Request, invalid: set[int]) -> None:
        """What was computed from a block that was not loaded on is not to be found any more."""
        manager = self._scheduler.kv_cache_manager
        for ids in manager.get_block_ids(request.request_id):
            first = next((at for at, block in enumerate(ids) if block in invalid), len(ids))
            manager.evict_blocks({block for block in ids[first:] if block})
