# SPDX-License-Identifier: Apache-2.0
"""Contracts of workers: logits processors, figures, and what is cured there."""

import inspect
import typing

from vllm_cold.vllm import places
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
    has_fields(interface.LogitsContext, "idx_mapping_np")


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

    problems = [problem for p in places.of_v2_runner() if (problem := p.problem()) is not None]
    require(not problems, "; ".join(problems) + ".")
    in_order(
        source_of(Sampler.__call__),
        "Sampler.__call__ (V2)",
        "idx_mapping_np = input_batch.idx_mapping_np",
        "self.sample(",
        "sampled_token_ids=sampled.view(-1, 1)",
        "return sampler_output",
    )
    contains(source_of(Sampler.__init__), "Sampler (V2)", "self.logits_processors")


@contract("vllm.v1.outputs.ModelRunnerOutput", "it carries figures from workers to the scheduler")
def _check_model_runner_output() -> None:
    import pickle

    from vllm.v1.outputs import ModelRunnerOutput

    output = ModelRunnerOutput(req_ids=[], req_id_to_index={})
    output.cold = 7
    carried = getattr(pickle.loads(pickle.dumps(output)), "cold", None)
    require(carried == 7, "ModelRunnerOutput loses attributes on its way between processes.")


@contract(
    "vllm.v1.worker.cpu_model_runner.CPUModelRunner.sample_tokens",
    "generators of rows whose sample is thrown away are kept out of the step",
    note=True,
)
def _check_cpu_sample_tokens() -> None:
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    attribute(CPUModelRunner, "sample_tokens")
    runner = source_of(CPUModelRunner.__mro__[1])
    contains(
        runner,
        "GPUModelRunner",
        "self.discard_request_mask = self._make_buffer(",
        "self.discard_request_mask.np[:num_reqs]",
        "self.input_batch.generators.get(",
    )


@contract(
    "vllm.v1.worker.gpu_model_runner.GPUModelRunner",
    "cpu_generators is there because this fails on CPU",
    note=True,
)
def _check_cpu_runner_still_rewinds_by_offset() -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    require(
        ".set_offset(" in source_of(GPUModelRunner),
        "The V1 runner does not rewind generators by offset any more: cpu_generators can go.",
    )


@contract(
    "vllm.v1.sample.sampler.Sampler.topk_topp_sampler",
    "its forward is replaced, as it ignores seeds",
    until=(0, 29),
    note=True,
)
def _check_cpu_sampler_ignores_seeds() -> None:
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler
    from vllm.v1.sample.sampler import Sampler

    from vllm_cold.vllm.worker.cpu_generators import _IGNORED

    contains(source_of(Sampler.__init__), "Sampler.__init__", "self.topk_topp_sampler =")
    contains(source_of(TopKTopPSampler.__init__), "TopKTopPSampler", "self.forward = ")
    has_parameters(TopKTopPSampler, "forward_cpu", "logits", "generators")
    contains(source_of(TopKTopPSampler.forward_cpu), "TopKTopPSampler.forward_cpu", _IGNORED)


@contract(
    "vllm.utils.cpu_triton_utils._expand_kernel_impl",
    "cpu_speculation is there because it writes into a copy of its output",
    note=True,
)
def _check_cpu_still_expands_into_a_copy() -> None:
    from vllm.utils import cpu_triton_utils

    source = source_of(cpu_triton_utils._expand_kernel_impl)
    require(
        "_ensure_int64(output)" in source and ".copy_(" not in source,
        "_expand_kernel_impl writes its output: cpu_speculation can go.",
    )


@contract(
    "vllm.triton_utils.dispatcher._rebind_kernels",
    "with numba imported before, an engine on CPU in the same process does not start",
    since=(0, 32),
    note=True,
)
def _check_kernels_are_still_rebound_by_vars() -> None:
    from vllm.triton_utils import dispatcher

    require(
        "vars(value).get(" in source_of(dispatcher._rebind_kernels),
        "_rebind_kernels may bear numba now: see whether its report (tests/upstream) can go.",
    )


@contract(
    "vllm.v1.worker.gpu.lora_utils.LoraState.make_lora_inputs",
    "lora_rows is there because it is not told how many rows of logits a request has",
    note=True,
)
def _check_v2_still_maps_logits_by_request() -> None:
    from vllm.v1.worker.gpu.lora_utils import LoraState

    told = list(inspect.signature(LoraState.make_lora_inputs).parameters)[1:]
    require(
        told == ["req_ids", "idx_mapping", "num_scheduled_tokens"],
        f"LoraState.make_lora_inputs takes ({', '.join(told)}): see whether lora_rows can go.",
    )


@contract(
    "vllm.v1.worker.gpu.model_runner.GPUModelRunner",
    "lora_rows learns from a step's inputs how many rows of logits each request has",
    note=True,
)
def _check_v2_inputs_know_their_rows() -> None:
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    has_fields(InputBatch, "cu_num_logits_np")
    in_order(
        source_of(GPUModelRunner.execute_model),
        "GPUModelRunner.execute_model (V2)",
        "self.prepare_inputs(",
        "self.lora_state.make_lora_inputs(",
    )


@contract("vllm.v1.core.block_pool.BlockPool", "blocks that held NaN are cleared when free")
def _check_blocks_can_be_cleared() -> None:
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    has_fields(KVCacheBlock, "ref_cnt")
    has_fields(SchedulerOutput, "new_block_ids_to_zero")
    contains(
        source_of(GPUModelRunner._update_states),
        "GPUModelRunner._update_states",
        "self._zero_block_ids(scheduler_output.new_block_ids_to_zero)",
    )


# A note: without it, can_clear() is false, and nothing asks V2 to clear.
@contract(
    "vllm.v1.worker.gpu.model_runner.GPUModelRunner",
    "V2 on CPU is given what clears blocks; remove block_zeroer when V2 always has it",
    since=(0, 32),
    note=True,
)
def _check_v2_has_a_block_zeroer_for_some_caches() -> None:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    from vllm_cold.vllm.worker.block_zeroer import PLACE

    require((problem := PLACE.problem()) is None, f"{problem}.")
    where = "GPUModelRunner (V2)"
    contains(source_of(GPUModelRunner._init_kv_zero_meta), where, "self.kv_block_zeroer = ")
    contains(
        source_of(GPUModelRunner), where, "assert self.kv_block_zeroer is not None",
        "self.kv_block_zeroer.zero_block_ids(scheduler_output.new_block_ids_to_zero)",
    )  # fmt: skip
