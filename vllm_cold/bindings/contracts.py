# SPDX-License-Identifier: Apache-2.0
"""Checks every place of vLLM that the bindings rely on; needs no GPU, no model and no engine.

Why: most of these places are internals that vLLM changes without notice. Each has one small
function here, so that a new vLLM fails at a named contract instead of in the middle of a request.
Where a behaviour cannot be seen from a signature, the order of statements in vLLM's source is
compared (as syntax, so that comments and line breaks do not matter).

``check_all()`` gives what is broken for the installed vLLM. A contract holds from version
``since`` up to, not including, ``until``; the versions are those that were read (0.23, 0.32,
0.33), so a place that appeared between 0.23 and 0.32 says 0.32.
"""

import ast
import copy
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vllm_cold.bindings import versions
from vllm_cold.bindings.patching import Place

Version = tuple[int, int]


class ContractBroken(Exception):
    """One sentence that names what broke."""


@dataclass(frozen=True, slots=True)
class Contract:
    """One place of vLLM that the bindings rely on.

    Attributes:
        name: Of the contract, and of its test.
        where: The place in vLLM.
        why: What fails without it.
        since: First version that it must hold in.
        until: First version in which it need not hold any more, None if there is none yet.
        check: Raises ContractBroken.
        note: True if nothing fails when it is broken, but somebody should look.
    """

    name: str
    where: str
    why: str
    since: Version
    until: Version | None
    check: Callable[[], None]
    note: bool = False

    def applies(self, version: Version) -> bool:
        """Whether it must hold in this version of vLLM."""
        return self.since <= version and (self.until is None or version < self.until)


@dataclass(frozen=True, slots=True)
class Broken:
    """A contract that does not hold, and the sentence that says why."""

    contract: Contract
    reason: str


CONTRACTS: list[Contract] = []


def installed() -> Version:
    """Major and minor version of the vLLM that is imported; the newest supported one where it is
    not one of those, as in a checkout without tags.
    """
    import vllm

    text = getattr(vllm, "__version__", "") or versions.vllm_version()
    if versions.in_supported_range(text):
        major, minor = text.split(".")[:2]
        return int(major), int(minor)
    major_below, minor_below = versions.SUPPORTED[1]
    return major_below, minor_below - 1


def run(contract: Contract) -> None:
    """Check one contract.

    Raises:
        ContractBroken: it does not hold, or vLLM's code cannot even be looked at.
    """
    try:
        contract.check()
    except ContractBroken:
        raise
    except Exception as error:
        raise ContractBroken(
            f"{contract.where} could not be checked ({type(error).__name__}: {error})."
        ) from error


def check_all(version: Version | None = None) -> list[Broken]:
    """The contracts that this vLLM breaks.

    Args:
        version: Check what must hold in this version; default: the installed one.
    """
    version = version or installed()
    broken = []
    for contract in CONTRACTS:
        if contract.applies(version):
            try:
                run(contract)
            except ContractBroken as error:
                broken.append(Broken(contract, str(error)))
    return broken


def _contract(
    where: str,
    why: str,
    since: Version = (0, 23),
    until: Version | None = None,
    note: bool = False,
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def register(check: Callable[[], None]) -> Callable[[], None]:
        name = check.__name__.removeprefix("_check_")
        CONTRACTS.append(Contract(name, where, why, since, until, check, note))
        return check

    return register


# ---- tools of the checks ------------------------------------------------------------------------


def _require(condition: object, sentence: str) -> None:
    if not condition:
        raise ContractBroken(sentence)


def _tree(code: Any) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef:
    node = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(code)))).body[0]
    assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    return node


def _source(code: Any) -> str:
    """Source of a function or class in one spelling: no comments, one line a statement."""
    return ast.unparse(_tree(code))


def _in_order(source: str, where: str, *parts: str) -> None:
    """Each part is in ``source`` after the one before it."""
    position = 0
    for part in parts:
        found = source.find(part, position)
        if found < 0:
            elsewhere = "elsewhere" if part in source else "gone"
            raise ContractBroken(f"{where}: `{part}` is not where it was expected ({elsewhere}).")
        position = found + len(part)


def _contains(source: str, where: str, *parts: str) -> None:
    for part in parts:
        _require(part in source, f"{where} does not contain `{part}` any more.")


def _attribute(owner: Any, name: str) -> Any:
    found = inspect.getattr_static(owner, name, None)
    label = getattr(owner, "__qualname__", getattr(owner, "__name__", owner))
    inherited = name not in vars(owner) if inspect.isclass(owner) else False
    # What only an interface declares is not there.
    gone = found is None or (inherited and getattr(found, "__isabstractmethod__", False))
    _require(not gone, f"{label} has no {name} any more.")
    return found


def _parameters(owner: Any, name: str, *expected: str, exact: bool = False) -> None:
    """A method takes these parameters first (self and cls are left out), or these alone."""
    method = _attribute(owner, name)
    function = getattr(method, "__func__", method)
    actual = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
    if not exact:
        actual = actual[: len(expected)]
    _require(
        actual == list(expected),
        f"{owner.__qualname__}.{name} takes ({', '.join(actual)}), not ({', '.join(expected)}).",
    )


def _kind(owner: Any, name: str, kind: type | None) -> None:
    method = _attribute(owner, name)
    wanted = kind.__name__ if kind else "plain method"
    is_kind = isinstance(method, kind) if kind else inspect.isfunction(method)
    _require(is_kind, f"{owner.__qualname__}.{name} is a {type(method).__name__}, no {wanted}.")


def _field_names(owner: Any) -> set[str]:
    """Fields of a dataclass (pydantic's too) or a msgspec struct."""
    if dataclasses.is_dataclass(owner):
        return {f.name for f in dataclasses.fields(owner)}
    return set(owner.__struct_fields__)


def _has_fields(owner: Any, *names: str) -> None:
    missing = sorted(set(names) - _field_names(owner))
    _require(not missing, f"{owner.__qualname__} has no field {', '.join(missing)} any more.")


def _no_new_fields(owner: Any, known: Iterable[str], consequence: str) -> None:
    new = sorted(_field_names(owner) - set(known))
    _require(not new, f"{owner.__qualname__} has the new field {', '.join(new)}: {consequence}")


def _assigned_in_init(owner: Any) -> dict[str, str]:
    """Attributes that ``__init__`` sets on self, with the code of the last value."""
    assigned = {}
    for node in ast.walk(_tree(owner.__init__)):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                value = getattr(node, "value", None)
                assigned[target.attr] = ast.unparse(value) if value is not None else ""
    return assigned


def _loop(function: Any, name: str, marks: str) -> str:
    """The smallest while loop of a function that contains ``marks``."""
    loops = [ast.unparse(n) for n in ast.walk(_tree(function)) if isinstance(n, ast.While)]
    loops = [loop for loop in loops if marks in loop]
    _require(loops, f"{function.__qualname__} has no loop over the {name} requests any more.")
    return min(loops, key=len)


# ---- scheduler ----------------------------------------------------------------------------------

_SCHEDULER = "vllm.v1.core.sched.scheduler.Scheduler"


def _scheduler() -> Any:
    from vllm.v1.core.sched.scheduler import Scheduler

    return Scheduler


def _async_scheduler() -> Any:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    return AsyncScheduler


@_contract(
    "vllm.config.SchedulerConfig",
    "the pair scheduler is installed through scheduler_cls and reads these options",
)
def _check_scheduler_config() -> None:
    from vllm.config import SchedulerConfig

    _has_fields(
        SchedulerConfig,
        "scheduler_cls",
        "async_scheduling",
        "max_num_seqs",
        "max_num_batched_tokens",
        "long_prefill_token_threshold",
        "enable_chunked_prefill",
        "policy",
    )
    _contains(
        _source(SchedulerConfig.get_scheduler_cls),
        "SchedulerConfig.get_scheduler_cls",
        "resolve_obj_by_qualname(self.scheduler_cls)",
    )


@_contract(_SCHEDULER + ".schedule", "the cap must come after the budget, before blocks are taken")
def _check_schedule_caps_running() -> None:
    loop = _loop(_scheduler().schedule, "running", "self.running[req_index]")
    _in_order(
        loop,
        "Scheduler.schedule, running requests",
        "token_budget",
        "if self.need_mamba_block_aligned_split:",
        "num_new_tokens = self._mamba_block_aligned_split(request, num_new_tokens)",
        "if num_new_tokens == 0:\n        req_index += 1\n        continue",
        "self.kv_cache_manager.allocate_slots(request, num_new_tokens",
    )


@_contract(_SCHEDULER + ".schedule", "the cap must come after the budget, before blocks are taken")
def _check_schedule_caps_waiting() -> None:
    loop = _loop(_scheduler().schedule, "waiting", "request_queue.peek_request()")
    _in_order(
        loop,
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


@_contract(_SCHEDULER + "._mamba_block_aligned_split", "it is overridden")
def _check_split_signature() -> None:
    from vllm_cold.bindings.scheduler import PairScheduling

    theirs = list(inspect.signature(_scheduler()._mamba_block_aligned_split).parameters)
    ours = list(inspect.signature(PairScheduling._cap).parameters)
    _require(
        len(theirs) >= 5 and theirs == ours[: len(theirs)],
        f"Scheduler._mamba_block_aligned_split takes ({', '.join(theirs)}), not "
        f"({', '.join(ours)}).",
    )


@_contract(_SCHEDULER + ".need_mamba_block_aligned_split", "switching it on must do nothing else")
def _check_split_flag_does_nothing_else() -> None:
    flag = "need_mamba_block_aligned_split"
    readers = [
        node.name
        for node in _tree(_scheduler()).body
        if isinstance(node, ast.FunctionDef) and flag in ast.unparse(node)
    ]
    _require(
        set(readers) == {"__init__", "schedule"},
        f"Scheduler.{flag} is used in {', '.join(readers)}, not in __init__ and schedule alone.",
    )


@_contract(_SCHEDULER + ".schedule", "a preemption must rule out admission in the same pass")
def _check_schedule_admits_nobody_after_preemption() -> None:
    _in_order(
        _source(_scheduler().schedule),
        "Scheduler.schedule",
        "self._preempt_request(",
        "preempted_reqs.append(preempted_req)",
        "if not preempted_reqs and ",
        "request_queue.peek_request()",
    )
    waiting = _loop(_scheduler().schedule, "waiting", "request_queue.peek_request()")
    _require(
        "_preempt_request" not in waiting,
        "Scheduler.schedule preempts while it admits waiting requests.",
    )


@_contract(_SCHEDULER + ".schedule", "seats are counted like vLLM counts them")
def _check_schedule_seats() -> None:
    loop = _loop(_scheduler().schedule, "waiting", "request_queue.peek_request()")
    known = (
        "len(self.running) == self.max_num_running_reqs",
        "num_running = len(self.running) + self.num_waiting_for_streaming_input\n"
        "    if num_running >= self.max_num_running_reqs:",
        "num_running = len(self.running) + self.num_waiting_for_streaming_input\n"
        "    if num_running >= self.max_num_active_reqs:",
    )
    _require(
        any(check in loop for check in known),
        "Scheduler.schedule limits the number of running requests in a new way.",
    )


@_contract(_SCHEDULER + ".schedule", "outputs are trimmed there, after everything else")
def _check_schedule_ends_with_update_after_schedule() -> None:
    call, end = _tree(_scheduler().schedule).body[-2:]
    _require(
        "self._update_after_schedule(scheduler_output)" in ast.unparse(call)
        and ast.unparse(end) == "return scheduler_output",
        "Scheduler.schedule does something after _update_after_schedule(scheduler_output).",
    )


@_contract(_SCHEDULER + "._update_after_schedule", "counts advance there, from what is left")
def _check_update_after_schedule_advances_counts() -> None:
    for owner in (_scheduler(), _async_scheduler()):
        _parameters(owner, "_update_after_schedule", "scheduler_output", exact=True)
    _contains(
        _source(_scheduler()._update_after_schedule),
        "Scheduler._update_after_schedule",
        "in num_scheduled_tokens.items()",
        "request.num_computed_tokens += num_scheduled_token",
        "self.finished_req_ids = set()",
    )
    _require(
        "num_computed_tokens +=" not in _source(_scheduler().schedule),
        "Scheduler.schedule itself advances num_computed_tokens.",
    )


@_contract("vllm.v1.core.sched.async_scheduler.AsyncScheduler", "it stands behind the pair rules")
def _check_async_scheduler_extends_scheduler() -> None:
    owner = _async_scheduler()
    _require(owner.__mro__[1] is _scheduler(), "AsyncScheduler does not extend Scheduler directly.")
    own = set(vars(owner)) & {
        "schedule",
        "add_request",
        "finish_requests",
        "update_from_output",
        "_preempt_request",
        "_mamba_block_aligned_split",
        "get_request_counts",
    }
    _require(not own, f"AsyncScheduler now has its own {', '.join(sorted(own))}.")
    _in_order(
        _source(owner._update_after_schedule),
        "AsyncScheduler._update_after_schedule",
        "super()._update_after_schedule(scheduler_output)",
        "in scheduler_output.num_scheduled_tokens:",
        "request.num_output_placeholders +=",
    )


@_contract(_SCHEDULER + "._preempt_request", "the amateur is taken out of the queue again")
def _check_preempt_puts_into_waiting() -> None:
    _parameters(_scheduler(), "_preempt_request", "request", "timestamp")
    _contains(
        _source(_scheduler()._preempt_request),
        "Scheduler._preempt_request",
        "request.status = RequestStatus.PREEMPTED",
        "request.num_computed_tokens = 0",
        "request.num_preemptions += 1",
        "self.waiting.prepend_request(request)",
    )


@_contract(
    _SCHEDULER + "._preempt_request",
    "a pair that is preempted at the end of a pass must be reported to the V2 runner in that step",
    since=(0, 32),
)
def _check_preempt_reports_to_this_step() -> None:
    _contains(
        _source(_scheduler()._preempt_request),
        "Scheduler._preempt_request",
        "self.reset_preempted_req_ids.add(request.request_id)",
    )
    _contains(
        _source(_scheduler().schedule),
        "Scheduler.schedule",
        "preempted_req_ids=self.reset_preempted_req_ids",
    )


@_contract(_SCHEDULER, "these methods are overridden")
def _check_overridden_methods() -> None:
    owner = _scheduler()
    _parameters(owner, "add_request", "request", exact=True)
    _parameters(owner, "finish_requests", "request_ids", "finished_status", exact=True)
    _parameters(owner, "update_from_output", "scheduler_output", "model_runner_output", exact=True)
    _parameters(owner, "get_request_counts", exact=True)
    for name in ("add_request", "finish_requests", "update_from_output", "schedule"):
        _kind(owner, name, None)


@_contract(
    _SCHEDULER + ".finish_requests",
    "the amateurs are taken out of what it returns; 0.23's (id, client) is allowed for",
    since=(0, 32),
)
def _check_finish_requests_returns_requests() -> None:
    source = _source(_scheduler().finish_requests)
    _require(
        "return valid_requests" in source,
        "Scheduler.finish_requests does not return the list of finished Request objects.",
    )
    _contains(source, "Scheduler.finish_requests", "if request is None or request.is_finished():")


@_contract(_SCHEDULER + ".update_from_output", "streams that were ended meanwhile are in the step")
def _check_update_from_output_skips_unknown_requests() -> None:
    _in_order(
        _source(_scheduler().update_from_output),
        "Scheduler.update_from_output",
        "in num_scheduled_tokens.items():",
        "request = self.requests.get(req_id)",
        "if request is None or request.is_finished():",
        "continue",
        "self._update_request_with_output(",
    )


@_contract(_SCHEDULER + ".__init__", "the pair scheduler reads these attributes")
def _check_scheduler_attributes() -> None:
    assigned = _assigned_in_init(_scheduler())
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
    _require(not missing, f"Scheduler.__init__ sets no {', '.join(missing)} any more.")
    _require(assigned["running"] == "[]", "Scheduler.running is no plain list any more.")


@_contract(_SCHEDULER + ".__init__", "an amateur must be found in whatever queue it is in")
def _check_waiting_queues() -> None:
    queues = {
        name
        for name, value in _assigned_in_init(_scheduler()).items()
        if value.startswith("create_request_queue(")
    }
    unknown = queues - {"kv_holding_waiting", "skipped_waiting", "waiting"}
    _require("waiting" in queues, "Scheduler has no queue `waiting` any more.")
    _require(not unknown, f"Scheduler has the new queue {', '.join(sorted(unknown))}.")


@_contract("vllm.v1.core.sched.interface.PauseState", "admission stops while it is paused")
def _check_pause_state() -> None:
    from vllm.v1.core.sched.interface import PauseState

    missing = {"UNPAUSED", "PAUSED_NEW", "PAUSED_ALL"} - set(PauseState.__members__)
    _require(not missing, f"PauseState has no {', '.join(sorted(missing))} any more.")
    _kind(_scheduler(), "pause_state", property)


@_contract(
    _SCHEDULER + ".reset_prefix_cache",
    "running pairs are preempted through _preempt_request, whole",
)
def _check_reset_prefix_cache_preempts_running() -> None:
    _in_order(
        _source(_scheduler().reset_prefix_cache),
        "Scheduler.reset_prefix_cache",
        "while self.running:",
        "self.running.pop()",
        "self._preempt_request(request, ",
    )


@_contract("vllm.v1.core.sched.request_queue", "amateurs are put right behind their experts")
def _check_request_queues() -> None:
    from vllm.v1.core.sched import request_queue

    policies = set(request_queue.SchedulingPolicy.__members__)
    _require(policies == {"FCFS", "PRIORITY"}, f"The scheduling policies are {sorted(policies)}.")
    fcfs = request_queue.FCFSRequestQueue
    _require(hasattr(fcfs, "insert"), "FCFSRequestQueue cannot insert any more (no deque).")
    expert, other = _request("a"), _request("b")
    twin = _request("a-amateur")
    other.arrival_time = expert.arrival_time = twin.arrival_time = 1.0
    queue = request_queue.create_request_queue(request_queue.SchedulingPolicy.PRIORITY)
    for request in (twin, other, expert):
        queue.add_request(request)
    _require(
        [r.request_id for r in queue] == ["a", "a-amateur", "b"],
        "PriorityRequestQueue does not order equal priorities by arrival and request id any more.",
    )
    for policy in request_queue.SchedulingPolicy:
        queue = request_queue.create_request_queue(policy)
        queue.add_request(expert)
        queue.remove_requests((twin,))  # one that is not there
        _require(queue.peek_request() is expert, "RequestQueue.remove_requests removed another.")
        queue.remove_request(expert)
        _require(not queue, "RequestQueue.remove_request did not remove the request.")


# ---- scheduler output ---------------------------------------------------------------------------


@_contract("vllm.v1.core.sched.output.CachedRequestData", "a torn pair is taken out of each column")
def _check_cached_request_columns() -> None:
    from vllm.v1.core.sched.output import CachedRequestData

    columns = (
        "req_ids",
        "resumed_req_ids",
        "new_token_ids",
        "all_token_ids",
        "new_block_ids",
        "num_computed_tokens",
        "num_output_tokens",
    )
    _has_fields(CachedRequestData, *columns)
    _no_new_fields(CachedRequestData, columns, "PairScheduling._strip must clear it.")
    empty = CachedRequestData.make_empty()
    kinds = {name: type(getattr(empty, name)) for name in columns}
    _require(
        kinds == {**dict.fromkeys(columns, list), "resumed_req_ids": set, "all_token_ids": dict},
        f"CachedRequestData's columns are now {kinds}.",
    )


@_contract("vllm.v1.core.sched.output.SchedulerOutput", "a torn pair is taken out of the step")
def _check_scheduler_output_fields() -> None:
    from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput

    stripped = (
        "scheduled_new_reqs",
        "scheduled_cached_reqs",
        "num_scheduled_tokens",
        "total_num_scheduled_tokens",
        "preempted_req_ids",
    )
    _has_fields(SchedulerOutput, *stripped)
    _has_fields(NewRequestData, "req_id")
    empty_for_pairs = (
        # Speculation, encoders and connectors, which CoLD refuses.
        "scheduled_spec_decode_tokens",
        "num_invalid_spec_tokens",
        "num_spec_tokens_to_schedule",
        "skip_drafts",
        "scheduled_encoder_inputs",
        "scheduled_encoder_input_stats",
        "encoder_input_updates",
        "free_encoder_mm_hashes",
        "kv_connector_metadata",
        "kv_connector_block_state",
        "ec_connector_metadata",
        "ec_manager_metadata",
        "aux_output_connector_metadata",
        "has_sync_kv_loads",
        "partial_tail_offloads",  # 0.27 and 0.28
        "block_table_updates",  # 0.30 and 0.31
    )
    not_per_request = (
        "num_common_prefix_blocks",
        "finished_req_ids",
        "new_block_ids_to_zero",
        "kv_cache_block_copies",
        # Written after the trimming.
        "has_structured_output_requests",
        "pending_structured_output_tokens",
    )
    _no_new_fields(
        SchedulerOutput,
        (*stripped, *empty_for_pairs, *not_per_request),
        "if it says something about single requests, PairScheduling._strip must clear it.",
    )


@_contract("vllm.v1.engine.EngineCoreOutput", "a pair that must end is reported with an error")
def _check_engine_core_output() -> None:
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

    _has_fields(
        EngineCoreOutput,
        "request_id",
        "new_token_ids",
        "finish_reason",
        "stop_reason",
        "events",
        "trace_headers",
    )
    _attribute(FinishReason, "ERROR")
    first, second = EngineCoreOutputs(), EngineCoreOutputs()
    _require(
        isinstance(first.outputs, list) and first.outputs is not second.outputs,
        "EngineCoreOutputs() does not start with an own empty list of outputs.",
    )


# ---- KV cache -----------------------------------------------------------------------------------

_CACHE = "vllm.v1.core.kv_cache_manager.KVCacheManager"


def _cache_manager() -> Any:
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    return KVCacheManager


@_contract(_CACHE, "unwritten blocks leave the prefix cache; room for the amateur is counted")
def _check_kv_cache_manager() -> None:
    owner = _cache_manager()
    _parameters(owner, "evict_blocks", "block_ids", exact=True)
    _parameters(owner, "get_block_ids", "request_id", exact=True)
    _parameters(owner, "get_computed_blocks", "request")
    found = inspect.signature(owner.get_computed_blocks).return_annotation
    if isinstance(found, str):
        first, second = found.removeprefix("tuple[").split(",")[:2]
    else:
        first, second = (getattr(t, "__name__", str(t)) for t in typing.get_args(found)[:2])
    _require(
        first.strip() == "KVCacheBlocks" and second.strip(" ]") == "int",
        f"KVCacheManager.get_computed_blocks returns {found}, not (KVCacheBlocks, int, ...).",
    )


@_contract("vllm.v1.core.block_pool.BlockPool", "free blocks are counted; block 0 is the null one")
def _check_block_pool() -> None:
    from vllm.v1.core.block_pool import BlockPool

    _parameters(BlockPool, "get_num_free_blocks", exact=True)
    _parameters(BlockPool, "evict_blocks", "block_ids", exact=True)
    _in_order(
        _source(BlockPool.__init__),
        "BlockPool.__init__",
        "for idx in range(num_gpu_blocks)",
        "self.null_block = self.free_block_queue.popleft()",
    )
    _contains(_source(_cache_manager().__init__), "KVCacheManager.__init__", "self.block_pool = ")


@_contract("vllm.v1.core.block_pool.BlockPool", "blocks that held NaN are cleared when free")
def _check_blocks_can_be_cleared() -> None:
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    _has_fields(KVCacheBlock, "ref_cnt")
    _has_fields(SchedulerOutput, "new_block_ids_to_zero")
    _contains(
        _source(GPUModelRunner._update_states),
        "GPUModelRunner._update_states",
        "self._zero_block_ids(scheduler_output.new_block_ids_to_zero)",
    )


# A note: without it, can_clear() is false, and nothing asks V2 to clear.
@_contract(
    "vllm.v1.worker.gpu.model_runner.GPUModelRunner",
    "V2 on CPU is given what clears blocks; remove block_zeroer when V2 always has it",
    since=(0, 32),
    note=True,
)
def _check_v2_has_a_block_zeroer_for_some_caches() -> None:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    from vllm_cold.bindings.block_zeroer import PLACE

    _check_all((PLACE,))
    where = "GPUModelRunner (V2)"
    _contains(_source(GPUModelRunner._init_kv_zero_meta), where, "self.kv_block_zeroer = ")
    _contains(
        _source(GPUModelRunner), where, "assert self.kv_block_zeroer is not None",
        "self.kv_block_zeroer.zero_block_ids(scheduler_output.new_block_ids_to_zero)",
    )  # fmt: skip


@_contract(_CACHE + ".coordinator", "vLLM counts the blocks that a pair needs")
def _check_block_counts() -> None:
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager

    _has_fields(KVCacheBlocks, "blocks")
    known = {"request_id", "num_tokens", "new_computed_blocks", "num_encoder_tokens"}
    known |= {"total_computed_tokens", "num_tokens_main_model", "apply_admission_cap"}
    count = inspect.signature(KVCacheCoordinator.get_num_blocks_to_allocate).parameters
    later = known | {"num_local_computed_tokens"}  # since 0.26; the next since 0.31
    _require(
        set(count) - {"self"} in (known, later, later | {"prefill_end"}),
        f"KVCacheCoordinator.get_num_blocks_to_allocate takes {', '.join(count)}.",
    )
    _contains(
        _source(KVCacheCoordinator.__init__),
        "KVCacheCoordinator.__init__",
        "self.single_type_managers = ",
    )
    _contains(
        _source(SingleTypeKVCacheManager.__init__),
        "SingleTypeKVCacheManager.__init__",
        "self.block_size = ",
    )


@_contract(
    _CACHE + ".get_computed_blocks",
    "the pair scheduler looks up more often than it admits; each look-up would count, as in 0.23",
    since=(0, 32),
    note=True,
)
def _check_prefix_lookup_counts_nothing() -> None:
    _require(
        ".record(" not in _source(_cache_manager().get_computed_blocks),
        "KVCacheManager.get_computed_blocks records statistics: the prefix cache's hit rate is "
        "wrong while CoLD requests wait.",
    )


@_contract(_CACHE, "an expert gives up its cache hit when it cannot wait for its amateur")
def _check_skip_reading_prefix_cache() -> None:
    _contains(_source(_cache_manager()), "KVCacheManager", "request.skip_reading_prefix_cache")


# ---- requests -----------------------------------------------------------------------------------


def _request(request_id: str) -> Any:
    """A request, made the way the pair scheduler makes amateurs."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

    return Request(
        request_id=request_id,
        client_index=0,
        prompt_token_ids=[1, 2, 3],
        prompt_embeds=None,
        prompt_is_token_ids=None,
        sampling_params=SamplingParams(max_tokens=4),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        priority=0,
        block_hasher=None,
    )


@_contract("vllm.v1.request.Request", "the amateur is made from these, and both are read")
def _check_request_attributes() -> None:
    request = _request("r")
    used = (
        "request_id",
        "client_index",
        "arrival_time",
        "priority",
        "cache_salt",
        "lora_request",
        "sampling_params",
        "prompt_token_ids",
        "prompt_embeds",
        "prompt_is_token_ids",
        "trace_headers",
        "status",
        "num_tokens",
        "num_computed_tokens",
        "num_output_placeholders",
        "num_preemptions",
        "all_token_ids",
        "skip_reading_prefix_cache",
        "_block_hasher",
        "is_finished",
        "take_events",
    )
    missing = [name for name in used if not hasattr(request, name)]
    _require(not missing, f"Request has no {', '.join(missing)} any more.")
    _require(
        request.num_tokens == 3 and request.all_token_ids[-1] == 3,
        "Request.num_tokens and all_token_ids do not start with the prompt.",
    )


@_contract("vllm.v1.request.RequestStatus", "pairs are followed by their status")
def _check_request_status() -> None:
    from vllm.v1.request import RequestStatus

    used = {"WAITING", "RUNNING", "PREEMPTED", "FINISHED_ABORTED", "FINISHED_ERROR"}
    missing = used - set(RequestStatus.__members__)
    _require(not missing, f"RequestStatus has no {', '.join(sorted(missing))} any more.")


@_contract("vllm.lora.request.LoRARequest", "the amateur's adapter travels as its fields")
def _check_lora_request() -> None:
    from vllm.lora.request import LoRARequest

    _has_fields(LoRARequest, "lora_name", "lora_int_id", "lora_path")
    made = LoRARequest("a", 1, "/a")
    fields = {n: v for n in made.__struct_fields__ if (v := getattr(made, n)) is not None}
    _require(LoRARequest(**fields) == made, "LoRARequest cannot be made from its own fields.")


# ---- sampling parameters ------------------------------------------------------------------------


@_contract("vllm.sampling_params.SamplingParams", "the pair is described in extra_args")
def _check_sampling_params() -> None:
    import msgspec
    from vllm.sampling_params import SamplingParams

    params = SamplingParams(extra_args={"cold_stream": {"alpha": 0.1, "role": "expert"}})
    _require(hasattr(params, "__dict__"), "SamplingParams has no __dict__ any more (dict=True).")
    wire = msgspec.msgpack.encode(params)
    back = msgspec.msgpack.decode(wire, type=SamplingParams)
    _require(
        back.extra_args == params.extra_args,
        "SamplingParams.extra_args does not survive the way to another process.",
    )
    twin = copy.copy(params)
    twin.extra_args = {}
    _require(params.extra_args, "copy.copy(SamplingParams) shares its fields with the original.")
    _has_fields(
        SamplingParams,
        "seed",
        "temperature",
        "logprobs",
        "prompt_logprobs",
        "structured_outputs",
        "stop_token_ids",
        "repetition_detection",
        "min_tokens",
        "bad_words",
        "allowed_token_ids",
        "_eos_token_id",
        "_bad_words_token_ids",
    )


@_contract("vllm.sampling_params.SamplingParams", "the pair gets a seed after it was created")
def _check_sampling_type_follows_the_seed() -> None:
    from vllm.sampling_params import SamplingParams, SamplingType

    kind = inspect.getattr_static(SamplingParams, "sampling_type")
    _require(
        isinstance(kind, (cached_property, property)),
        "SamplingParams.sampling_type is neither a property nor cached in __dict__.",
    )
    params = SamplingParams(temperature=1.0)
    before = params.sampling_type
    params.seed = 1
    params.__dict__.pop("sampling_type", None)
    _require(
        before == SamplingType.RANDOM and params.sampling_type == SamplingType.RANDOM_SEED,
        "SamplingParams.sampling_type does not follow a seed that is set later.",
    )


@_contract(
    "vllm.sampling_params.SamplingParams",
    "the amateur must keep what shapes its scores and drop what would be done twice",
    note=True,
)
def _check_sampling_params_fields() -> None:
    from vllm.sampling_params import SamplingParams

    dropped = """seed logprobs prompt_logprobs structured_outputs stop_token_ids
        repetition_detection _eos_token_id min_tokens bad_words _bad_words_token_ids
        allowed_token_ids prompt_logprob_token_ids logprob_token_ids extra_args"""
    kept = """n presence_penalty frequency_penalty repetition_penalty temperature top_p top_k min_p
        ignore_eos max_tokens logit_bias skip_reading_prefix_cache thinking_token_budget"""
    of_no_effect_on_it = """stop flat_logprobs detokenize skip_special_tokens
        spaces_between_special_tokens include_stop_str_in_output output_kind stream_interval
        skip_clone output_text_buffer_length _all_stop_token_ids prompt_logprob_start
        routed_experts_prompt_start trace_decode_token_ids watermarking _watermarking_skipped"""
    known = f"{dropped} {kept} {of_no_effect_on_it}".split()
    _no_new_fields(
        SamplingParams, known, "decide in PairScheduling._make_amateur what the amateur does."
    )


# ---- what is wrapped ----------------------------------------------------------------------------


def all_places() -> tuple[Place, ...]:
    """Every method that is wrapped for CoLD, in whatever process and engine."""
    from vllm_cold.bindings import admission, cli, engine_config, metrics, platform_cpu, serving

    return (
        *engine_config.PLACES, *cli.PLACES, *admission.PLACES, *admission.ASYNC,
        *platform_cpu.places(), *platform_cpu.later(), *metrics.WORKER, *metrics.FRONT_END,
        *serving.online(), *serving.OFFLINE,
    )  # fmt: skip


def _check_all(places: Iterable[Place]) -> None:
    problems = [problem for place in places if (problem := place.problem()) is not None]
    _require(not problems, "; ".join(problems) + ".")


# A note: who wraps them has looked at those that it needs.
@_contract("vllm", "these are wrapped; without one, CoLD is unavailable where it counts", note=True)
def _check_places() -> None:
    _check_all(all_places())


@_contract("vllm", "bugs of vLLM on CPU are cured here; without one, that bug is there", note=True)
def _check_places_of_cures() -> None:
    from vllm_cold.bindings import platform_cpu

    _check_all(platform_cpu.cures())


@_contract("vllm", "where CoLD is unavailable, who asks for it is told why here", note=True)
def _check_refusal_places() -> None:
    from vllm_cold.bindings import refusal

    _check_all(refusal.PLACES)


# ---- admission ----------------------------------------------------------------------------------


def _input_processor() -> Any:
    from vllm.v1.engine.input_processor import InputProcessor

    return InputProcessor


@_contract("vllm.v1.engine.input_processor.InputProcessor.process_inputs", "it is wrapped")
def _check_process_inputs() -> None:
    owner = _input_processor()
    _kind(owner, "process_inputs", None)
    _parameters(owner, "process_inputs", "request_id", "prompt", "params")
    source = _source(owner.process_inputs)
    _contains(source, "InputProcessor.process_inputs", "return EngineCoreRequest(")
    _require(
        "params.clone()" in source,
        "InputProcessor.process_inputs does not copy the caller's parameters any more.",
    )
    _contains(_source(owner.__init__), "InputProcessor.__init__", "self.vllm_config = vllm_config")


@_contract("vllm.v1.engine", "every request, offline and online, passes InputProcessor")
def _check_process_inputs_callers() -> None:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.llm_engine import LLMEngine

    for owner in (LLMEngine, AsyncLLM):
        _contains(
            _source(owner.add_request),
            f"{owner.__qualname__}.add_request",
            "self.input_processor.process_inputs(request_id, prompt, params",
        )
        _contains(
            _source(owner.__init__),
            f"{owner.__qualname__}.__init__",
            "self.input_processor = InputProcessor(",
        )


@_contract("vllm.v1.engine.parallel_sampling.ParentRequest", "n > 1: children inherit the pair")
def _check_parallel_sampling() -> None:
    from vllm.v1.engine.parallel_sampling import ParentRequest

    _contains(
        _source(ParentRequest.__init__),
        "ParentRequest.__init__",
        "sampling_params = request.params",
    )


@_contract("vllm.v1.engine.EngineCoreRequest", "admission reads these and changes the parameters")
def _check_engine_core_request() -> None:
    from vllm.v1.engine import EngineCoreRequest

    _has_fields(
        EngineCoreRequest,
        "sampling_params",
        "lora_request",
        "mm_features",
        "resumable",
        "prompt_token_ids",
        "prompt_embeds",
    )


@_contract("vllm.exceptions.VLLMValidationError", "a refused request gets HTTP 400 and ValueError")
def _check_validation_error() -> None:
    from vllm_cold.bindings.errors import request_error

    error = request_error(ValueError("no"))
    _require(
        isinstance(error, ValueError) and str(error).startswith("no"),
        "VLLMValidationError cannot be raised as a ValueError with a plain message any more.",
    )


# ---- figures for /metrics -----------------------------------------------------------------------


@_contract("vllm.v1.metrics.loggers.StatLoggerManager", "the metrics of CoLD are fed there")
def _check_stat_logger_manager() -> None:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.loggers import PrometheusStatLogger, StatLoggerManager

    _parameters(StatLoggerManager, "__init__", "vllm_config")
    _parameters(StatLoggerManager, "record", "scheduler_stats")
    parameters = inspect.signature(StatLoggerManager.record).parameters
    _require("engine_idx" in parameters, "StatLoggerManager.record takes no engine_idx any more.")
    _in_order(
        _source(StatLoggerManager.__init__),
        "StatLoggerManager.__init__",
        "self.engine_indexes =",
        "self.stat_loggers",
        "PrometheusStatLogger(",
    )
    for name in ("_counter_cls", "_gauge_cls", "_histogram_cls"):
        _attribute(PrometheusStatLogger, name)
    _contains(_source(AsyncLLM), "AsyncLLM", "engine_idx=outputs.engine_index")


@_contract("vllm.v1.outputs.ModelRunnerOutput", "it carries figures from workers to the scheduler")
def _check_model_runner_output() -> None:
    import pickle

    from vllm.v1.outputs import ModelRunnerOutput

    output = ModelRunnerOutput(req_ids=[], req_id_to_index={})
    output.cold = 7
    carried = getattr(pickle.loads(pickle.dumps(output)), "cold", None)
    _require(carried == 7, "ModelRunnerOutput loses attributes on its way between processes.")


@_contract("vllm.v1.engine.EngineCoreOutputs", "it carries figures from scheduler to front end")
def _check_scheduler_stats() -> None:
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.metrics.stats import SchedulerStats
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    sent = EngineCoreOutputs(scheduler_stats=SchedulerStats(kv_connector_stats={"cold": [1, 2]}))
    got = MsgpackDecoder(EngineCoreOutputs).decode(MsgpackEncoder().encode(sent))
    _require(
        got.scheduler_stats.kv_connector_stats == {"cold": [1, 2]},
        "SchedulerStats.kv_connector_stats does not carry any dictionary any more.",
    )
    _attribute(Scheduler, "make_stats")
    _contains(
        _source(Scheduler.update_from_output),
        "Scheduler.update_from_output",
        ".scheduler_stats = stats",
    )


@_contract("vllm.v1.engine.exceptions.EngineDeadError", "the tools make a sentence of it")
def _check_engine_dead_error() -> None:
    from vllm.v1.engine import exceptions

    _attribute(exceptions, "EngineDeadError")


# ---- configuration ------------------------------------------------------------------------------


@_contract("vllm.engine.arg_utils", "the engine's configuration and arguments are extended there")
def _check_engine_args() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs

    _kind(EngineArgs, "create_engine_config", None)
    _parameters(EngineArgs, "create_engine_config", "usage_context")
    _kind(EngineArgs, "add_cli_args", staticmethod)
    _parameters(EngineArgs, "add_cli_args", "parser", exact=True)
    _kind(EngineArgs, "from_cli_args", classmethod)
    _parameters(EngineArgs, "from_cli_args", "args", exact=True)
    _has_fields(EngineArgs, "additional_config")
    own = {"create_engine_config", "from_cli_args"} & set(vars(AsyncEngineArgs))
    _require(not own, f"AsyncEngineArgs now has its own {', '.join(sorted(own))}.")
    _in_order(
        _source(AsyncEngineArgs.add_cli_args),
        "AsyncEngineArgs.add_cli_args",
        "load_general_plugins()",
        "EngineArgs.add_cli_args(parser)",
    )


@_contract("vllm.plugins", "installing the package is enough")
def _check_plugin_group() -> None:
    from vllm import plugins

    group = getattr(plugins, "DEFAULT_PLUGINS_GROUP", None)
    _require(group == "vllm.general_plugins", f"vLLM's group of general plugins is {group!r}.")
    _contains(
        _source(plugins.load_general_plugins), "load_general_plugins", "DEFAULT_PLUGINS_GROUP"
    )


@_contract("vllm.usage.usage_lib.UsageContext", "it tells a server from a script")
def _check_usage_context() -> None:
    from vllm.usage.usage_lib import UsageContext

    missing = {"OPENAI_API_SERVER", "OPENAI_BATCH_RUNNER", "LLM_CLASS"} - set(
        UsageContext.__members__
    )
    _require(not missing, f"UsageContext has no {', '.join(sorted(missing))} any more.")


@_contract("vllm.config", "what CoLD cannot do is recognised by these")
def _check_config_fields() -> None:
    from vllm.config import CacheConfig, LoRAConfig, ModelConfig, ParallelConfig, VllmConfig

    _has_fields(
        VllmConfig,
        "additional_config",
        "model_config",
        "scheduler_config",
        "cache_config",
        "parallel_config",
        "lora_config",
        "speculative_config",
        "kv_transfer_config",
        "ec_transfer_config",
    )
    _has_fields(ModelConfig, "logits_processors", "max_model_len", "seed")
    # Pydantic's __post_init__ sets it: it is no field.
    _contains(_source(ModelConfig.__post_init__), "ModelConfig", "self.runner_type = ")
    for name in ("is_encoder_decoder", "is_hybrid", "is_attention_free"):
        _attribute(ModelConfig, name)
    _has_fields(CacheConfig, "num_gpu_blocks", "block_size")
    _has_fields(LoRAConfig, "max_loras")
    _has_fields(ParallelConfig, "data_parallel_size", "data_parallel_index")


@_contract(
    "vllm.config.VllmConfig.use_v2_model_runner",
    "it decides which logits processor is used; in 0.23 a processor means the V1 runner",
    since=(0, 32),
)
def _check_runner_choice() -> None:
    from vllm.config import VllmConfig

    _kind(VllmConfig, "use_v2_model_runner", property)
    choice = _source(VllmConfig.use_v2_model_runner.fget)
    choice += _source(_attribute(VllmConfig, "_get_v2_model_runner_unsupported_features"))
    _require(
        "logits_processors" not in choice,
        "VllmConfig.use_v2_model_runner turns False once a logits processor is configured: V1 is "
        "then given the V2 class.",
    )


# ---- logits processors --------------------------------------------------------------------------


@_contract("vllm.v1.sample.logits_processor", "it is the interface of the V1 runner")
def _check_processor_v1_interface() -> None:
    from vllm.v1.sample.logits_processor import interface

    owner = interface.LogitsProcessor
    _parameters(owner, "__init__", "vllm_config", "device", "is_pin_memory", exact=True)
    _parameters(owner, "apply", "logits", exact=True)
    _parameters(owner, "update_state", "batch_update", exact=True)
    _parameters(owner, "is_argmax_invariant", exact=True)
    abstract = set(owner.__abstractmethods__)
    known = {"__init__", "apply", "update_state", "is_argmax_invariant"}
    _require(abstract <= known, f"LogitsProcessor wants {sorted(abstract - known)} as well.")
    _has_fields(interface.BatchUpdate, "removed", "added", "moved")
    _require(
        len(typing.get_args(interface.AddedRequest)) == 4
        and len(typing.get_args(interface.MovedRequest)) == 3,
        "BatchUpdate's added and moved are no tuples of 4 and 3 any more.",
    )
    _attribute(interface.MoveDirectionality, "SWAP")


@_contract("vllm.v1.sample.sampler.Sampler.apply_logits_processors", "the order is part of CoLD")
def _check_processor_v1_order() -> None:
    from vllm.v1.sample.sampler import Sampler

    _in_order(
        _source(Sampler.apply_logits_processors),
        "Sampler.apply_logits_processors",
        "sampling_metadata.allowed_token_ids_mask",
        "apply_bad_words(",
        "sampling_metadata.logitsprocs.non_argmax_invariant",
        "processor.apply(logits)",
        "self.apply_penalties(",
    )
    _in_order(
        _source(Sampler.forward),
        "Sampler.forward",
        "self.apply_logits_processors(",
        "self.sample(",
    )


@_contract("vllm.v1.worker.gpu_model_runner.GPUModelRunner", "V1 loads the configured class")
def _check_processor_v1_is_loaded() -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    _in_order(
        _source(GPUModelRunner.__init__),
        "GPUModelRunner.__init__",
        "model_config.logits_processors",
        "build_logitsprocs(",
    )
    _contains(
        _source(GPUModelRunner),
        "GPUModelRunner",
        "sampling_params.sampling_type == SamplingType.RANDOM_SEED",
    )


@_contract(
    "vllm.v1.worker.gpu.sample.logits_processor",
    "it is the interface of the V2 runner",
    since=(0, 32),
)
def _check_processor_v2_interface() -> None:
    from vllm.v1.worker.gpu.sample.logits_processor import interface

    owner = interface.LogitsProcessor
    _parameters(owner, "__init__", "vllm_config", "req_states", exact=True)
    _parameters(owner, "add_request", "req_idx", "sampling_params", exact=True)
    _parameters(owner, "apply", "logits", "ctx", exact=True)
    abstract = set(owner.__abstractmethods__)
    _require(abstract <= {"apply"}, f"LogitsProcessor (V2) wants {sorted(abstract)}.")
    _has_fields(interface.LogitsProcRequestState, "device", "max_num_reqs")
    _has_fields(
        interface.LogitsContext,
        "expanded_idx_mapping",
        "idx_mapping",
        "idx_mapping_np",
        "expanded_local_pos",
    )


@_contract("vllm.v1.worker.gpu.sample.sampler.Sampler", "the order is part of CoLD", since=(0, 32))
def _check_processor_v2_order() -> None:
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    _in_order(
        _source(Sampler.apply_sampling_params),
        "Sampler.apply_sampling_params (V2)",
        "in self.logits_processors",
        "processor.apply(logits, ctx)",
        ".apply_temperature(",
        ".apply_min_p(",
        ".apply_top_k_top_p(",
    )
    _in_order(
        _source(Sampler.__init__),
        "Sampler.__init__ (V2)",
        "self.logits_processors: list[LogitsProcessor] = [",
        "*custom_logits_processors]",
    )


# ---- CPU ----------------------------------------------------------------------------------------


@_contract("vllm.platforms.cpu.CpuPlatform.get_punica_wrapper", "it names the CPU's LoRA class")
def _check_punica_wrapper_of_the_cpu() -> None:
    from vllm.platforms.cpu import CpuPlatform

    from vllm_cold.bindings.platform_cpu import STOCK

    _kind(CpuPlatform, "get_punica_wrapper", classmethod)
    method = CpuPlatform.get_punica_wrapper.__func__
    name = getattr(method, "_vllm_cold_original", method)(CpuPlatform)
    _require(name == STOCK, f"CpuPlatform.get_punica_wrapper() is {name}, not {STOCK}.")


@_contract(
    "vllm.platforms.cpu.CpuPlatform.check_and_update_config",
    "it is called as if there were no LoRA, which must switch on nothing but compilation",
)
def _check_lora_on_cpu_is_not_compiled() -> None:
    from vllm.platforms.cpu import CpuPlatform

    _kind(CpuPlatform, "check_and_update_config", classmethod)
    method = CpuPlatform.check_and_update_config.__func__
    where = "CpuPlatform.check_and_update_config"
    source = _source(getattr(method, "_vllm_cold_original", method))
    _contains(
        source,
        where,
        "if vllm_config.lora_config is not None:\n"
        "        compilation_config.mode = CompilationMode.NONE",
    )
    _require(source.count("lora_config") == 1, f"{where} looks at lora_config elsewhere too.")


def _used_of_punica_wrapper(code: Any) -> set[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("punica_wrapper")
    }


@_contract("vllm.lora.layers", "each layer gets an object with what it uses of its punica_wrapper")
def _check_lora_layers() -> None:
    from vllm.lora import model_manager
    from vllm.lora.layers import (
        BaseLayerWithLoRA,
        VocabParallelEmbeddingWithLoRA,
        base_linear,
        column_parallel_linear,
        row_parallel_linear,
    )

    linear = {"add_lora_linear", "add_shrink", "add_expand"}
    modules = (base_linear, column_parallel_linear, row_parallel_linear)
    used = set().union(*(_used_of_punica_wrapper(module) for module in modules))
    _require(used == linear, f"linear LoRA layers use {sorted(used)} of their punica_wrapper.")
    used = _used_of_punica_wrapper(VocabParallelEmbeddingWithLoRA)
    _require(
        used == {"_embeddings_indices", "add_lora_embedding"},
        f"VocabParallelEmbeddingWithLoRA uses {sorted(used)} of its punica_wrapper.",
    )
    _parameters(BaseLayerWithLoRA, "set_mapping", "punica_wrapper", exact=True)
    _in_order(
        _source(model_manager.LoRAModelManager._create_lora_modules),
        "LoRAModelManager._create_lora_modules",
        "from_layer(",
        "new_module.set_mapping(punica_wrapper)",
    )
    for layer in (base_linear.BaseLinearLayerWithLoRA, VocabParallelEmbeddingWithLoRA):
        where = f"{layer.__name__} (weights must stay at their addresses)"
        _contains(_source(layer.reset_lora), where, "[index] = 0")
        _contains(_source(layer.set_lora), where, ".copy_(")


@_contract("vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU", "its methods are overridden")
def _check_punica_cpu() -> None:
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    _parameters(PunicaWrapperCPU, "update_metadata")
    _parameters(PunicaWrapperCPU, "add_shrink", "y", "x", "lora_a_stacked", "scale")
    _parameters(
        PunicaWrapperCPU,
        "add_expand",
        "y",
        "x",
        "lora_b_stacked",
        "output_slices",
        "offset_start",
        "add_inputs",
    )
    _parameters(PunicaWrapperCPU, "add_lora_embedding", "y", "x", "lora_b_stacked", "add_inputs")
    matrices = ("y", "x", "lora_a_stacked", "lora_b_stacked", "scale")
    _parameters(PunicaWrapperCPU, "add_lora_linear", *matrices, "output_slices", "buffer")
    _parameters(PunicaWrapperCPU, "add_lora_logits", *matrices, "buffer")
    for name in ("token_lora_indices", "sampler_indices"):
        _kind(PunicaWrapperCPU, name, property)


@_contract(
    "vllm.lora.ops.torch_ops.lora_ops",
    "vllm_cold's own CPU backend is there because rows of the base model get the last adapter",
    until=(0, 33),
    note=True,
)
def _check_cpu_lora_still_wraps_base_rows() -> None:
    import torch
    from vllm.lora.ops.torch_ops.lora_ops import bgmv_shrink

    out = torch.zeros(1, 1)
    base = torch.tensor([-1])
    bgmv_shrink(torch.ones(1, 2), torch.ones(1, 1, 2), out, base, 1.0)
    _require(
        out.item() != 0.0,
        "vLLM's CPU LoRA ops leave rows of the base model alone: the reason for punica_cpu is "
        "speed alone now.",
    )


@_contract(
    "vllm.v1.worker.cpu_model_runner.CPUModelRunner.sample_tokens",
    "generators of rows whose sample is thrown away are kept out of the step",
)
def _check_cpu_sample_tokens() -> None:
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    _attribute(CPUModelRunner, "sample_tokens")
    runner = _source(CPUModelRunner.__mro__[1])
    _contains(
        runner,
        "GPUModelRunner",
        "self.discard_request_mask = self._make_buffer(",
        "self.discard_request_mask.np[:num_reqs]",
        "self.input_batch.generators.get(",
    )


@_contract(
    "vllm.v1.worker.gpu_model_runner.GPUModelRunner",
    "cpu_generators is there because this fails on CPU",
    note=True,
)
def _check_cpu_runner_still_rewinds_by_offset() -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    _require(
        ".set_offset(" in _source(GPUModelRunner),
        "The V1 runner does not rewind generators by offset any more: cpu_generators can go.",
    )


@_contract(
    "vllm.v1.sample.sampler.Sampler.topk_topp_sampler",
    "its forward is replaced, as it ignores seeds",
    until=(0, 29),
)
def _check_cpu_sampler_ignores_seeds() -> None:
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler
    from vllm.v1.sample.sampler import Sampler

    from vllm_cold.bindings.cpu_generators import _IGNORED

    _contains(_source(Sampler.__init__), "Sampler.__init__", "self.topk_topp_sampler =")
    _contains(_source(TopKTopPSampler.__init__), "TopKTopPSampler", "self.forward = ")
    _parameters(TopKTopPSampler, "forward_cpu", "logits", "generators")
    _contains(_source(TopKTopPSampler.forward_cpu), "TopKTopPSampler.forward_cpu", _IGNORED)


@_contract(
    "vllm.utils.cpu_triton_utils._expand_kernel_impl",
    "cpu_speculation is there because it writes into a copy of its output",
    note=True,
)
def _check_cpu_still_expands_into_a_copy() -> None:
    from vllm.utils import cpu_triton_utils

    source = _source(cpu_triton_utils._expand_kernel_impl)
    _require(
        "_ensure_int64(output)" in source and ".copy_(" not in source,
        "_expand_kernel_impl writes its output: cpu_speculation can go.",
    )


@_contract(
    "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU.add_lora_logits",
    "punica_cpu finds the adapters of a prompt's logits because vLLM takes those of sampled rows",
    note=True,
)
def _check_cpu_logits_still_take_sampled_rows() -> None:
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    _require(
        "self.sampler_indices" in _source(PunicaWrapperCPU.add_lora_logits),
        "PunicaWrapperCPU.add_lora_logits does not use sampler_indices: see whether logits_slots "
        "can go.",
    )


@_contract(
    "vllm.triton_utils.dispatcher._rebind_kernels",
    "with numba imported before, an engine on CPU in the same process does not start",
    since=(0, 32),
    note=True,
)
def _check_kernels_are_still_rebound_by_vars() -> None:
    from vllm.triton_utils import dispatcher

    _require(
        "vars(value).get(" in _source(dispatcher._rebind_kernels),
        "_rebind_kernels may bear numba now: see whether its report in docs/upstream can go.",
    )


@_contract(
    "vllm.v1.worker.gpu.lora_utils.LoraState.make_lora_inputs",
    "lora_rows is there because it is not told how many rows of logits a request has",
    note=True,
)
def _check_v2_still_maps_logits_by_request() -> None:
    from vllm.v1.worker.gpu.lora_utils import LoraState

    told = list(inspect.signature(LoraState.make_lora_inputs).parameters)[1:]
    _require(
        told == ["req_ids", "idx_mapping", "num_scheduled_tokens"],
        f"LoraState.make_lora_inputs takes ({', '.join(told)}): see whether lora_rows can go.",
    )


@_contract(
    "vllm.v1.worker.gpu.model_runner.GPUModelRunner",
    "lora_rows learns from a step's inputs how many rows of logits each request has",
    note=True,
)
def _check_v2_inputs_know_their_rows() -> None:
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    _has_fields(InputBatch, "cu_num_logits_np")
    _in_order(
        _source(GPUModelRunner.execute_model),
        "GPUModelRunner.execute_model (V2)",
        "self.prepare_inputs(",
        "self.lora_state.make_lora_inputs(",
    )


# ---- servers ------------------------------------------------------------------------------------


@_contract(
    "vllm.entrypoints.openai.models.serving.OpenAIServingModels",
    "cold_amateur is the name of one of its adapters",
)
def _check_openai_serving_models() -> None:
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels

    assigned = _assigned_in_init(OpenAIServingModels)
    for name in ("engine_client", "lora_requests", "input_processor"):
        _require(name in assigned, f"OpenAIServingModels.__init__ sets no {name} any more.")
    _require(
        assigned["input_processor"] == "self.engine_client.input_processor",
        "OpenAIServingModels does not take its input processor from the engine client any more.",
    )
    _require(
        assigned["lora_requests"] == "{}",
        "OpenAIServingModels.lora_requests is no plain dict any more.",
    )


def _protocols() -> tuple[Any, Any]:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    return CompletionRequest, ChatCompletionRequest


@_contract("vllm.entrypoints.openai", "a request's settings arrive through vllm_xargs")
def _check_vllm_xargs() -> None:
    for protocol in _protocols():
        fields = protocol.model_fields
        missing = {"vllm_xargs", "model", "use_beam_search"} - set(fields)
        _require(not missing, f"{protocol.__name__} has no {', '.join(sorted(missing))} any more.")
        _contains(
            _source(protocol.to_sampling_params),
            f"{protocol.__name__}.to_sampling_params",
            "self.vllm_xargs",
            "extra_args=extra_args",
        )


@_contract("vllm.entrypoints", "a beam search with CoLD is refused")
def _check_beam_search() -> None:
    from vllm import LLM

    for protocol in _protocols():
        _kind(protocol, "to_beam_search_params", None)
        _kind(protocol, "to_sampling_params", None)
    owner = next((c for c in LLM.__mro__ if "beam_search" in vars(c)), None)
    _require(owner is not None, "LLM has no beam_search any more.")
    _parameters(owner, "beam_search", "prompts", "params", "lora_request")
