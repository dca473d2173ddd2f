# SPDX-License-Identifier: Apache-2.0
"""What CoLD relies on in vLLM beside the methods that it wraps: that it is there, and of this form.

Each process that makes or runs an engine with CoLD looks at it first (``availability.verify``): a
vLLM that has changed it ends in a sentence that names the place, and not in the middle of a
request. Looked at are names, parameters and fields, and in samplers the order in which names come;
that takes milliseconds. ``tests/contracts`` compares vLLM's source with what is expected of it, in
every test run and for each supported release. What only a running engine shows, the scheduler
notices (streams out of step, rows that nobody scored), and ``vllm-cold doctor``, which decodes.
"""

import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_cold.npu import npu_platform
from vllm_cold.vllm.patching import PatchPoint, problem_of


@dataclass(frozen=True, slots=True)
class Contract:
    """What is relied on of one class, function or module of vLLM. Names are separated by spaces.

    Attributes:
        where: "module:Class", "module:Class.method" or "module".
        has: Attributes, or an enumeration's members.
        takes: By a method's name, the first parameters behind ``self``.
        fields: Of a dataclass or struct.
        others: Which fields it may have beside these; None for any.
        sets: What instances get when they are made.
        uses: Names that a function uses, for the first time in this order.
    """

    where: str
    has: str = ""
    takes: Mapping[str, str] = field(default_factory=dict)
    fields: str = ""
    others: str | None = None
    sets: str = ""
    uses: str = ""

    def problem(self) -> str | None:
        """What is wrong with it in this vLLM; None if it holds."""
        return problem_of(self.where, lambda label: next(self._problems(label), None))

    def _problems(self, label: str) -> Iterator[str]:
        module, _, path = self.where.partition(":")
        found: Any = importlib.import_module(module)
        for name in path.split(".") if path else ():
            found = getattr(found, name)
        if missing := [n for n in (*self.has.split(), *self.takes) if not hasattr(found, n)]:
            yield f"{label} has no {', '.join(missing)} any more"
        for name, parameters in self.takes.items():
            method = inspect.unwrap(getattr(found, name))
            if getattr(method, "__isabstractmethod__", False):
                yield f"{label} only declares {name}"
            given = [p for p in inspect.signature(method).parameters if p not in ("self", "cls")]
            if (first := given[: len(parameters.split())]) != parameters.split():
                yield f"{label} has a {name} that takes ({', '.join(first)})"
        if self.fields:
            of_dataclass = getattr(found, "__dataclass_fields__", ())
            known = set(getattr(found, "__struct_fields__", of_dataclass))
            if gone := set(self.fields.split()) - known:
                yield f"{label} has no field {', '.join(sorted(gone))} any more"
            may = f"{self.fields} {self.others or ''}".split()
            if self.others is not None and (new := known.difference(may)):
                yield f"{label} has the new field {', '.join(sorted(new))}"
        if self.sets:
            makers = [c.__init__ for c in found.__mro__ if inspect.isfunction(c.__init__)]
            used = {name for init in makers for name in inspect.unwrap(init).__code__.co_names}
            if unset := set(self.sets.split()) - used:
                yield f"{label} sets no {', '.join(sorted(unset))} any more"
        if names := self.uses.split():
            order = [n for n in inspect.unwrap(found).__code__.co_names if n in names]
            if order != names:
                yield f"{label} uses ({', '.join(order)}), not ({', '.join(names)}) in this order"


_SCHED = "vllm.v1.core.sched."
_SAMPLE, _GPU = "vllm.v1.sample.", "vllm.v1.worker.gpu."
_SPLIT = "request num_new_tokens num_new_local_computed_tokens num_external_computed_tokens"

_ENCODE = "request num_computed_tokens num_new_tokens encoder_compute_budget shift_computed_tokens"

_SCHEDULER = (
    Contract(
        _SCHED + "scheduler:Scheduler",
        has="schedule get_request_counts make_stats reset_prefix_cache pause_state",
        takes={
            "add_request": "request",
            "finish_requests": "request_ids finished_status",
            "update_from_output": "scheduler_output model_runner_output",
            "_preempt_request": "request timestamp",
            "_update_after_schedule": "scheduler_output",
            "_mamba_block_aligned_split": _SPLIT,
            "_try_schedule_encoder_inputs": _ENCODE,
        },
        sets="vllm_config scheduler_config cache_config lora_config kv_cache_manager block_size "
        "encoder_cache_manager max_num_encoder_input_tokens "
        "max_num_running_reqs max_num_scheduled_tokens prev_step_scheduled_req_ids "
        "need_mamba_block_aligned_split requests running waiting policy",
    ),
    Contract(_SCHED + "interface:PauseState", has="UNPAUSED PAUSED_NEW PAUSED_ALL"),
    Contract(_SCHED + "request_queue", has="create_request_queue"),
    Contract(
        _SCHED + "request_queue:FCFSRequestQueue",
        has="insert peek_request pop_request remove_requests",
    ),
    Contract(_SCHED + "request_queue:SchedulingPolicy", has="FCFS PRIORITY"),
    # All columns of a request are taken out of a step that its group is held back from.
    Contract(
        _SCHED + "output:CachedRequestData",
        fields="req_ids resumed_req_ids new_token_ids all_token_ids new_block_ids "
        "num_computed_tokens num_output_tokens",
        others="",
    ),
    Contract(
        _SCHED + "output:SchedulerOutput",
        fields="scheduled_new_reqs scheduled_cached_reqs num_scheduled_tokens "
        "total_num_scheduled_tokens preempted_req_ids scheduled_spec_decode_tokens "
        "scheduled_encoder_inputs free_encoder_mm_hashes",
        # Of 0.33's encoders and of connectors, see ``strip``; of no single request; written later.
        others="scheduled_encoder_input_stats encoder_input_updates "
        "kv_connector_metadata kv_connector_block_state "
        "ec_connector_metadata ec_manager_metadata aux_output_connector_metadata "
        "has_sync_kv_loads block_table_updates num_common_prefix_blocks finished_req_ids "
        "new_block_ids_to_zero kv_cache_block_copies num_spec_tokens_to_schedule skip_drafts "
        "num_invalid_spec_tokens has_structured_output_requests pending_structured_output_tokens",
    ),
    Contract(_SCHED + "output:NewRequestData", fields="req_id mm_features"),
    Contract("vllm.v1.metrics.stats:SchedulerStats", fields="kv_connector_stats"),
    Contract(
        "vllm.v1.core.encoder_cache_manager:EncoderCacheManager",
        takes={
            "check_and_update_cache": "request input_id",
            "free": "request",
            "free_encoder_input": "request input_id",
            "get_cached_input_ids": "request",
            "get_freed_mm_hashes": "",
        },
        sets="cache_size num_free_slots num_freeable_slots cached freeable freed",
    ),
    Contract("vllm.multimodal.inputs:MultiModalFeatureSpec", fields="data identifier mm_position"),
    Contract(
        "vllm.multimodal.inputs:PlaceholderRange", has="get_num_embeds", fields="offset length"
    ),
    Contract(
        "vllm.v1.core.kv_cache_manager:KVCacheManager",
        takes={
            "evict_blocks": "block_ids",
            "get_block_ids": "request_id",
            "get_computed_blocks": "request",
        },
    ),
    Contract("vllm.v1.core.block_pool:BlockPool", has="evict_blocks get_num_free_blocks"),
)
_REQUESTS = (
    Contract(
        "vllm.v1.request:RequestStatus",
        has="WAITING RUNNING PREEMPTED FINISHED_ABORTED FINISHED_ERROR",
    ),
    Contract(
        "vllm.v1.engine:EngineCoreRequest",
        fields="sampling_params lora_request mm_features resumable prompt_token_ids prompt_embeds",
    ),
    Contract(
        "vllm.v1.engine:EngineCoreOutput",
        fields="request_id new_token_ids finish_reason stop_reason events trace_headers "
        "kv_transfer_params",
    ),
    Contract(
        "vllm.sampling_params:SamplingParams",
        fields="extra_args top_p top_k min_p logprobs prompt_logprobs structured_outputs "
        "stop_token_ids repetition_detection min_tokens bad_words allowed_token_ids "
        "_eos_token_id _bad_words_token_ids",
    ),
    Contract("vllm.lora.request:LoRARequest", fields="lora_name lora_int_id lora_path"),
)
_WORKERS = (
    Contract(_SAMPLE + "logits_processor.interface:BatchUpdate", fields="removed added moved"),
    Contract(_SAMPLE + "logits_processor.interface:MoveDirectionality", has="SWAP"),
    # Scores come behind the masks and before the penalties.
    Contract(
        _SAMPLE + "sampler:Sampler.apply_logits_processors",
        uses="allowed_token_ids_mask apply_bad_words non_argmax_invariant apply_penalties",
    ),
    Contract(_SAMPLE + "sampler:Sampler.forward", uses="apply_logits_processors sample"),
)
NEEDED = (*_SCHEDULER, *_REQUESTS, *_WORKERS)
# Engines with vLLM's V2 model runner alone rely on these.
OF_V2 = (
    Contract(
        _GPU + "sample.logits_processor.interface:LogitsContext",
        fields="idx_mapping_np input_ids expanded_local_pos",
    ),
    # Scores come between these two.
    Contract(_GPU + "sample.sampler", has="PenaltiesState BadWordsState"),
    Contract(
        _GPU + "sample.sampler:Sampler.apply_sampling_params",
        uses="logits_processors apply_temperature apply_min_p apply_top_k_top_p",
    ),
)
# Engines with speculative decoding alone rely on these.
OF_SPECULATION = (
    Contract(_SCHED + "scheduler:Scheduler", sets="num_spec_tokens num_lookahead_tokens"),
    Contract(
        _SAMPLE + "metadata:SamplingMetadata",
        # What changes logits is applied to drafts once: drafts_v1 has to know it.
        fields="allowed_token_ids_mask bad_words_token_ids logitsprocs no_penalties "
        "thinking_budget_state_holder prompt_token_ids frequency_penalties presence_penalties "
        "repetition_penalties",
        others="temperature all_greedy all_random top_p top_k generators max_num_logprobs "
        "output_token_ids logprob_token_ids spec_token_ids",
    ),
    Contract(
        "vllm.v1.spec_decode.metadata:SpecDecodeMetadata", fields="num_draft_tokens draft_token_ids"
    ),
)
# Engines with a KV connector alone rely on these.
OF_CONNECTORS = (
    Contract(
        _SCHED + "scheduler:Scheduler",
        has="has_finished_requests set_pause_state",
        takes={
            "_build_kv_connector_meta": "connector scheduler_output",
            "_free_request_blocks": "request",
            "_handle_blocked_waiting_request": "request",
            "_handle_invalid_blocks": "invalid_block_ids num_scheduled_tokens",
            "_request_remaining_blocks": "request",
        },
        sets="connector defer_block_free deferred_frees sched_step_seq recompute_kv_load_failures "
        "finished_recving_kv_req_ids failed_recving_kv_req_ids finished_req_ids _inflight_prefills "
        "kv_holding_waiting deferred_waiting max_num_active_reqs",
    ),
    Contract(_SCHED + "output:KVConnectorBlockState", fields="req_ids"),
    Contract(
        "vllm.distributed.kv_transfer.kv_connector.v1.base:KVConnectorBase_V1",
        has="get_num_new_matched_tokens has_pending_block_frees",
        takes={"on_new_request": "request"},
    ),
    Contract("vllm.v1.outputs:ModelRunnerOutput", fields="kv_connector_output"),
    Contract("vllm.v1.outputs:KVConnectorOutput", fields="invalid_block_ids"),
    Contract("vllm.v1.request:RequestStatus", has="WAITING_FOR_REMOTE_KVS"),
)
# Requests with media alone rely on these, in the front end.
OF_MEDIA = (
    Contract(
        "vllm.multimodal.inputs:MultiModalFeatureSpec",
        fields="data modality identifier mm_position mm_hash",
        others="",  # they are made anew
    ),
    Contract("vllm.multimodal.utils", has="argsort_mm_positions"),
    Contract("vllm.multimodal.image", has="convert_image_mode normalize_image"),
    Contract("vllm.multimodal.media", has="MediaWithBytes"),
    Contract("vllm.multimodal.cache", has="LruKeyReplicatedSenderCache ShmObjectStoreSenderCache"),
    Contract(
        "vllm.renderers.base:BaseRenderer",
        has="mm_processor_cache render_messages_async",
        sets="_mm_processor_only_cache _mm_executor",
    ),
    Contract(
        "vllm.v1.engine.input_processor:InputProcessor", sets="mm_encoder_cache_size renderer"
    ),
    Contract(
        "vllm.config:SchedulerConfig",
        fields="max_num_batched_tokens long_prefill_token_threshold disable_chunked_mm_input",
    ),
)


_LINEAR = "y x lora_a_stacked lora_b_stacked scale"
# Classes that ours extend.
_CPU_LORA = Contract(
    "vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU",
    has="token_lora_indices sampler_indices update_metadata",
    takes={
        "add_shrink": "y x lora_a_stacked scale",
        "add_expand": "y x lora_b_stacked output_slices offset_start add_inputs",
        "add_lora_embedding": "y x lora_b_stacked add_inputs",
        "add_lora_linear": f"{_LINEAR} output_slices buffer",
        "add_lora_logits": f"{_LINEAR} buffer",
        "_apply_shrink": "y x w_t_all scale",
        "_apply_expand": "y x w_t_all y_offset y_slice_size add_inputs",
    },
)
_NPU_LORA = Contract(
    "vllm_ascend.lora.punica_npu:PunicaWrapperNPU",
    has="_shrink_decode _expand_decode _expand_slice_decode _get_token_lora_indices",
    takes={"update_metadata": "mapping"},
)


def needed() -> tuple[Contract, ...]:
    """What every engine with CoLD relies on, on this platform."""
    from vllm.platforms import current_platform

    lora = (_CPU_LORA,) if current_platform.is_cpu() else ()
    return (*NEEDED, *lora, *((_NPU_LORA,) if npu_platform.is_npu() else ()))


def problems(looked_at: Iterable[Contract | PatchPoint]) -> str | None:
    """What is wrong with them, in one sentence without its full stop; None if nothing is."""
    found = [said for it in looked_at if (said := it.problem()) is not None]
    return "; ".join(found) or None
