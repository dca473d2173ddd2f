# SPDX-License-Identifier: Apache-2.0
"""The scheduler, as ``SchedulerConfig.scheduler_cls``.

A contrastive request is several requests that must be scheduled in lockstep. This connects the rule
(``lockstep``) to vLLM's scheduler in three layers: which groups there are (``group_requests``), how
a step is planned (``group_planning``), and here what happens when its results are back.
"""

import time
from collections.abc import Mapping
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

from vllm_cold.scheduler import output_checks, releases
from vllm_cold.scheduler.group_planning import GroupPlanning
from vllm_cold.scheduler.lockstep import Group, Request
from vllm_cold.wire import worker_output
from vllm_cold.wire.step_stats import RowStats


class GroupScheduler(GroupPlanning):
    """vLLM's Scheduler with groups of streams."""

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: Any
    ) -> dict[int, EngineCoreOutputs]:
        scored: dict[str, list[RowStats]] = {}
        ended: list[tuple[Request, EngineCoreOutput]] = []
        scheduled = scheduler_output.num_scheduled_tokens
        took_part = bool(self._groups) and not self._groups.keys().isdisjoint(scheduled)
        if took_part:
            scored = self._scored(scheduler_output, model_runner_output)
        if self._groups:
            # Before vLLM sees their tokens. It passes over requests that ended meanwhile.
            ended = self._end_failed()
        outputs: dict[int, EngineCoreOutputs]
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if self._groups:
            self._loads.end_step(scheduled)
        self._steps_in_flight -= bool(scheduled)
        if kernels := worker_output.kernels_of(model_runner_output):
            self._counters.kernels, self._to_report = kernels, max(self._to_report, 1)
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
        """Return the figures of each group that got tokens in this step, by its expert's id. Fail
        those of which a token may not be given to the client.
        """
        assert self._blocks is not None
        tokens = model_runner_output.sampled_token_ids
        row = {request_id: i for i, request_id in enumerate(model_runner_output.req_ids)}
        drafts = scheduler_output.scheduled_spec_decode_tokens
        invalid = scheduler_output.num_invalid_spec_tokens or {}  # which its grammar forbids
        figures_of = worker_output.from_worker(model_runner_output)
        not_loaded = self._loads.not_loaded(model_runner_output)
        break_even = self._break_even(row, tokens)
        scored = {}
        for request_id in scheduler_output.num_scheduled_tokens:
            group = self._groups.get(request_id)
            if group is None or request_id != group.request_id:
                continue
            figures = figures_of.get(self._group_id(group.expert), [])
            if any(row_stats.nonfinite == 1 for row_stats in figures):
                self._blocks.mark_nonfinite(group.streams)
            lost = not_loaded and any(self._loads.uses(s, not_loaded) for s in group.streams)
            if lost or releases.is_dropped(group.expert):
                continue  # its tokens count for nothing
            num_tokens = len(tokens[row[request_id]]) if tokens and request_id in row else 0
            if not num_tokens:
                continue
            num_drafts = len(drafts.get(request_id, ()))
            sums = self._counters.sums[group.kind]
            sums.draft_tokens += num_drafts - invalid.get(request_id, 0)
            sums.accepted_draft_tokens += num_tokens - 1
            if self._draft_controller is not None:
                least = break_even * len(group.streams)
                group.drafting.observe(num_drafts, num_tokens - 1, least)
            here = sum(
                bit for i, bit in group.bits.items() if i in scheduler_output.num_scheduled_tokens
            )
            problem = output_checks.problem(
                figures,
                num_tokens,
                num_drafts,
                here,
                explains=group.explainer is not None,
                charges=group.budget is not None,
            )
            if problem is not None:
                self._fail(group, problem)
            else:
                scored[request_id] = figures
        return scored

    def _break_even(self, row: Mapping[str, int], tokens: Any) -> float:
        """Return the share of a group's drafts that must be right, for each of its streams.
        ``row``: of each request of the step, where its ``tokens`` are.
        """
        if self._draft_controller is None or not tokens:
            return 0.0
        sampled = [i for i, at in row.items() if i in self.requests and len(tokens[at])]
        groups = [(i, g) for i in sampled if (g := self._groups.get(i)) is not None]
        num_amateurs = sum(group.request_id != i for i, group in groups)
        return self._draft_controller.break_even(len(sampled), len(sampled) - num_amateurs)

    def _handle_invalid_blocks(
        self, invalid_block_ids: set[int], num_scheduled_tokens: dict[str, int]
    ) -> set[str]:
        """Have whole groups fail with a stream whose KV did not come."""
        failed: set[str]
        failed = super()._handle_invalid_blocks(invalid_block_ids, num_scheduled_tokens)
        if self._groups:
            self._loads.cut(invalid_block_ids)
        groups = {g.request_id: g for i in failed if (g := self._groups.get(i)) is not None}
        if not groups:
            return failed
        failed.update(stream.request_id for g in groups.values() for stream in g.streams)
        if self.recompute_kv_load_failures:
            # Everybody with such a block begins anew: vLLM leaves it to the first one to compute
            # it for the others, but a group's stream may have to wait.
            for group in groups.values():
                self._begin_anew(group)
            for request in [r for r in reversed(self.running) if r.request_id in failed]:
                self._loads.uncache(request, invalid_block_ids)
                self.running.remove(request)
                # Or workers are not sent its tokens where it goes on in the next step.
                releases.unsend(self, request.request_id)
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
        groups, hidden = self._in_step(scheduler_output)
        finished = [group for group in groups.values() if self._has_finished(group)]
        hidden.update(group.request_id for group in self._failed)
        for client in outputs.values():
            if self._loads.possible:
                self._loads.hand_on(client.outputs, groups)
            if client.outputs and hidden:
                client.outputs = [o for o in client.outputs if o.request_id not in hidden]
            for output in client.outputs:
                if (group := self._groups.get(output.request_id)) is None:
                    continue
                figures, new = scored.get(output.request_id, ()), len(output.new_token_ids)
                self._counters.sums[group.kind].give(new, figures if self.log_stats else ())
                output.kv_transfer_params = self._ours(
                    group, output.kv_transfer_params, figures[:new]
                )
                if group.retires and figures and group not in finished:
                    self._retire(group, figures, new)
        for group in finished:
            self._end_amateurs(group.amateurs)
            self._forget(group)
        return self._end_failed()

    def _in_step(self, scheduler_output: SchedulerOutput) -> tuple[dict[str, Group], set[str]]:
        """Return the groups of which an amateur, or an expert without amateurs, was in the step, by
        the expert's id, and those amateurs' ids. Count the prompts of amateurs that are new.
        """
        groups: dict[str, Group] = {}
        amateurs: set[str] = set()
        for request_id in scheduler_output.num_scheduled_tokens:
            group = self._groups.get(request_id)
            if group is None or (request_id == group.request_id and group.amateurs):
                continue
            groups[group.request_id] = group
            if request_id == group.request_id:
                continue
            amateurs.add(request_id)
            if (num_cached := group.new_amateurs.pop(request_id, None)) is not None:
                # An amateur that stopped by itself is no request of vLLM's any more.
                amateur = next(a for a in group.amateurs if a.request_id == request_id)
                sums = self._counters.sums[group.kind]
                sums.amateur_prompt_tokens += amateur.num_prompt_tokens
                sums.amateur_cached_prompt_tokens += num_cached
        return groups, amateurs

    def _has_finished(self, group: Group) -> bool:
        """Whether a group's expert has finished as it should; the group fails if its streams do not
        agree.
        """
        expert, most = group.expert, 1 + self.num_spec_tokens
        if any(output_checks.is_desynchronised(expert, a, most) for a in group.amateurs):
            self._fail(
                group,
                "vllm-cold: expert and amateur are desynchronised at token "
                f"{expert.num_tokens}; the result would be wrong. "
                "Please report this with the engine's log.",
            )
            return False
        return expert.is_finished()


class ColdScheduler(GroupScheduler):
    """For ``SchedulerConfig.scheduler_cls``, without asynchronous scheduling."""


class ColdAsyncScheduler(GroupScheduler, AsyncScheduler):  # type: ignore[misc]
    """For ``SchedulerConfig.scheduler_cls``, with asynchronous scheduling."""
