# SPDX-License-Identifier: Apache-2.0
"""Contracts of workers: logits processors, figures, and what is cured there."""

import inspect
import typing

from vllm_cold.vllm.contracts.contract import contract
from vllm_cold.vllm.contracts.source import (
    attribute,
    contains,
    has_fields,
    has_parameters,
    in_order,
    require,
    source_of,
)


@contract("vllm.v1.sample.logits_processor", "it is the interface of the V1 runner")
def _check_processor_v1_interface() -> None:
    from vllm.v1.sample.logits_processor import interface

    owner = interface.LogitsProcessor
    has_parameters(owner, "__init__", "vllm_config", "device", "is_pin_memory", exact=True)
    has_parameters(owner, "apply", "logits", exact=True)
    has_parameters(owner, "update_state", "batch_update", exact=True)
    has_parameters(owner, "is_argmax_invariant", exact=True)
    abstract = set(owner.__abstractmethods__)
    known = {"__init__", "apply", "update_state", "is_argmax_invariant"}
    require(abstract <= known, f"LogitsProcessor wants {sorted(abstract - known)} as well.")
    has_fields(interface.BatchUpdate, "removed", "added", "moved")
    require(
        len(typing.get_args(interface.AddedRequest)) == 4
        and len(typing.get_args(interface.MovedRequest)) == 3,
        "BatchUpdate's added and moved are no tuples of 4 and 3 any more.",
    )
    attribute(interface.MoveDirectionality, "SWAP")


@contract("vllm.v1.sample.sampler.Sampler.apply_logits_processors", "the order is part of CoLD")
def _check_processor_v1_order() -> None:
    from vllm.v1.sample.sampler import Sampler

    in_order(
        source_of(Sampler.apply_logits_processors),
        "Sampler.apply_logits_processors",
        "sampling_metadata.allowed_token_ids_mask",
        "apply_bad_words(",
        "sampling_metadata.logitsprocs.non_argmax_invariant",
        "processor.apply(logits)",
        "self.apply_penalties(",
    )
    in_order(
        source_of(Sampler.forward),
        "Sampler.forward",
        "self.apply_logits_processors(",
        "self.sample(",
    )


@contract("vllm.v1.worker.gpu_model_runner.GPUModelRunner", "V1 loads the configured class")
def _check_processor_v1_is_loaded() -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    in_order(
        source_of(GPUModelRunner.__init__),
        "GPUModelRunner.__init__",
        "model_config.logits_processors",
        "build_logitsprocs(",
    )
    contains(
        source_of(GPUModelRunner),
        "GPUModelRunner",
        "sampling_params.sampling_type == SamplingType.RANDOM_SEED",
    )


@contract(
    "vllm.v1.worker.gpu.sample.logits_processor",
    "it is the interface of the V2 runner",
    since=(0, 32),
)
def _check_processor_v2_interface() -> None:
    from vllm.v1.worker.gpu.sample.logits_processor import interface

    owner = interface.LogitsProcessor
    has_parameters(owner, "__init__", "vllm_config", "req_states", exact=True)
    has_parameters(owner, "add_request", "req_idx", "sampling_params", exact=True)
    has_parameters(owner, "apply", "logits", "ctx", exact=True)
    abstract = set(owner.__abstractmethods__)
    require(abstract <= {"apply"}, f"LogitsProcessor (V2) wants {sorted(abstract)}.")
    has_fields(interface.LogitsProcRequestState, "device", "max_num_reqs")
    has_fields(
        interface.LogitsContext,
        "expanded_idx_mapping",
        "idx_mapping",
        "idx_mapping_np",
        "expanded_local_pos",
    )


@contract("vllm.v1.worker.gpu.sample.sampler.Sampler", "the order is part of CoLD", since=(0, 32))
def _check_processor_v2_order() -> None:
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    in_order(
        source_of(Sampler.apply_sampling_params),
        "Sampler.apply_sampling_params (V2)",
        "in self.logits_processors",
        "processor.apply(logits, ctx)",
        ".apply_temperature(",
        ".apply_min_p(",
        ".apply_top_k_top_p(",
    )
    in_order(
        source_of(Sampler.__init__),
        "Sampler.__init__ (V2)",
        "self.logits_processors: list[LogitsProcessor] = [",
        "*custom_logits_processors]",
    )


@contract("vllm.v1.sample.sampler.Sampler.forward", "amateurs are told their tokens behind it")
def _check_sampler_v1() -> None:
    from vllm.v1.sample.sampler import Sampler
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    has_parameters(Sampler, "forward", "logits", "sampling_metadata")
    where = "Sampler.forward"
    in_order(
        source_of(Sampler.forward),
        where,
        "self.apply_logits_processors(",
        "self.sample(",
        "SamplerOutput(sampled_token_ids=sampled.unsqueeze(-1)",
        "return sampler_output",
    )
    sampled = source_of(GPUModelRunner._sample)
    contains(sampled, "GPUModelRunner._sample", "return self.sampler(")


@contract(
    "vllm.v1.worker.gpu.sample.sampler.Sampler",
    "amateurs are told their tokens behind it (V2)",
    since=(0, 32),
)
def _check_sampler_v2() -> None:
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    has_parameters(Sampler, "__call__", "logits", "input_batch")
    in_order(
        source_of(Sampler.__call__),
        "Sampler.__call__ (V2)",
        "idx_mapping_np = input_batch.idx_mapping_np",
        "self.sample(",
        "sampled_token_ids=sampled.view(-1, 1)",
        "return sampler_output",
    )
    contains(source_of(Sampler.__init__), "Sampler (V2)", "self.logits_processors")


@contract("vllm.v1.metrics.loggers.StatLoggerManager", "the metrics of CoLD are fed there")
def _check_stat_logger_manager() -> None:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.loggers import PrometheusStatLogger, StatLoggerManager

    has_parameters(StatLoggerManager, "__init__", "vllm_config")
    has_parameters(StatLoggerManager, "record", "scheduler_stats")
    parameters = inspect.signature(StatLoggerManager.record).parameters
    require("engine_idx" in parameters, "StatLoggerManager.record takes no engine_idx any more.")
    in_order(
        source_of(StatLoggerManager.__init__),
        "StatLoggerManager.__init__",
        "self.engine_indexes =",
        "self.stat_loggers",
        "PrometheusStatLogger(",
    )
    for name in ("_counter_cls", "_gauge_cls", "_histogram_cls"):
        attribute(PrometheusStatLogger, name)
    contains(source_of(AsyncLLM), "AsyncLLM", "engine_idx=outputs.engine_index")


@contract("vllm.v1.outputs.ModelRunnerOutput", "it carries figures from workers to the scheduler")
def _check_model_runner_output() -> None:
    import pickle

    from vllm.v1.outputs import ModelRunnerOutput

    output = ModelRunnerOutput(req_ids=[], req_id_to_index={})
    output.cold = 7
    carried = getattr(pickle.loads(pickle.dumps(output)), "cold", None)
    require(carried == 7, "ModelRunnerOutput loses attributes on its way between processes.")


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


@contract("vllm.v1.engine.exceptions.EngineDeadError", "the tools make a sentence of it")
def _check_engine_dead_error() -> None:
    from vllm.v1.engine import exceptions

    attribute(exceptions, "EngineDeadError")
