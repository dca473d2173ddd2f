# SPDX-License-Identifier: Apache-2.0
"""The scheduler, as ``SchedulerConfig.scheduler_cls``.

A CoLD request is several requests that must be scheduled in step. The rules are
``vllm_cold.group.lockstep``; this file only connects them to vLLM's scheduler, without a fork of
``schedule()``. What it relies on:

- ``_mamba_block_aligned_split(request, num_new_tokens, num_local_cached, ...)``: called for every
  request that is about to get tokens, in both loops of ``schedule()``, after the token budget and
  before block allocation, whenever ``need_mamba_block_aligned_split`` is true; a 0 passes the
  request over (running) or ends admission for this step (waiting). It is the one place where
  tokens can be capped *before* blocks are allocated and hashed. It is replaced only during a pass
  in which a group may get some, in which ``states`` asks vLLM's own rule first.
- ``_handle_blocked_waiting_request(request)``: called for the head of a queue before anything else
  is done for it; False passes it over and goes on with the next. Not in 0.23, where a group that
  lacks an adapter's slot ends the step's admission.
- ``_try_schedule_encoder_inputs(request, ...)``: called behind the cap for requests with media, and
  takes tokens off those that cannot be encoded; 0.23, where no group has any, calls it in front of
  the cap. ``encoder`` has what follows.
- ``_update_after_schedule(output)``: the end of ``schedule()``, before counts advance.
- ``_preempt_request``, ``add_request``, ``finish_requests``, ``update_from_output``,
  ``get_request_counts``: overridden, each calls super. The first two put a request into
  ``self.waiting``, in whose place ``queues`` has another one for those who are to wait elsewhere.
- All streams are in ``self.requests``, but only one waits in a queue: the leader (while a grammar
  is compiled, the expert, with which vLLM looks after that). Its followers are there inside a
  scheduling pass only, right behind it (or, if it already runs, in front of everything else); so
  waiting counts and queue order are those of the clients' requests.

``interface`` has all that is used of vLLM's scheduler, ``queues`` puts followers into
queues, ``kv_blocks`` asks the KV cache, ``connectors`` a KV connector, ``states`` splits prompts
for layers with states, ``encoder`` for media, ``amateurs`` makes the other streams, ``stats`` sends
figures to the front end.
"""

import logging
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec import structs
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import RequestStatus

from vllm_cold.group import results
from vllm_cold.group.drafting import DraftController, Drafting
from vllm_cold.group.explained import Told
from vllm_cold.group.lockstep import (
    Capacity,
    Group,
    Part,
    Step,
    Verdict,
    both,
    followers_left,
    is_split,
    tokens_left,
    whole,
)
from vllm_cold.group.slots import Slots
from vllm_cold.group.step_stats import CountersByKind, RowStats
from vllm_cold.group.stream import from_extra_args, set_slot
from vllm_cold.vllm import versions
from vllm_cold.vllm.scheduler.amateurs import make_streams
from vllm_cold.vllm.scheduler.connectors import Loads
from vllm_cold.vllm.scheduler.encoder import EncoderInputs
from vllm_cold.vllm.scheduler.interface import Request
from vllm_cold.vllm.scheduler.kv_blocks import KVBlocks
from vllm_cold.vllm.scheduler.queues import WaitingQueues, holds_prompts
from vllm_cold.vllm.scheduler.states import StateSplit
from vllm_cold.vllm.scheduler.stats import attach
from vllm_cold.vllm.worker import outputs as worker_outputs

if TYPE_CHECKING:
    from vllm_cold.vllm.scheduler.interface import Scheduler
else:
    from vllm.v1.core.sched.scheduler import Scheduler

logger = logging.getLogger("vllm." + __name__)

# Split this often in a row with nothing else running: the group will never be in step.
_MAX_FAILED_ALONE = 3
# So many passes admit others in front of a group whose adapters find no slots. Then nobody passes
# it any more, so it gets them as soon as those who have them end.
_MAX_PASSED_OVER = 64
# For so many steps after the last group the front ends hear from us.
LAST_REPORTS = 32

RequestGroup = Group[Request]


class GroupScheduler(Scheduler):
    """vLLM's Scheduler with groups of streams."""

    # What vLLM's methods need of us although __init__ never ran, as in some of its tests.
    connector: Any = None
    defer_block_free = False
    _groups: dict[str, RequestGroup] = {}
    _blocks: KVBlocks | None = None
    _draft_controller: DraftController | None = None
    _steps_in_flight = 0
    _to_report = 0
    _in_pass = False
    _emptied = False  # whether all that had tokens were taken out of the step

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._groups = {}  # by the id of each stream
        self._num_groups = 0
        self._counts_streams = versions.is_before(0, 31)  # in vLLM's statistics
        self._failed: list[RequestGroup] = []  # groups that must end
        self._counters = CountersByKind()
        self._to_report = 0  # steps for which the front ends must hear from us, groups or not
        # In a group's id, so that no two engines have the same one: see ``worker.outputs``.
        self._engine = uuid.uuid4().hex[:12]
        self._queues = WaitingQueues(self)
        self._blocks = KVBlocks(self)
        self._loads = Loads(self, self._queues, self._blocks, self._num_ended)
        self._states = StateSplit(self, self._blocks)
        self._encoder = EncoderInputs(self, super()._try_schedule_encoder_inputs)
        speculative = self.vllm_config.speculative_config
        self._draft_controller = DraftController() if self.num_spec_tokens > 0 else None
        self._slots = Slots()
        self._draft_slots = speculative.max_num_new_slots_for_drafting if speculative else 0
        self._steps_in_flight = 0
        # Of the current pass.
        self._step: Step[Request] = Step(budget=0)
        self._budget = 0
        self._in_pass = False
        self._capped: Request | None = None  # the last one that was
        self._throttled = False  # whether vLLM holds prompts back
        self._adapters: set[int] = set()  # of the first requests that run
        self._num_seen = 0  # how many these are
        self._maybe_incomplete: list[RequestGroup] | None = None  # None: not looked at yet
        self._scattered = False  # whether a follower may run elsewhere than behind its leader

    # ---- arrival and end ---------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        params = request.sampling_params
        stream = from_extra_args(params.extra_args) if params is not None else None
        if stream is None or request.request_id in self.requests:
            super().add_request(request)
            return
        # While a grammar is compiled, vLLM looks after its request.
        leads = request.status == RequestStatus.WAITING
        with self._queues.aside() if leads else nullcontext():
            super().add_request(request)
        stream = structs.replace(stream, group=self._group_id(request))
        adapter = request.lora_request.lora_name if request.lora_request else ""
        kind = self._counters.kind(stream.method, adapter)
        streams = make_streams(request, stream)
        told = Told(len(stream.amateurs), stream.explain) if stream.explain else None
        group: RequestGroup = Group(
            streams, kind, keeps_state=stream.keeps_state, retires=stream.retires, told=told
        )
        if self._draft_controller is not None:
            seeded = params.seed is not None and params.temperature > 0
            group.drafting = Drafting(self._draft_controller.kinds[kind], seeded=seeded)
        if leads:
            self.waiting.add_request(group.leader)
        self._num_groups += 1
        for each in group.streams:
            self._groups[each.request_id] = group
            self.requests[each.request_id] = each
        if self._loads.possible:
            for amateur in group.amateurs:
                self.connector.on_new_request(amateur)
        self._counters.sums[kind].requests += 1
        self._to_report = LAST_REPORTS
        self._encoder.begin_anew(group)
        if (why := self._encoder.why_never(group)) is not None:
            self._fail(group, f"CoLD: this request {why}.")

    def _group_id(self, expert: Request) -> str:
        return f"{self._engine}:{expert.request_id}"

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Any]:
        """Finish whole groups; the amateurs are not reported."""
        if not self._groups:
            return super().finish_requests(request_ids, finished_status)
        if isinstance(request_ids, str):
            request_ids = (request_ids,)
        ids = set(self.requests if request_ids is None else request_ids)
        groups = {g.request_id: g for i in ids if (g := self._groups.get(i)) is not None}
        amateurs = {a.request_id for g in groups.values() for a in g.amateurs}
        ids |= groups.keys() | amateurs
        self._loads.abort(ids)
        finished = super().finish_requests(ids, finished_status)
        for group in groups.values():
            self._forget(group)
        # vLLM 0.23 reports (request id, client index), later releases the requests.
        return [
            r
            for r in finished or ()
            if (r[0] if isinstance(r, tuple) else r.request_id) not in amateurs
        ]

    def _forget(self, group: RequestGroup) -> None:
        if group.slot is not None:
            self._slots.give_back(group.slot)
        self._loads.drop(group.followers)
        self._num_groups -= 1
        for each in group.streams:
            self._groups.pop(each.request_id, None)

    def _retire(self, group: RequestGroup, figures: Sequence[RowStats], new: int) -> None:
        """End the amateurs that the group's rule needs no more, now that it was given ``new``
        tokens. Where it was preempted meanwhile, its rule will say so again.
        """
        if not new or any(s.status != RequestStatus.RUNNING for s in group.streams):
            return
        done = figures[new - 1].done
        amateurs = [each for each in group.amateurs if done & group.bits[each.request_id]]
        if not amateurs:
            return
        super().finish_requests([a.request_id for a in amateurs], RequestStatus.FINISHED_ABORTED)
        for each in amateurs:
            del self._groups[each.request_id]
        group.retire(amateurs)
        self._counters.sums[group.kind].retired_streams += len(amateurs)
        self._scattered = True  # the leader may be another one
        self._look_anew()

    def _fail(self, group: RequestGroup, why: str) -> None:
        """The group must end, and its client is told why; the first reason counts."""
        if group.error is None:
            group.error = why
            self._failed.append(group)

    def get_request_counts(self) -> tuple[int, int]:
        """(running, waiting), a CoLD request counted once."""
        running, waiting = super().get_request_counts()
        if self._groups and not self._in_pass:
            waiting -= self._loads.num_queued_followers()
            found = [self._groups.get(request.request_id) for request in self.running]
            # vLLM also asks when an expert has ended and its amateurs have not yet.
            of_groups = {g for g in found if g is not None and not g.expert.is_finished()}
            running = found.count(None) + len(of_groups)
        return running, waiting

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """A CoLD request counts once; vLLM 0.23 does not ask ``get_request_counts``."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None and self._groups:
            if self._counts_streams:
                stats.num_running_reqs = self.get_request_counts()[0]
            if queued := self._loads.num_queued_followers():  # vLLM counts them as skipped
                stats.num_waiting_reqs += queued
                stats.num_skipped_waiting_reqs -= queued
        return stats

    def _set_kv_fetch_stage(self, request: Request, stage: str | None) -> None:
        """What vLLM counts of loads (since 0.32), by its clients' requests."""
        group = self._groups.get(request.request_id)
        if stage is None or group is None or request is group.expert:
            super()._set_kv_fetch_stage(request, stage)

    def has_finished_requests(self) -> bool:
        """With a connector vLLM takes requests in no queue for those that have ended."""
        if not self._groups or not self._loads.possible:
            return bool(super().has_finished_requests())
        return bool(self.finished_req_ids) or self._num_ended() > 0

    def _num_ended(self) -> int:
        """Requests that have ended and that a connector is not done with, between passes: those
        that neither run, nor are in a queue, nor are followers, which wait in none.
        """
        running, waiting = super().get_request_counts()
        groups = [self._groups.get(request.request_id) for request in self.running]
        pairs = zip(groups, self.running, strict=True)
        following = sum(g is not None and r is not g.leader for g, r in pairs)
        following += self._loads.num_queued_followers()
        elsewhere = len(self._groups) - self._num_groups - following
        return len(self.requests) - running - waiting - elsewhere

    def set_pause_state(self, pause_state: PauseState) -> None:
        super().set_pause_state(pause_state)
        if pause_state == PauseState.PAUSED_NEW:
            self._loads.release_unled(self._groups)

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, *args: Any, **kwargs: Any
    ) -> bool:
        """Nothing can be reset while a request that does not run holds blocks."""
        if reset_running_requests:
            for request_id in self._groups:
                self._loads.release(self.requests[request_id])
        return bool(super().reset_prefix_cache(reset_running_requests, *args, **kwargs))

    # ---- one scheduling pass -----------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        # At the start of the step, before anybody computes with them.
        cleared = self._blocks.release_nonfinite() if self._blocks is not None else []
        throttle = bool(args[0] if args else kwargs.get("throttle_prefills"))
        output = self._schedule(throttle, *args, **kwargs)
        if cleared:
            output.new_block_ids_to_zero = [*(output.new_block_ids_to_zero or ()), *cleared]
        return output

    def _schedule(self, throttle: bool, *args: Any, **kwargs: Any) -> SchedulerOutput:
        if not self._groups:
            return super().schedule(*args, **kwargs)
        self._budget = min(
            self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens
        )
        drafting = self._draft_controller is None or self._draft_controller.may_draft()
        self._step = Step(self._budget, self._draft_slots, self.num_spec_tokens, drafting)
        self._throttled = holds_prompts(self, throttle)
        takes_part = self._takes_part()
        if takes_part:
            self._order_running()
        self._loads.begin_pass(self._promote)
        if self.pause_state == PauseState.PAUSED_NEW:
            self._loads.release_unled(self._groups)
        self._encoder.begin_pass()
        self._capped = None
        self._in_pass = True
        before = self._states.is_on = self.need_mamba_block_aligned_split
        if takes_part:
            self.need_mamba_block_aligned_split = True
            self._mamba_block_aligned_split = self._cap  # type: ignore[method-assign]
        try:
            return super().schedule(*args, **kwargs)
        finally:
            if takes_part:
                del self._mamba_block_aligned_split  # the class's again
            self.need_mamba_block_aligned_split = before
            self._in_pass = False
            self._look_anew()

    @property
    def _max_active(self) -> int:
        """Seats, also where vLLM has no name for those in use."""
        return getattr(self, "max_num_active_reqs", self.max_num_running_reqs)

    def _takes_part(self) -> bool:
        """Whether a group may get tokens in the pass that begins: not where all seats are taken by
        plain requests, as a pass that preempts one of them admits nobody.
        """
        return len(self.running) < self._max_active or bool(self._led())

    def _order_running(self) -> None:
        """A leader that lacks a follower runs last, with those that it has, so that nothing comes
        between them within a pass. With admission paused they must not hold what they cannot use.
        """
        incomplete = self._incomplete()
        if not incomplete and not self._scattered:
            return
        # The first one's followers are admitted behind the others' leaders.
        self._scattered = len(incomplete) > 1
        ordered: list[Request] = []
        last: list[Request] = []
        for request in self.running:
            group = self._groups.get(request.request_id)
            if group is None:
                ordered.append(request)
            elif request is group.leader:
                streams = [
                    stream
                    for stream in (request, *group.followers)
                    if stream.status == RequestStatus.RUNNING
                ]
                (last if group in incomplete else ordered).extend(streams)
        if self.pause_state != PauseState.PAUSED_NEW:
            self.running = ordered + last
            return
        self.running = ordered
        for request in reversed(last):
            self._preempt_request(request, time.monotonic())

    def _led(self) -> list[RequestGroup]:
        """Groups whose leader runs, in the order of the batch."""
        found = ((self._groups.get(r.request_id), r) for r in self.running)
        return [group for group, r in found if group is not None and r is group.leader]

    def _incomplete(self) -> list[RequestGroup]:
        """Groups whose leader runs without one of its followers, in the order of the batch."""
        if self._maybe_incomplete is None:
            self._maybe_incomplete = self._led()
        self._maybe_incomplete = [
            group
            for group in self._maybe_incomplete
            if group.leader.status == RequestStatus.RUNNING
            and any(f.status != RequestStatus.RUNNING for f in group.followers)
        ]
        return self._maybe_incomplete

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        """False passes a request over whose adapters find no slots, as vLLM does with its own
        count, which knows neither a group's other streams nor those that are held in this step;
        and a group of which a stream's KV is under way.
        """
        ready = super()._handle_blocked_waiting_request(request)
        if not ready or not self._in_pass:
            return ready
        if self._loads.possible and self._loads.is_barred(request):
            return False
        group = self._groups.get(request.request_id)
        if group is None:
            may_load = self._loads.may_start(request, self._step)
            return may_load and (not request.lora_request or self._loras_fit(request))
        if request is not group.leader:
            return self._loads.is_led(group, request, self._step)
        if any(map(self._loads.is_under_way, group.followers)):
            return False
        if not self._loras_fit(*group.streams):
            # Those behind it may keep its slots taken for ever: in the end it stops the queue.
            group.passed_over += 1
            if group.passed_over <= _MAX_PASSED_OVER:
                return False
        return self._loads.may_start(request, self._step) and self._loads.start(group, self._step)

    def _promote(self, request: Request) -> bool:
        """What vLLM does when a request's KV has come; not in 0.23."""
        return super()._handle_blocked_waiting_request(request)

    def _cap(
        self,
        request: Request,
        num_new_tokens: int,
        num_new_local_computed_tokens: int = 0,
        num_external_computed_tokens: int = 0,
    ) -> int:
        """The cap on a request's tokens in this step; see the module docstring."""
        if num_new_tokens <= 0:
            return 0
        self._capped = request
        group = self._groups.get(request.request_id)
        waiting = request.status != RequestStatus.RUNNING
        if group is None and not waiting and not self._states.is_on:
            return self._step.clip_plain(num_new_tokens)
        assert self._blocks is not None
        cached = num_new_local_computed_tokens, num_external_computed_tokens
        num_cached = self._blocks.restored(sum(cached))
        self._loads.admitted(request, num_new_local_computed_tokens, num_external_computed_tokens)
        if group is not None and waiting and request.request_id in group.new_amateurs:
            group.new_amateurs[request.request_id] = request.num_computed_tokens or num_cached
        if group is not None and not group.followers:
            group = None  # the others have ended

        part: Part = whole
        if self._states.is_on:
            rule = self._states.split if group is None else self._states.part
            part = partial(rule, request, cached=cached)
            num_new_tokens = part(num_new_tokens)
        of_encoder: Part = whole
        if group is not None and request.mm_features:
            start = request.num_computed_tokens or num_cached
            of_encoder = partial(self._encoder.part, group, request, start)
            part = both(part, of_encoder)
        if group is not None and request is not group.leader:
            turn = self._step.turn_of(group)
            if waiting and request in self._loads.starting:
                return 0  # it was to be loaded, and is not
            if waiting and turn.verdict is None:
                turn.led_by_other = True
                return 0
            return self._step.clip_follower(
                group, request, of_encoder(num_new_tokens), num_cached, waiting, part
            )
        priority = self._queues.priority(request)
        # Those that hold blocks come first, as in vLLM.
        if waiting and not request.num_computed_tokens and not self._step.may_admit(priority):
            return 0
        if group is None:
            if waiting and request.lora_request and not self._loras_fit(request):
                return 0
            return self._step.clip_plain(num_new_tokens)
        capacity = self._capacity(group, num_cached, waiting)
        has_media = any(map(self._encoder.reads_more, group.streams))
        if has_media and (capacity.admissible or not waiting):
            capacity.encodable = self._encoder.can_finish(group, num_cached, capacity)
            if not capacity.encodable or num_new_tokens < tokens_left(request, num_cached):
                num_new_tokens = of_encoder(num_new_tokens)
        granted = self._step.clip_leader(group, num_new_tokens, num_cached, capacity, waiting, part)
        if granted == 0 and waiting:
            if capacity.admissible:
                self._give_up_cache_hit(group, num_cached, capacity)
            return 0
        if granted:
            group.passed_over = 0
        if waiting:
            self._incomplete().append(group)  # until its followers run
        if has_media and self._step.turn_of(group).verdict is Verdict.FINISH:
            self._encoder.promise(group, num_cached, capacity)
        if granted == 0 and self._is_blocked(group, capacity):
            self._step.block(priority)
        if granted == 0 and self._has_lost_media(group, num_cached, capacity):
            self._step.preempt(group)
        if admitted := self._step.admits(group, capacity):
            self._loads.starting.difference_update(admitted)
            self._loads.expected.update(admitted)
        elif not waiting:
            admitted = self._loads.starting_of(group)
        if admitted:
            self._queues.put_followers(group, admitted, behind_head=waiting)
        return granted

    def _capacity(self, group: RequestGroup, num_cached: int, waiting: bool) -> Capacity:
        """What this step can offer the group's followers, if so many of its leader's tokens are
        cached.
        """
        assert self._blocks is not None
        chunk = max(self.scheduler_config.long_prefill_token_threshold, 0)
        missing = [f.status != RequestStatus.RUNNING for f in group.followers]
        nothing = [0] * len(missing)
        if not any(missing):
            can_finish = self._states.can_finish(group, num_cached, {})
            return Capacity(nothing, missing, chunk=chunk, can_finish=can_finish)
        seats = len(self.running) + self.num_waiting_for_streaming_input + sum(missing) + waiting
        incomplete = self._incomplete()
        admissible = (
            seats <= self._max_active
            and (not waiting or self._encoder.may_begin(group, self._led()))
            and self._loras_fit(*group.streams)
            # One after the other, so that nothing gets between a group's streams.
            and (waiting or not self._queues.has_followers)
        )
        if waiting and not admissible:
            return Capacity(nothing, missing, False, chunk)  # whatever is cached
        away = [f for f, is_missing in zip(group.followers, missing, strict=True) if is_missing]
        found = {f: self._loads.look_up(f) for f in away if not f.num_computed_tokens}
        self._states.give_up_hits(group, found)
        cached = {f: self._blocks.restored(one.total) for f, one in found.items()}
        late = [f for f, one in found.items() if one.takes_steps]
        if not waiting:
            self._loads.starting.update(late)
        admissible = (
            admissible
            and not late
            and not any(map(self._loads.is_under_way, away))
            and all(one.is_known for one in found.values())
            and all(self._may_begin(f, cached.get(f, 0)) for f in away)
            and self._blocks.fit(group, found, 0 if waiting else self._promised(group))
        )
        can_finish = self._states.can_finish(group, num_cached, found)
        of_followers = [cached.get(f, 0) for f in group.followers]
        others = incomplete not in ([], [group])
        return Capacity(of_followers, missing, admissible, chunk, others, can_finish)

    def _promised(self, group: RequestGroup) -> int:
        """Blocks that leaders may still take in this pass which run without a follower, too."""
        assert self._blocks is not None
        others = (other for other in self._incomplete() if other is not group)
        later = (o for o in others if o.turn.step is not self._step or o.turn.verdict is None)
        return sum(self._blocks.to_come(other.leader) for other in later)

    def _may_begin(self, request: Request, num_cached: int) -> bool:
        """Whether vLLM would admit a request, as far as that is the request's matter."""
        stale = getattr(request, "num_stale_output_tokens", 0) > 0
        late = stale and not getattr(request, "drop_stale_output", False)
        return not late and not (self._throttled and tokens_left(request, num_cached) > 1)

    def _loras_fit(self, *requests: Request) -> bool:
        """Whether the requests' adapters fit beside those of all running requests. Stock counts
        the scheduled ones only, but a stream that is held in this step needs its slot again.
        """
        if self.lora_config is None:
            return True
        for request in self.running[self._num_seen :]:
            if request.lora_request:
                self._adapters.add(request.lora_request.lora_int_id)
        self._num_seen = len(self.running)
        wanted = {r.lora_request.lora_int_id for r in requests if r.lora_request}
        return bool(len(self._adapters | wanted) <= self.lora_config.max_loras)

    def _look_anew(self) -> None:
        """Somebody runs no more, so what was seen of those who run holds no more."""
        self._adapters.clear()
        self._num_seen = 0
        self._maybe_incomplete = None

    def _is_blocked(self, group: RequestGroup, capacity: Capacity) -> bool:
        """Whether all that a leader at its last token waits for is to have followers admitted."""
        left = zip(followers_left(group, capacity), capacity.missing, strict=True)
        if any(map(self._loads.is_under_way, group.followers)):
            return False  # they have their blocks
        if tokens_left(group.leader) > 1 and not capacity.encodable:
            # Others' media leave no room for its own. Those behind it may bring more for ever.
            group.passed_over += 1
            return group.passed_over > _MAX_PASSED_OVER
        return any(capacity.missing) and all(n == 1 for n, missing in left if not missing)

    def _has_lost_media(self, group: RequestGroup, num_cached: int, capacity: Capacity) -> bool:
        """Whether all streams lack their last token alone, and media that they had encoded for it
        are to be encoded once more (vLLM was told to forget them), more than fit one step.
        """
        return not (
            capacity.encodable
            or any(capacity.missing)
            or max(tokens_left(each) for each in group.streams) > 1
            or self._encoder.could_finish(group, num_cached, capacity)
        )

    def _give_up_cache_hit(self, group: RequestGroup, num_cached: int, capacity: Capacity) -> None:
        """A leader whose prompt is cached up to the last token cannot wait for followers that need
        several steps: it has no token to be admitted with. So it computes its prompt anew.
        """
        # What the running requests and the leader leave in an ordinary step.
        drafts, slots = self.num_spec_tokens, self._draft_slots
        budget = self._budget - 1 - (1 + drafts + slots) * len(self.running)
        budget -= drafts + slots * len(group.streams)
        left = followers_left(group, capacity)
        if tokens_left(group.leader, num_cached) == 1 and (
            sum(left) > budget
            or max(left) > (capacity.chunk or budget)
            or not capacity.can_finish
            or not self._encoder.could_finish(group, num_cached, capacity)
        ):
            group.leader.skip_reading_prefix_cache = True
            self._loads.release_later(group.leader)

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        group = self._groups.get(request.request_id)
        if getattr(self, "requires_kv_delivery", False):
            kwargs["drop_stale_output"] = True  # of all streams, whoever preempts them
        if self._in_pass:
            assert self._blocks is not None
            unwritten = self._blocks.uncache_unwritten(request, self._loads.num_written(request))
            if self._loads.possible:
                self._loads.cut(unwritten)
            self._step.preempt(group if group is not None and group.followers else None)
            self._encoder.preempted(request)
            self._look_anew()
        leads = group is None or request is group.leader
        with nullcontext() if leads else self._queues.aside():
            super()._preempt_request(request, *args, **kwargs)
        if group is not None and leads:
            self._counters.sums[group.kind].preemptions += 1

    def _try_schedule_encoder_inputs(
        self,
        request: Request,
        num_computed_tokens: int,
        num_new_tokens: int,
        encoder_compute_budget: int,
        shift_computed_tokens: int = 0,
    ) -> tuple[Any, ...]:
        asked = request, num_computed_tokens, num_new_tokens, encoder_compute_budget
        if not self._in_pass:
            return super()._try_schedule_encoder_inputs(*asked, shift_computed_tokens)
        found = self._encoder.schedule(*asked, shift_computed_tokens)
        if request is self._capped:  # vLLM 0.23 caps behind this, and has no groups with media
            self._step.take_back(num_new_tokens, found[1])
            self._capped = None
        return found

    def _build_kv_connector_meta(self, connector: Any, scheduler_output: SchedulerOutput) -> Any:
        if self._groups:
            self._after_pass(scheduler_output)
        return super()._build_kv_connector_meta(connector, scheduler_output)

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        if self._groups and not self._loads.possible:  # else before its connector hears of it
            self._after_pass(scheduler_output)
        if self._emptied and self.defer_block_free:
            self.sched_step_seq -= 1  # vLLM counts the steps that do something
        self._emptied = False
        self._steps_in_flight += bool(scheduler_output.num_scheduled_tokens)
        if self._draft_controller is not None:
            self._draft_controller.begin_step()
        super()._update_after_schedule(scheduler_output)

    def _after_pass(self, output: SchedulerOutput) -> None:
        """Take back followers that were not admitted, preempt groups that were split."""
        self._loads.end_pass(self._queues.take_back())
        had_tokens = bool(output.num_scheduled_tokens)
        failed: list[RequestGroup] = []
        for group in tuple(self._step.groups):
            if group.turn.led_by_other:
                self._queues.lead(group)
            if is_split(group, output.num_scheduled_tokens):
                self._withdraw(group, output)
                failed.append(group)
            elif group.turn.verdict is Verdict.FINISH:
                group.failed_alone = 0
        if not output.num_scheduled_tokens and not self._step.preempted and self._stalled():
            # A leader waits in vain for its followers' blocks: the youngest group gives way.
            group = next(g for r in reversed(self.running) if (g := self._groups.get(r.request_id)))
            self._withdraw(group, output)
            failed.append(group)
        self._emptied = had_tokens and not output.num_scheduled_tokens
        alone = not output.num_scheduled_tokens and not self._loads.frees_blocks()
        if alone and (holding := self._loads.holding(self._groups)):
            alone = False
            if not failed and not self._step.preempted and self._may_go_on():
                # They may be in each other's way.
                self._loads.release_all(holding)
        for group in failed:
            if not alone:
                group.failed_alone = 0
                continue
            group.failed_alone += 1
            group.drafting.possible = False  # drafts need blocks too
            for each in group.streams:
                # Streams that push each other's blocks out of the prefix cache begin anew.
                each.skip_reading_prefix_cache = True
            if group.failed_alone >= _MAX_FAILED_ALONE:
                sizes = ", ".join(str(each.num_tokens) for each in group.streams)
                self._fail(
                    group,
                    f"CoLD: the streams of this request ({sizes} tokens) were not scheduled "
                    "together, although nothing else ran; most likely they do not fit the KV cache "
                    f"of {self.cache_config.num_gpu_blocks} blocks of {self.block_size} tokens: "
                    "shorten it or enlarge the KV cache.",
                )
        for group in self._step.groups:
            if group.keeps_state and group.slot is None:
                self._take_slot(group, output)
        self._encoder.end_pass(output, self._groups, self._step)

    def _take_slot(self, group: RequestGroup, output: SchedulerOutput) -> None:
        """If it gets its first tokens: ``output`` has the streams' parameters for the workers."""
        if any(each.request_id in output.num_scheduled_tokens for each in group.streams):
            group.slot = self._slots.take()
            for each in group.streams:
                set_slot(each.sampling_params.extra_args, group.slot)

    def _stalled(self) -> bool:
        """Whether running groups got nothing although nothing is under way."""
        return (
            self.pause_state == PauseState.UNPAUSED
            and any(r.request_id in self._groups for r in self.running)
            and not self._steps_in_flight
            and not self._loads.frees_blocks()
            and not self._loads.asked_in_vain
        )

    def _may_go_on(self) -> bool:
        """Whether nothing is under way, and nobody told the engine to stand still."""
        paused = self.pause_state == PauseState.PAUSED_ALL
        return not (paused or self._steps_in_flight or self._loads.asked_in_vain)

    def _withdraw(self, group: RequestGroup, output: SchedulerOutput) -> None:
        """Take all streams out of this step and preempt them."""
        for request in (*reversed(group.followers), group.leader):
            never_sent = strip(output, request.request_id)
            self.prev_step_scheduled_req_ids.discard(request.request_id)
            if request.status != RequestStatus.RUNNING:
                self._loads.release(request)
                continue
            self.running.remove(request)
            self._preempt_request(request, time.monotonic())
            if never_sent:
                # The workers have not heard of it: it must be sent as new again.
                request.status = RequestStatus.WAITING
                request.num_preemptions -= 1
                if request is group.leader:
                    self._counters.sums[group.kind].preemptions -= 1

    # ---- a step's results --------------------------------------------------------------------

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: Any
    ) -> dict[int, EngineCoreOutputs]:
        scored: dict[str, list[RowStats]] = {}
        ended: list[tuple[Request, EngineCoreOutput]] = []
        if self._draft_controller is not None:
            tokens = scheduler_output.num_scheduled_tokens.values()
            self._draft_controller.end_step(tokens, most=1 + self.num_spec_tokens)
        scheduled = scheduler_output.num_scheduled_tokens
        took_part = bool(self._groups) and not self._groups.keys().isdisjoint(scheduled)
        if took_part:
            scored = self._scored(scheduler_output, model_runner_output)
        if self._groups:
            # Before vLLM sees their tokens. It passes over requests that ended meanwhile.
            ended = self._end_failed()
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if self._groups:
            self._loads.end_step(scheduled)
        self._steps_in_flight -= bool(scheduled)
        if took_part:
            ended += self._after_output(scheduler_output, outputs, scored)
        for expert, output in ended:
            outputs.setdefault(expert.client_index, EngineCoreOutputs()).outputs.append(output)
        if self._to_report > 0 and self.log_stats:
            self._report(outputs)
        return outputs

    def _scored(
        self, scheduler_output: SchedulerOutput, model_runner_output: Any
    ) -> dict[str, list[RowStats]]:
        """The figures of each group that got tokens in this step, by its expert's id. A group of
        whose tokens one is none must end.
        """
        assert self._blocks is not None
        row, tokens = model_runner_output.req_id_to_index, model_runner_output.sampled_token_ids
        drafts = scheduler_output.scheduled_spec_decode_tokens
        invalid = scheduler_output.num_invalid_spec_tokens or {}  # which its grammar forbids
        found = worker_outputs.from_worker(model_runner_output)
        not_loaded = self._loads.not_loaded(model_runner_output)
        each_stream = None
        if self._draft_controller is not None and tokens:
            sampled = [i for i, at in row.items() if i in self.requests and len(tokens[at])]
            each_stream = self._break_even(sampled)
        scored = {}
        for request_id in scheduler_output.num_scheduled_tokens:
            group = self._groups.get(request_id)
            if group is None or request_id != group.request_id:
                continue
            figures = found.get(self._group_id(group.expert), [])
            if any(each.nonfinite == 1 for each in figures):
                self._blocks.mark_nonfinite(group.streams)
            lost = not_loaded and any(self._loads.uses(s, not_loaded) for s in group.streams)
            if lost or is_dropped(group.expert):
                continue  # its tokens count for nothing
            at = row.get(request_id)
            if at is None or not tokens or not len(tokens[at]):
                continue
            num_tokens, num_drafts = len(tokens[at]), len(drafts.get(request_id, ()))
            sums = self._counters.sums[group.kind]
            sums.draft_tokens += num_drafts - invalid.get(request_id, 0)
            sums.accepted_draft_tokens += num_tokens - 1
            if self._draft_controller is not None:
                least = None if each_stream is None else each_stream * len(group.streams)
                group.drafting.observe(num_drafts, num_tokens - 1, least)
            here = sum(
                bit for i, bit in group.bits.items() if i in scheduler_output.num_scheduled_tokens
            )
            if (why := results.problem(figures, num_tokens, num_drafts, here)) is not None:
                self._fail(group, why)
            else:
                scored[request_id] = figures
        return scored

    def _handle_invalid_blocks(
        self, invalid_block_ids: set[int], num_scheduled_tokens: dict[str, int]
    ) -> set[str]:
        """What the KV of one stream did not bring, its group has not computed."""
        failed = super()._handle_invalid_blocks(invalid_block_ids, num_scheduled_tokens)
        if self._groups:
            self._loads.cut(invalid_block_ids)
        groups = {g.request_id: g for i in failed if (g := self._groups.get(i)) is not None}
        if not groups:
            return failed
        failed.update(each.request_id for g in groups.values() for each in g.streams)
        if self.recompute_kv_load_failures:
            # Everybody with such a block begins anew: vLLM leaves it to the first one to compute
            # it for the others, but a group's stream may have to wait.
            for group in groups.values():
                for each in group.streams:
                    self._loads.release(each)
            for request in [r for r in reversed(self.running) if r.request_id in failed]:
                self._loads.uncache(request, invalid_block_ids)
                self.running.remove(request)
                # Or workers are not sent its tokens where it goes on in the next step.
                self.prev_step_scheduled_req_ids.discard(request.request_id)
                self._preempt_request(request, time.monotonic(), drop_stale_output=True)
            self._look_anew()
        return failed

    def _break_even(self, sampled: Sequence[str]) -> float | None:
        """``DraftController.break_even`` for steps of the requests that got tokens in this one."""
        assert self._draft_controller is not None
        amateurs = sum(
            (group := self._groups.get(i)) is not None and group.request_id != i for i in sampled
        )
        return self._draft_controller.break_even(len(sampled), len(sampled) - amateurs)

    def _after_output(
        self,
        scheduler_output: SchedulerOutput,
        outputs: dict[int, EngineCoreOutputs],
        scored: dict[str, list[RowStats]],
    ) -> list[tuple[Request, EngineCoreOutput]]:
        """Check that the streams agree, drop the amateurs' outputs, end them with the expert, count
        what clients are given (vLLM drops tokens of requests that were preempted meanwhile).

        Returns:
            The experts that ended with an error, and what their clients are told.
        """
        hidden: set[str] = set()
        groups: dict[str, RequestGroup] = {}
        for request_id in scheduler_output.num_scheduled_tokens:
            group = self._groups.get(request_id)
            if group is None or (request_id == group.request_id and group.followers):
                continue
            groups[group.request_id] = group
            if request_id == group.request_id:
                continue
            hidden.add(request_id)
            if (num_cached := group.new_amateurs.pop(request_id, None)) is not None:
                # An amateur that stopped by itself is no request of vLLM's any more.
                amateur = next(a for a in group.amateurs if a.request_id == request_id)
                sums = self._counters.sums[group.kind]
                sums.amateur_prompt_tokens += amateur.num_prompt_tokens
                sums.amateur_cached_prompt_tokens += num_cached
        over = []
        for group in groups.values():
            expert, most = group.expert, 1 + self.num_spec_tokens
            if any(results.out_of_step(expert, amateur, most) for amateur in group.amateurs):
                self._fail(
                    group,
                    f"CoLD: expert and amateur fell out of step at token {expert.num_tokens}; "
                    "the result would be wrong. Please report this with the engine's log.",
                )
            elif expert.is_finished():
                over.append(group)
        hidden.update(group.request_id for group in self._failed)
        for client in outputs.values():
            if self._loads.possible:
                self._loads.hand_on(client.outputs, groups)
            if client.outputs and hidden:
                client.outputs = [o for o in client.outputs if o.request_id not in hidden]
            for output in client.outputs:
                if (given := self._groups.get(output.request_id)) is not None:
                    figures, new = scored.get(output.request_id, ()), len(output.new_token_ids)
                    self._counters.sums[given.kind].give(new, figures if self.log_stats else ())
                    if given.told is not None:
                        output.kv_transfer_params = results.with_steps(
                            output.kv_transfer_params, given.told.give(figures[:new])
                        )
                    if given.retires and figures and given not in over:
                        self._retire(given, figures, new)
        for group in over:
            amateurs = [amateur.request_id for amateur in group.amateurs]
            super().finish_requests(amateurs, RequestStatus.FINISHED_ABORTED)
            self._forget(group)
        return self._end_failed()

    def _end_failed(self) -> list[tuple[Request, EngineCoreOutput]]:
        """End the groups that must, with an error: their experts, and what the clients are told."""
        failed, self._failed = self._failed, []
        ended = []
        for group in failed:
            expert = group.expert
            if self._groups.get(expert.request_id) is not group:
                continue  # it was aborted meanwhile
            logger.error("%s (request %s)", group.error, expert.request_id)
            self.finish_requests(expert.request_id, RequestStatus.FINISHED_ERROR)
            output = EngineCoreOutput(
                request_id=expert.request_id,
                new_token_ids=[],
                finish_reason=FinishReason.ERROR,
                stop_reason=group.error,
                events=expert.take_events(),
                trace_headers=expert.trace_headers,
            )
            ended.append((expert, output))
        return ended

    # ---- figures -----------------------------------------------------------------------------

    def make_spec_decoding_stats(self, spec_decoding_stats: Any, *args: Any, **kwargs: Any) -> Any:
        """What vLLM counts of drafts, those of a group counted once."""
        request_id = kwargs.get("request_id")
        if request_id in self._groups and self._groups[request_id].request_id != request_id:
            return spec_decoding_stats
        return super().make_spec_decoding_stats(spec_decoding_stats, *args, **kwargs)

    def _report(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Send what was counted along with the statistics that vLLM made in this step.

        Also for some steps after the last group: of several front ends, each of which gets a part
        of the messages, one that is slow must not have the last word on how many there are.
        """
        stats = [c.scheduler_stats for c in outputs.values() if c.scheduler_stats is not None]
        if not stats:  # of one client in each step
            return
        running = sum(
            all(each.status == RequestStatus.RUNNING for each in group.streams)
            for group in self._led()
        )
        waiting = self._num_groups - running
        attach(stats[0], self._counters.take(running, waiting))
        self._to_report = LAST_REPORTS if running or waiting else self._to_report - 1


def is_dropped(request: Request) -> bool:
    """Whether the tokens of a request's steps in flight count for nothing."""
    return bool(
        getattr(request, "num_stale_output_tokens", 0)
        and getattr(request, "drop_stale_output", False)
    )


def strip(output: SchedulerOutput, request_id: str) -> bool:
    """Remove a request from the step; True if the step would have introduced it to the workers."""
    num_tokens = output.num_scheduled_tokens.pop(request_id, 0)
    if not num_tokens:
        return False
    output.total_num_scheduled_tokens -= num_tokens
    output.scheduled_spec_decode_tokens.pop(request_id, None)
    output.scheduled_encoder_inputs.pop(request_id, None)
    getattr(output, "encoder_input_updates", {}).pop(request_id, None)  # since 0.33
    if (of_connector := getattr(output, "kv_connector_block_state", None)) is not None:
        of_connector.req_ids.discard(request_id)
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


class ColdScheduler(GroupScheduler):
    """For ``SchedulerConfig.scheduler_cls``, without asynchronous scheduling."""


class ColdAsyncScheduler(GroupScheduler, AsyncScheduler):  # type: ignore[misc]
    """For ``SchedulerConfig.scheduler_cls``, with asynchronous scheduling."""
