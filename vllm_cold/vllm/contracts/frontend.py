# SPDX-License-Identifier: Apache-2.0
"""Contracts of the front end: configuration, admission, servers."""

import inspect
from collections.abc import Iterable
from typing import Any

from vllm_cold.vllm import places
from vllm_cold.vllm.contracts.contract import contract
from vllm_cold.vllm.contracts.source import (
    assigned_in_init,
    attribute,
    contains,
    has_fields,
    has_kind,
    has_parameters,
    in_order,
    require,
    source_of,
)
from vllm_cold.vllm.frontend import refusal, serving
from vllm_cold.vllm.patching import Place
from vllm_cold.vllm.worker import cures


def _check_all(found: Iterable[Place]) -> None:
    problems = [problem for place in found if (problem := place.problem()) is not None]
    require(not problems, "; ".join(problems) + ".")


# A note: who wraps them has looked at those that it needs.
@contract("vllm", "these are wrapped; without one, CoLD is unavailable where it counts", note=True)
def _check_places() -> None:
    _check_all((*places.at_start(), *places.later(), *places.of_front_ends()))


@contract("vllm", "bugs of vLLM on CPU are cured here; without one, that bug is there", note=True)
def _check_places_of_cures() -> None:
    _check_all(cures.places())


@contract("vllm", "where CoLD is unavailable, who asks for it is told why here", note=True)
def _check_refusal_places() -> None:
    _check_all(refusal.PLACES)


@contract("vllm.engine.arg_utils", "the engine's configuration and arguments are extended there")
def _check_engine_args() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs

    has_kind(EngineArgs, "create_engine_config", None)
    has_parameters(EngineArgs, "create_engine_config", "usage_context")
    has_kind(EngineArgs, "add_cli_args", staticmethod)
    has_parameters(EngineArgs, "add_cli_args", "parser", exact=True)
    has_kind(EngineArgs, "from_cli_args", classmethod)
    has_parameters(EngineArgs, "from_cli_args", "args", exact=True)
    has_fields(EngineArgs, "additional_config")
    own = {"create_engine_config", "from_cli_args"} & set(vars(AsyncEngineArgs))
    require(not own, f"AsyncEngineArgs now has its own {', '.join(sorted(own))}.")
    in_order(
        source_of(AsyncEngineArgs.add_cli_args),
        "AsyncEngineArgs.add_cli_args",
        "load_general_plugins()",
        "EngineArgs.add_cli_args(parser)",
    )


@contract("vllm.plugins", "installing the package is enough")
def _check_plugin_group() -> None:
    from vllm import plugins

    group = getattr(plugins, "DEFAULT_PLUGINS_GROUP", None)
    require(group == "vllm.general_plugins", f"vLLM's group of general plugins is {group!r}.")
    contains(
        source_of(plugins.load_general_plugins), "load_general_plugins", "DEFAULT_PLUGINS_GROUP"
    )


@contract("vllm.usage.usage_lib.UsageContext", "it tells a server from a script")
def _check_usage_context() -> None:
    from vllm.usage.usage_lib import UsageContext

    missing = {"OPENAI_API_SERVER", "OPENAI_BATCH_RUNNER", "LLM_CLASS"} - set(
        UsageContext.__members__
    )
    require(not missing, f"UsageContext has no {', '.join(sorted(missing))} any more.")


@contract("vllm.config", "what CoLD cannot do is recognised by these")
def _check_config_fields() -> None:
    from vllm.config import CacheConfig, LoRAConfig, ModelConfig, ParallelConfig, VllmConfig

    has_fields(
        VllmConfig,
        "additional_config",
        "model_config",
        "scheduler_config",
        "cache_config",
        "parallel_config",
        "lora_config",
        "speculative_config",
        "kv_transfer_config",
        "ec_transfer_config",
    )
    has_fields(ModelConfig, "logits_processors", "max_model_len")
    has_fields(ModelConfig, "generation_config", "override_generation_config")
    # Pydantic's __post_init__ sets it: it is no field.
    contains(source_of(ModelConfig.__post_init__), "ModelConfig", "self.runner_type = ")
    for name in ("is_encoder_decoder", "is_hybrid", "is_attention_free"):
        attribute(ModelConfig, name)
    has_fields(CacheConfig, "num_gpu_blocks", "block_size", "sliding_window")
    has_fields(LoRAConfig, "max_loras")
    contains(source_of(ModelConfig.__post_init__), "ModelConfig", "self.served_model_name = ")
    has_fields(ParallelConfig, "data_parallel_size")


@contract(
    "vllm.config.VllmConfig.use_v2_model_runner",
    "it decides which logits processor is used; in 0.23 a processor means the V1 runner",
    since=(0, 32),
)
def _check_runner_choice() -> None:
    from vllm.config import VllmConfig

    has_kind(VllmConfig, "use_v2_model_runner", property)
    choice = source_of(VllmConfig.use_v2_model_runner.fget)
    choice += source_of(attribute(VllmConfig, "_get_v2_model_runner_unsupported_features"))
    require(
        "logits_processors" not in choice,
        "VllmConfig.use_v2_model_runner turns False once a logits processor is configured: V1 is "
        "then given the V2 class.",
    )


def _input_processor() -> Any:
    from vllm.v1.engine.input_processor import InputProcessor

    return InputProcessor


@contract("vllm.v1.engine.input_processor.InputProcessor.process_inputs", "it is wrapped")
def _check_process_inputs() -> None:
    owner = _input_processor()
    has_kind(owner, "process_inputs", None)
    has_parameters(owner, "process_inputs", "request_id", "prompt", "params")
    source = source_of(owner.process_inputs)
    contains(source, "InputProcessor.process_inputs", "return EngineCoreRequest(")
    require(
        "params.clone()" in source,
        "InputProcessor.process_inputs does not copy the caller's parameters any more.",
    )
    contains(source_of(owner.__init__), "InputProcessor.__init__", "self.vllm_config = vllm_config")


@contract("vllm.v1.engine", "every request, offline and online, passes InputProcessor")
def _check_process_inputs_callers() -> None:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.llm_engine import LLMEngine

    for owner in (LLMEngine, AsyncLLM):
        contains(
            source_of(owner.add_request),
            f"{owner.__qualname__}.add_request",
            "self.input_processor.process_inputs(request_id, prompt, params",
        )
        contains(
            source_of(owner.__init__),
            f"{owner.__qualname__}.__init__",
            "self.input_processor = InputProcessor(",
        )


@contract("vllm.v1.engine.parallel_sampling.ParentRequest", "n > 1: children inherit the group")
def _check_parallel_sampling() -> None:
    from vllm.v1.engine.parallel_sampling import ParentRequest

    contains(
        source_of(ParentRequest.__init__),
        "ParentRequest.__init__",
        "sampling_params = request.params",
    )


@contract("vllm.v1.engine.EngineCoreRequest", "admission reads these and changes the parameters")
def _check_engine_core_request() -> None:
    from vllm.v1.engine import EngineCoreRequest

    has_fields(
        EngineCoreRequest,
        "sampling_params",
        "lora_request",
        "mm_features",
        "resumable",
        "prompt_token_ids",
        "prompt_embeds",
    )


@contract(
    "vllm.renderers.base.BaseRenderer",
    "an amateur's prompt is made by the methods, and with the arguments, that made its expert's",
)
def _check_renderer() -> None:
    import dataclasses

    from vllm.renderers.base import BaseRenderer
    from vllm.renderers.params import ChatParams, TokenizeParams

    for name in ("render_cmpl", "render_chat"):
        for method in (name, name + "_async"):
            source = source_of(attribute(BaseRenderer, method))
            asked = inspect.iscoroutinefunction(getattr(BaseRenderer, method))
            require(
                asked == method.endswith("_async"), f"BaseRenderer.{method} is another kind now."
            )
            contains(source, f"BaseRenderer.{method}", "tok_params is None", "self.tokenize_prompt")
        contains(source_of(getattr(BaseRenderer, name)), name, "self.process_for_engine(")
    contains(
        source_of(BaseRenderer.__init__),
        "BaseRenderer.__init__",
        "self.config = config",
        "self.model_config = ",
    )
    has_fields(ChatParams, "chat_template", "chat_template_content_format", "chat_template_kwargs")
    attribute(ChatParams, "with_defaults")
    has_fields(TokenizeParams, "add_special_tokens", "max_output_tokens")
    for owner in (ChatParams, TokenizeParams):
        require(dataclasses.is_dataclass(owner), f"{owner.__name__} is no dataclass any more.")


@contract(
    "vllm.renderers.base.BaseRenderer",
    "what is made of a prompt is a dictionary that arrives at admission as it is",
)
def _check_engine_inputs() -> None:
    from vllm.inputs import tokens_input

    made = tokens_input([1, 2])
    require(
        isinstance(made, dict) and made["type"] == "token" and made["prompt_token_ids"] == [1, 2],
        f"What is made of a prompt is {made!r}.",
    )
    contains(
        source_of(_input_processor().process_inputs),
        "InputProcessor.process_inputs",
        "isinstance(prompt, dict) and 'type' in prompt",
    )
    contains(source_of(_input_processor().__init__), "InputProcessor.__init__", "self.renderer = ")


@contract(
    "vllm.renderers.online_renderer.OnlineRenderer",
    "a server makes amateurs' prompts behind their experts', of the request's body",
)
def _check_online_renderer() -> None:
    owner = serving.online_renderer()
    for name, call in (
        ("preprocess_chat", "renderer.render_chat_async([messages], chat_params, tok_params"),
        ("preprocess_cmpl", "renderer.render_cmpl_async(parsed_prompts, tok_params"),
    ):
        has_parameters(owner, name, "request")
        contains(source_of(getattr(owner, name)), f"{owner.__name__}.{name}", call)
    assigned = assigned_in_init(owner)
    for name in (
        "renderer",
        "chat_template",
        "chat_template_content_format",
        "default_chat_template_kwargs",
    ):
        require(name in assigned, f"{owner.__name__}.__init__ sets no {name} any more.")


@contract(
    "vllm.entrypoints.openai.chat_completion.serving.OpenAIServingChat",
    "a request gets as many tokens as it asks for, at most what the server's owner allows",
)
def _check_most_tokens() -> None:
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat

    contains(
        source_of(OpenAIServingChat.__init__),
        "OpenAIServingChat.__init__",
        "self.override_max_tokens = self.default_sampling_params.get('max_tokens') if "
        "mc.generation_config not in ('auto', 'vllm') else "
        "getattr(mc, 'override_generation_config', {}).get('max_new_tokens')",
    )


@contract("vllm.exceptions.VLLMValidationError", "a refused request gets HTTP 400 and ValueError")
def _check_validation_error() -> None:
    from vllm_cold.vllm.frontend.errors import request_error

    error = request_error(ValueError("no"))
    require(
        isinstance(error, ValueError) and str(error).startswith("no"),
        "VLLMValidationError cannot be raised as a ValueError with a plain message any more.",
    )


@contract(
    "vllm.entrypoints.openai.models.serving.OpenAIServingModels",
    "cold_amateur is the name of one of its adapters",
)
def _check_openai_serving_models() -> None:
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels

    assigned = assigned_in_init(OpenAIServingModels)
    for name in ("engine_client", "lora_requests", "input_processor"):
        require(name in assigned, f"OpenAIServingModels.__init__ sets no {name} any more.")
    require(
        assigned["input_processor"] == "self.engine_client.input_processor",
        "OpenAIServingModels does not take its input processor from the engine client any more.",
    )
    require(
        assigned["lora_requests"] == "{}",
        "OpenAIServingModels.lora_requests is no plain dict any more.",
    )


def _protocols() -> tuple[Any, Any]:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    return CompletionRequest, ChatCompletionRequest


@contract("vllm.entrypoints.openai", "a request's settings arrive through vllm_xargs")
def _check_vllm_xargs() -> None:
    for protocol in _protocols():
        fields = protocol.model_fields
        missing = {"vllm_xargs", "model", "use_beam_search"} - set(fields)
        require(not missing, f"{protocol.__name__} has no {', '.join(sorted(missing))} any more.")
        contains(
            source_of(protocol.to_sampling_params),
            f"{protocol.__name__}.to_sampling_params",
            "self.vllm_xargs",
            "extra_args=extra_args",
        )


@contract("vllm.entrypoints", "a beam search with CoLD is refused")
def _check_beam_search() -> None:
    from vllm import LLM

    for protocol in _protocols():
        has_kind(protocol, "to_beam_search_params", None)
        has_kind(protocol, "to_sampling_params", None)
    owner = next((c for c in LLM.__mro__ if "beam_search" in vars(c)), None)
    require(owner is not None, "LLM has no beam_search any more.")
    has_parameters(owner, "beam_search", "prompts", "params", "lora_request")


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


@contract("vllm.v1.metrics.reader", "LLM.get_metrics() shows the metrics of CoLD", note=True)
def _check_get_metrics() -> None:
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.metrics import reader

    has_parameters(LLMEngine, "get_metrics", exact=True)
    has_fields(reader.Counter, "name", "labels", "value")
    has_fields(reader.Gauge, "name", "labels", "value")
    has_fields(reader.Histogram, "name", "labels", "count", "sum", "buckets")


@contract("vllm.v1.engine.exceptions.EngineDeadError", "the tools make a sentence of it")
def _check_engine_dead_error() -> None:
    from vllm.v1.engine import exceptions

    attribute(exceptions, "EngineDeadError")
