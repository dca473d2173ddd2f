# SPDX-License-Identifier: Apache-2.0
"""Contracts of requests, their parameters and their blocks in the KV cache."""

import copy
import inspect
import typing
from typing import Any

from vllm_cold.vllm.contracts.contract import contract
from vllm_cold.vllm.contracts.source import (
    a_request,
    contains,
    has_fields,
    has_parameters,
    in_order,
    no_new_fields,
    require,
    source_of,
)

_CACHE = "vllm.v1.core.kv_cache_manager.KVCacheManager"


def _cache_manager() -> Any:
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    return KVCacheManager


@contract(_CACHE, "unwritten blocks leave the prefix cache; room for amateurs is counted")
def _check_kv_cache_manager() -> None:
    owner = _cache_manager()
    has_parameters(owner, "evict_blocks", "block_ids", exact=True)
    has_parameters(owner, "get_block_ids", "request_id", exact=True)
    has_parameters(owner, "get_computed_blocks", "request")
    found = inspect.signature(owner.get_computed_blocks).return_annotation
    if isinstance(found, str):
        first, second = found.removeprefix("tuple[").split(",")[:2]
    else:
        first, second = (getattr(t, "__name__", str(t)) for t in typing.get_args(found)[:2])
    require(
        first.strip() == "KVCacheBlocks" and second.strip(" ]") == "int",
        f"KVCacheManager.get_computed_blocks returns {found}, not (KVCacheBlocks, int, ...).",
    )


@contract("vllm.v1.core.block_pool.BlockPool", "free blocks are counted; block 0 is the null one")
def _check_block_pool() -> None:
    from vllm.v1.core.block_pool import BlockPool

    has_parameters(BlockPool, "get_num_free_blocks", exact=True)
    has_parameters(BlockPool, "evict_blocks", "block_ids", exact=True)
    in_order(
        source_of(BlockPool.__init__),
        "BlockPool.__init__",
        "for idx in range(num_gpu_blocks)",
        "self.null_block = self.free_block_queue.popleft()",
    )
    contains(source_of(_cache_manager().__init__), "KVCacheManager.__init__", "self.block_pool = ")


@contract(_CACHE + ".coordinator", "vLLM counts the blocks that a group needs")
def _check_block_counts() -> None:
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager

    has_fields(KVCacheBlocks, "blocks")
    known = {"request_id", "num_tokens", "new_computed_blocks", "num_encoder_tokens"}
    known |= {"total_computed_tokens", "num_tokens_main_model", "apply_admission_cap"}
    count = inspect.signature(KVCacheCoordinator.get_num_blocks_to_allocate).parameters
    later = known | {"num_local_computed_tokens"}  # since 0.26; the next since 0.31
    require(
        set(count) - {"self"} in (known, later, later | {"prefill_end"}),
        f"KVCacheCoordinator.get_num_blocks_to_allocate takes {', '.join(count)}.",
    )
    contains(
        source_of(KVCacheCoordinator.__init__),
        "KVCacheCoordinator.__init__",
        "self.single_type_managers = ",
    )
    contains(
        source_of(SingleTypeKVCacheManager.__init__),
        "SingleTypeKVCacheManager.__init__",
        "self.block_size = ",
    )


@contract(
    _CACHE + ".get_computed_blocks",
    "the group scheduler looks up more often than it admits; each look-up would count, as in 0.23",
    since=(0, 32),
    note=True,
)
def _check_prefix_lookup_counts_nothing() -> None:
    require(
        ".record(" not in source_of(_cache_manager().get_computed_blocks),
        "KVCacheManager.get_computed_blocks records statistics: the prefix cache's hit rate is "
        "wrong while CoLD requests wait.",
    )


@contract(_CACHE, "an expert gives up its cache hit when it cannot wait for its amateur")
def _check_skip_reading_prefix_cache() -> None:
    contains(source_of(_cache_manager()), "KVCacheManager", "request.skip_reading_prefix_cache")


@contract("vllm.v1.request.Request", "the amateur is made from these, and both are read")
def _check_request_attributes() -> None:
    request = a_request("r")
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
    require(not missing, f"Request has no {', '.join(missing)} any more.")
    require(
        request.num_tokens == 3 and request.all_token_ids[-1] == 3,
        "Request.num_tokens and all_token_ids do not start with the prompt.",
    )


@contract("vllm.v1.request.RequestStatus", "streams are followed by their status")
def _check_request_status() -> None:
    from vllm.v1.request import RequestStatus

    used = {"WAITING", "RUNNING", "PREEMPTED", "FINISHED_ABORTED", "FINISHED_ERROR"}
    missing = used - set(RequestStatus.__members__)
    require(not missing, f"RequestStatus has no {', '.join(sorted(missing))} any more.")


@contract("vllm.lora.request.LoRARequest", "the amateur's adapter travels as its fields")
def _check_lora_request() -> None:
    from vllm.lora.request import LoRARequest

    has_fields(LoRARequest, "lora_name", "lora_int_id", "lora_path")
    made = LoRARequest("a", 1, "/a")
    fields = {n: v for n in made.__struct_fields__ if (v := getattr(made, n)) is not None}
    require(LoRARequest(**fields) == made, "LoRARequest cannot be made from its own fields.")


@contract("vllm.sampling_params.SamplingParams", "the group is described in extra_args")
def _check_sampling_params() -> None:
    import msgspec
    from vllm.sampling_params import SamplingParams

    stream = {"settings": {"alpha": 0.1}, "amateurs": [{"weight": -0.5, "prompt": [1, 2]}]}
    params = SamplingParams(extra_args={"cold_stream": stream})
    require(hasattr(params, "__dict__"), "SamplingParams has no __dict__ any more (dict=True).")
    wire = msgspec.msgpack.encode(params)
    back = msgspec.msgpack.decode(wire, type=SamplingParams)
    require(
        back.extra_args == params.extra_args,
        "SamplingParams.extra_args does not survive the way to another process.",
    )
    other = copy.copy(params)
    other.extra_args = {}
    require(params.extra_args, "copy.copy(SamplingParams) shares its fields with the original.")
    has_fields(
        SamplingParams,
        "top_p",
        "top_k",
        "min_p",
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


@contract(
    "vllm.sampling_params.SamplingParams",
    "the amateur must keep what shapes its scores and drop what would be done twice",
    note=True,
)
def _check_sampling_params_fields() -> None:
    from vllm.sampling_params import SamplingParams

    dropped = """top_p top_k min_p logprobs prompt_logprobs structured_outputs stop_token_ids
        repetition_detection _eos_token_id min_tokens bad_words _bad_words_token_ids
        allowed_token_ids prompt_logprob_token_ids logprob_token_ids extra_args"""
    kept = """n presence_penalty frequency_penalty repetition_penalty temperature seed
        ignore_eos max_tokens logit_bias skip_reading_prefix_cache thinking_token_budget"""
    of_no_effect_on_it = """stop flat_logprobs detokenize skip_special_tokens
        spaces_between_special_tokens include_stop_str_in_output output_kind stream_interval
        skip_clone output_text_buffer_length _all_stop_token_ids prompt_logprob_start
        routed_experts_prompt_start trace_decode_token_ids watermarking _watermarking_skipped"""
    known = f"{dropped} {kept} {of_no_effect_on_it}".split()
    no_new_fields(SamplingParams, known, "decide in scheduler.amateurs what the amateur does.")


@contract(
    "vllm.entrypoints.serve.engine.serving.BaseServing",
    "a preset behind a model's name: endpoints look at the name first, and then at the request",
)
def _check_check_model() -> None:
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

    for owner in (OpenAIServingChat, OpenAIServingCompletion, OpenAIServingResponses):
        require("_check_model" not in vars(owner), f"{owner.__name__} has its own _check_model.")
        has_parameters(owner, "_check_model", "request")
        contains(source_of(owner), owner.__name__, "await self._check_model(request)")
        contains(
            source_of(owner._maybe_get_adapters),
            f"{owner.__name__}._maybe_get_adapters",
            "request.model in self.models.lora_requests",
        )
    has_parameters(OpenAIServingModels, "is_base_model", "model_name")
