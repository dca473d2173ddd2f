# SPDX-License-Identifier: Apache-2.0
"""What the scheduler does with a step's results.

The amateurs' outputs are dropped, the streams compared, groups ended, figures counted and sent on.
"""

import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import Request, RequestStatus

from vllm_cold.group.drafting import Economy
from vllm_cold.group.lockstep import Group
from vllm_cold.group.tally import OTHER_DRAFTS, Counts, Figures
from vllm_cold.ops.interface import NOT_FINITE, OUT_OF_RANGE
from vllm_cold.vllm.scheduler.stats import attach
from vllm_cold.vllm.worker import outputs

logger = logging.getLogger("vllm." + __name__)

# For so many steps after the last group the front ends hear from us.
LAST_REPORTS = 32
NOT_SCORED = (
    "CoLD: a token was sampled from rows that nobody scored; the result would be wrong. Please "
    "report this with the engine's log."
)
NOT_THE_SAME_DRAFTS = (
    "CoLD: the streams of this request verified different drafts; the result would be wrong. "
    "Switch speculative decoding off, and please report this with the engine's log."
)

RequestGroup = Group[Request]


class ResultScheduling(Scheduler):  # type: ignore[misc]
    """The part of the scheduler that meets what the workers found."""

    _groups: dict[str, RequestGroup]
    _errors: dict[str, str]
    _counts: Counts
    _new_amateurs: dict[str, int]
    _steps_in_flight: int
    _speculates: bool
    _to_report: int
    _economy: Economy
    _scheduled_at: deque[float]
    _updated_at: float

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: Any
    ) -> dict[int, EngineCoreOutputs]:
        scored: dict[str, list[Figures]] = {}
        ended: list[tuple[Request, EngineCoreOutput]] = []
        if self._speculates:
            self._time_step(scheduler_output)
        if self._groups:
            scored = self._scored(scheduler_output, model_runner_output)
            # Before vLLM sees their tokens. It passes over requests that ended meanwhile.
            ended = self._end_failed()
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(
            scheduler_output, model_runner_output
        )
        self._steps_in_flight -= bool(scheduler_output.num_scheduled_tokens)
        if self._groups:
            ended += self._after_output(scheduler_output, outputs, scored)
        for expert, output in ended:
            outputs.setdefault(expert.client_index, EngineCoreOutputs()).outputs.append(output)
        if self.log_stats and self._to_report > 0:
            self._report(outputs)
        return outputs

    def _scored(
        self, scheduler_output: SchedulerOutput, model_runner_output: Any
    ) -> dict[str, list[Figures]]:
        """The figures of each group that got tokens in this step, by its expert's id. A group of
        whose tokens one is none must end.
        """
        row, tokens = model_runner_output.req_id_to_index, model_runner_output.sampled_token_ids
        drafts = scheduler_output.scheduled_spec_decode_tokens
        invalid = scheduler_output.num_invalid_spec_tokens or {}  # which its grammar forbids
        found = outputs.from_worker(model_runner_output)
        each_stream = None
        if self._speculates and tokens:
            sampled = [i for i, at in row.items() if i in self.requests and len(tokens[at])]
            each_stream = self._break_even(sampled)
        scored = {}
        for request_id in scheduler_output.num_scheduled_tokens:
            group = self._groups.get(request_id)
            if group is None or request_id != group.request_id:
                continue
            figures = found.get(self._group_id(group.expert), [])
            if any(each.nonfinite for each in figures):
                self._mark_nonfinite(group)
            at = row.get(request_id)
            if at is None or not tokens or not len(tokens[at]):
                continue
            sums, num_drafts = self._counts.sums[group.kind], len(drafts.get(request_id, ()))
            sums.draft_tokens += num_drafts - invalid.get(request_id, 0)
            sums.accepted_draft_tokens += len(tokens[at]) - 1
            if self._speculates:
                least = None if each_stream is None else each_stream * len(group.streams)
                group.drafting.observe(num_drafts, len(tokens[at]) - 1, least)
            if len(figures) != 1 + num_drafts:
                self._errors[request_id] = NOT_SCORED
            elif wrong := {each.nonfinite for each in figures[: len(tokens[at])]} - {0}:
                other = NOT_SCORED if OUT_OF_RANGE in wrong else NOT_FINITE
                drafts_differ = OTHER_DRAFTS in wrong
                self._errors[request_id] = NOT_THE_SAME_DRAFTS if drafts_differ else other
            else:
                scored[request_id] = figures
        return scored

    def _time_step(self, output: SchedulerOutput) -> None:
        """Note how long a step of decoding requests took, for ``_break_even``."""
        now = time.monotonic()
        scheduled = self._scheduled_at.popleft() if self._scheduled_at else now
        before, self._updated_at = self._updated_at, now
        tokens = output.num_scheduled_tokens.values()
        if tokens and max(tokens) <= 1 + self.num_spec_tokens:
            self._economy.times.add(sum(tokens), now - max(scheduled, before))
        else:  # or a step without drafts, for its time, would be waited for while prompts come
            self._economy.times.age += 1

    def _break_even(self, sampled: Sequence[str]) -> float | None:
        """See ``Economy.break_even``: for steps of those requests that got tokens in this one."""
        amateurs = sum(
            (group := self._groups.get(i)) is not None and group.request_id != i for i in sampled
        )
        return self._economy.break_even(len(sampled), len(sampled) - amateurs)

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
        running = waiting = 0
        for group in self._each_group():
            complete = all(each.status == RequestStatus.RUNNING for each in group.streams)
            running += complete
            waiting += not complete
        for client in outputs.values():
            if client.scheduler_stats is not None:  # of one client in each step
                attach(client.scheduler_stats, self._counts.take(running, waiting))
                self._to_report = LAST_REPORTS if running or waiting else self._to_report - 1
                break

    def _after_output(
        self,
        scheduler_output: SchedulerOutput,
        outputs: dict[int, EngineCoreOutputs],
        scored: dict[str, list[Figures]],
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
            if group is None or request_id == group.request_id:
                continue
            hidden.add(request_id)
            groups[group.request_id] = group
            if (num_cached := self._new_amateurs.pop(request_id, None)) is not None:
                amateur = next(a for a in group.amateurs if a.request_id == request_id)
                sums = self._counts.sums[group.kind]
                sums.amateur_prompt_tokens += amateur.num_prompt_tokens
                sums.amateur_cached_prompt_tokens += num_cached
        over = []
        for group in groups.values():
            expert = group.expert
            most = 1 + self.num_spec_tokens
            if any(_out_of_step(expert, amateur, most) for amateur in group.amateurs):
                self._errors[expert.request_id] = (
                    f"CoLD: expert and amateur fell out of step at token {expert.num_tokens}; "
                    "the result would be wrong. Please report this with the engine's log."
                )
            elif expert.is_finished():
                over.append(group)
        hidden |= self._errors.keys()
        for client in outputs.values():
            if client.outputs and hidden:
                client.outputs = [o for o in client.outputs if o.request_id not in hidden]
            for output in client.outputs:
                if (given := self._groups.get(output.request_id)) is not None:
                    figures = scored.get(output.request_id, ()) if self.log_stats else ()
                    self._counts.sums[given.kind].give(len(output.new_token_ids), figures)
        for group in over:
            amateurs = [amateur.request_id for amateur in group.amateurs]
            super().finish_requests(amateurs, RequestStatus.FINISHED_ABORTED)
            self._forget(group)
        return self._end_failed()

    def _end_failed(self) -> list[tuple[Request, EngineCoreOutput]]:
        """End the groups that must, with an error: their experts, and what the clients are told."""
        return [self._end(self._groups[i], why) for i, why in tuple(self._errors.items())]

    def _end(self, group: RequestGroup, message: str) -> tuple[Request, EngineCoreOutput]:
        expert = group.expert
        logger.error("%s (request %s)", message, expert.request_id)
        self.finish_requests(expert.request_id, RequestStatus.FINISHED_ERROR)
        return expert, EngineCoreOutput(
            request_id=expert.request_id,
            new_token_ids=[],
            finish_reason=FinishReason.ERROR,
            stop_reason=message,
            events=expert.take_events(),
            trace_headers=expert.trace_headers,
        )


def _out_of_step(expert: Request, amateur: Request, most: int) -> bool:
    """Whether an amateur has other tokens than its expert, of which a step gives ``most`` at most.

    Of drafts that were right, an expert that stops keeps those up to its end; its amateurs, which
    know no stops, keep all.
    """
    known = expert.num_output_tokens
    if expert.is_finished():
        same_length = amateur.num_output_tokens >= known
    else:
        same_length = amateur.num_output_tokens == known and not amateur.is_finished()
    last = slice(max(known - most, 0), known)
    return not same_length or expert.output_token_ids[last] != amateur.output_token_ids[last]
