# SPDX-License-Identifier: Apache-2.0
"""What vllm-cold wraps and relies on in vLLM's workers, where they have the V2 model runner;
``compat.places`` says how it is used. Data alone.
"""

from vllm_cold.compat import places
from vllm_cold.compat.patching import Hook, Relies, Wraps, lazy

# fmt: off
# A module is loaded when one of its functions wraps something.
processor, runner_hooks, ssm = lazy("vllm_cold.worker", "processor runner_hooks ssm")

_GPU = "vllm.v1.worker.gpu."
_RUNNER = _GPU + "model_runner:GPUModelRunner"
_SAMPLER = _GPU + "sample.sampler:Sampler"

TABLE = (
    Hook(
        processor, places.WORKER,
        "In vLLM's public interface for logits processors, scores are computed after the grammar, "
        "`allowed_token_ids`, `bad_words`, `min_tokens` and `logit_bias`, and before penalties, "
        "temperature and top-k / top-p.",
        "never.",
        Relies(_GPU + "sample.logits_processor.interface:LogitsContext",
               has="idx_mapping_np idx_mapping expanded_idx_mapping pos input_ids "
               "expanded_local_pos"),
        Relies(_GPU + "sample.logits_processor.interface:LogitsProcRequestState",
               has="device max_num_reqs prompt_len prefill_len"),
        Relies(_SAMPLER + ".apply_sampling_params",
               uses="logits_processors apply_temperature apply_min_p apply_top_k_top_p"),
        since="0.32",
    ),
    Hook(
        runner_hooks, places.WORKER,
        "Each amateur gets the token that was sampled from its expert's row, at the first point at "
        "which the tokens are known: they are still on the device. Scores are computed before "
        "penalties, which go by a row's own prompt. The figures of the groups leave with the "
        "step's output. For all of it the runner is extended, as an object: its class, and the "
        "runners of other engines, stay as they are.",
        places.LOGITS,
        # Since 0.33 `init_worker_extension` says when a worker's runner is there.
        Wraps(_RUNNER + ".initialize_kv_cache", runner_hooks.wrap_initialize_kv_cache,
              "kv_cache_config", until="0.33"),
        Relies("vllm.config:ParallelConfig", has="worker_extension_cls", since="0.33"),
        Relies("vllm.v1.worker.worker_base:WorkerWrapperBase.init_device",
               uses="worker init_device _worker_extension_cls", since="0.33"),
        Relies(_RUNNER, has="sampler rejection_sampler speculator "
               "sample(hidden_states input_batch grammar_output) sample_tokens(grammar_output) "
               "initialize_kv_cache(kv_cache_config)"),
        Relies(_SAMPLER, has="logits_processors"),
        Relies(_GPU + "sample.sampler", has="PenaltiesState BadWordsState"),
        Relies(_GPU + "sample.output:SamplerOutput",
               has="sampled_token_ids num_sampled num_rejected"),
        Relies(_GPU + "input_batch:InputBatch",
               has="idx_mapping_np num_draft_tokens cu_num_logits_np"),
        Relies(_GPU + "async_utils:AsyncOutput", has="model_runner_output"),
        since="0.32",
    ),
    places.workaround(
        runner_hooks, places.WORKER,
        "Blocks that hold NaN are cleared before another request gets them, by the list that "
        "vLLM's scheduler has for its own clearing. Workers follow it only where the KV cache "
        "wants its new blocks cleared, and stop with an assertion elsewhere. Here they follow it "
        "on CPUs, too.",
        Relies("vllm.v1.worker.cpu.model_runner:CPUModelRunner", has="_init_kv_zero_meta()"),
        can_go="when workers clear blocks of every cache, or when vLLM's attention on CPU does not "
        "read past a sequence.", since="0.32", lost="",
    ),
    Hook(
        runner_hooks, places.DRAFTS,
        "Unlike others, vllm-cold's logits processor is told on the host how many rows a request "
        "has. Large batches are verified in chunks of requests; a chunk never separates a group. "
        "The amateurs get the expert's tokens, and its drafts for the next step.",
        places.LOGITS,
        Wraps(_GPU + "spec_decode.rejection_sampler:_iter_request_chunks",
              runner_hooks.wrap_iter_request_chunks, "cu_num_logits max_chunk_logits"),
        Relies(_GPU + "spec_decode.speculator:BaseSpeculator", has="propose(input_batch)"),
        Relies("vllm.v1.core.sched.scheduler:Scheduler",
               has="num_spec_tokens num_lookahead_tokens"),
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
)
# fmt: on
