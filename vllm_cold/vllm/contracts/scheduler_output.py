# SPDX-License-Identifier: Apache-2.0
"""Contracts of what the scheduler hands out."""

from vllm_cold.vllm.contracts.contract import contract
from vllm_cold.vllm.contracts.source import (
    attribute,
    contains,
    has_fields,
    no_new_fields,
    require,
    source_of,
)


@contract("vllm.v1.core.sched.output.CachedRequestData", "a split group leaves each column")
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
    has_fields(CachedRequestData, *columns)
    no_new_fields(CachedRequestData, columns, "PlannedStepScheduling._strip must clear it.")
    empty = CachedRequestData.make_empty()
    kinds = {name: type(getattr(empty, name)) for name in columns}
    require(
        kinds == {**dict.fromkeys(columns, list), "resumed_req_ids": set, "all_token_ids": dict},
        f"CachedRequestData's columns are now {kinds}.",
    )


@contract("vllm.v1.core.sched.output.SchedulerOutput", "a split group is taken out of the step")
def _check_scheduler_output_fields() -> None:
    from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput

    stripped = (
        "scheduled_new_reqs",
        "scheduled_cached_reqs",
        "num_scheduled_tokens",
        "total_num_scheduled_tokens",
        "preempted_req_ids",
        "scheduled_spec_decode_tokens",
    )
    has_fields(SchedulerOutput, *stripped)
    has_fields(NewRequestData, "req_id")
    empty_for_groups = (
        # Encoders and connectors, which CoLD refuses.
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
        "num_spec_tokens_to_schedule",
        "skip_drafts",
        # Written after the trimming.
        "num_invalid_spec_tokens",
        "has_structured_output_requests",
        "pending_structured_output_tokens",
    )
    no_new_fields(
        SchedulerOutput,
        (*stripped, *empty_for_groups, *not_per_request),
        "if it says something about single requests, PlannedStepScheduling._strip must clear it.",
    )


@contract("vllm.v1.engine.EngineCoreOutput", "a group that must end is reported with an error")
def _check_engine_core_output() -> None:
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

    has_fields(
        EngineCoreOutput,
        "request_id",
        "new_token_ids",
        "finish_reason",
        "stop_reason",
        "events",
        "trace_headers",
    )
    attribute(FinishReason, "ERROR")
    first, second = EngineCoreOutputs(), EngineCoreOutputs()
    require(
        isinstance(first.outputs, list) and first.outputs is not second.outputs,
        "EngineCoreOutputs() does not start with an own empty list of outputs.",
    )


@contract("vllm.v1.engine.EngineCoreOutputs", "it carries figures from scheduler to front end")
def _check_scheduler_stats() -> None:
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.metrics.stats import SchedulerStats
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    sent = EngineCoreOutputs(scheduler_stats=SchedulerStats(kv_connector_stats={"cold": [1, 2]}))
    got = MsgpackDecoder(EngineCoreOutputs).decode(MsgpackEncoder().encode(sent))
    require(
        got.scheduler_stats.kv_connector_stats == {"cold": [1, 2]},
        "SchedulerStats.kv_connector_stats does not carry any dictionary any more.",
    )
    attribute(Scheduler, "make_stats")
    contains(
        source_of(Scheduler.update_from_output),
        "Scheduler.update_from_output",
        ".scheduler_stats = stats",
    )
