# SPDX-License-Identifier: Apache-2.0
"""What vllm-cold relies on in vLLM's scheduler; ``compat.places`` says how it is used."""

from vllm_cold.compat import places
from vllm_cold.compat.patching import Hook, Relies, lazy

# fmt: off
# A module is loaded when one of its functions wraps something.
(counters,) = lazy("vllm_cold.wire", "counters")
amateur_requests, encoder_inputs, kv_blocks, kv_loads, queue_view, releases, scheduler = lazy(
    "vllm_cold.scheduler",
    "amateur_requests encoder_inputs kv_blocks kv_loads queue_view releases scheduler",
)

_SCHED = "vllm.v1.core.sched."

TABLE = (
    Hook(
        scheduler, places.CONFIGURED,
        "A contrastive request is several requests that are scheduled in lockstep. "
        "`_mamba_block_aligned_split` is called for every request that is about to get tokens, if "
        "`need_mamba_block_aligned_split` is true: only there can tokens be capped *before* "
        "blocks are allocated and hashed. `_update_after_schedule`, the end of `schedule()`, "
        "removes what is left of a group that was split.",
        places.GROUPS,
        Relies(_SCHED + "scheduler:Scheduler",
               has="vllm_config scheduler_config cache_config lora_config policy pause_state "
               "kv_cache_manager encoder_cache_manager max_num_encoder_input_tokens requests "
               "running waiting block_size max_model_len "
               "max_num_running_reqs max_num_scheduled_tokens num_spec_tokens "
               "num_lookahead_tokens num_waiting_for_streaming_input "
               "ec_connector need_mamba_block_aligned_split log_stats "
               "add_request(request) finish_requests(request_ids finished_status) "
               "get_request_counts() make_stats() make_spec_decoding_stats(spec_decoding_stats) "
               "schedule() update_from_output(scheduler_output model_runner_output) "
               "_mamba_block_aligned_split(request num_new_tokens "
               "num_new_local_computed_tokens num_external_computed_tokens) "
               "_preempt_request(request timestamp) _update_after_schedule(scheduler_output) "
               "_try_schedule_encoder_inputs(request num_computed_tokens num_new_tokens) "
               "reset_prefix_cache(reset_running_requests)"),
        Relies(_SCHED + "scheduler:Scheduler", has="adaptive_long_prefill_threshold",
               since="0.31"),
        Relies(_SCHED + "interface:PauseState", has="UNPAUSED PAUSED_NEW PAUSED_ALL"),
        # A group that is held back takes its requests out of all columns of a step.
        Relies(_SCHED + "output:CachedRequestData",
               has="req_ids new_token_ids new_block_ids num_computed_tokens num_output_tokens",
               others="resumed_req_ids all_token_ids"),
        Relies("vllm.v1.outputs:ModelRunnerOutput", has="req_ids sampled_token_ids"),
        Relies(_SCHED + "output:SchedulerOutput",
               has="scheduled_new_reqs scheduled_cached_reqs num_scheduled_tokens "
               "total_num_scheduled_tokens preempted_req_ids scheduled_spec_decode_tokens "
               "scheduled_encoder_inputs free_encoder_mm_hashes",
               others="scheduled_encoder_input_stats encoder_input_updates "
               "kv_connector_metadata kv_connector_block_state ec_connector_metadata "
               "ec_manager_metadata aux_output_connector_metadata has_sync_kv_loads "
               "block_table_updates num_common_prefix_blocks finished_req_ids "
               "new_block_ids_to_zero kv_cache_block_copies num_spec_tokens_to_schedule "
               "skip_drafts num_invalid_spec_tokens has_structured_output_requests "
               "pending_structured_output_tokens"),
        Relies(_SCHED + "output:NewRequestData", has="req_id mm_features"),
        Relies("vllm.v1.request:Request",
               has="request_id num_computed_tokens num_output_placeholders spec_token_ids "
               "num_tokens num_output_tokens output_token_ids is_finished "
               "client_index priority arrival_time status sampling_params lora_request "
               "num_preemptions num_prompt_tokens is_prefill_chunk "
               "trace_headers block_hashes mm_features take_events _block_hasher "
               "cache_salt"),
        Relies("vllm.v1.request:RequestStatus",
               has="WAITING RUNNING PREEMPTED FINISHED_ABORTED FINISHED_ERROR"),
        Relies("vllm.v1.engine:EngineCoreOutput",
               has="request_id new_token_ids finish_reason stop_reason events trace_headers "
               "kv_transfer_params"),
        link="https://github.com/vllm-project/vllm/issues/5825",
    ),
    Hook(
        releases, places.CONFIGURED,
        "What releases call differently, asked for in one file.",
        "a release at a time, when it is no longer supported.",
        Relies(_SCHED + "scheduler:Scheduler",
               has="kv_holding_waiting deferred_waiting max_num_active_reqs "
               "prefill_capacity_bound requires_kv_delivery prefix_replay_tokens "
               "_handle_blocked_waiting_request(request)", since="0.31"),
        Relies(_SCHED + "scheduler:Scheduler", has="skipped_waiting max_num_running_reqs "
               "_try_promote_blocked_waiting_request(request)", until="0.31"),
        Relies(_SCHED + "scheduler:Scheduler", has="prev_step_scheduled_req_ids", until="0.34"),
        Relies(_SCHED + "scheduler:Scheduler",
               has="local_prefill_interval num_executed_steps last_prefill_step", since="0.33"),
        Relies(_SCHED + "output:CachedRequestData", has="resumed_req_ids all_token_ids",
               until="0.34"),
        Relies(_SCHED + "output:SchedulerOutput", has="kv_connector_block_state", since="0.31"),
        Relies(_SCHED + "output:SchedulerOutput", has="encoder_input_updates", since="0.33"),
        Relies("vllm.v1.request:Request",
               has="num_in_flight_tokens num_stale_output_tokens drop_stale_output",
               since="0.31"),
        Relies("vllm.v1.request:Request", has="shared_prefix_boundary", since="0.31"),
        Relies(_SCHED + "scheduler:Scheduler", has="hash_block_size", since="0.31"),
        Relies("vllm.v1.request:Request", has="skip_reading_prefix_cache", until="0.34"),
        Relies("vllm.v1.request:Request",
               has="prefix_cache_hit_limit skip_reading_external_kv get_max_cache_hit_length()",
               since="0.34"),
        Relies("vllm.v1.request:RequestStatus", has="WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR",
               until="0.31"),
        Relies("vllm.v1.core.kv_cache_manager:KVCacheManager", has="watermark_blocks",
               since="0.31"),
        Relies("vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager",
               has="max_admission_blocks_per_request", since="0.31"),
        Relies("vllm.v1.core.encoder_cache_manager:EncoderCacheManager",
               has="num_embeds_by_hash", since="0.31"),
    ),
    Hook(
        amateur_requests, places.CONFIGURED,
        "Amateurs are requests like their expert, without what would be done twice or for nobody.",
        places.GROUPS,
        Relies("vllm.sampling_params:SamplingParams",
               has="extra_args top_p top_k min_p logprobs prompt_logprobs structured_outputs "
               "stop_token_ids repetition_detection min_tokens bad_words allowed_token_ids "
               "_eos_token_id _bad_words_token_ids"),
    ),
    Hook(
        queue_view, places.CONFIGURED,
        "Only the expert of a group waits in a queue, so that counts and order are those of the "
        "clients' requests. During a pass, views replace the queues: they hold back who may not "
        "start, and keep a group's streams together.",
        places.GROUPS,
        Relies(_SCHED + "request_queue", has="create_request_queue"),
        Relies(_SCHED + "request_queue:RequestQueue",
               has="add_request peek_request pop_request prepend_request prepend_requests "
               "remove_request remove_requests"),
        Relies(_SCHED + "request_queue:SchedulingPolicy", has="FCFS PRIORITY"),
        link="https://github.com/vllm-project/vllm/issues/51608",
    ),
    Hook(
        kv_blocks, places.CONFIGURED,
        "A group is admitted if all its streams fit the KV cache; blocks that a step hashed and "
        "will not write leave the prefix cache.",
        places.GROUPS,
        Relies("vllm.v1.core.kv_cache_manager:KVCacheManager",
               has="evict_blocks(block_ids) get_block_ids(request_id) "
               "get_computed_blocks(request)"),
        Relies("vllm.v1.core.block_pool:BlockPool", has="evict_blocks get_num_free_blocks"),
        Relies("vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator",
               has="get_num_blocks_to_allocate single_type_managers"),
    ),
    Hook(
        encoder_inputs, places.CONFIGURED,
        "vLLM takes tokens off a request whose next medium does not fit the encoder, after the "
        "cap that keeps a group in lockstep. It counts a medium as encoded once that is planned, "
        "whether or not the request stays in the step.",
        places.GROUPS,
        Relies("vllm.v1.core.encoder_cache_manager:EncoderCacheManager",
               has="check_and_update_cache(request input_id) free(request) "
               "free_encoder_input(request input_id) get_cached_input_ids(request) "
               "get_freed_mm_hashes() cache_size num_free_slots num_freeable_slots cached "
               "freeable freed"),
        Relies("vllm.multimodal.inputs:MultiModalFeatureSpec", has="data identifier mm_position"),
        Relies("vllm.multimodal.inputs:PlaceholderRange", has="get_num_embeds offset length"),
    ),
    Hook(
        counters, places.CONFIGURED,
        "What the scheduler counted reaches the process that serves /metrics in a dictionary, "
        "next to what a KV connector counted.",
        places.CHANNEL,
        Relies("vllm.v1.metrics.stats:SchedulerStats", has="kv_connector_stats"),
    ),
    Hook(
        kv_loads, places.CONNECTOR,
        "The streams of a group wait for each other, so also for what a connector loads for one "
        "of them.",
        places.GROUPS,
        Relies(_SCHED + "scheduler:Scheduler",
               has="connector defer_block_free sched_step_seq deferred_frees "
               "recompute_kv_load_failures finished_recving_kv_req_ids "
               "failed_recving_kv_req_ids finished_req_ids kv_holding_waiting "
               "deferred_waiting _inflight_prefills has_finished_requests() "
               "_handle_blocked_waiting_request(request) "
               "_build_kv_connector_meta(connector scheduler_output) "
               "_handle_invalid_blocks(invalid_block_ids num_scheduled_tokens) "
               "_free_request_blocks(request) _request_remaining_blocks(request)"),
        Relies(_SCHED + "scheduler:Scheduler",
               has="_unreserve_parked(request) _parked_reservations _parked_reserved_blocks",
               since="0.34"),
        Relies("vllm.v1.core.kv_cache_manager:KVCacheManager",
               has="truncate_computed_blocks(blocks num_computed_tokens)"),
        Relies(_SCHED + "output:KVConnectorBlockState", has="req_ids"),
        Relies("vllm.distributed.kv_transfer.kv_connector.v1.base:KVConnectorBase_V1",
               has="get_num_new_matched_tokens has_pending_block_frees "
               "on_new_request(request)"),
        Relies("vllm.v1.outputs:ModelRunnerOutput", has="kv_connector_output"),
        Relies("vllm.v1.outputs:KVConnectorOutput", has="invalid_block_ids"),
        Relies("vllm.v1.request:RequestStatus", has="WAITING_FOR_REMOTE_KVS"),
        since="0.31",
    ),
)
# fmt: on
