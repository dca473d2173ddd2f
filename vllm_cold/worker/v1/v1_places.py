# SPDX-License-Identifier: Apache-2.0
"""What vllm-cold wraps and relies on in workers with the V1 model runner; ``compat.places`` says
how it is used. Data alone.
"""

from vllm_cold.compat import places
from vllm_cold.compat.patching import Hook, Relies, Wraps, lazy

# fmt: off
# A module is loaded when one of its functions wraps something.
cpu_sampling, drafts_v1, processor_v1, step_outputs = lazy(
    "vllm_cold.worker.v1", "cpu_sampling drafts_v1 processor_v1 step_outputs"
)

_SAMPLE = "vllm.v1.sample."
_RUNNER = "vllm.v1.worker.gpu_model_runner:"
_BUILD = "vllm_config device is_pin_memory is_pooling_model custom_logitsprocs"
_VLLM = "https://github.com/vllm-project/vllm/"
_GONE = "when vLLM 0.33 and vllm-ascend 0.23 are no longer supported."

TABLE = (
    Hook(
        processor_v1, places.V1,
        "The public interface for logits processors of V1.",
        _GONE,
        Relies(_SAMPLE + "logits_processor.interface:BatchUpdate", has="removed added moved"),
        Relies(_SAMPLE + "logits_processor.interface:MoveDirectionality", has="SWAP"),
        Relies(_SAMPLE + "sampler:Sampler.apply_logits_processors",
               uses="allowed_token_ids_mask apply_bad_words non_argmax_invariant "
               "apply_penalties"),
        until="0.34",
    ),
    Hook(
        step_outputs, places.V1,
        "Each amateur gets the token that was sampled from the expert's row: its entry in what "
        "the sampler returns is overwritten. What a worker found in the groups travels to the "
        "scheduler as an attribute of a step's output.",
        _GONE,
        Wraps(_SAMPLE + "sampler:Sampler.forward", step_outputs.wrap_sampler_forward,
              "logits sampling_metadata"),
        Wraps("vllm.v1.outputs:ModelRunnerOutput.__init__", step_outputs.wrap_output_init),
        Relies(_SAMPLE + "sampler:Sampler.forward", uses="apply_logits_processors sample"),
        until="0.34",
    ),
    Hook(
        drafts_v1, places.V1_LOADED,
        "V1 refuses logits processors under speculation, as they cannot know of the rows of "
        "drafts; vllm-cold's does, so it is loaded.",
        _GONE,
        Wraps(_SAMPLE + "logits_processor:build_logitsprocs", drafts_v1.wrap_build_logitsprocs,
              _BUILD),
        Wraps(_RUNNER + "build_logitsprocs", drafts_v1.wrap_build_logitsprocs, _BUILD,
              if_loaded=True),
        Relies("vllm.v1.core.sched.scheduler:Scheduler",
               has="num_spec_tokens num_lookahead_tokens"),
        # What changes logits is applied to drafts once: drafts_v1 has to know it.
        Relies(_SAMPLE + "metadata:SamplingMetadata",
               has="allowed_token_ids_mask bad_words_token_ids logitsprocs no_penalties "
               "thinking_budget_state_holder prompt_token_ids frequency_penalties "
               "presence_penalties repetition_penalties",
               others="temperature all_greedy all_random top_p top_k generators "
               "max_num_logprobs output_token_ids logprob_token_ids spec_token_ids"),
        Relies("vllm.v1.spec_decode.metadata:SpecDecodeMetadata",
               has="num_draft_tokens draft_token_ids"),
        link=_VLLM + "pull/43672", since="0.32", until="0.34",
    ),
    Hook(
        drafts_v1, places.V1_DRAFTS,
        "V1 asks its logits processors about a request's last row alone, the one after its "
        "drafts. Here the rows in which drafts are verified are scored, too, and the amateurs get "
        "the expert's drafts and those that were accepted.",
        _GONE,
        Wraps(_SAMPLE + "rejection_sampler:RejectionSampler.apply_logits_processors",
              drafts_v1.wrap_apply_logits_processors, "logits sampling_metadata metadata"),
        Wraps(_SAMPLE + "rejection_sampler:RejectionSampler.forward",
              drafts_v1.wrap_rejection_forward, "metadata draft_probs logits sampling_metadata"),
        Wraps(_RUNNER + "GPUModelRunner.propose_draft_token_ids",
              drafts_v1.wrap_propose_draft_token_ids),
        link=_VLLM + "pull/43672", since="0.32", until="0.34",
    ),
    places.workaround(
        cpu_sampling, places.V1_ON_CPU,
        "V1 gives each draft's row the temperature, top-k and top-p of its request. The kernel "
        "writes into an int64 copy of the output, and what it returns is uninitialised memory: as "
        "soon as one request of a batch samples at random, the tokens of all are wrong, greedy "
        "ones too.",
        Wraps(_SAMPLE + "rejection_sampler:expand_batch_to_tokens",
              cpu_sampling.wrap_expand_batch_to_tokens,
              "x cu_num_tokens num_tokens replace_from replace_to", if_loaded=True),
        link=_VLLM + "pull/42638", until="0.34",
    ),
    places.workaround(
        cpu_sampling, places.V1_ON_CPU,
        "V1 rewinds the random generator of each seeded request that is still prefilling with "
        "`Generator.set_offset`, which CPU generators lack: a seeded request whose prompt is "
        "split over steps kills the engine. Here such rows keep their generator out of the step: "
        "their sample is thrown away anyway.",
        Wraps("vllm.v1.worker.cpu_model_runner:CPUModelRunner.sample_tokens",
              cpu_sampling.wrap_cpu_sample_tokens, if_loaded=True),
        until="0.34",
    ),
)
# fmt: on
