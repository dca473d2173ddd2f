# SPDX-License-Identifier: Apache-2.0
"""What vllm-cold wraps and relies on in vLLM's workers; ``compat.places`` says how it is used. Data
alone.
"""

from vllm_cold.compat import places
from vllm_cold.compat.patching import Hook, Relies, Wraps, lazy

# fmt: off
# A module is loaded when one of its functions wraps something.
(cpu_sampling,) = lazy("vllm_cold.compat", "cpu_sampling")
(worker_output,) = lazy("vllm_cold.wire", "worker_output")
(
    amateur_tokens, block_zeroer, drafts_v1, drafts_v2, penalties_v2, processor_v1, processor_v2,
    ssm,
) = lazy(
    "vllm_cold.worker",
    "amateur_tokens block_zeroer drafts_v1 drafts_v2 penalties_v2 processor_v1 processor_v2 ssm",
)

_SCHED, _SAMPLE = "vllm.v1.core.sched.", "vllm.v1.sample."
_GPU = "vllm.v1.worker.gpu."
_RUNNER_V1 = "vllm.v1.worker.gpu_model_runner:GPUModelRunner."
_RUNNER_V2 = _GPU + "model_runner:GPUModelRunner."
_BUILD = "vllm_config device is_pin_memory is_pooling_model custom_logitsprocs"

TABLE = (
    Hook(
        worker_output, places.WORKER,
        "What a worker found in the groups that it scored travels to the scheduler as an "
        "attribute of a step's output.",
        places.CHANNEL,
        Wraps("vllm.v1.outputs:ModelRunnerOutput.__init__", worker_output.wrap_output_init),
    ),
    Hook(
        processor_v1, places.V1,
        "In vLLM's public interface for logits processors, scores are computed after the grammar, "
        "`allowed_token_ids`, `bad_words`, `min_tokens` and `logit_bias`, and before penalties, "
        "temperature and top-k / top-p.",
        "never.",
        Relies(_SAMPLE + "logits_processor.interface:BatchUpdate", has="removed added moved"),
        Relies(_SAMPLE + "logits_processor.interface:MoveDirectionality", has="SWAP"),
        Relies(_SAMPLE + "sampler:Sampler.apply_logits_processors",
               uses="allowed_token_ids_mask apply_bad_words non_argmax_invariant "
               "apply_penalties"),
    ),
    Hook(
        processor_v2, places.V2,
        "The same on V2, the default on GPUs since 0.32.",
        "never.",
        Relies(_GPU + "sample.logits_processor.interface:LogitsContext",
               has="idx_mapping_np input_ids expanded_local_pos"),
        Relies(_GPU + "sample.sampler:Sampler.apply_sampling_params",
               uses="logits_processors apply_temperature apply_min_p apply_top_k_top_p"),
        since="0.31",
    ),
    Hook(
        amateur_tokens, places.V1,
        "Each amateur gets the token that was sampled from the expert's row: its entry in what "
        "the sampler returns is overwritten. That is the first point at which the tokens are "
        "known, and they are still on the device.",
        places.LOGITS,
        Wraps(_SAMPLE + "sampler:Sampler.forward", amateur_tokens.wrap_sampler_forward,
              "logits sampling_metadata"),
        Relies(_SAMPLE + "sampler:Sampler.forward", uses="apply_logits_processors sample"),
    ),
    Hook(
        amateur_tokens, places.V2,
        "The same on V2.",
        places.LOGITS,
        Wraps(_GPU + "sample.sampler:Sampler.__call__", amateur_tokens.wrap_sampler_call,
              "logits input_batch"),
        since="0.31",
    ),
    Hook(
        penalties_v2, places.V2,
        "V2 applies penalties before custom processors, to each row according to its own prompt, "
        "which may differ between an amateur and its expert. Here vllm-cold scores after "
        "`bad_words` and before penalties, as on V1. For regular requests nothing changes: what "
        "`bad_words` forbid is -inf in either order.",
        places.LOGITS,
        Wraps(_GPU + "sample.sampler:Sampler.__init__", penalties_v2.wrap_sampler_init),
        Relies(_GPU + "sample.sampler", has="PenaltiesState BadWordsState"),
        since="0.31",
    ),
    places.workaround(
        block_zeroer, places.BLOCKS_V2,
        "Blocks that hold NaN are cleared before another request gets them, by the list that "
        "vLLM's scheduler has for its own clearing. V2 follows it only where the KV cache wants "
        "its new blocks cleared, and stops with an assertion elsewhere.",
        Wraps("vllm.v1.worker.cpu.model_runner:CPUModelRunner.initialize_kv_cache",
              block_zeroer.wrap_initialize_kv_cache),
        Relies("vllm.v1.worker.cpu.model_runner:CPUModelRunner", has="_init_kv_zero_meta"),
        can_go="when V2 clears blocks of every cache, or when vLLM's attention on CPU does not "
        "read past a sequence.", since="0.31",
    ),
    Hook(
        drafts_v1, places.DRAFTS,
        "V1 refuses logits processors under speculation, as they cannot know of the rows of "
        "drafts; vllm-cold's does, so it is loaded.",
        places.LOGITS,
        Wraps(_SAMPLE + "logits_processor:build_logitsprocs", drafts_v1.wrap_build_logitsprocs,
              _BUILD),
        Wraps("vllm.v1.worker.gpu_model_runner:build_logitsprocs", drafts_v1.wrap_build_logitsprocs,
              _BUILD, if_loaded=True),
        Relies(_SCHED + "scheduler:Scheduler", has="num_spec_tokens num_lookahead_tokens"),
        # What changes logits is applied to drafts once: drafts_v1 has to know it.
        Relies(_SAMPLE + "metadata:SamplingMetadata",
               has="allowed_token_ids_mask bad_words_token_ids logitsprocs no_penalties "
               "thinking_budget_state_holder prompt_token_ids frequency_penalties "
               "presence_penalties repetition_penalties",
               others="temperature all_greedy all_random top_p top_k generators "
               "max_num_logprobs output_token_ids logprob_token_ids spec_token_ids"),
        Relies("vllm.v1.spec_decode.metadata:SpecDecodeMetadata",
               has="num_draft_tokens draft_token_ids"),
        since="0.32",
    ),
    Hook(
        drafts_v1, places.DRAFTS_V1,
        "V1 asks its logits processors about a request's last row alone, the one after its "
        "drafts. Here the rows in which drafts are verified are scored, too, and the amateurs get "
        "the expert's drafts and those that were accepted.",
        places.LOGITS,
        Wraps(_SAMPLE + "rejection_sampler:RejectionSampler.apply_logits_processors",
              drafts_v1.wrap_apply_logits_processors, "logits sampling_metadata metadata"),
        Wraps(_SAMPLE + "rejection_sampler:RejectionSampler.forward",
              drafts_v1.wrap_rejection_forward, "metadata draft_probs logits sampling_metadata"),
        Wraps(_RUNNER_V1 + "propose_draft_token_ids", drafts_v1.wrap_propose_draft_token_ids),
        since="0.32",
    ),
    Hook(
        drafts_v2, places.DRAFTS_V2,
        "Unlike others, vllm-cold's logits processor is told on the host how many rows a request "
        "has. Large batches are verified in chunks of requests; a chunk never separates a group. "
        "The amateurs get the expert's tokens, and its drafts for the next step.",
        places.LOGITS,
        Wraps(_GPU + "spec_decode.rejection_sampler:RejectionSampler.__call__",
              drafts_v2.wrap_rejection_call, "logits input_batch"),
        Wraps(_GPU + "spec_decode.rejection_sampler:_iter_request_chunks",
              drafts_v2.wrap_iter_request_chunks, "cu_num_logits max_chunk_logits"),
        Wraps(_RUNNER_V2 + "sample_tokens", drafts_v2.wrap_sample_tokens),
        since="0.32",
    ),
    places.workaround(
        ssm, places.SSM,
        "With prefix caching, a Mamba 2 layer declares that a prompt's last step also exports the "
        "state at the last block boundary before its end. The scan on CPU returns only the states "
        "at the prompts' ends: stock vLLM stops with an `IndexError` at the first prompt that is "
        "longer than a block. Here the layer does not declare it, and the scheduler ends a step "
        "at the boundary.",
        Wraps("vllm.model_executor.layers.mamba.mamba_mixer2:MambaMixer2.get_kv_cache_spec",
              ssm.wrap_get_kv_cache_spec),
        since="0.32",
    ),
    places.workaround(
        ssm, places.SSM,
        "The kernel takes queries [T, heads * size] and, as LFM2 gives them, [T, heads, size]; of "
        "the latter it rotates only one head. Here it gets the former.",
        Wraps("vllm.model_executor.layers.rotary_embedding.base:RotaryEmbedding.forward_cpu",
              ssm.wrap_rotary_forward, "positions query key"),
        since="0.32",
    ),
    places.workaround(
        cpu_sampling, places.DRAFTS_V1,
        "V1 gives each draft's row the temperature, top-k and top-p of its request. The kernel "
        "writes into an int64 copy of the output, and what it returns is uninitialised memory: as "
        "soon as one request of a batch samples at random, the tokens of all are wrong, greedy "
        "ones too.",
        Wraps(_SAMPLE + "rejection_sampler:expand_batch_to_tokens",
              cpu_sampling.wrap_expand_batch_to_tokens,
              "x cu_num_tokens num_tokens replace_from replace_to", if_loaded=True),
        since="0.32",
    ),
    places.workaround(
        cpu_sampling, places.V1,
        "V1 rewinds the random generator of each seeded request that is still prefilling with "
        "`Generator.set_offset`, which CPU generators lack: a seeded request whose prompt is "
        "split over steps kills the engine. Here such rows keep their generator out of the step: "
        "their sample is thrown away anyway.",
        Wraps("vllm.v1.worker.cpu_model_runner:CPUModelRunner.sample_tokens",
              cpu_sampling.wrap_cpu_sample_tokens, if_loaded=True),
    ),
)
# fmt: on
