# SPDX-License-Identifier: Apache-2.0
"""The scheduler, as ``SchedulerConfig.scheduler_cls``.

A contrastive request is several requests that must be scheduled in step. The rule is
``vllm_cold.group.lockstep``; this file only connects it to vLLM's scheduler, without a fork of
``schedule()``. What it relies on:

- ``_mamba_block_aligned_split(request, num_new_tokens, num_local_cached, ...)``: called for every
  request that is about to get tokens, in both loops of ``schedule()``, after the token budget and
  before block allocation, whenever ``need_mamba_block_aligned_split`` is true; a 0 passes the
  request over (running) or ends admission for this step (waiting). It is the one place where
  tokens can be capped *before* blocks are allocated and hashed. It is replaced only during a pass
  in which a group may get some, in which vLLM's own rule is asked behind it.
- ``waiting``, ``kv_holding_waiting``: in their places ``admission`` stands during such a pass.
- ``_try_schedule_encoder_inputs(request, ...)``: called behind the cap for requests with media, and
  takes tokens off those that cannot be encoded.
- ``_update_after_schedule(output)``: the end of ``schedule()``, before counts advance.
- ``_preempt_request``, ``add_request``, ``finish_requests``, ``update_from_output``,
  ``get_request_counts``: overridden, each calls super. The first puts a request into
  ``self.waiting``, in whose place another one stands for those who are not to wait there.
- All streams are in ``self.requests``, but between passes only the expert waits in ``waiting``, and
  only while none of its streams runs or has blocks; so waiting counts and queue order are those of
  the clients' requests.

``interface`` has all that is used of vLLM's scheduler, ``admission`` says who may start,
``kv_blocks`` asks the KV cache, ``connectors`` a KV connector, ``encoder`` is for media,
``amateurs`` makes the other streams, ``stats`` sends figures to the front end.
"""

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from msgspec import structs
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import RequestStatus

from vllm_cold.group import results
from vllm_cold.group.drafting import DraftController, Drafting
from vllm_cold.group.explained import Told
from vllm_cold.group.lockstep import Group, Step, is_split, tokens_left
from vllm_cold.group.slots import Slots
from vllm_cold.group.step_stats import CountersByKind, RowStats
from vllm_cold.group.stream import from_extra_args, set_slot
from vllm_cold.vllm import versions
from vllm_cold.vllm.scheduler.admission import QueueView, Ruling, aside, holds_prompts
from vllm_cold.vllm.scheduler.amateurs import make_streams
from vllm_cold.vllm.scheduler.connectors import Loads
from vllm_cold.vllm.scheduler.encoder import EncoderInputs
from vllm_cold.vllm.scheduler.interface import Request
from vllm_cold.vllm.scheduler.kv_blocks import Found, KVBlocks
from vllm_cold.vllm.scheduler.stats import attach
from vllm_cold.vllm.worker import outputs as worker_outputs

if TYPE_CHECKING:
    from vllm_cold.vllm.scheduler.interface import Scheduler
else:
    from vllm.v1.core.sched.scheduler import Scheduler

logger = logging.getLogger("vllm." + __name__)

# Split this often in a row with nothing else running: the group will never be in step.
_MAX_FAILED_ALONE = 3
# So many passes admit others in front of a group of whose adapters some find slots and others none.
# Then nobody passes it any more, so it gets them as soon as those who have them end.
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
        self._is_old = versions.is_before(0, 31)
        self._failed: list[RequestGroup] = []  # groups that must end
        self._counters = CountersByKind()
        self._to_report = 0  # steps for which the front ends must hear from us, groups or not
        # In a group's id, so that no two engines have the same one: see ``worker.outputs``.
        self._engine = uuid.uuid4().hex[:12]
        self._blocks = KVBlocks(self)
        self._loads = Loads(self, self._blocks, self._num_ended)
        self._encoder = EncoderInputs(self)
        speculative = self.vllm_config.speculative_config
        self._draft_controller = DraftController() if self.num_spec_tokens > 0 else None
        self._slots = Slots()
        self._draft_slots = speculative.max_num_new_slots_for_drafting if speculative else 0
        self._steps_in_flight = 0
        # Of the current pass.
        self._step: Step[Request] = Step(budget=0)
        self._in_pass = False
        self._splits = False  # whether vLLM says where a chunk of a prompt ends
        self._admission: QueueView | None = None
        self._throttled = False  # whether vLLM holds prompts back
        self._adapters: set[int] = set()  # of the first requests that run
        self._num_seen = 0  # how many these are
        self._partial: list[RequestGroup] = []  # of which some streams run; maybe more

    # ---- arrival and end ---------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        params = request.sampling_params
        stream = from_extra_args(params.extra_args) if params is not None else None
        if stream is None or request.request_id in self.requests:
            super().add_request(request)
            return
        super().add_request(request)
        stream = structs.replace(stream, group=self._group_id(request))
        adapter = request.lora_request.lora_name if request.lora_request else ""
        kind = self._counters.kind(stream.method, adapter)
        streams = make_streams(request, stream)
        told = Told(len(stream.amateurs), stream.explain) if stream.explain else None
        group: RequestGroup = Group(
            streams,
            kind,
            rule_keeps_state=stream.rule_keeps_state,
            retires=stream.retires,
            told=told,
        )
        if self._draft_controller is not None:
            seeded = params.seed is not None and params.temperature > 0
            group.drafting = Drafting(self._draft_controller.kinds[kind], seeded=seeded)
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
            self._fail(group, f"vllm-cold: this request {why}.")

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
        self._loads.drop(group.streams)
        self._num_groups -= 1
        for each in group.streams:
            self._groups.pop(each.request_id, None)
        if group in self._partial:
            self._partial.remove(group)

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
        self._look_anew()

    def _fail(self, group: RequestGroup, why: str) -> None:
        """The group must end, and its client is told why; the first reason counts."""
        if group.error is None:
            group.error = why
            self._failed.append(group)

    def get_request_counts(self) -> tuple[int, int]:
        """(running, waiting), a contrastive request counted once."""
        running, waiting = super().get_request_counts()
        if self._groups and not self._in_pass:
            running, waiting = self._num_plain(running, waiting)
            of_groups = self._led()
            running += len(of_groups)
            # vLLM also asks when an expert has ended and its amateurs have not yet.
            waiting += self._num_groups - len(of_groups)
            running -= sum(group.expert.is_finished() for group in of_groups)
        return running, waiting

    def _num_plain(self, running: int, waiting: int) -> tuple[int, int]:
        """Of vLLM's counts of requests that run and wait, those that are no group's."""
        streams = [r for r in self.running if r.request_id in self._groups]
        waiting -= self._num_groups - len(self._led().union(self._partial_groups()))
        return running - len(streams), waiting - self._loads.num_queued

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """A contrastive request counts once; vLLM 0.23 does not ask ``get_request_counts``."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None and self._groups and self._is_old:
            stats.num_running_reqs = self.get_request_counts()[0]
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
        """Requests that have ended and that a connector is not done with, between passes."""
        plain = sum(self._num_plain(*super().get_request_counts()))
        return len(self.requests) - len(self._groups) - plain

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, *args: Any, **kwargs: Any
    ) -> bool:
        """Nothing can be reset while a request that does not run holds blocks."""
        if reset_running_requests:
            for stream in self._loads.holding():
                self._begin_anew(self._groups[stream.request_id])
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
        self._step = Step(
            min(self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens),
            max(self.scheduler_config.long_prefill_token_threshold, 0),
            self.max_model_len,
            self._draft_slots,
            self.num_spec_tokens,
            self._draft_controller is None or self._draft_controller.may_draft(),
        )
        self._throttled = holds_prompts(self, throttle)
        if self.pause_state == PauseState.PAUSED_NEW:
            for group in self._partial_groups():  # it must not hold what it cannot use
                # Who was loaded goes on: vLLM admits those in a pause, too.
                if not any(map(self._loads.waits, group.streams)):
                    self._preempt_all(group)
        self._in_pass = True
        self._capped: Request | None = None
        self._encoder.begin_pass()
        try:
            if self._takes_part():
                return self._schedule_groups(*args, **kwargs)
            return super().schedule(*args, **kwargs)
        finally:
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

    def _led(self) -> set[RequestGroup]:
        """Groups of which a stream runs."""
        found = (self._groups.get(request.request_id) for request in self.running)
        return {group for group in found if group is not None}

    def _schedule_groups(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        self._loads.begin_pass(self._promote)
        if of_partial := {s for group in self._partial_groups() for s in group.streams}:
            # Last, so that nobody takes blocks between its turn and the admission of the others.
            self.running.sort(key=of_partial.__contains__)
        self._admission = QueueView(
            self, self._may_start, self._may_go_on, self._loaded(), self._is_stream
        )
        splits, self.need_mamba_block_aligned_split = self.need_mamba_block_aligned_split, True
        self._splits = splits
        self._mamba_block_aligned_split = self._cap  # type: ignore[method-assign]
        try:
            return super().schedule(*args, **kwargs)
        finally:
            del self._mamba_block_aligned_split  # the class's again
            self.need_mamba_block_aligned_split = splits
            self._admission.restore()
            self._admission = None
            self._loads.queue()
            for group in reversed(self._partial_groups()):
                if not any(each.status == RequestStatus.RUNNING for each in group.streams):
                    self._queue_again(group)  # it started, and none was admitted

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
        if group is None and not waiting and not self._splits:
            return self._step.clip(None, request, num_new_tokens, 0)
        assert self._blocks is not None and self._admission is not None
        num_cached = 0
        if waiting:
            if request in self._admission.loads:
                return 0  # the connector has nothing for it any more
            found = num_new_local_computed_tokens, num_external_computed_tokens
            self._loads.admitted(request, *found)
            num_cached = self._blocks.restored(sum(found))
        if group is not None:
            if waiting and request.request_id in group.new_amateurs:
                group.new_amateurs[request.request_id] = request.num_computed_tokens or num_cached
            if not group.amateurs:
                group = None  # the others have ended
            elif group.step is not self._step:
                self._decide(group)
        left = tokens_left(request, num_cached)
        part: Callable[[int], int] = int
        if self._splits:
            rule = type(self)._mamba_block_aligned_split
            args = num_new_local_computed_tokens, num_external_computed_tokens

            def part(num_tokens: int) -> int:
                # Where no block's end is within reach vLLM waits for a step with more room, which
                # for a group may never come: within a block any chunk is right.
                return rule(self, request, num_tokens, *args) or (num_tokens if group else 0)

        if group is not None and request.mm_features:
            start, of_states = request.num_computed_tokens or num_cached, part

            def part(num_tokens: int) -> int:
                return self._encoder.unsplit(request, start, of_states(num_tokens))

        return self._step.clip(group, request, num_new_tokens, left, part)

    def _decide(self, group: RequestGroup) -> None:
        """At the turn of a group's first stream that runs."""
        assert self._blocks is not None and self._admission is not None
        if all(each.status == RequestStatus.RUNNING for each in group.streams):
            self._go_or_hold(group, {})
            return
        may_admit = (
            not self._step.preempted
            and not self._admission.front
            and not any(map(self._loads.is_under_way, group.streams))
            and not any(map(self._is_late, group.streams))
            and self._seats_fit(0)
            and self._loras_fit(group)
        )
        found = self._look_up(group)
        if may_admit and not self._load(group, found):
            # Those partial groups that have their turns later take blocks before anybody starts.
            others = (o for o in self._partial_groups() if o.step is not self._step)
            run = (s for o in others if o is not group for s in o.streams)
            run = (s for s in run if s.status == RequestStatus.RUNNING)
            if self._has_room(group, found, sum(map(self._blocks.to_come, run))):
                self._go_or_hold(group, found)
                return
        self._go_or_hold(group, found, may_admit=False)
        if not all(one.is_known for one in found.values()):
            group.is_urgent = False  # the connector's answer may take long

    def _go_or_hold(
        self, group: RequestGroup, found: Mapping[Request, Found], may_admit: bool = True
    ) -> Sequence[Request]:
        """Returns: the streams that are to be admitted in this pass."""
        assert self._blocks is not None and self._admission is not None
        left = [
            tokens_left(s, self._blocks.restored(found[s].total) if s in found else 0)
            for s in group.streams
        ]
        away = [s.status != RequestStatus.RUNNING for s in group.streams]
        needed = self._encoder.needed(group, left)
        fits = may_admit and (not needed or needed <= self._encoder.left)
        fits = fits and self._can_end(group, left, found)
        self._step.decide(group, left, any(away), fits)
        if needed and max(left) == 1 and needed > self._encoder.most:
            group.lost = True  # vLLM was told to forget its media: it begins anew
        if not any(away):
            return ()
        runs = [n for n, waits in zip(left, away, strict=True) if not waits]
        others = [n for n, waits in zip(left, away, strict=True) if waits]
        group.is_urgent = max(others) > 1 or (bool(runs) and max(runs) == 1)
        if not may_admit:
            return ()
        # First who finds most: then the others do not push that out of the prefix cache.
        order = sorted(zip(left, away, group.streams, strict=True), key=lambda each: each[0])
        missing = [s for n, waits, s in order if waits and (group.goes or n > 1)]
        self._admission.put(missing)
        return missing

    def _can_end(
        self, group: RequestGroup, left: Sequence[int], found: Mapping[Request, Found]
    ) -> bool:
        """Whether vLLM lets all streams get to their sampling positions in one step: it splits
        prompts for their states, and admits nobody who finds one that another stream leaves.
        """
        if not self._splits or max(left) == 1:
            return True
        assert self._blocks is not None
        rule = type(self)._mamba_block_aligned_split
        for stream, tokens in zip(group.streams, left, strict=True):
            one = found.get(stream)
            if one is not None:
                stream.shared_prefix_boundary = one.junction  # as vLLM sets it when it looks
            start = stream.num_tokens + stream.num_output_placeholders - tokens
            if rule(self, stream, tokens, start - stream.num_computed_tokens) < tokens:
                return False
            start -= getattr(stream, "num_in_flight_tokens", 0)
            if any(
                self._blocks.leaves(stream, start, other, at.num_tokens)
                for other, at in found.items()
                if other is not stream
            ):
                return False
        return True

    def _look_up(self, group: RequestGroup) -> dict[Request, Found]:
        """What the prefix cache, or a connector, has of the streams that hold no blocks."""
        assert self._blocks is not None
        away = [s for s in group.streams if s.status != RequestStatus.RUNNING]
        found = {each: self._loads.look_up(each) for each in away if not each.num_computed_tokens}
        for each, one in found.items() if self._splits else ():
            if tokens_left(each, self._blocks.restored(one.num_tokens)) == 1 and any(
                self._blocks.leaves(other, other.num_tokens - 1, each, one.num_tokens)
                for other in group.streams
                if other is not each
            ):
                # It is admitted in the step in which all sample, but not if it finds a state there
                # that another one leaves.
                each.skip_reading_prefix_cache = True
                found[each] = self._loads.look_up(each)
        return found

    def _load(self, group: RequestGroup, found: Mapping[Request, Found]) -> bool:
        """Have streams loaded whose KV is brought between steps, if there is room for all of the
        group; whether there are any, or nobody knows.
        """
        assert self._admission is not None
        late = [each for each, one in found.items() if one.takes_steps]
        if late and self._loads.fit(group, found):
            self._admission.put(late, to_load=True)
        return bool(late) or not all(one.is_known for one in found.values())

    def _may_start(self, request: Request) -> Ruling:
        """Whether the head of the queue may start: nobody while a group is there in part, but those
        that are more urgent; a group if there is room for all of it.
        """
        if self._partial and any(self._holds_up(g, request) for g in self._partial_groups()):
            return Ruling.STOP
        self._loads.forget_promise(request)
        group = self._groups.get(request.request_id)
        if group is None or not group.amateurs:
            if not self._seats_fit(1):
                return Ruling.STOP
            fits = not request.lora_request or self._loras_fit(request=request)
            return Ruling.START if fits else Ruling.SKIP
        if not self._promote(request):
            return Ruling.SKIP
        assert self._admission is not None
        if (answer := self._start(group)) is Ruling.START:
            self._admission.take()
            group.is_queued, group.passed_over = False, 0
            self._partial.append(group)  # until all of its streams run
        return answer

    def _may_go_on(self, request: Request) -> Ruling:
        """Whether a plain request with blocks may: others may wait for these."""
        fits = not request.lora_request or self._loras_fit(request=request, beside_partial=False)
        return Ruling.START if fits else Ruling.SKIP

    def _loaded(self) -> Iterator[None]:
        """Ask the groups of which no stream runs and some have blocks, one after the other."""
        for group in tuple(self._partial_groups()):
            if any(
                each.status == RequestStatus.RUNNING or self._loads.is_under_way(each)
                for each in group.streams
            ):
                continue
            # Who starts might take what it waits for.
            group.is_urgent = True
            group.is_urgent = self._start(group) is not Ruling.SKIP and group.is_urgent
            yield

    def _start(self, group: RequestGroup) -> Ruling:
        """Whether a group may start of which no stream runs; its streams come next then."""
        assert self._admission is not None
        if self._step.preempted:
            return Ruling.STOP
        if any(map(self._is_late, group.streams)):
            return Ruling.SKIP
        if not self._seats_fit(len(group.streams)):
            return Ruling.STOP
        if not self._loras_fit(group):
            # Where one of them had a slot, those behind it may keep the others taken for ever: in
            # the end it stops the queue. Else it waits as any request without a slot does.
            if not any(s.lora_request and self._loras_fit(request=s) for s in group.streams):
                return Ruling.SKIP
            group.passed_over += 1
            return Ruling.SKIP if group.passed_over <= _MAX_PASSED_OVER else Ruling.STOP
        found = self._look_up(group)
        if not all(one.is_known for one in found.values()):
            return Ruling.SKIP
        if self._load(group, found):
            return Ruling.START if self._admission.front else Ruling.STOP
        if not self._encoder.may_begin(group, self._led()) or not self._has_room(group, found):
            return Ruling.STOP
        missing = self._go_or_hold(group, found)
        if not missing or (self._begun() and len(missing) < len(group.streams)):
            self._admission.front.clear()
            return Ruling.STOP  # only one group waits for others to get to their last token
        return Ruling.START

    def _has_room(
        self, group: RequestGroup, found: Mapping[Request, Found], promised: int = 0
    ) -> bool:
        """Whether vLLM would admit those streams, as far as is known."""
        assert self._blocks is not None
        if self._throttled:
            away = [s for s in group.streams if s.status != RequestStatus.RUNNING]
            cached = {s: self._blocks.restored(one.total) for s, one in found.items()}
            if any(tokens_left(s, cached.get(s, 0)) > 1 for s in away):
                return False
        return self._blocks.fit(group, found, promised)

    def _promote(self, request: Request) -> bool:
        """What vLLM does when a grammar is compiled, or a request's KV has come: whether it is one
        that may start now.
        """
        if self._is_old:
            before: Any = super()
            compiles = request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
            return not compiles or bool(before._try_promote_blocked_waiting_request(request))
        return super()._handle_blocked_waiting_request(request)

    @staticmethod
    def _is_late(request: Request) -> bool:
        """Whether tokens of before its preemption are still to come."""
        stale = getattr(request, "num_stale_output_tokens", 0) > 0
        return stale and not getattr(request, "drop_stale_output", False)

    def _priority(self, request: Request) -> int:
        """Lower comes first; without the priority policy all are the same."""
        return request.priority if self.policy == SchedulingPolicy.PRIORITY else 0

    def _seats_fit(self, more: int) -> bool:
        """Whether so many more streams have seats, beside those that groups still lack."""
        for other in self._begun():
            more += sum(each.status != RequestStatus.RUNNING for each in other.streams)
        seats = len(self.running) + self.num_waiting_for_streaming_input + more
        return bool(seats <= self._max_active)

    def _loras_fit(
        self,
        group: RequestGroup | None = None,
        request: Request | None = None,
        beside_partial: bool = True,
    ) -> bool:
        """Whether adapters fit beside those of all running requests. Stock counts the scheduled
        ones only, but a stream that is held in this step needs its slot again.
        """
        if self.lora_config is None:
            return True
        for each in self.running[self._num_seen :]:
            if each.lora_request:
                self._adapters.add(each.lora_request.lora_int_id)
        self._num_seen = len(self.running)
        streams: list[Request] = [request] if request is not None else []
        for other in self._begun() if beside_partial else ():
            streams += other.streams
        streams += group.streams if group is not None else ()
        wanted = {s.lora_request.lora_int_id for s in streams if s.lora_request}
        return bool(len(self._adapters | wanted) <= self.lora_config.max_loras)

    def _partial_groups(self) -> list[RequestGroup]:
        """Groups that have started and of which not all streams run."""
        if self._partial:
            self._partial = [
                group
                for group in self._partial
                if not group.is_queued
                and self._groups.get(group.request_id) is group
                and any(each.status != RequestStatus.RUNNING for each in group.streams)
            ]
        return self._partial

    def _begun(self) -> list[RequestGroup]:
        """Those of them of which some streams run: seats and slots are kept for the others."""
        if not self._partial:
            return []
        runs = RequestStatus.RUNNING
        return [g for g in self._partial_groups() if any(s.status == runs for s in g.streams)]

    def _holds_up(self, group: RequestGroup, request: Request) -> bool:
        """Whether a request may not start because that might take what a group waits for."""
        return (
            group.is_urgent
            and self._priority(request) >= self._priority(group.expert)
            and not any(map(self._loads.is_under_way, group.streams))
        )

    def _look_anew(self) -> None:
        """Somebody runs no more, so what was seen of those who run holds no more."""
        self._adapters.clear()
        self._num_seen = 0

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        group = self._groups.get(request.request_id)
        is_stream = group is not None and bool(group.amateurs)
        if getattr(self, "requires_kv_delivery", False):
            kwargs["drop_stale_output"] = True  # of all streams, whoever preempts them
        if self._in_pass:
            assert self._blocks is not None
            unwritten = self._blocks.uncache_unwritten(request, self._loads.num_written(request))
            if self._loads.possible:
                self._loads.cut(unwritten)
            self._step.preempt(group if is_stream else None)
            self._look_anew()
        with aside(self) if is_stream else nullcontext():
            super()._preempt_request(request, *args, **kwargs)
        if group is not None and request is group.expert:
            self._counters.sums[group.kind].preemptions += 1
        if group is not None and is_stream:
            self._queue_again(group)

    def _is_stream(self, request: Request) -> bool:
        group = self._groups.get(request.request_id)
        return group is not None and bool(group.amateurs)

    def _queue_again(self, group: RequestGroup) -> None:
        """It waits as a whole from now on, unless some of its KV is under way; streams that run are
        about to be preempted.
        """
        if group.is_queued:
            return
        if any(map(self._loads.waits, group.streams)):
            if group not in self._partial:
                self._partial.append(group)
            return
        group.is_queued = True
        queue = self.waiting if self._admission is None else self._admission.waiting
        queue.prepend_request(group.expert)

    def _begin_anew(self, group: RequestGroup) -> None:
        """It gives up the blocks of streams that wait."""
        for each in group.streams:
            self._loads.release(each)
        if not any(each.status == RequestStatus.RUNNING for each in group.streams):
            self._queue_again(group)

    def _preempt_all(self, group: RequestGroup) -> None:
        for request in reversed(group.streams):
            if request.status == RequestStatus.RUNNING:
                self.running.remove(request)
                self._preempt_request(request, time.monotonic())

    def _try_schedule_encoder_inputs(
        self,
        request: Request,
        num_computed_tokens: int,
        num_new_tokens: int,
        encoder_compute_budget: int,
        shift_computed_tokens: int = 0,
    ) -> tuple[Any, ...]:
        found = super()._try_schedule_encoder_inputs(
            request,
            num_computed_tokens,
            num_new_tokens,
            encoder_compute_budget,
            shift_computed_tokens,
        )
        if self._in_pass:
            self._encoder.note(request, found[0], found[2])
        if self._in_pass and request is self._capped:
            # vLLM 0.23 caps behind this, and has no groups with media
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
        """Preempt groups that were split."""
        if self._admission is not None:
            self._loads.end_pass(self._admission.came)
        had_tokens = bool(output.num_scheduled_tokens)
        failed: list[RequestGroup] = []
        for group in tuple(self._step.groups):
            if is_split(group, output.num_scheduled_tokens):
                self._withdraw(group, output)
                failed.append(group)
            elif group.goes:
                group.failed_alone = 0
        if not output.num_scheduled_tokens and not self._step.preempted and self._stalled():
            # A group waits in vain for blocks: the youngest gives way.
            group = next(g for r in reversed(self.running) if (g := self._group_of(r)))
            self._withdraw(group, output)
            failed.append(group)
        self._emptied = had_tokens and not output.num_scheduled_tokens
        alone = not output.num_scheduled_tokens and not self._loads.frees_blocks()
        if alone and (holding := self._loads.holding()):
            alone = False
            if not failed and not self._step.preempted and self._nothing_is_under_way():
                # They may be in each other's way: they are computed, and not loaded once more.
                for stream in holding:
                    stream.skip_reading_prefix_cache = True
                    self._begin_anew(self._groups[stream.request_id])
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
                    f"vllm-cold: the streams of this request ({sizes} tokens) were not scheduled "
                    "together, although nothing else ran; most likely they do not fit the KV cache "
                    f"of {self.cache_config.num_gpu_blocks} blocks of {self.block_size} tokens: "
                    "shorten it or enlarge the KV cache.",
                )
        for group in self._step.groups:
            if group.rule_keeps_state and group.slot is None:
                self._take_slot(group, output)
        self._encoder.end_pass(output, self._groups)

    def _take_slot(self, group: RequestGroup, output: SchedulerOutput) -> None:
        """If it gets its first tokens: ``output`` has the streams' parameters for the workers."""
        if any(each.request_id in output.num_scheduled_tokens for each in group.streams):
            group.slot = self._slots.take()
            for each in group.streams:
                set_slot(each.sampling_params.extra_args, group.slot)

    def _group_of(self, request: Request) -> RequestGroup | None:
        """The group of a stream; None for a plain request, also one whose amateurs have ended."""
        group = self._groups.get(request.request_id)
        return group if group is not None and group.amateurs else None

    def _stalled(self) -> bool:
        """Whether running groups got nothing although nothing is under way."""
        return (
            self.pause_state == PauseState.UNPAUSED
            and any(map(self._group_of, self.running))
            and not self._steps_in_flight
            and not self._loads.frees_blocks()
            and not self._loads.asked_in_vain
        )

    def _nothing_is_under_way(self) -> bool:
        """Nor told anybody the engine to stand still."""
        paused = self.pause_state == PauseState.PAUSED_ALL
        return not (paused or self._steps_in_flight or self._loads.asked_in_vain)

    def _withdraw(self, group: RequestGroup, output: SchedulerOutput) -> None:
        """Take all streams out of this step and preempt them."""
        for request in reversed(group.streams):
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
                if request is group.expert:
                    self._counters.sums[group.kind].preemptions -= 1
        self._queue_again(group)

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
                self._begin_anew(group)
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
            if group is None or (request_id == group.request_id and group.amateurs):
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
            if any(results.is_desynchronised(expert, amateur, most) for amateur in group.amateurs):
                self._fail(
                    group,
                    f"vllm-cold: expert and amateur fell out of step at token {expert.num_tokens}; "
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
                        output.kv_transfer_params = results.with_ours(
                            output.kv_transfer_params, steps=given.told.give(figures[:new])
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
