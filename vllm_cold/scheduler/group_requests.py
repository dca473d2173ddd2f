# SPDX-License-Identifier: Apache-2.0
"""The contrastive requests that a scheduler has: how they arrive and end, and how they are counted.

All streams are in ``self.requests``, but between passes only the expert waits in ``waiting``, and
only while none of its streams runs or has blocks; so waiting counts and queue order are those of
the clients' requests.
"""

import logging
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import structs
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import RequestStatus

from vllm_cold.compat.engine import slots_of
from vllm_cold.scheduler import output_checks, releases
from vllm_cold.scheduler.amateur_requests import make_streams
from vllm_cold.scheduler.budgets import Budget
from vllm_cold.scheduler.drafting import (
    ROW_COST,
    ROW_COST_ON_CPU,
    DraftController,
    Drafting,
)
from vllm_cold.scheduler.encoder_inputs import EncoderInputs
from vllm_cold.scheduler.explain_steps import StepExplainer
from vllm_cold.scheduler.kv_blocks import KVBlocks
from vllm_cold.scheduler.kv_loads import Loads
from vllm_cold.scheduler.lockstep import Group, Request
from vllm_cold.scheduler.passes import Partial, Pass, runs
from vllm_cold.scheduler.share import Share
from vllm_cold.wire import transfer_params
from vllm_cold.wire.counters import CountersByKind, attach
from vllm_cold.wire.step_stats import RowStats
from vllm_cold.wire.stream import from_extra_args

logger = logging.getLogger("vllm." + __name__)

# For so many steps after the last group the front ends hear from us.
LAST_REPORTS = 32


class GroupRequests(Scheduler):  # type: ignore[misc]
    """vLLM's Scheduler, which knows of groups of streams."""

    # vLLM's own, which is Any to a type checker.
    requests: dict[str, Request]
    running: list[Request]

    # What vLLM's methods need of us although __init__ never ran, as in some of its tests.
    connector: Any = None
    defer_block_free = False
    _groups: dict[str, Group] = {}
    _blocks: KVBlocks | None = None
    _draft_controller: DraftController | None = None
    _steps_in_flight = 0
    _to_report = 0  # steps for which the front ends must hear from us, groups or not
    _pass: Pass | None = None  # the current one
    _share: Share | None = None  # of the sequence slots; None where there is no limit
    _emptied = False  # whether all that had tokens were taken out of the step

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._groups = {}  # by the id of each stream
        self._num_groups = 0
        self._failed: list[Group] = []  # groups that must end
        self._counters = CountersByKind()
        # In a group's id, so that no two engines have the same one: see ``wire.worker_output``.
        self._engine = uuid.uuid4().hex[:12]
        self._blocks = KVBlocks(self)
        self._loads = Loads(self, self._blocks, self._num_ended)
        self._encoder = EncoderInputs(self)
        speculative = self.vllm_config.speculative_config
        on_cpu = self.vllm_config.device_config.device_type == "cpu"
        row_cost = ROW_COST_ON_CPU if on_cpu else ROW_COST
        self._draft_controller = DraftController(row_cost) if self.num_spec_tokens > 0 else None
        self._slots: set[int] = set()  # those of groups that have begun and not ended
        self._draft_slots = speculative.max_num_new_slots_for_drafting if speculative else 0
        self._partial = Partial()
        if (slots := slots_of(self.vllm_config)).max_share is not None:
            self._share = Share(self, self._groups, self._partial.groups, slots.contrastive)

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
        num_amateurs, k = len(stream.amateurs), stream.explain
        parameters = stream.settings.rule_parameters or {}
        group: Group = Group(
            streams,
            kind,
            rule_keeps_state=stream.rule_keeps_state,
            retires=stream.retires,
            explainer=StepExplainer(num_amateurs, k) if k else None,
            budget=Budget(num_amateurs, parameters) if stream.charges else None,
        )
        if self._draft_controller is not None:
            seeded = params.seed is not None and params.temperature > 0
            group.drafting = Drafting(self._draft_controller.kinds[kind], seeded=seeded)
        self._num_groups += 1
        for request in group.streams:
            self._groups[request.request_id] = group
            self.requests[request.request_id] = request
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
    ) -> Any:
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

    def _forget(self, group: Group) -> None:
        if group.slot is not None:
            self._slots.remove(group.slot)
        if group.budget is not None and self.log_stats:
            self._counters.sums[group.kind].spent += group.budget.total()
        self._num_groups -= 1
        for request in group.streams:
            self._groups.pop(request.request_id, None)
            self._loads.streams.pop(request, None)
        self._partial.pop(group, None)

    def _retire(self, group: Group, figures: Sequence[RowStats], new: int) -> None:
        """End the amateurs that the group's rule needs no more, now that the client gets ``new``
        tokens. If the group was preempted meanwhile, its rule will say so again.
        """
        if not new or not all(map(runs, group.streams)):
            return
        done = figures[new - 1].done
        amateurs = [a for a in group.amateurs if done & group.bits[a.request_id]]
        if not amateurs:
            return
        self._end_amateurs(amateurs)
        for amateur in amateurs:
            del self._groups[amateur.request_id]
        group.retire(amateurs)
        self._counters.sums[group.kind].retired_streams += len(amateurs)

    def _end_amateurs(self, amateurs: Iterable[Request]) -> None:
        ids = [amateur.request_id for amateur in amateurs]
        super().finish_requests(ids, RequestStatus.FINISHED_ABORTED)

    def _fail(self, group: Group, why: str) -> None:
        """Have the group end, and its client told why; the first reason counts."""
        if group.error is None:
            group.error = why
            self._failed.append(group)

    def _end_failed(self) -> list[tuple[Request, EngineCoreOutput]]:
        """End the groups that must, with an error, or as their rule says: their experts, and what
        the clients are told.
        """
        failed, self._failed = self._failed, []
        ended = []
        for group in failed:
            expert = group.expert
            if self._groups.get(expert.request_id) is not group:
                continue  # it was aborted meanwhile
            status, reason = RequestStatus.FINISHED_ERROR, FinishReason.ERROR
            if group.error == output_checks.ENDED_BY_RULE:
                status, reason = RequestStatus.FINISHED_STOPPED, FinishReason.STOP
            else:
                logger.error("%s (request %s)", group.error, expert.request_id)
            self.finish_requests(expert.request_id, status)
            output = EngineCoreOutput(
                request_id=expert.request_id,
                new_token_ids=[],
                finish_reason=reason,
                stop_reason=group.error,
                kv_transfer_params=self._ours(group),
                events=expert.take_events(),
                trace_headers=expert.trace_headers,
            )
            ended.append((expert, output))
        return ended

    @staticmethod
    def _ours(group: Group, transfer: Any = None, new: Sequence[RowStats] = ()) -> Any:
        """Return what goes to a group's client with its tokens.

        Args:
            group: Whose.
            transfer: vLLM's ``kv_transfer_params`` of the output.
            new: Figures of the tokens that it is given.
        """
        if group.explainer is not None:
            transfer = transfer_params.with_ours(transfer, steps=group.explainer.explain(new))
        if group.budget is not None:
            group.budget.add(new)
            transfer = transfer_params.with_ours(transfer, budget=group.budget.as_dict())
        return transfer

    # ---- counts ------------------------------------------------------------------------------

    def get_request_counts(self) -> tuple[int, int]:
        """Return (running, waiting), a contrastive request counted once, except in a pass: there
        vLLM asks how many share the step.
        """
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
        """Return, of vLLM's counts of requests that run and wait, those that are no group's."""
        streams = [r for r in self.running if r.request_id in self._groups]
        waiting -= self._num_groups - len(self._running_groups().union(self._partial.groups()))
        return running - len(streams), waiting - self._loads.num_queued

    def _running_groups(self) -> set[Group]:
        """Return the groups of which a stream runs."""
        groups = (self._groups.get(request.request_id) for request in self.running)
        return {group for group in groups if group is not None}

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """Count a contrastive request once; vLLM 0.23 does not ask ``get_request_counts``."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None and self._groups and releases.IS_0_23:
            stats.num_running_reqs = self.get_request_counts()[0]
        return stats

    def has_finished_requests(self) -> bool:
        """Whether some have ended that workers do not know of. With a connector vLLM itself takes
        all requests that are in no queue for such.
        """
        if not self._groups or not self._loads.possible:
            return bool(super().has_finished_requests())
        return bool(self.finished_req_ids) or self._num_ended() > 0

    def _num_ended(self) -> int:
        """Return how many requests have ended and a connector is not done with, between passes."""
        regular = sum(self._num_regular(*super().get_request_counts()))
        return len(self.requests) - len(self._groups) - regular

    def make_spec_decoding_stats(self, spec_decoding_stats: Any, *args: Any, **kwargs: Any) -> Any:
        """Count drafts as vLLM does, those of a group once."""
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
        for_share = 0 if self._share is None else self._share.num_waiting()
        attach(stats[0], self._counters.take(running, waiting, for_share))
        self._to_report = LAST_REPORTS if running or waiting else self._to_report - 1
