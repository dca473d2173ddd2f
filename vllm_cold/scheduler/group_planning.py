# SPDX-License-Identifier: Apache-2.0
"""How a step is planned: a pass of vLLM's ``schedule()`` with groups, without a fork of it, and
what is put right when the pass is over.

The rule is ``lockstep``, and ``passes`` asks it. What this file relies on, besides what the table
says:

- ``_mamba_block_aligned_split(request, num_new_tokens, num_local_cached, ...)``: called in both
  loops of ``schedule()``, after the token budget; a 0 passes the request over (running) or ends
  admission for this step (waiting). It is replaced only during a pass in which a group may get
  tokens; vLLM's own rule is asked after it.
- ``waiting``, ``kv_holding_waiting``: those of ``queue_view`` take their positions in such a pass.
- ``_try_schedule_encoder_inputs(request, ...)``: called after the cap for requests with media, and
  takes tokens off those that cannot be encoded.
- ``_update_after_schedule(output)``: before counts advance.
- ``_preempt_request`` puts a request into ``self.waiting``, which is another queue meanwhile for
  those that are not to wait there.
"""

import time
from itertools import count
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue
from vllm.v1.request import RequestStatus

from vllm_cold.scheduler import releases
from vllm_cold.scheduler.group_requests import GroupRequests
from vllm_cold.scheduler.lockstep import Group, Request, Step, is_split
from vllm_cold.scheduler.passes import Pass, runs
from vllm_cold.scheduler.queue_view import holds_prompts
from vllm_cold.wire.stream import set_slot

# Split this often in a row with nothing else running: the group will never go.
_MAX_FAILED_ALONE = 3


class GroupPlanning(GroupRequests):
    """Plans steps in which the streams of each group keep in step."""

    # vLLM's own, and for a time others.
    waiting: Any
    need_mamba_block_aligned_split: bool

    # ---- the pass ------------------------------------------------------------------------------

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
        step = Step(
            min(self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens),
            longest=self.max_model_len,
            extra=self._draft_slots,
            padding=self.num_spec_tokens,
        )
        throttled = holds_prompts(self, throttle)
        self._partial.prune()
        if self.pause_state == PauseState.PAUSED_NEW:
            for group in self._partial.groups():  # it must not hold what it cannot use
                if not any(map(self._loads.waits, group.streams)):
                    self._preempt_all(group)
        assert self._blocks is not None
        parts = self._groups, self._partial, self._blocks, self._loads, self._encoder, self._share
        self._pass = Pass(self, *parts, step=step, throttled=throttled, promote=self._promote)
        self._encoder.begin_pass()
        try:
            if self._pass.takes_part():
                return self._schedule_groups(self._pass, *args, **kwargs)
            return super().schedule(*args, **kwargs)
        finally:
            self._pass = None

    def _schedule_groups(self, this: Pass, *args: Any, **kwargs: Any) -> SchedulerOutput:
        self._loads.begin_pass(self._promote)
        partial = self._partial.groups()
        positions = {request: i for i, request in enumerate(self.running)} if partial else {}
        splits, self.need_mamba_block_aligned_split = self.need_mamba_block_aligned_split, True
        self._mamba_block_aligned_split = this.cap
        this.view.stand_in()
        try:
            this.step.chunk = self._prefill_limit()
            if last := {s for group in partial if this.may_go(group) for s in group.streams}:
                # So that nobody takes blocks between its turn and the admission of the others.
                self.running.sort(key=last.__contains__)
            return super().schedule(*args, **kwargs)
        finally:
            del self._mamba_block_aligned_split  # the class's again
            self.need_mamba_block_aligned_split = splits
            this.view.restore()
            if self._share is not None:
                self._share.end_pass()
            self._loads.queue()
            if partial:
                # Where it was: the last one is preempted first, and that is the youngest.
                for group in partial:
                    first = min(positions.get(stream, len(positions)) for stream in group.streams)
                    positions.update(dict.fromkeys(group.streams, first))
                self.running.sort(key=lambda request: positions.get(request, len(positions)))
            for group in reversed(self._partial.groups()):
                if not any(map(runs, group.streams)):
                    self._queue_again(group)  # it started, and none was admitted

    def _prefill_limit(self) -> int:
        """Return how many tokens a prompt may take in this pass, 0 for no limit, as vLLM does when
        the pass begins: since 0.31 a lone request has no limit.
        """
        limit: int = max(self.scheduler_config.long_prefill_token_threshold, 0)
        if releases.IS_0_23 or not limit:
            return limit
        num_requests = sum(self.get_request_counts())
        if num_requests <= 1:
            return 0
        share: int = self.scheduler_config.max_num_batched_tokens // num_requests
        return max(limit, share) if self.adaptive_long_prefill_threshold else limit

    def _promote(self, request: Request) -> bool:
        return releases.promote(super(), request)

    def _try_schedule_encoder_inputs(
        self,
        request: Request,
        num_computed_tokens: int,
        num_new_tokens: int,
        *args: Any,
        **how: Any,
    ) -> tuple[Any, ...]:
        plan: tuple[Any, ...] = super()._try_schedule_encoder_inputs(
            request, num_computed_tokens, num_new_tokens, *args, **how
        )
        if self._pass is not None:
            self._pass.encoded(request, num_new_tokens, plan)
        return plan

    # ---- who loses its place ---------------------------------------------------------------------

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        group, of_any = self._group_of(request), self._groups.get(request.request_id)
        if releases.drops_stale_output(self):
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

    def _group_of(self, request: Request) -> Group | None:
        """Return the group of a stream; None for a regular request, or where all amateurs have
        ended.
        """
        group = self._groups.get(request.request_id)
        return group if group is not None and group.amateurs else None

    def _queue_again(self, group: Group) -> None:
        """Have the group wait as a whole from now on, unless some of its KV is under way; streams
        that run are about to be preempted.
        """
        if group.is_queued:
            return
        if any(map(self._loads.waits, group.streams)):
            self._partial[group] = None
            return
        group.is_queued = True
        queue = self.waiting if self._pass is None else self._pass.view.waiting
        queue.prepend_request(group.expert)

    def _begin_anew(self, group: Group) -> None:
        """Take the blocks of the group's streams that wait."""
        for stream in group.streams:
            self._loads.release(stream)
        if not any(map(runs, group.streams)):
            self._queue_again(group)

    def _preempt_all(self, group: Group) -> None:
        for request in reversed(group.streams):
            if runs(request):
                self.running.remove(request)
                self._preempt_request(request, time.monotonic())

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, *args: Any, **kwargs: Any
    ) -> bool:
        """Reset the cache, after requests that wait with blocks gave them back."""
        if reset_running_requests:
            for stream in self._loads.holding():
                self._begin_anew(self._groups[stream.request_id])
        return bool(super().reset_prefix_cache(reset_running_requests, *args, **kwargs))

    # ---- after the pass ------------------------------------------------------------------------

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
        super()._update_after_schedule(scheduler_output)

    def _after_pass(self, this: Pass, output: SchedulerOutput) -> None:
        """Preempt groups that were split, end those that never go, and give slots to others."""
        self._loads.end_pass(this.view.came)
        step, had_tokens = this.step, bool(output.num_scheduled_tokens)
        failed: list[Group] = []
        for group, turn in tuple(step.turns.items()):
            if turn.is_lost or is_split(group, output.num_scheduled_tokens):
                self._withdraw(group, output)
                failed.append(group)
            elif turn.goes:
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
                    releases.ignore_prefix_cache(stream)
                    self._begin_anew(self._groups[stream.request_id])
        for group in failed:
            if alone:
                self._failed_alone(group)
            else:
                group.failed_alone = 0
        for group in step.turns:
            if group.rule_keeps_state and group.slot is None:
                self._take_slot(group, output)
        self._encoder.end_pass(output, self._groups)

    def _failed_alone(self, group: Group) -> None:
        """Give a group that was preempted although nothing else ran a better chance; end it if that
        did not help.
        """
        group.failed_alone += 1
        group.drafting.possible = False  # drafts need blocks too
        for stream in group.streams:
            # Streams that push each other's blocks out of the prefix cache begin anew.
            releases.ignore_prefix_cache(stream)
        if group.failed_alone >= _MAX_FAILED_ALONE:
            sizes = ", ".join(str(stream.num_tokens) for stream in group.streams)
            self._fail(
                group,
                f"vllm-cold: the streams of this request ({sizes} tokens) were not scheduled "
                "together, although nothing else ran; most likely they do not fit the KV cache "
                f"of {self.cache_config.num_gpu_blocks} blocks of {self.block_size} tokens: "
                "shorten it or enlarge the KV cache.",
            )

    def _take_slot(self, group: Group, output: SchedulerOutput) -> None:
        """Give the group the lowest free slot if it gets its first tokens: ``output`` has the
        streams' parameters for the workers, whose tables are as large as the highest slot.
        """
        if any(stream.request_id in output.num_scheduled_tokens for stream in group.streams):
            group.slot = next(slot for slot in count() if slot not in self._slots)
            self._slots.add(group.slot)
            for stream in group.streams:
                set_slot(stream.sampling_params.extra_args, group.slot)

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

    def _withdraw(self, group: Group, output: SchedulerOutput) -> None:
        """Take all streams out of this step and preempt them."""
        for request in reversed(group.streams):
            never_sent = strip(output, request.request_id)
            releases.unsend(self, request.request_id)
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


def strip(output: SchedulerOutput, request_id: str) -> bool:
    """Remove a request from the step; True if the step would have introduced it to the workers."""
    num_tokens = output.num_scheduled_tokens.pop(request_id, 0)
    if not num_tokens:
        return False
    output.total_num_scheduled_tokens -= num_tokens
    output.scheduled_spec_decode_tokens.pop(request_id, None)
    output.scheduled_encoder_inputs.pop(request_id, None)
    releases.strip_columns(output, request_id)
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
    return False
