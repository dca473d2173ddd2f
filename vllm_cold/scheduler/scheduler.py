# SPDX-License-Identifier: Apache-2.0
"""The scheduler, as ``SchedulerConfig.scheduler_cls``.

A contrastive request is several requests that must be scheduled in lockstep. The rule is
``lockstep``, and ``passes`` asks it; this file connects both to vLLM's scheduler, without a fork of
``schedule()``. What it relies on, besides what the table says:

- ``_mamba_block_aligned_split(request, num_new_tokens, num_local_cached, ...)``: called in both
  loops of ``schedule()``, after the token budget; a 0 passes the request over (running) or ends
  admission for this step (waiting). It is replaced only during a pass in which a group may get
  tokens; vLLM's own rule is asked after it.
- ``waiting``, ``kv_holding_waiting``: those of ``queue_view`` take their places in such a pass.
- ``_try_schedule_encoder_inputs(request, ...)``: called after the cap for requests with media, and
  takes tokens off those that cannot be encoded.
- ``_update_after_schedule(output)``: before counts advance.
- ``_preempt_request`` puts a request into ``self.waiting``, which is another queue meanwhile for
  those that are not to wait there.
- All streams are in ``self.requests``, but between passes only the expert waits in ``waiting``, and
  only while none of its streams runs or has blocks; so waiting counts and queue order are those of
  the clients' requests.
"""

import logging
import time
import uuid
from collections.abc import Iterable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from msgspec import structs
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import RequestStatus

from vllm_cold.compat import versions
from vllm_cold.scheduler import output_checks
from vllm_cold.scheduler.amateur_requests import make_streams
from vllm_cold.scheduler.drafting import DraftController, Drafting
from vllm_cold.scheduler.encoder_inputs import EncoderInputs
from vllm_cold.scheduler.explain_steps import Told
from vllm_cold.scheduler.kv_blocks import KVBlocks
from vllm_cold.scheduler.kv_loads import Loads
from vllm_cold.scheduler.lockstep import Group, Step, is_split
from vllm_cold.scheduler.passes import Partial, Pass, RequestGroup, runs
from vllm_cold.scheduler.queue_view import holds_prompts
from vllm_cold.scheduler.vllm_scheduler import Request
from vllm_cold.wire import transfer_params
from vllm_cold.wire import worker_output as worker_outputs
from vllm_cold.wire.counters import CountersByKind
from vllm_cold.wire.stats_channel import attach
from vllm_cold.wire.step_stats import RowStats
from vllm_cold.wire.stream import from_extra_args, set_slot

if TYPE_CHECKING:
    from vllm_cold.scheduler.vllm_scheduler import Scheduler
else:
    from vllm.v1.core.sched.scheduler import Scheduler

logger = logging.getLogger("vllm." + __name__)

# Split this often in a row with nothing else running: the group will never go.
_MAX_FAILED_ALONE = 3
# For so many steps after the last group the front ends hear from us.
LAST_REPORTS = 32


class GroupScheduler(Scheduler):
    """vLLM's Scheduler with groups of streams."""

    # What vLLM's methods need of us although __init__ never ran, as in some of its tests.
    connector: Any = None
    defer_block_free = False
    _groups: dict[str, RequestGroup] = {}
    _blocks: KVBlocks | None = None
    _draft_controller: DraftController | None = None
    _steps_in_flight = 0
    _to_report = 0  # steps for which the front ends must hear from us, groups or not
    _pass: Pass | None = None  # the current one
    _emptied = False  # whether all that had tokens were taken out of the step

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._groups = {}  # by the id of each stream
        self._num_groups = 0
        self._is_old = versions.is_before("0.31")
        self._failed: list[RequestGroup] = []  # groups that must end
        self._counters = CountersByKind()
        # In a group's id, so that no two engines have the same one: see ``worker.outputs``.
        self._engine = uuid.uuid4().hex[:12]
        self._blocks = KVBlocks(self)
        self._loads = Loads(self, self._blocks, self._num_ended)
        self._encoder = EncoderInputs(self)
        speculative = self.vllm_config.speculative_config
        self._draft_controller = DraftController() if self.num_spec_tokens > 0 else None
        self._slots: set[int] = set()  # those of groups that have begun and not ended
        self._draft_slots = speculative.max_num_new_slots_for_drafting if speculative else 0
        self._partial = Partial()

    # ---- arrival and end ---------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        params = request.sampling_params
        stream = from_extra_args(params.extra_args) if params is not None else None
        is_known = request.request_id in self.requests
        super().add_request(request)
        if stream is None or is_known:
            return
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
            self._slots.remove(group.slot)
        self._num_groups -= 1
        for each in group.streams:
            self._groups.pop(each.request_id, None)
            self._loads.streams.pop(each, None)
        self._partial.pop(group, None)

    def _retire(self, group: RequestGroup, figures: Sequence[RowStats], new: int) -> None:
        """End the amateurs that the group's rule needs no more, now that it was given ``new``
        tokens. Where it was preempted meanwhile, its rule will say so again.
        """
        if not new or not all(map(runs, group.streams)):
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

    def _fail(self, group: RequestGroup, why: str) -> None:
        """The group must end, and its client is told why; the first reason counts."""
        if group.error is None:
            group.error = why
            self._failed.append(group)

    def get_request_counts(self) -> tuple[int, int]:
        """(running, waiting), a contrastive request counted once."""
        running, waiting = super().get_request_counts()
        if self._groups and self._pass is None:
            running, waiting = self._num_regular(running, waiting)
            of_groups = self._running_groups()
            running += len(of_groups)
            # vLLM also asks when an expert has ended and its amateurs have not yet.
            waiting += self._num_groups - len(of_groups)
            running -= sum(group.expert.is_finished() for group in of_groups)
        return running, waiting

    def _num_regular(self, running: int, waiting: int) -> tuple[int, int]:
        """Of vLLM's counts of requests that run and wait, those that are no group's."""
        streams = [r for r in self.running if r.request_id in self._groups]
        waiting -= self._num_groups - len(self._running_groups().union(self._partial.groups()))
        return running - len(streams), waiting - self._loads.num_queued

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """A contrastive request counts once; vLLM 0.23 does not ask ``get_request_counts``."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None and self._groups and self._is_old:
            stats.num_running_reqs = self.get_request_counts()[0]
        return stats

    def has_finished_requests(self) -> bool:
        """With a connector vLLM takes requests in no queue for those that have ended."""
        if not self._groups or not self._loads.possible:
            return bool(super().has_finished_requests())
        return bool(self.finished_req_ids) or self._num_ended() > 0

    def _num_ended(self) -> int:
        """Requests that have ended and that a connector is not done with, between passes."""
        regular = sum(self._num_regular(*super().get_request_counts()))
        return len(self.requests) - len(self._groups) - regular

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
        step: Step[Request] = Step(
            min(self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens),
            max(self.scheduler_config.long_prefill_token_threshold, 0),
            self.max_model_len,
            self._draft_slots,
            self.num_spec_tokens,
            self._draft_controller is None or self._draft_controller.may_draft(),
        )
        throttled = holds_prompts(self, throttle)
        if self.pause_state == PauseState.PAUSED_NEW:
            # Who was loaded goes on: vLLM admits those in a pause, too, since 0.32.
            for stream in self._loads.holding() if versions.is_before("0.32") else ():
                self._begin_anew(self._groups[stream.request_id])
            for group in self._partial.groups():  # it must not hold what it cannot use
                if not any(map(self._loads.waits, group.streams)):
                    self._preempt_all(group)
        assert self._blocks is not None
        parts = self._groups, self._partial, self._blocks, self._loads, self._encoder
        self._pass = Pass(self, *parts, step=step, throttled=throttled, promote=self._promote)
        self._encoder.begin_pass()
        try:
            if self._pass.takes_part():
                return self._schedule_groups(self._pass, *args, **kwargs)
            return super().schedule(*args, **kwargs)
        finally:
            self._pass = None

    def _running_groups(self) -> set[RequestGroup]:
        """Groups of which a stream runs."""
        found = (self._groups.get(request.request_id) for request in self.running)
        return {group for group in found if group is not None}

    def _schedule_groups(self, this: Pass, *args: Any, **kwargs: Any) -> SchedulerOutput:
        self._loads.begin_pass(self._promote)
        partial = self._partial.groups()
        place = {request: at for at, request in enumerate(self.running)} if partial else {}
        if may_go := {s for group in partial if this.may_go(group) for s in group.streams}:
            # Last, so that nobody takes blocks between its turn and the admission of the others.
            self.running.sort(key=may_go.__contains__)
        this.view.stand_in()
        splits, self.need_mamba_block_aligned_split = self.need_mamba_block_aligned_split, True
        self._mamba_block_aligned_split = this.cap  # type: ignore[method-assign]
        try:
            return super().schedule(*args, **kwargs)
        finally:
            del self._mamba_block_aligned_split  # the class's again
            self.need_mamba_block_aligned_split = splits
            this.view.restore()
            self._loads.queue()
            if partial:
                # Where it was: the last one is preempted first, and that is the youngest.
                for group in partial:
                    first = min(place.get(each, len(place)) for each in group.streams)
                    place.update(dict.fromkeys(group.streams, first))
                self.running.sort(key=lambda each: place.get(each, len(place)))
            for group in reversed(self._partial.groups()):
                if not any(map(runs, group.streams)):
                    self._queue_again(group)  # it started, and none was admitted

    def _promote(self, request: Request) -> bool:
        """What vLLM does when a grammar is compiled, or a request's KV has come: whether it is one
        that may start now.
        """
        if self._is_old:
            before: Any = super()
            compiles = request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
            return not compiles or bool(before._try_promote_blocked_waiting_request(request))
        return super()._handle_blocked_waiting_request(request)

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        group, of_any = self._group_of(request), self._groups.get(request.request_id)
        if getattr(self, "requires_kv_delivery", False):
            kwargs["drop_stale_output"] = True  # of all streams, whoever preempts them
        if self._pass is not None:
            self._pass.preempt(request, group)
        queue = self.waiting
        if group is not None:
            # It waits in no queue: to take somebody out of one costs time for all who wait there.
            self.waiting = create_request_queue(SchedulingPolicy.FCFS)
        super()._preempt_request(request, *args, **kwargs)
        self.waiting = queue
        if of_any is not None and request is of_any.expert:
            self._counters.sums[of_any.kind].preemptions += 1
        if group is not None:
            self._queue_again(group)

    def _group_of(self, request: Request) -> RequestGroup | None:
        """The group of a stream; None for a regular request, or when the amateurs have ended."""
        group = self._groups.get(request.request_id)
        return group if group is not None and group.amateurs else None

    def _queue_again(self, group: RequestGroup) -> None:
        """It waits as a whole from now on, unless some of its KV is under way; streams that run are
        about to be preempted.
        """
        if group.is_queued:
            return
        if any(map(self._loads.waits, group.streams)):
            self._partial[group] = None
            return
        group.is_queued = True
        queue = self.waiting if self._pass is None else self._pass.view.waiting
        queue.prepend_request(group.expert)

    def _begin_anew(self, group: RequestGroup) -> None:
        """Its streams that wait lose their blocks."""
        for each in group.streams:
            self._loads.release(each)
        if not any(map(runs, group.streams)):
            self._queue_again(group)

    def _preempt_all(self, group: RequestGroup) -> None:
        for request in reversed(group.streams):
            if runs(request):
                self.running.remove(request)
                self._preempt_request(request, time.monotonic())

    def _try_schedule_encoder_inputs(
        self,
        request: Request,
        num_computed_tokens: int,
        num_new_tokens: int,
        *args: Any,
        **how: Any,
    ) -> tuple[Any, ...]:
        asked = request, num_computed_tokens, num_new_tokens
        found = super()._try_schedule_encoder_inputs(*asked, *args, **how)
        if self._pass is not None:
            self._pass.encoded(request, num_new_tokens, found)
        return found

    def _build_kv_connector_meta(self, connector: Any, scheduler_output: SchedulerOutput) -> Any:
        if self._pass is not None:
            self._after_pass(self._pass, scheduler_output)
        return super()._build_kv_connector_meta(connector, scheduler_output)

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        if self._pass is not None and not self._loads.possible:  # else before it hears of it
            self._after_pass(self._pass, scheduler_output)
        if self._emptied and self.defer_block_free:
            self.sched_step_seq -= 1  # vLLM counts the steps that do something
        self._emptied = False
        self._steps_in_flight += bool(scheduler_output.num_scheduled_tokens)
        if self._draft_controller is not None:
            self._draft_controller.begin_step()
        super()._update_after_schedule(scheduler_output)

    def _after_pass(self, this: Pass, output: SchedulerOutput) -> None:
        """Preempt groups that were split."""
        self._loads.end_pass(this.view.came)
        step, had_tokens = this.step, bool(output.num_scheduled_tokens)
        failed: list[RequestGroup] = []
        for group in tuple(step.groups):
            if is_split(group, output.num_scheduled_tokens):
                self._withdraw(group, output)
                failed.append(group)
            elif group.goes:
                group.failed_alone = 0
        if not output.num_scheduled_tokens and not step.preempted and self._stalled():
            # A group waits in vain for blocks: the youngest is preempted.
            group = next(g for r in reversed(self.running) if (g := self._group_of(r)))
            self._withdraw(group, output)
            failed.append(group)
        self._emptied = had_tokens and not output.num_scheduled_tokens
        alone = not output.num_scheduled_tokens and not self._loads.frees_blocks()
        if alone and (holding := self._loads.holding()):
            alone = False
            may_run = self.pause_state != PauseState.PAUSED_ALL
            if not failed and not step.preempted and may_run and self._is_at_rest():
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
        for group in step.groups:
            if group.rule_keeps_state and group.slot is None:
                self._take_slot(group, output)
        self._encoder.end_pass(output, self._groups)

    def _take_slot(self, group: RequestGroup, output: SchedulerOutput) -> None:
        """If it gets its first tokens: ``output`` has the streams' parameters for the workers. The
        lowest slot that is free: their tables are as large as numbers are.
        """
        if any(each.request_id in output.num_scheduled_tokens for each in group.streams):
            group.slot = next(slot for slot in count() if slot not in self._slots)
            self._slots.add(group.slot)
            for each in group.streams:
                set_slot(each.sampling_params.extra_args, group.slot)

    def _stalled(self) -> bool:
        """Whether running groups got nothing although nothing is under way."""
        return (
            self.pause_state == PauseState.UNPAUSED
            and any(map(self._group_of, self.running))
            and self._is_at_rest()
            and not self._loads.frees_blocks()
        )

    def _is_at_rest(self) -> bool:
        """Whether no step's results, and no answer of a connector, are still to come."""
        return not (self._steps_in_flight or self._loads.asked_in_vain)

    def _withdraw(self, group: RequestGroup, output: SchedulerOutput) -> None:
        """Take all streams out of this step and preempt them."""
        for request in reversed(group.streams):
            never_sent = strip(output, request.request_id)
            self.prev_step_scheduled_req_ids.discard(request.request_id)
            if not runs(request):
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
            groups = [(i, g) for i in sampled if (g := self._groups.get(i)) is not None]
            num_amateurs = sum(group.request_id != i for i, group in groups)
            steps_of = len(sampled), len(sampled) - num_amateurs
            each_stream = self._draft_controller.break_even(*steps_of)
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
            if (why := output_checks.problem(figures, num_tokens, num_drafts, here)) is not None:
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
        return failed

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
            if any(
                output_checks.is_desynchronised(expert, amateur, most) for amateur in group.amateurs
            ):
                self._fail(
                    group,
                    "vllm-cold: expert and amateur are desynchronised at token "
                    f"{expert.num_tokens}; the result would be wrong. "
                    "Please report this with the engine's log.",
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
                        output.kv_transfer_params = transfer_params.with_ours(
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
        running = sum(all(map(runs, group.streams)) for group in self._running_groups())
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
