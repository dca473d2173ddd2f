# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: the scheduler, as ``SchedulerConfig.scheduler_cls`` (public option).

Why: a CoLD request is several requests that must be scheduled in step. The rules are
``vllm_cold.group.lockstep``; this file only connects them to vLLM's scheduler, without a fork of
``schedule()``. What it relies on:

- ``_mamba_block_aligned_split(request, num_new_tokens, num_local_cached, ...)``: called for every
  request that is about to get tokens, in both loops of ``schedule()``, after the token budget and
  before block allocation, whenever ``need_mamba_block_aligned_split`` is true; a 0 passes the
  request over (running) or ends admission for this step (waiting). It is the one place where
  tokens can be capped *before* blocks are allocated and hashed. It is replaced during a pass with
  groups only; Mamba models are refused, so the hook is free. In 0.23 to 0.33. Can go: when vLLM
  offers a per-request cap.
- ``_update_after_schedule(output)``: the end of ``schedule()``, before counts advance.
- ``_preempt_request``, ``add_request``, ``finish_requests``, ``update_from_output``,
  ``get_request_counts``: overridden, each calls super.
- All streams are in ``self.requests``, but only one waits in a queue: the leader (while a grammar
  is compiled, the expert, with which vLLM looks after that). Its followers are there inside a
  scheduling pass only, right behind it (or, if it already runs, in front of everything else); so
  waiting counts and queue order are those of the clients' requests.

Since: 0.23 to 0.33. ``capacity`` looks at what there is, ``queues`` puts followers into queues,
``planned_step`` takes out of a planned step, ``results`` meets the outputs, ``amateurs`` makes the
other streams.
"""

import inspect
import logging
import time
import uuid
from collections import deque
from collections.abc import Iterable
from typing import Any

from msgspec import structs
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.request import Request, RequestStatus

from vllm_cold.group.drafting import Drafting, Economy
from vllm_cold.group.lockstep import (
    Capacity,
    Group,
    Step,
    Verdict,
    followers_left,
    is_split,
    tokens_left,
)
from vllm_cold.group.stream import from_extra_args
from vllm_cold.group.tally import Counts
from vllm_cold.vllm.scheduler.amateurs import make_streams
from vllm_cold.vllm.scheduler.capacity import CapacityScheduling
from vllm_cold.vllm.scheduler.planned_step import PlannedStepScheduling
from vllm_cold.vllm.scheduler.queues import QueueScheduling
from vllm_cold.vllm.scheduler.results import LAST_REPORTS, ResultScheduling

logger = logging.getLogger("vllm." + __name__)

# Split this often in a row with nothing else running: the group will never be in step.
_MAX_FAILED_ALONE = 3

RequestGroup = Group[Request]


class GroupScheduling(CapacityScheduling, QueueScheduling, PlannedStepScheduling, ResultScheduling):
    """What makes a vLLM scheduler schedule groups; AsyncScheduler fits in behind it (MRO)."""

    running: list[Request]
    need_mamba_block_aligned_split: bool

    # What vLLM's methods need of us although __init__ never ran, as in some of its tests.
    _groups: dict[str, RequestGroup] = {}
    _steps_in_flight = 0
    _speculates = False
    _to_report = 0
    _nonfinite_blocks: set[int] = set()
    log_stats = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._groups = {}  # by the id of each stream
        self._step: Step[Request] = Step(budget=0)
        self._budget = 0
        self._in_pass = False
        self._throttled = False  # whether vLLM holds prompts back in this pass
        self._in_this_pass: dict[str, RequestGroup] = {}  # groups that it dealt with
        self._scattered = False  # whether a follower may run elsewhere than behind its leader
        # Followers put into a queue in this pass, and experts that wait there for their leaders.
        self._queued: list[Request] = []
        self._asked_priority: dict[Request, int] = {}  # of streams that go first in this pass
        self._led_by_others: list[RequestGroup] = []
        self._steps_in_flight = 0
        self._errors: dict[str, str] = {}  # expert id -> why it must end
        self._counts = Counts()
        # Amateurs that have not been in a step yet -> prompt tokens found in the prefix cache.
        self._new_amateurs: dict[str, int] = {}
        self._to_report = 0  # steps for which the front ends must hear from us, groups or not
        self._nonfinite_blocks = set()  # to be cleared as soon as they are nobody's
        # In a group's id, so that no two engines have the same one: see ``worker.outputs``.
        self._engine = uuid.uuid4().hex[:12]
        count = self.kv_cache_manager.coordinator.get_num_blocks_to_allocate
        self._counted_by = inspect.signature(count).parameters
        speculative = self.vllm_config.speculative_config
        self._speculates = self.num_spec_tokens > 0
        self._economy = Economy()
        self._scheduled_at: deque[float] = deque()  # of steps in flight
        self._updated_at = 0.0
        self._draft_slots = speculative.max_num_new_slots_for_drafting if speculative else 0

    # ---- arrival and end ---------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        params = request.sampling_params
        stream = from_extra_args(params.extra_args) if params is not None else None
        super().add_request(request)
        if stream is not None and request.request_id not in self._groups:
            stream = structs.replace(stream, group=self._group_id(request))
            adapter = request.lora_request.lora_name if request.lora_request else ""
            kind = self._counts.kind(stream.method, adapter)
            seeded = params.seed is not None and params.temperature > 0
            drafting = Drafting(self._economy.kinds[kind], seeded=seeded)
            group = Group(make_streams(request, stream), kind, drafting=drafting)
            # For no grammar: vLLM looks after those whose is compiled.
            if group.leader is not request and request.status == RequestStatus.WAITING:
                if self.policy == SchedulingPolicy.FCFS and self.waiting[-1] is request:
                    self.waiting.pop()
                else:
                    self._dequeue(request)
                self.waiting.add_request(group.leader)
            for each in group.streams:
                self._groups[each.request_id] = group
                self.requests[each.request_id] = each
            self._counts.sums[kind].requests += 1
            self._to_report = LAST_REPORTS
            self._new_amateurs |= {each.request_id: 0 for each in group.amateurs}

    def _group_id(self, expert: Request) -> str:
        return f"{self._engine}:{expert.request_id}"

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        """Finish whole groups; the amateurs are not reported."""
        if isinstance(request_ids, str):
            request_ids = (request_ids,)
        if self._groups:
            if request_ids is None:
                request_ids = list(self.requests)
            ids = set(request_ids)
            groups = {g.request_id: g for i in ids if (g := self._groups.get(i)) is not None}
            amateurs = {a.request_id for g in groups.values() for a in g.amateurs}
            finished = super().finish_requests(ids | groups.keys() | amateurs, finished_status)
            for group in groups.values():
                self._forget(group)
            # vLLM 0.23 reports (request id, client index), 0.32 the requests.
            return [
                r
                for r in finished or ()
                if (r[0] if isinstance(r, tuple) else r.request_id) not in amateurs
            ]
        return super().finish_requests(request_ids, finished_status)  # type: ignore[no-any-return]

    def _forget(self, group: RequestGroup) -> None:
        self._errors.pop(group.request_id, None)
        for each in group.streams:
            self._groups.pop(each.request_id, None)
            self._new_amateurs.pop(each.request_id, None)

    def get_request_counts(self) -> tuple[int, int]:
        """(running, waiting), a CoLD request counted once."""
        running, waiting = super().get_request_counts()
        if self._groups and not self._in_pass:
            # vLLM also asks when an expert has ended and its amateurs have not yet.
            running -= sum(
                sum(stream.status == RequestStatus.RUNNING for stream in group.streams)
                - (group.leader.status == RequestStatus.RUNNING and not group.expert.is_finished())
                for group in self._each_group()
            )
        return running, waiting

    def _each_group(self) -> Iterable[RequestGroup]:
        return (g for i, g in self._groups.items() if i == g.request_id)

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """A CoLD request counts once; vLLM 0.23 does not ask ``get_request_counts``."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None and self._groups:
            stats.num_running_reqs = self.get_request_counts()[0]
        return stats

    # ---- one scheduling pass -----------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        if not self._nonfinite_blocks:
            return self._schedule(*args, **kwargs)
        # At the start of the step, before anybody computes with them.
        blocks = self._release_nonfinite_blocks()
        output = self._schedule(*args, **kwargs)
        output.new_block_ids_to_zero = [*(output.new_block_ids_to_zero or ()), *blocks]
        return output

    def _schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        if not self._groups:
            return super().schedule(*args, **kwargs)
        self._budget = min(
            self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens
        )
        drafting = self._economy.may_draft()
        self._step = Step(self._budget, self._draft_slots, self.num_spec_tokens, drafting)
        self._throttled = (
            bool(args[0] if args else kwargs.get("throttle_prefills"))
            and not self.prefill_capacity_bound
            and any(not r.is_prefill_chunk for r in self.running)
        )
        self._order_running()
        self._in_pass = True
        before, self.need_mamba_block_aligned_split = self.need_mamba_block_aligned_split, True
        self._mamba_block_aligned_split = self._cap
        try:
            return super().schedule(*args, **kwargs)
        finally:
            del self._mamba_block_aligned_split  # the class's again
            self.need_mamba_block_aligned_split = before
            self._in_pass = False
            self._in_this_pass = {}

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

    def _cap(
        self,
        request: Request,
        num_new_tokens: int,
        num_new_local_computed_tokens: int = 0,
        num_external_computed_tokens: int = 0,
        num_uncached_common_prefix_tokens: int = 0,
    ) -> int:
        """The cap on a request's tokens in this step; see the module docstring. The last argument
        is of 0.24 and 0.25, and 0 for models without state-space layers.
        """
        if num_new_tokens <= 0:
            return 0
        num_cached = self._restored(num_new_local_computed_tokens)
        waiting = request.status != RequestStatus.RUNNING
        group = self._groups.get(request.request_id)
        if group is not None and waiting and request.request_id in self._new_amateurs:
            self._new_amateurs[request.request_id] = num_cached
        if group is not None and request is not group.leader:
            if waiting and group.request_id not in self._step.verdicts:
                self._led_by_others.append(group)
                return 0
            return self._step.clip_follower(group, request, num_new_tokens, num_cached, waiting)
        if waiting and not self._step.may_admit(self._priority(request)):
            return 0
        if group is None:
            if waiting and request.lora_request and not self._loras_fit(request):
                return 0
            return self._step.clip_plain(num_new_tokens)
        self._in_this_pass[group.request_id] = group
        capacity = self._capacity(group, waiting)
        granted = self._step.clip_leader(group, num_new_tokens, num_cached, capacity, waiting)
        if granted == 0 and waiting:
            if capacity.admissible:
                self._give_up_cache_hit(group, num_cached, capacity)
            return 0
        if granted == 0 and self._is_blocked(group, capacity):
            self._step.block(self._priority(request))
        if admitted := self._step.admits(group, capacity):
            self._enqueue(group, admitted, behind_head=waiting)
        return granted

    def _is_blocked(self, group: RequestGroup, capacity: Capacity) -> bool:
        """Whether all that a leader at its last token waits for is to have followers admitted."""
        left = zip(followers_left(group, capacity), capacity.missing, strict=True)
        return any(capacity.missing) and all(n == 1 for n, missing in left if not missing)

    def _priority(self, request: Request) -> int:
        """Lower comes first; without the priority policy all are the same."""
        return request.priority if self.policy == SchedulingPolicy.PRIORITY else 0

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
            sum(left) > budget or max(left) > (capacity.chunk or budget)
        ):
            group.leader.skip_reading_prefix_cache = True

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        group = self._groups.get(request.request_id)
        if self._in_pass:
            self._uncache_unwritten(request)
            self._step.preempt(group)
            if group is not None:
                self._in_this_pass[group.request_id] = group
        super()._preempt_request(request, *args, **kwargs)
        if group is not None and request is group.leader:
            self._counts.sums[group.kind].preemptions += 1
        elif group is not None:
            self.waiting.remove_request(request)

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        if self._groups:
            self._after_pass(scheduler_output)
        self._steps_in_flight += bool(scheduler_output.num_scheduled_tokens)
        if self._speculates:
            self._scheduled_at.append(time.monotonic())
        super()._update_after_schedule(scheduler_output)

    def _after_pass(self, output: SchedulerOutput) -> None:
        """Take back followers that were not admitted, preempt groups that were split."""
        self._take_back()
        for group in self._led_by_others:
            self._dequeue(group.expert)
            self.waiting.prepend_request(group.leader)
        self._led_by_others.clear()
        failed: list[RequestGroup] = []
        for group in self._in_this_pass.values():
            if is_split(group, self._step, output.num_scheduled_tokens):
                self._withdraw(group, output)
                failed.append(group)
            elif self._step.verdicts.get(group.request_id) is Verdict.FINISH:
                group.failed_alone = 0
        if not output.num_scheduled_tokens and not self._step.preempted and self._stalled():
            # A leader waits in vain for its followers' blocks: the youngest group gives way.
            group = next(g for r in reversed(self.running) if (g := self._groups.get(r.request_id)))
            self._withdraw(group, output)
            failed.append(group)
        for group in failed:
            if output.num_scheduled_tokens:
                group.failed_alone = 0
                continue
            group.failed_alone += 1
            group.drafting.possible = False  # drafts need blocks too
            for each in group.streams:
                # Streams that push each other's blocks out of the prefix cache begin anew.
                each.skip_reading_prefix_cache = True
            if group.failed_alone >= _MAX_FAILED_ALONE:
                sizes = ", ".join(str(each.num_tokens) for each in group.streams)
                self._errors[group.request_id] = (
                    f"CoLD: the streams of this request ({sizes} tokens) were not scheduled "
                    "together, although nothing else ran; most likely they do not fit the KV cache "
                    f"of {self.cache_config.num_gpu_blocks} blocks of {self.block_size} tokens: "
                    "shorten it or enlarge the KV cache."
                )

    def _stalled(self) -> bool:
        """Whether running groups got nothing although nothing is under way."""
        return (
            self.pause_state == PauseState.UNPAUSED
            and any(r.request_id in self._groups for r in self.running)
            and not self._steps_in_flight
        )


class ColdScheduler(GroupScheduling):
    """vLLM's Scheduler with groups of streams."""


class ColdAsyncScheduler(GroupScheduling, AsyncScheduler):  # type: ignore[misc]
    """vLLM's AsyncScheduler with groups of streams."""
