# SPDX-License-Identifier: Apache-2.0
"""The table of what vllm-cold wraps or extends in vLLM, or relies on where a change would pass
unnoticed, by when it is needed. docs/reference/places.md is made from it.

Each process that makes or runs an engine with contrastive decoding checks its rows first
(``availability.verify``): a vLLM that has changed one is refused in a sentence that names it, and
not in the middle of a request. Checked are names, parameters and fields, and in samplers the order
in which names come; that takes milliseconds.

Data alone: a row names its file, which is loaded when its methods are wrapped.
"""

from vllm_cold.compat.hardware import is_on
from vllm_cold.compat.patching import Dependency, Hook, problems

# When a row is needed.
START = "in every process, when vLLM loads the plugin"
PLATFORM = START + ", on CPU and on NPUs"
NO_COLD = "in every process where this vLLM lacks what vllm-cold needs"
CONFIGURED = "in every process of an engine with contrastive decoding"
FRONT_END = "in its front end"
ONLINE, OFFLINE = "in an API server", "in a process with `LLM`"
MEDIA = "in a front end, for prompts with media"
CONNECTOR = "in an engine with a KV connector"
WORKER, V1, V2 = "in its workers", "with the V1 model runner", "with the V2 model runner"
DRAFTS = "with speculative decoding"
DRAFTS_V1, DRAFTS_V2 = (f"{DRAFTS}, {runner}" for runner in (V1, V2))
BLOCKS_V2 = V2 + ", on CPU"
SSM = "in workers on CPU, for models with state-space layers"
LORA = "in engines with LoRA, with contrastive decoding or without it"
MODEL_ON_CPU = "in workers on CPU, before the model is loaded"
WORKAROUNDS = "in workers on CPU with LoRA, with contrastive decoding or without it"
EMBEDS = "in workers with LoRA and `enable_prompt_embeds`"
# Checked before an engine is prepared for contrastive decoding, whatever it serves.
EVERY_ENGINE = (CONFIGURED, FRONT_END, WORKER, V1)

# What docs/for-vllm.md asks for.
GROUPS = "when vLLM schedules groups of requests in lockstep."
LOGITS = "when vLLM has a hook after the logits of all rows."
DERIVED = "when vLLM renders prompts for a derived request."
CHANNEL = "when vLLM has a channel for what plugins report."
_ENGINE_ARGS = "vllm.engine.arg_utils:EngineArgs."
_OPENAI = "vllm.entrypoints.openai."
_COMPLETION = _OPENAI + "completion.protocol:CompletionRequest."
_CHAT = _OPENAI + "chat_completion.protocol:ChatCompletionRequest."
_ONLINE = "vllm.renderers.online_renderer:OnlineRenderer."
_ONLINE_023 = "vllm.entrypoints.serve.render.serving:OpenAIServingRender."
_RENDERER = "vllm.renderers.base:BaseRenderer"
_MEDIA_CONNECTOR = "vllm.multimodal.media.connector:MediaConnector."
_SCHED, _SAMPLE = "vllm.v1.core.sched.", "vllm.v1.sample."
_GPU = "vllm.v1.worker.gpu."
_RUNNER_V1 = "vllm.v1.worker.gpu_model_runner:GPUModelRunner."
_RUNNER_V2 = _GPU + "model_runner:GPUModelRunner."
_DRAFTER = "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer."
_BUILD = "vllm_config device is_pin_memory is_pooling_model custom_logitsprocs"
_LINEAR = "y x lora_a_stacked lora_b_stacked scale"
_EXPERTS = "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method:"


def _workaround(
    file: str,
    when: str,
    why: str,
    *dependencies: Dependency,
    can_go: str = "when its test in `tests/contracts/test_cpu.py` says so.",
    since: str = "0.23",
    platform: str = "cpu",
) -> Hook:
    """A row for a bug of vLLM."""
    lost = "a bug of vLLM is not worked around here"
    return Hook(file, when, why, can_go, *dependencies, since=since, lost=lost, platform=platform)


# fmt: off
TABLE = (
    # ---- every process ---------------------------------------------------------------------------
    Hook(
        "frontend.engine_config", START,
        "Here an engine's configuration is final. An engine with LoRA, or that asks for "
        "contrastive decoding, gets vllm-cold's scheduler and the logits processor of its model "
        "runner, by the public options `scheduler_cls` and `logits_processors`. (The entry point "
        "`vllm.logits_processors` would break every engine on the machine: each model runner "
        "refuses the other's class.)",
        "when vLLM lets plugins set these options.",
        Dependency(_ENGINE_ARGS + "create_engine_config", "_make", "usage_context"),
    ),
    Hook(
        "frontend.cli", START,
        "`vllm serve --sampler cold --cold-beta ...`, also as keys of vLLM's `--config` YAML. The "
        'values end up in `additional_config["cold"]`. `from_cli_args` also adds the middleware '
        "that tells clients what was used.",
        "when plugins can add arguments.",
        Dependency(_ENGINE_ARGS + "add_cli_args", "_make_add", "parser", staticmethod),
        Dependency(_ENGINE_ARGS + "from_cli_args", "_make_from", "args", classmethod),
    ),
    Hook(
        "frontend.intake", START,
        "Every request passes it, and only it sees a request's parameters, adapter and prompt's "
        "length before the engine core does. (`LogitsProcessor.validate_params` sees the "
        "parameters only.)",
        DERIVED,
        Dependency("vllm.v1.engine.input_processor:InputProcessor.process_inputs", "_make",
                   "request_id prompt params"),
    ),
    Hook(
        "frontend.refusal", NO_COLD,
        "Who asks for contrastive decoding must be told why it is not there, and must not "
        "silently get regular decoding. Contrastive decoding itself hooks none of these, so that "
        "a change of vLLM hardly ever breaks both.",
        "never; it is the net.",
        Dependency("vllm.sampling_params:SamplingParams.verify", "_make_verify"),
        Dependency("vllm.utils.argparse_utils:FlexibleArgumentParser.parse_known_args",
                   "_make_parse", "args"),
        Dependency(_ENGINE_ARGS + "__post_init__", "_make_post_init"),
        lost="who asks for contrastive decoding is not always told why it is unavailable",
    ),
    # ---- front ends ------------------------------------------------------------------------------
    Hook(
        "frontend.intake", FRONT_END,
        "It calls `process_inputs` on an event loop. Before that call, an amateur's prompt is "
        "made and the file of its adapter is read.",
        DERIVED,
        Dependency("vllm.v1.engine.async_llm:AsyncLLM.add_request", "_make_add_request",
                   "request_id prompt params arrival_time lora_request"),
        Dependency("vllm.v1.engine:EngineCoreRequest",
                   has="sampling_params lora_request mm_features resumable prompt_token_ids "
                   "prompt_embeds"),
        Dependency("vllm.lora.request:LoRARequest", has="lora_name lora_int_id lora_path"),
        Dependency("vllm.exceptions", has="VLLMValidationError"),
    ),
    Hook(
        "frontend.prompts", FRONT_END,
        "An amateur's prompt becomes token ids as its expert's did: with the same chat template, "
        "tools, template arguments and tokenizer's arguments. Only here are these together, for "
        "`LLM.generate`, `LLM.chat` and all endpoints.",
        DERIVED,
        Dependency(_RENDERER + ".render_cmpl", "_make_cmpl", "prompts tok_params"),
        Dependency(_RENDERER + ".render_cmpl_async", "_make_cmpl", "prompts tok_params"),
        Dependency(_RENDERER + ".render_chat", "_make_chat",
                   "conversations chat_params tok_params"),
        Dependency(_RENDERER + ".render_chat_async", "_make_chat",
                   "conversations chat_params tok_params"),
        Dependency("vllm.renderers.params:ChatParams", has="with_defaults"),
    ),
    Hook(
        "frontend.explain_output", FRONT_END,
        "The engine explains each token once, with the token; a client that asks gets all "
        "explanations with the last one. A stop string that ends an answer is known here first. "
        "Tokens have the texts that logprobs have.",
        CHANNEL,
        Dependency("vllm.tokenizers.detokenizer_utils", has="convert_ids_list_to_tokens"),
        Dependency("vllm.v1.engine.output_processor:RequestState.make_request_output", "_make",
                   "new_token_ids pooling_output finish_reason stop_reason kv_transfer_params"),
    ),
    Hook(
        "frontend.metrics", FRONT_END,
        "The figures that a scheduler sent become metrics. (vLLM's entry point for such loggers "
        "would switch statistics on in engines that have them off.)",
        CHANNEL,
        Dependency("vllm.v1.metrics.loggers:StatLoggerManager.__init__", "_make_manager_init",
                   "vllm_config"),
        Dependency("vllm.v1.metrics.loggers:StatLoggerManager.record", "_make_record",
                   "scheduler_stats"),
        Dependency("vllm.v1.metrics.loggers:PrometheusStatLogger",
                   has="_counter_cls _gauge_cls _histogram_cls"),
    ),
    Hook(
        "frontend.metrics", FRONT_END,
        "The same figures, offline; prometheus_client's registry has them all the same.",
        CHANNEL,
        Dependency("vllm.v1.engine.llm_engine:LLMEngine.get_metrics", "_make_get_metrics"),
        lost="LLM.get_metrics() shows no metrics of contrastive decoding",
    ),
    Hook(
        "frontend.request_media", FRONT_END,
        "Media of a prompt that is rendered for an amateur, too, are fetched and decoded once.",
        DERIVED,
        Dependency(_MEDIA_CONNECTOR + "load_from_url", "_make_load", "url media_io"),
        Dependency(_MEDIA_CONNECTOR + "load_from_url_async", "_make_load", "url media_io"),
        since="0.31",
        lost="media of prompts that amateurs share with their expert are fetched again",
    ),
    Hook(
        "frontend.media_cache", MEDIA,
        "The media of amateurs' prompts travel after their expert's in "
        "`EngineCoreRequest.mm_features`, so that vLLM treats them as the request's own. vLLM's "
        "front end sends an image once and then its hash, in the order of processing, which a "
        "request that waits for its amateurs' prompts does not keep. So a contrastive request "
        "brings its data along, and the sender is told when it leaves.",
        DERIVED,
        # They are made anew.
        Dependency("vllm.multimodal.inputs:MultiModalFeatureSpec",
                   has="data modality identifier mm_position mm_hash", others=""),
        Dependency("vllm.multimodal.utils", has="argsort_mm_positions"),
        Dependency("vllm.multimodal.image", has="convert_image_mode normalize_image"),
        Dependency("vllm.multimodal.media", has="MediaWithBytes"),
        Dependency("vllm.multimodal.cache", has="LruKeyReplicatedSenderCache"),
        Dependency(_RENDERER, has="mm_processor_cache render_messages_async "
                   "_mm_processor_only_cache _mm_executor"),
        Dependency("vllm.v1.engine.input_processor:InputProcessor",
                   has="mm_encoder_cache_size renderer"),
        Dependency("vllm.config:SchedulerConfig",
                   has="max_num_batched_tokens long_prefill_token_threshold "
                   "disable_chunked_mm_input"),
        since="0.31",
    ),
    Hook(
        "frontend.serving", ONLINE,
        "Right after the renderer, the amateurs' prompts are made: the body and the template's "
        "arguments are known, a wrong request gets its HTTP 400 before a streamed response "
        "starts, and it is off the event loop. `to_sampling_params` says which prompts are sent "
        "to the engine; for some models, vLLM makes the prompts elsewhere, and their requests are "
        "decided about there.",
        DERIVED,
        Dependency(_ONLINE + "preprocess_chat", "_make_preprocess", "request",
                   before=_ONLINE_023 + "preprocess_chat"),
        Dependency(_ONLINE + "preprocess_cmpl", "_make_preprocess", "request",
                   before=_ONLINE_023 + "preprocess_cmpl"),
        Dependency(_COMPLETION + "to_sampling_params", "_make_sampling_params"),
        Dependency(_CHAT + "to_sampling_params", "_make_sampling_params"),
        Dependency(_OPENAI + "responses.protocol:ResponsesRequest.to_sampling_params",
                   "_make_sampling_params"),
    ),
    Hook(
        "frontend.serving", ONLINE,
        "`cold_amateur` names an adapter, and only the server's list of loaded adapters resolves "
        "it.",
        "when vLLM resolves names of adapters for extensions.",
        Dependency(_OPENAI + "models.serving:OpenAIServingModels.__init__", "_make_models_init"),
    ),
    Hook(
        "frontend.serving", ONLINE,
        "Beam search makes its own sampling parameters: a request for both would silently lose "
        "contrastive decoding.",
        "when vLLM passes `vllm_xargs` on in beam search.",
        Dependency(_COMPLETION + "to_beam_search_params", "_make_beam_params"),
        Dependency(_CHAT + "to_beam_search_params", "_make_beam_params"),
    ),
    Hook(
        "frontend.serving", OFFLINE,
        "The same, offline.",
        "when vLLM passes `extra_args` on in beam search.",
        Dependency("vllm:LLM.beam_search", "_make_beam_search", "prompts params lora_request"),
    ),
    Hook(
        "frontend.serving", ONLINE,
        "A request that the scheduler ends with an error has the reason in `stop_reason`; vLLM's "
        'servers would say "Internal server error". The header `x-cold` tells a client what its '
        "tokens were chosen with, and `kv_transfer_params` what it asked for of each step; before "
        "0.33, streams get the latter here.",
        "when vLLM reports the reason of an error and lets plugins add to a response.",
        Dependency("vllm.v1.engine.async_llm:AsyncLLM.generate", "_make_generate",
                   "prompt sampling_params request_id"),
    ),
    Hook(
        "frontend.aliases", ONLINE,
        "A client that cannot send `cold_preset` names the model `NAME:PRESET` instead. Every "
        "endpoint asks here first whether a request's model is served.",
        "when vLLM lets plugins resolve the names of models.",
        Dependency("vllm.entrypoints.serve.engine.serving:BaseServing._check_model", "_make",
                   "request", before=_OPENAI + "engine.serving:OpenAIServing._check_model"),
        lost="names of models with a preset (sql:cold) are unknown here",
    ),
    # ---- scheduler -------------------------------------------------------------------------------
    Hook(
        "scheduler.scheduler", CONFIGURED,
        "A contrastive request is several requests that are scheduled in lockstep. "
        "`_mamba_block_aligned_split` is called for every request that is about to get tokens, if "
        "`need_mamba_block_aligned_split` is true: only there can tokens be capped *before* "
        "blocks are allocated and hashed. `_update_after_schedule`, the end of `schedule()`, "
        "removes what is left of a group that was split.",
        GROUPS,
        Dependency(_SCHED + "scheduler:Scheduler",
                   like="vllm_cold.scheduler.vllm_scheduler:Scheduler"),
        Dependency(_SCHED + "interface:PauseState", has="UNPAUSED PAUSED_NEW PAUSED_ALL"),
        # A group that is held back takes its requests out of all columns of a step.
        Dependency(_SCHED + "output:CachedRequestData",
                   has="req_ids resumed_req_ids new_token_ids all_token_ids new_block_ids "
                   "num_computed_tokens num_output_tokens", others=""),
        Dependency(_SCHED + "output:SchedulerOutput",
                   has="scheduled_new_reqs scheduled_cached_reqs num_scheduled_tokens "
                   "total_num_scheduled_tokens preempted_req_ids scheduled_spec_decode_tokens "
                   "scheduled_encoder_inputs free_encoder_mm_hashes",
                   # Of 0.33's encoders and of connectors; of no single request; written later.
                   others="scheduled_encoder_input_stats encoder_input_updates "
                   "kv_connector_metadata kv_connector_block_state ec_connector_metadata "
                   "ec_manager_metadata aux_output_connector_metadata has_sync_kv_loads "
                   "block_table_updates num_common_prefix_blocks finished_req_ids "
                   "new_block_ids_to_zero kv_cache_block_copies num_spec_tokens_to_schedule "
                   "skip_drafts num_invalid_spec_tokens has_structured_output_requests "
                   "pending_structured_output_tokens"),
        Dependency(_SCHED + "output:NewRequestData", has="req_id mm_features"),
        Dependency("vllm.v1.request:Request", like="vllm_cold.scheduler.lockstep:Tokens"),
        Dependency("vllm.v1.request:Request",
                   has="client_index priority arrival_time status sampling_params lora_request "
                   "num_preemptions num_prompt_tokens skip_reading_prefix_cache is_prefill_chunk "
                   "trace_headers block_hashes mm_features take_events _block_hasher prompt_embeds "
                   "prompt_is_token_ids cache_salt"),
        Dependency("vllm.v1.request:RequestStatus",
                   has="WAITING RUNNING PREEMPTED FINISHED_ABORTED FINISHED_ERROR"),
        Dependency("vllm.v1.engine:EngineCoreOutput",
                   has="request_id new_token_ids finish_reason stop_reason events trace_headers "
                   "kv_transfer_params"),
    ),
    Hook(
        "scheduler.amateur_requests", CONFIGURED,
        "Amateurs are requests like their expert, without what would be done twice or for nobody.",
        GROUPS,
        Dependency("vllm.sampling_params:SamplingParams",
                   has="extra_args top_p top_k min_p logprobs prompt_logprobs structured_outputs "
                   "stop_token_ids repetition_detection min_tokens bad_words allowed_token_ids "
                   "_eos_token_id _bad_words_token_ids"),
    ),
    Hook(
        "scheduler.queue_view", CONFIGURED,
        "Only the expert of a group waits in a queue, so that counts and order are those of the "
        "clients' requests. During a pass, views replace the queues: they hold back who may not "
        "start, and keep a group's streams together.",
        GROUPS,
        Dependency(_SCHED + "request_queue", has="create_request_queue"),
        Dependency(_SCHED + "request_queue:RequestQueue",
                   has="add_request peek_request pop_request prepend_request prepend_requests "
                   "remove_request remove_requests"),
        Dependency(_SCHED + "request_queue:SchedulingPolicy", has="FCFS PRIORITY"),
    ),
    Hook(
        "scheduler.kv_blocks", CONFIGURED,
        "A group is admitted if all its streams fit the KV cache; blocks that a step hashed and "
        "will not write leave the prefix cache.",
        GROUPS,
        Dependency("vllm.v1.core.kv_cache_manager:KVCacheManager",
                   has="evict_blocks(block_ids) get_block_ids(request_id) "
                   "get_computed_blocks(request)"),
        Dependency("vllm.v1.core.block_pool:BlockPool", has="evict_blocks get_num_free_blocks"),
        Dependency("vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator",
                   has="get_num_blocks_to_allocate single_type_managers"),
    ),
    Hook(
        "scheduler.encoder_inputs", CONFIGURED,
        "vLLM takes tokens off a request whose next medium does not fit the encoder, after the "
        "cap that keeps a group in lockstep. It counts a medium as encoded once that is planned, "
        "whether or not the request stays in the step.",
        GROUPS,
        Dependency("vllm.v1.core.encoder_cache_manager:EncoderCacheManager",
                   has="check_and_update_cache(request input_id) free(request) "
                   "free_encoder_input(request input_id) get_cached_input_ids(request) "
                   "get_freed_mm_hashes() cache_size num_free_slots num_freeable_slots cached "
                   "freeable freed"),
        Dependency("vllm.multimodal.inputs:MultiModalFeatureSpec",
                   has="data identifier mm_position"),
        Dependency("vllm.multimodal.inputs:PlaceholderRange", has="get_num_embeds offset length"),
    ),
    Hook(
        "wire.stats_channel", CONFIGURED,
        "What the scheduler counted reaches the process that serves /metrics in a dictionary, "
        "next to what a KV connector counted.",
        CHANNEL,
        Dependency("vllm.v1.metrics.stats:SchedulerStats", has="kv_connector_stats"),
    ),
    Hook(
        "scheduler.kv_loads", CONNECTOR,
        "The streams of a group wait for each other, so also for what a connector loads for one "
        "of them.",
        GROUPS,
        Dependency(_SCHED + "scheduler:Scheduler",
                   like="vllm_cold.scheduler.vllm_scheduler:WithConnector"),
        Dependency(_SCHED + "output:KVConnectorBlockState", has="req_ids"),
        Dependency("vllm.distributed.kv_transfer.kv_connector.v1.base:KVConnectorBase_V1",
                   has="get_num_new_matched_tokens has_pending_block_frees "
                   "on_new_request(request)"),
        Dependency("vllm.v1.outputs:ModelRunnerOutput", has="kv_connector_output"),
        Dependency("vllm.v1.outputs:KVConnectorOutput", has="invalid_block_ids"),
        Dependency("vllm.v1.request:RequestStatus", has="WAITING_FOR_REMOTE_KVS"),
        since="0.31",
    ),
    # ---- workers ---------------------------------------------------------------------------------
    Hook(
        "wire.worker_output", WORKER,
        "What a worker found in the groups that it scored travels to the scheduler as an "
        "attribute of a step's output.",
        CHANNEL,
        Dependency("vllm.v1.outputs:ModelRunnerOutput.__init__", "_make_output_init"),
    ),
    Hook(
        "worker.processor_v1", V1,
        "In vLLM's public interface for logits processors, scores are computed after the grammar, "
        "`allowed_token_ids`, `bad_words`, `min_tokens` and `logit_bias`, and before penalties, "
        "temperature and top-k / top-p.",
        "never.",
        Dependency(_SAMPLE + "logits_processor.interface:BatchUpdate", has="removed added moved"),
        Dependency(_SAMPLE + "logits_processor.interface:MoveDirectionality", has="SWAP"),
        Dependency(_SAMPLE + "sampler:Sampler.apply_logits_processors",
                   uses="allowed_token_ids_mask apply_bad_words non_argmax_invariant "
                   "apply_penalties"),
    ),
    Hook(
        "worker.processor_v2", V2,
        "The same on V2, the default on GPUs since 0.32.",
        "never.",
        Dependency(_GPU + "sample.logits_processor.interface:LogitsContext",
                   has="idx_mapping_np input_ids expanded_local_pos"),
        Dependency(_GPU + "sample.sampler:Sampler.apply_sampling_params",
                   uses="logits_processors apply_temperature apply_min_p apply_top_k_top_p"),
        since="0.31",
    ),
    Hook(
        "worker.amateur_tokens", V1,
        "Each amateur gets the token that was sampled from the expert's row: its entry in what "
        "the sampler returns is overwritten. That is the first point at which the tokens are "
        "known, and they are still on the device.",
        LOGITS,
        Dependency(_SAMPLE + "sampler:Sampler.forward", "_make_forward",
                   "logits sampling_metadata"),
        Dependency(_SAMPLE + "sampler:Sampler.forward", uses="apply_logits_processors sample"),
    ),
    Hook(
        "worker.amateur_tokens", V2,
        "The same on V2.",
        LOGITS,
        Dependency(_GPU + "sample.sampler:Sampler.__call__", "_make_call", "logits input_batch"),
        since="0.31",
    ),
    Hook(
        "worker.penalties_v2", V2,
        "V2 applies penalties before custom processors, to each row according to its own prompt, "
        "which may differ between an amateur and its expert. Here vllm-cold scores after "
        "`bad_words` and before penalties, as on V1. For regular requests nothing changes: what "
        "`bad_words` forbid is -inf in either order.",
        LOGITS,
        Dependency(_GPU + "sample.sampler:Sampler.__init__", "_make_init"),
        Dependency(_GPU + "sample.sampler", has="PenaltiesState BadWordsState"),
        since="0.31",
    ),
    _workaround(
        "worker.block_zeroer", BLOCKS_V2,
        "Blocks that hold NaN are cleared before another request gets them, by the list that "
        "vLLM's scheduler has for its own clearing. V2 follows it only where the KV cache wants "
        "its new blocks cleared, and stops with an assertion elsewhere.",
        Dependency("vllm.v1.worker.cpu.model_runner:CPUModelRunner.initialize_kv_cache",
                   "_make_initialize"),
        Dependency("vllm.v1.worker.cpu.model_runner:CPUModelRunner", has="_init_kv_zero_meta"),
        can_go="when V2 clears blocks of every cache, or when vLLM's attention on CPU does not "
        "read past a sequence.", since="0.31",
    ),
    Hook(
        "worker.drafts_v1", DRAFTS,
        "V1 refuses logits processors under speculation, as they cannot know of the rows of "
        "drafts; vllm-cold's does, so it is loaded.",
        LOGITS,
        Dependency(_SAMPLE + "logits_processor:build_logitsprocs", "_make_build", _BUILD),
        Dependency("vllm.v1.worker.gpu_model_runner:build_logitsprocs", "_make_build", _BUILD,
                   if_loaded=True),
        Dependency(_SCHED + "scheduler:Scheduler", has="num_spec_tokens num_lookahead_tokens"),
        # What changes logits is applied to drafts once: drafts_v1 has to know it.
        Dependency(_SAMPLE + "metadata:SamplingMetadata",
                   has="allowed_token_ids_mask bad_words_token_ids logitsprocs no_penalties "
                   "thinking_budget_state_holder prompt_token_ids frequency_penalties "
                   "presence_penalties repetition_penalties",
                   others="temperature all_greedy all_random top_p top_k generators "
                   "max_num_logprobs output_token_ids logprob_token_ids spec_token_ids"),
        Dependency("vllm.v1.spec_decode.metadata:SpecDecodeMetadata",
                   has="num_draft_tokens draft_token_ids"),
        since="0.32",
    ),
    Hook(
        "worker.drafts_v1", DRAFTS_V1,
        "V1 asks its logits processors about a request's last row alone, the one after its "
        "drafts. Here the rows in which drafts are verified are scored, too, and the amateurs get "
        "the expert's drafts and those that were accepted.",
        LOGITS,
        Dependency(_SAMPLE + "rejection_sampler:RejectionSampler.apply_logits_processors",
                   "_make_apply", "logits sampling_metadata metadata"),
        Dependency(_SAMPLE + "rejection_sampler:RejectionSampler.forward", "_make_forward",
                   "metadata draft_probs logits sampling_metadata"),
        Dependency(_RUNNER_V1 + "propose_draft_token_ids", "_make_propose"),
        since="0.32",
    ),
    Hook(
        "worker.drafts_v2", DRAFTS_V2,
        "Unlike others, vllm-cold's logits processor is told on the host how many rows a request "
        "has. Large batches are verified in chunks of requests; a chunk never separates a group. "
        "The amateurs get the expert's tokens, and its drafts for the next step.",
        LOGITS,
        Dependency(_GPU + "spec_decode.rejection_sampler:RejectionSampler.__call__", "_make_call",
                   "logits input_batch"),
        Dependency(_GPU + "spec_decode.rejection_sampler:_iter_request_chunks", "_make_chunks",
                   "cu_num_logits max_chunk_logits"),
        Dependency(_RUNNER_V2 + "sample_tokens", "_make_sample"),
        since="0.32",
    ),
    _workaround(
        "worker.ssm", SSM,
        "With prefix caching, a Mamba 2 layer declares that a prompt's last step also exports the "
        "state at the last block boundary before its end. The scan on CPU returns only the states "
        "at the prompts' ends: stock vLLM stops with an `IndexError` at the first prompt that is "
        "longer than a block. Here the layer does not declare it, and the scheduler ends a step "
        "at the boundary.",
        Dependency("vllm.model_executor.layers.mamba.mamba_mixer2:MambaMixer2.get_kv_cache_spec",
                   "_make_spec"),
        since="0.32",
    ),
    _workaround(
        "worker.ssm", SSM,
        "The kernel takes queries [T, heads * size] and, as LFM2 gives them, [T, heads, size]; of "
        "the latter it rotates only one head. Here it gets the former.",
        Dependency("vllm.model_executor.layers.rotary_embedding.base:RotaryEmbedding.forward_cpu",
                   "_make_forward", "positions query key"),
        since="0.32",
    ),
    # ---- kernels for one kind of hardware --------------------------------------------------------
    Hook(
        "cpu.cpu_platform", PLATFORM,
        "vllm-cold's class runs LoRA on CPU. vLLM's operations cannot be compiled, so it switches "
        "compilation off for LoRA; vllm-cold's can, and a compiled model is up to twice as fast. "
        "So the configuration is made as if there were no LoRA. Only engines with LoRA see a "
        "difference.",
        "with `cpu.lora_fallback`.",
        Dependency("vllm.platforms:current_platform.get_punica_wrapper", "_make_wrapper",
                   kind=classmethod),
        Dependency("vllm.platforms:current_platform.check_and_update_config", "_make_config",
                   "vllm_config", classmethod),
        lost="LoRA on CPU is vLLM's", platform="cpu",
    ),
    Hook(
        "cpu.lora_fallback", LORA,
        "vLLM's operations index the stacked adapter weights with each row's slot number, and a "
        "base-model row's -1 wraps around to the last slot: in a batch with an adapter row, base "
        "rows silently get the adapter. vLLM 0.33 masks these rows; there these classes only "
        "avoid the copies of the weights for each row.",
        "when 0.32 is no longer supported and stock groups rows by adapter.",
        Dependency("vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU",
                   has="token_lora_indices sampler_indices update_metadata "
                   "add_shrink(y x lora_a_stacked scale) "
                   "add_expand(y x lora_b_stacked output_slices offset_start add_inputs) "
                   "add_lora_embedding(y x lora_b_stacked add_inputs) "
                   f"add_lora_linear({_LINEAR} output_slices) "
                   f"add_lora_logits({_LINEAR}) "
                   "_apply_shrink(y x w_t_all scale) "
                   "_apply_expand(y x w_t_all y_offset y_slice_size add_inputs)"),
        platform="cpu",
    ),
    Hook(
        "cpu.lora_wrapper", LORA,
        "All linear layers would share one wrapper and pass it their weights at each call. Here "
        "each layer has an object that knows them: a compiled model looks up one tensor a layer "
        "instead of two a slice.",
        "with `cpu.lora_fallback`.",
        Dependency("vllm.lora.layers:BaseLayerWithLoRA.set_mapping", "_make", "punica_wrapper"),
        Dependency("vllm.lora.layers",
                   has="LogitsProcessorWithLoRA VocabParallelEmbeddingWithLoRA"),
        Dependency("vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA",
                   has="_apply_lora_to_output"),
        platform="cpu",
    ),
    Hook(
        "cpu.linear_layers", MODEL_ON_CPU,
        "vLLM computes all products with oneDNN. With up to 8 rows, as in decoding at small "
        "batches, that takes half as long again as reading the weights. The results here are the "
        "same, bit for bit.",
        "when oneDNN's small-M GEMM is as fast.",
        Dependency("vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm", "_make",
                   "layer remove_weight"),
        lost="small-M GEMMs are not faster here", platform="cpu",
    ),
    Hook(
        "cpu.moe_lora", MODEL_ON_CPU,
        "In engines with LoRA, vLLM gives a mixture of experts Triton's kernel, which cannot run "
        "on a CPU: no such engine starts. Here it is asked for the kernel that it takes without "
        "LoRA, and that kernel learns to take adapters.",
        "when vLLM's kernels for CPUs support LoRA; nothing is changed then.",
        Dependency(_EXPERTS + "select_unquantized_moe_backend", "_make", "moe_config"),
        Dependency("vllm.model_executor.layers.fused_moe.experts.lora_experts_mixin",
                   has="LoRAExpertsMixin"),
        since="0.31", lost="LoRA on mixtures of experts does not run", platform="cpu",
    ),
    _workaround(
        "cpu.workarounds", WORKAROUNDS,
        "V1 rewinds the random generator of each seeded request that is still prefilling with "
        "`Generator.set_offset`, which CPU generators lack: a seeded request whose prompt is "
        "split over steps kills the engine. Here such rows keep their generator out of the step: "
        "their sample is thrown away anyway.",
        Dependency("vllm.v1.worker.cpu_model_runner:CPUModelRunner.sample_tokens", "_make_sample",
                   if_loaded=True),
    ),
    _workaround(
        "cpu.workarounds", WORKAROUNDS,
        "V1 gives each draft's row the temperature, top-k and top-p of its request. The kernel "
        "writes into an int64 copy of the output, and what it returns is uninitialised memory: as "
        "soon as one request of a batch samples at random, the tokens of all are wrong, greedy "
        "ones too.",
        Dependency(_SAMPLE + "rejection_sampler:expand_batch_to_tokens", "_make_expand",
                   "x cu_num_tokens num_tokens replace_from replace_to", if_loaded=True),
    ),
    _workaround(
        "cpu.workarounds", WORKAROUNDS,
        "A linear LoRA layer takes the device of the base layer's weight. Where weights and "
        "inputs are int8, oneDNN's kernel leaves None in its place, so that no engine with LoRA "
        "starts on a CPU without AMX.",
        Dependency("vllm.lora.layers.base_linear:_get_lora_device", "_make_device", "base_layer",
                   if_loaded=True),
        can_go="when 0.32 is no longer supported.",
    ),
    _workaround(
        "cpu.workarounds", WORKAROUNDS,
        "Drafters such as EAGLE and MTP compute with the target's embedding, which is a LoRA "
        "layer. It would take the adapters of the last step's rows, whose number differs: LoRA "
        "raises. Here drafts are made without adapters; right or wrong, they are verified.",
        Dependency(_DRAFTER + "propose", "_make_drafter", if_loaded=True),
        # On a rank whose requests have ended, next to busy ones.
        Dependency(_DRAFTER + "dummy_run", "_make_drafter", if_loaded=True),
        Dependency(_GPU + "spec_decode.target_dependent_ar.speculator:"
                   "TargetDependentARSpeculator.propose", "_make_drafter", if_loaded=True),
        can_go="when its test in `tests/unit/test_workarounds.py` says so.", since="0.32",
    ),
    _workaround(
        "cpu.workarounds", EMBEDS,
        "V1 embeds only the rows of a step that are tokens, without those that bring their "
        "embeddings. The LoRA layer gives them the adapters of the first rows: another request's. "
        "Here all rows are embedded, and those that were asked for taken.",
        Dependency(_RUNNER_V1 + "_preprocess", "_make_preprocess", "scheduler_output",
                   if_loaded=True),
        platform="",
    ),
    _workaround(
        "cpu.workarounds", WORKAROUNDS,
        "V2 tells the LoRA layers one adapter for each request, but with speculative decoding a "
        "request has a row of logits for each draft and one more: LoRA of the output layer takes "
        "other requests' adapters. Here each request's adapter is repeated for each of its rows, "
        "as on V1.",
        Dependency(_RUNNER_V2 + "prepare_inputs", "_make_prepare", if_loaded=True),
        Dependency(_GPU + "lora_utils:LoraState.make_lora_inputs", "_make_inputs", if_loaded=True),
    ),
    Hook(
        "npu.npu_platform", PLATFORM,
        "In engines that vllm-cold serves `npu.lora_bgmv` runs LoRA on Ascend NPUs.",
        "with `npu.lora_bgmv`.",
        Dependency("vllm.platforms:current_platform.get_punica_wrapper", "_make_wrapper",
                   kind=classmethod),
        lost="LoRA on NPUs is vllm-ascend's", platform="npu",
    ),
    Hook(
        "npu.lora_bgmv", LORA,
        "vLLM's V1 runner says `prefill` in every step, so that vllm-ascend uses its SGMV "
        "kernels. These are told how many runs of equal adapters the batch's rows form, as a "
        "Python number, which a compiled model keeps from its tracing: the rows after the first "
        "runs get no adapter. The BGMV kernels read each row's own adapter from a tensor.",
        "when vllm-ascend passes no Python number to its kernels.",
        Dependency("vllm_ascend.lora.punica_npu:PunicaWrapperNPU",
                   has="_shrink_decode _expand_decode _expand_slice_decode _get_token_lora_indices "
                   "update_metadata(mapping)"),
        platform="npu",
    ),
)
# fmt: on


def rows(*when: str) -> tuple[Hook, ...]:
    """The rows of these times, or of all, on this platform."""
    asked = (hook for hook in TABLE if not when or hook.when in when)
    return tuple(hook for hook in asked if not hook.platform or is_on(hook.platform))


def since(*when: str) -> str:
    """The release of vLLM from which on these times are supported: that of their first rows."""
    minors = [[int(h.since.split(".")[1]) for h in TABLE if h.when == one] for one in when]
    return f"0.{max(map(min, minors))}"


def problem(*when: str) -> str | None:
    """What vLLM lacks of what vllm-cold cannot do without at these times, in one sentence without
    its full stop; None if nothing.
    """
    return problems(hook for hook in rows(*when) if not hook.lost)
