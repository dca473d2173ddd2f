# SPDX-License-Identifier: Apache-2.0
"""Contracts of the scheduler."""

import ast
import inspect
from typing import Any

from vllm_cold.vllm.contracts.contract import contract
from vllm_cold.vllm.contracts.source import (
    a_request,
    assigned_in_init,
    contains,
    has_fields,
    has_kind,
    has_parameters,
    in_order,
    loop_over,
    require,
    scheduler,
    source_of,
    tree_of,
)

_SCHEDULER = "vllm.v1.core.sched.scheduler.Scheduler"


def _async_scheduler() -> Any:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    return AsyncScheduler


@contract(
    "vllm.config.SchedulerConfig",
    "the group scheduler is installed through scheduler_cls and reads these options",
)
def _check_scheduler_config() -> None:
    from vllm.config import SchedulerConfig

    has_fields(
        SchedulerConfig,
        "scheduler_cls",
        "async_scheduling",
        "max_num_seqs",
        "max_num_batched_tokens",
        "long_prefill_token_threshold",
        "enable_chunked_prefill",
        "policy",
    )
    contains(
        source_of(SchedulerConfig.get_scheduler_cls),
        "SchedulerConfig.get_scheduler_cls",
        "resolve_obj_by_qualname(self.scheduler_cls)",
    )


@contract(_SCHEDULER + ".schedule", "the cap must come after the budget, before blocks are taken")
def _check_schedule_caps_running() -> None:
    in_order(
        loop_over(scheduler().schedule, "running", "self.running[req_index]"),
        "Scheduler.schedule, running requests",
        "token_budget",
        "if self.need_mamba_block_aligned_split:",
        "num_new_tokens = self._mamba_block_aligned_split(request, num_new_tokens)",
        "if num_new_tokens == 0:\n        req_index += 1\n        continue",
        "self.kv_cache_manager.allocate_slots(request, num_new_tokens",
    )


@contract(_SCHEDULER + ".schedule", "the cap must come after the budget, before blocks are taken")
def _check_schedule_caps_waiting() -> None:
    in_order(
        loop_over(scheduler().schedule, "waiting", "request_queue.peek_request()"),
        "Scheduler.schedule, waiting requests",
        "request_queue.peek_request()",
        "min(num_new_tokens, ",
        "if self.need_mamba_block_aligned_split",
        "self._mamba_block_aligned_split(request, num_new_tokens, num_new_local_computed_tokens",
        "if num_new_tokens == 0:",
        "break",
        "self.kv_cache_manager.allocate_slots(request, ",
        "if new_blocks is None:",
        "break",
        "request_queue.pop_request()",
        "self.running.append(request)",
    )


@contract(_SCHEDULER + "._mamba_block_aligned_split", "it is overridden")
def _check_split_signature() -> None:
    from vllm_cold.vllm.scheduler.scheduler import GroupScheduling

    theirs = list(inspect.signature(scheduler()._mamba_block_aligned_split).parameters)
    ours = list(inspect.signature(GroupScheduling._cap).parameters)
    require(
        len(theirs) >= 5 and theirs == ours[: len(theirs)],
        f"Scheduler._mamba_block_aligned_split takes ({', '.join(theirs)}), not "
        f"({', '.join(ours)}).",
    )


@contract(_SCHEDULER + ".need_mamba_block_aligned_split", "switching it on must do nothing else")
def _check_split_flag_does_nothing_else() -> None:
    flag = "need_mamba_block_aligned_split"
    readers = [
        node.name
        for node in tree_of(scheduler()).body
        if isinstance(node, ast.FunctionDef) and flag in ast.unparse(node)
    ]
    require(
        set(readers) == {"__init__", "schedule"},
        f"Scheduler.{flag} is used in {', '.join(readers)}, not in __init__ and schedule alone.",
    )


@contract(_SCHEDULER + ".schedule", "a preemption must rule out admission in the same pass")
def _check_schedule_admits_nobody_after_preemption() -> None:
    in_order(
        source_of(scheduler().schedule),
        "Scheduler.schedule",
        "self._preempt_request(",
        "preempted_reqs.append(preempted_req)",
        "if not preempted_reqs and ",
        "request_queue.peek_request()",
    )
    waiting = loop_over(scheduler().schedule, "waiting", "request_queue.peek_request()")
    require(
        "_preempt_request" not in waiting,
        "Scheduler.schedule preempts while it admits waiting requests.",
    )


@contract(_SCHEDULER + ".schedule", "seats are counted like vLLM counts them")
def _check_schedule_seats() -> None:
    known = (
        "len(self.running) == self.max_num_running_reqs",
        "num_running = len(self.running) + self.num_waiting_for_streaming_input\n"
        "    if num_running >= self.max_num_running_reqs:",
        "num_running = len(self.running) + self.num_waiting_for_streaming_input\n"
        "    if num_running >= self.max_num_active_reqs:",
    )
    loop = loop_over(scheduler().schedule, "waiting", "request_queue.peek_request()")
    require(
        any(check in loop for check in known),
        "Scheduler.schedule limits the number of running requests in a new way.",
    )


@contract(_SCHEDULER + ".schedule", "outputs are trimmed there, after everything else")
def _check_schedule_ends_with_update_after_schedule() -> None:
    call, end = tree_of(scheduler().schedule).body[-2:]
    require(
        "self._update_after_schedule(scheduler_output)" in ast.unparse(call)
        and ast.unparse(end) == "return scheduler_output",
        "Scheduler.schedule does something after _update_after_schedule(scheduler_output).",
    )


@contract(_SCHEDULER + "._update_after_schedule", "counts advance there, from what is left")
def _check_update_after_schedule_advances_counts() -> None:
    for owner in (scheduler(), _async_scheduler()):
        has_parameters(owner, "_update_after_schedule", "scheduler_output", exact=True)
    contains(
        source_of(scheduler()._update_after_schedule),
        "Scheduler._update_after_schedule",
        "in num_scheduled_tokens.items()",
        "request.num_computed_tokens += num_scheduled_token",
        "self.finished_req_ids = set()",
    )
    require(
        "num_computed_tokens +=" not in source_of(scheduler().schedule),
        "Scheduler.schedule itself advances num_computed_tokens.",
    )


@contract("vllm.v1.core.sched.async_scheduler.AsyncScheduler", "it stands behind the group's rules")
def _check_async_scheduler_extends_scheduler() -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    owner = _async_scheduler()
    direct = owner.__mro__[1] in (scheduler(), Scheduler)
    require(direct, "AsyncScheduler does not extend Scheduler directly.")
    own = set(vars(owner)) & {
        "schedule",
        "add_request",
        "finish_requests",
        "update_from_output",
        "_preempt_request",
        "_mamba_block_aligned_split",
        "get_request_counts",
    }
    require(not own, f"AsyncScheduler now has its own {', '.join(sorted(own))}.")
    in_order(
        source_of(owner._update_after_schedule),
        "AsyncScheduler._update_after_schedule",
        "super()._update_after_schedule(scheduler_output)",
        "in scheduler_output.num_scheduled_tokens:",
        "request.num_output_placeholders +=",
    )


@contract(_SCHEDULER + "._preempt_request", "the amateur is taken out of the queue again")
def _check_preempt_puts_into_waiting() -> None:
    has_parameters(scheduler(), "_preempt_request", "request", "timestamp")
    contains(
        source_of(scheduler()._preempt_request),
        "Scheduler._preempt_request",
        "request.status = RequestStatus.PREEMPTED",
        "request.num_computed_tokens = 0",
        "request.num_preemptions += 1",
        "self.waiting.prepend_request(request)",
    )


@contract(
    _SCHEDULER + "._preempt_request",
    "a group that is preempted at the end of a pass must be reported to the V2 runner in that step",
    since=(0, 32),
)
def _check_preempt_reports_to_this_step() -> None:
    contains(
        source_of(scheduler()._preempt_request),
        "Scheduler._preempt_request",
        "self.reset_preempted_req_ids.add(request.request_id)",
    )
    contains(
        source_of(scheduler().schedule),
        "Scheduler.schedule",
        "preempted_req_ids=self.reset_preempted_req_ids",
    )


@contract(_SCHEDULER, "these methods are overridden")
def _check_overridden_methods() -> None:
    owner = scheduler()
    has_parameters(owner, "add_request", "request", exact=True)
    has_parameters(owner, "finish_requests", "request_ids", "finished_status", exact=True)
    has_parameters(
        owner, "update_from_output", "scheduler_output", "model_runner_output", exact=True
    )
    has_parameters(owner, "get_request_counts", exact=True)
    for name in ("add_request", "finish_requests", "update_from_output", "schedule"):
        has_kind(owner, name, None)


@contract(
    _SCHEDULER + ".finish_requests",
    "the amateurs are taken out of what it returns; 0.23's (id, client) is allowed for",
    since=(0, 32),
)
def _check_finish_requests_returns_requests() -> None:
    source = source_of(scheduler().finish_requests)
    require(
        "return valid_requests" in source,
        "Scheduler.finish_requests does not return the list of finished Request objects.",
    )
    contains(source, "Scheduler.finish_requests", "if request is None or request.is_finished():")


@contract(_SCHEDULER + ".update_from_output", "streams that were ended meanwhile are in the step")
def _check_update_from_output_skips_unknown_requests() -> None:
    in_order(
        source_of(scheduler().update_from_output),
        "Scheduler.update_from_output",
        "in num_scheduled_tokens.items():",
        "request = self.requests.get(req_id)",
        "if request is None or request.is_finished():",
        "continue",
        "self._update_request_with_output(",
    )


@contract(_SCHEDULER + ".__init__", "the group scheduler reads these attributes")
def _check_scheduler_attributes() -> None:
    assigned = assigned_in_init(scheduler())
    used = (
        "vllm_config",
        "scheduler_config",
        "cache_config",
        "lora_config",
        "kv_cache_config",
        "kv_cache_manager",
        "block_size",
        "max_num_running_reqs",
        "max_num_scheduled_tokens",
        "prev_step_scheduled_req_ids",
        "need_mamba_block_aligned_split",
        "requests",
        "running",
        "waiting",
        "policy",
    )
    missing = [name for name in used if name not in assigned]
    require(not missing, f"Scheduler.__init__ sets no {', '.join(missing)} any more.")
    require(assigned["running"] == "[]", "Scheduler.running is no plain list any more.")


@contract(_SCHEDULER + ".__init__", "an amateur must be found in whatever queue it is in")
def _check_waiting_queues() -> None:
    queues = {
        name
        for name, value in assigned_in_init(scheduler()).items()
        if value.startswith("create_request_queue(")
    }
    unknown = queues - {"kv_holding_waiting", "skipped_waiting", "waiting"}
    require("waiting" in queues, "Scheduler has no queue `waiting` any more.")
    require(not unknown, f"Scheduler has the new queue {', '.join(sorted(unknown))}.")


@contract("vllm.v1.core.sched.interface.PauseState", "admission stops while it is paused")
def _check_pause_state() -> None:
    from vllm.v1.core.sched.interface import PauseState

    missing = {"UNPAUSED", "PAUSED_NEW", "PAUSED_ALL"} - set(PauseState.__members__)
    require(not missing, f"PauseState has no {', '.join(sorted(missing))} any more.")
    has_kind(scheduler(), "pause_state", property)


@contract(
    _SCHEDULER + ".reset_prefix_cache",
    "running groups are preempted through _preempt_request, whole",
)
def _check_reset_prefix_cache_preempts_running() -> None:
    in_order(
        source_of(scheduler().reset_prefix_cache),
        "Scheduler.reset_prefix_cache",
        "while self.running:",
        "self.running.pop()",
        "self._preempt_request(request, ",
    )


@contract("vllm.v1.core.sched.request_queue", "followers are put right behind their leaders")
def _check_request_queues() -> None:
    from vllm.v1.core.sched import request_queue

    policies = set(request_queue.SchedulingPolicy.__members__)
    require(policies == {"FCFS", "PRIORITY"}, f"The scheduling policies are {sorted(policies)}.")
    fcfs = request_queue.FCFSRequestQueue
    require(hasattr(fcfs, "insert"), "FCFSRequestQueue cannot insert any more (no deque).")
    leader, other, follower = a_request("b"), a_request("c"), a_request("a")
    other.arrival_time = leader.arrival_time = follower.arrival_time = 1.0
    queue = request_queue.create_request_queue(request_queue.SchedulingPolicy.PRIORITY)
    for request in (other, leader):
        queue.add_request(request)
    head = queue.peek_request()
    head.priority, follower.priority = -2, -1
    queue.add_request(follower)
    require(
        head is leader and [queue.pop_request() for _ in range(3)] == [leader, follower, other],
        "PriorityRequestQueue does not order by priority, arrival and request id any more.",
    )
    for policy in request_queue.SchedulingPolicy:
        queue = request_queue.create_request_queue(policy)
        queue.add_request(leader)
        queue.remove_requests((follower,))  # one that is not there
        require(queue.peek_request() is leader, "RequestQueue.remove_requests removed another.")
        queue.remove_request(leader)
        require(not queue, "RequestQueue.remove_request did not remove the request.")
