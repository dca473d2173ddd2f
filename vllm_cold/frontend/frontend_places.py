# SPDX-License-Identifier: Apache-2.0
"""What vllm-cold wraps and relies on in vLLM's front ends; ``compat.places`` says how it is used.
Data alone.
"""

from vllm_cold.compat import places, refused_options
from vllm_cold.compat.patching import Hook, Relies, Wraps, lazy

# fmt: off
# A module is loaded when one of its functions wraps something.
(
    aliases, capacity, explain_output, intake, media_cache, metrics, prompts, request_hooks,
    request_media, serving,
) = lazy(
    "vllm_cold.frontend",
    "aliases capacity explain_output intake media_cache metrics prompts request_hooks "
    "request_media serving",
)

_OPENAI = "vllm.entrypoints.openai."
_COMPLETION = _OPENAI + "completion.protocol:CompletionRequest."
_CHAT = _OPENAI + "chat_completion.protocol:ChatCompletionRequest."
_ONLINE = "vllm.renderers.online_renderer:OnlineRenderer."
_ONLINE_023 = "vllm.entrypoints.serve.render.serving:OpenAIServingRender."
_RENDERER = "vllm.renderers.base:BaseRenderer"
_PROCESSORS = "vllm.v1.worker.gpu.sample.logits_processor.loader"
_PROCESSORS_023 = "vllm.v1.sample.logits_processor"
_MEDIA_CONNECTOR = "vllm.multimodal.media.connector:MediaConnector."

TABLE = (
    Hook(
        intake, places.FRONT_END,
        "It calls `process_inputs` on an event loop. Before that call, an amateur's prompt is "
        "made and the file of its adapter is read.",
        places.DERIVED,
        Wraps("vllm.v1.engine.async_llm:AsyncLLM.add_request", intake.wrap_add_request,
              "request_id prompt params arrival_time lora_request"),
        Relies("vllm.v1.engine:EngineCoreRequest",
               has="sampling_params lora_request mm_features resumable prompt_token_ids "
               "prompt_embeds"),
        Relies("vllm.lora.request:LoRARequest", has="lora_name lora_int_id lora_path"),
        Relies("vllm.exceptions", has="VLLMValidationError"),
        # What rules of scores do not allow: renamed, it would not be refused any more.
        Relies("vllm.sampling_params:SamplingParams",
               has="temperature top_p top_k min_p presence_penalty frequency_penalty "
               "repetition_penalty logit_bias thinking_token_budget logprobs prompt_logprobs "
               "logprob_token_ids"),
        Relies("vllm.sampling_params:SamplingParams", has="prompt_logprob_token_ids",
               since="0.31"),
        Relies(_PROCESSORS, has="LOGITSPROCS_GROUP", before=_PROCESSORS_023),
    ),
    Hook(
        prompts, places.FRONT_END,
        "An amateur's prompt becomes token ids as its expert's did: with the same chat template, "
        "tools, template arguments and tokenizer's arguments. Only here are these together, for "
        "`LLM.generate`, `LLM.chat` and all endpoints.",
        places.DERIVED,
        Wraps(_RENDERER + ".render_cmpl", prompts.wrap_render_cmpl, "prompts tok_params"),
        Wraps(_RENDERER + ".render_cmpl_async", prompts.wrap_render_cmpl, "prompts tok_params"),
        Wraps(_RENDERER + ".render_chat", prompts.wrap_render_chat,
              "conversations chat_params tok_params"),
        Wraps(_RENDERER + ".render_chat_async", prompts.wrap_render_chat,
              "conversations chat_params tok_params"),
        Relies("vllm.renderers.params:ChatParams", has="with_defaults"),
    ),
    Hook(
        explain_output, places.FRONT_END,
        "The engine explains each token once, with the token; a client that asks gets all "
        "explanations with the last one. A stop string that ends an answer is known here first. "
        "Tokens have the texts that logprobs have.",
        places.CHANNEL,
        Relies("vllm.tokenizers.detokenizer_utils", has="convert_ids_list_to_tokens"),
        Wraps("vllm.v1.engine.output_processor:RequestState.make_request_output",
              explain_output.wrap_make_request_output,
              "new_token_ids pooling_output finish_reason stop_reason kv_transfer_params"),
    ),
    Hook(
        serving, places.FRONT_END,
        "A request that the scheduler ends with an error has the reason in `stop_reason`; vLLM's "
        'servers would say "Internal server error". (`EngineCoreOutput.error`, since 0.33, is for '
        "requests that never ran: one that did would be left out of the metrics, and its adapter "
        "would run there for ever.) The header `x-cold` tells a client what its "
        "tokens were chosen with, and `kv_transfer_params` what it asked for of each step; before "
        "0.33, streams get the latter here.",
        "when vLLM tells clients why a request that ran has failed, and lets plugins add to a "
        "response.",
        Wraps("vllm.v1.engine.async_llm:AsyncLLM.generate", serving.wrap_generate,
              "prompt sampling_params request_id"),
        link="https://github.com/vllm-project/vllm/pull/18179",
    ),
    Hook(
        refused_options, places.FRONT_END,
        "Options with which contrastive decoding is refused: if vLLM renamed one, engines with it "
        "would not be refused any more.",
        "an option at a time, when vllm-cold supports it.",
        *refused_options.places(),
    ),
    Hook(
        capacity, places.FRONT_END,
        "Limits that a request's streams have to fit.",
        "when vLLM says for how many tokens a request has room.",
        Relies("vllm.config:SchedulerConfig", has="max_num_active_seqs watermark", since="0.31"),
        Relies("vllm.config:VllmConfig", has="num_lookahead_tokens", since="0.31"),
    ),
    Hook(
        metrics, places.FRONT_END,
        "The figures that a scheduler sent become metrics. (vLLM's entry point for such loggers "
        "would switch statistics on in engines that have them off.)",
        places.CHANNEL,
        Wraps("vllm.v1.metrics.loggers:StatLoggerManager.__init__",
              metrics.wrap_logger_manager_init, "vllm_config"),
        Wraps("vllm.v1.metrics.loggers:StatLoggerManager.record", metrics.wrap_record,
              "scheduler_stats"),
        Relies("vllm.v1.metrics.loggers:PrometheusStatLogger",
               has="_counter_cls _gauge_cls _histogram_cls"),
    ),
    Hook(
        request_media, places.FRONT_END,
        "Media of a prompt that is rendered for an amateur, too, are fetched and decoded once.",
        places.DERIVED,
        Wraps(_MEDIA_CONNECTOR + "load_from_url", request_media.wrap_load_from_url, "url media_io"),
        Wraps(_MEDIA_CONNECTOR + "load_from_url_async", request_media.wrap_load_from_url,
              "url media_io"),
        since="0.31",
        lost="media of prompts that amateurs share with their expert are fetched again",
    ),
    Hook(
        media_cache, places.MEDIA,
        "The media of amateurs' prompts travel after their expert's in "
        "`EngineCoreRequest.mm_features`, so that vLLM treats them as the request's own. vLLM's "
        "front end sends an image once and then its hash, in the order of processing, which a "
        "request that waits for its amateurs' prompts does not keep. So a contrastive request "
        "brings its data along, and the sender is told when it leaves.",
        places.DERIVED,
        # They are made anew.
        Relies("vllm.multimodal.inputs:MultiModalFeatureSpec",
               has="data modality identifier mm_position mm_hash", others=""),
        Relies("vllm.multimodal.utils", has="argsort_mm_positions"),
        Relies("vllm.multimodal.image", has="convert_image_mode normalize_image"),
        Relies("vllm.multimodal.media", has="MediaWithBytes"),
        Relies("vllm.multimodal.cache", has="LruKeyReplicatedSenderCache"),
        Relies(_RENDERER,
               has="mm_processor_cache render_messages_async "
               "_mm_processor_only_cache _mm_executor"),
        Relies("vllm.v1.engine.input_processor:InputProcessor",
               has="mm_encoder_cache_size renderer"),
        Relies("vllm.config:SchedulerConfig",
               has="max_num_batched_tokens long_prefill_token_threshold "
               "disable_chunked_mm_input"),
        since="0.31",
    ),
    Hook(
        request_hooks, places.ONLINE,
        "Right after the renderer, the amateurs' prompts are made: the body and the template's "
        "arguments are known, a wrong request gets its HTTP 400 before a streamed response "
        "starts, and it is off the event loop. `to_sampling_params` says which prompts are sent "
        "to the engine; for some models, vLLM makes the prompts elsewhere, and their requests are "
        "decided about there.",
        places.DERIVED,
        Wraps(_ONLINE + "preprocess_chat", request_hooks.wrap_preprocess, "request",
              before=_ONLINE_023 + "preprocess_chat"),
        Wraps(_ONLINE + "preprocess_cmpl", request_hooks.wrap_preprocess, "request",
              before=_ONLINE_023 + "preprocess_cmpl"),
        Wraps(_COMPLETION + "to_sampling_params", request_hooks.wrap_to_sampling_params),
        Wraps(_CHAT + "to_sampling_params", request_hooks.wrap_to_sampling_params),
        Wraps(_OPENAI + "responses.protocol:ResponsesRequest.to_sampling_params",
              request_hooks.wrap_to_sampling_params),
        link="https://github.com/vllm-project/vllm/pull/18179",
    ),
    Hook(
        request_hooks, places.ONLINE,
        "`cold_amateur` names an adapter, and only the server's list of loaded adapters resolves "
        "it.",
        "when vLLM resolves names of adapters for extensions.",
        Wraps(_OPENAI + "models.serving:OpenAIServingModels.__init__",
              request_hooks.wrap_models_init),
    ),
    Hook(
        request_hooks, places.ONLINE,
        "Beam search makes its own sampling parameters: a request for both would silently lose "
        "contrastive decoding.",
        "when vLLM passes `vllm_xargs` on in beam search.",
        Wraps(_COMPLETION + "to_beam_search_params", request_hooks.wrap_to_beam_search_params),
        Wraps(_CHAT + "to_beam_search_params", request_hooks.wrap_to_beam_search_params),
    ),
    Hook(
        request_hooks, places.OFFLINE,
        "The same, offline.",
        "when vLLM passes `extra_args` on in beam search.",
        Wraps("vllm:LLM.beam_search", request_hooks.wrap_beam_search,
              "prompts params lora_request"),
    ),
    Hook(
        aliases, places.ONLINE,
        "A client that cannot send `cold_preset` names the model `NAME:PRESET` instead. Every "
        "endpoint asks here first whether a request's model is served.",
        "when vLLM lets plugins resolve the names of models.",
        Wraps("vllm.entrypoints.serve.engine.serving:BaseServing._check_model",
              aliases.wrap_check_model, "request",
              before=_OPENAI + "engine.serving:OpenAIServing._check_model"),
        lost="names of models with a preset (sql:cold) are unknown here",
    ),
)
# fmt: on
