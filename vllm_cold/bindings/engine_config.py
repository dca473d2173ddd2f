# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``EngineArgs.create_engine_config``, where every engine's configuration is final.

Why: an engine with LoRA gets the pair scheduler and the logits processor of its model runner
through two public options, ``scheduler_config.scheduler_cls`` and
``model_config.logits_processors``. (The entry point ``vllm.logits_processors`` would not do: each
model runner refuses the other's class there, which would break every engine on the machine.)
Engines without LoRA, and engines in which CoLD cannot work, are left as they are.
Since: 0.23 to 0.33. Can go: when vLLM lets plugins set these options.
"""

import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vllm_cold.bindings import availability, platform_cpu, versions
from vllm_cold.bindings.patching import Place
from vllm_cold.settings import EngineDefaults, parse_engine_defaults

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = logging.getLogger("vllm." + __name__)

# Named as text: these modules are loaded where they are used, not in every process.
SCHEDULER = "vllm_cold.bindings.scheduler.ColdScheduler"
ASYNC_SCHEDULER = "vllm_cold.bindings.scheduler.ColdAsyncScheduler"
PROCESSOR_V1 = "vllm_cold.bindings.processor_v1:ColdLogitsProcessorV1"
PROCESSOR_V2 = "vllm_cold.bindings.processor_v2:ColdLogitsProcessorV2"


def _make(original: Callable[..., "VllmConfig"]) -> Callable[..., "VllmConfig"]:
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> "VllmConfig":
        # First: whether CoLD is available decides what the configuration becomes.
        _prepare_front_end(args[0] if args else kwargs.get("usage_context"))
        config = original(self, *args, **kwargs)
        configure(config)
        if is_configured(config):
            from vllm_cold.bindings import admission, metrics  # which import this module

            availability.install((*metrics.FRONT_END, *admission.ASYNC))
            _say(engine_defaults(config))
        return config

    return create_engine_config


PLACES = (
    Place("vllm.engine.arg_utils:EngineArgs.create_engine_config", _make, ("usage_context",)),
)


def _prepare_front_end(usage_context: Any) -> None:
    from vllm_cold.bindings import serving

    context = getattr(usage_context, "name", None)  # of vLLM's UsageContext
    if context in ("OPENAI_API_SERVER", "OPENAI_BATCH_RUNNER"):
        availability.install(serving.online())
    elif context == "LLM_CLASS":
        availability.install(serving.OFFLINE)


def _say(defaults: EngineDefaults) -> None:
    if defaults.enabled:
        values = ", ".join(f"{k}={v}" for k, v in defaults.settings.as_dict().items())
        what = f"the default for requests that name an adapter, with {values}"
    else:
        what = "used for requests that ask for it (ColdParams, cold_* in vllm_xargs)"
    logger.info(
        "CoLD is %s. What vLLM says about a custom scheduler class is about CoLD's scheduler, "
        "which extends the class that vLLM would use: it is meant to be so.",
        what,
    )


def configure(config: "VllmConfig") -> None:
    """Prepare an engine for CoLD if it can do it.

    Raises:
        ValueError: if the engine's defaults ask for CoLD and it cannot; says why.
    """
    defaults = engine_defaults(config)
    if is_configured(config):
        return
    try:
        problem = unsupported(config) or availability.verify()
    except (AttributeError, ImportError) as error:  # the configuration is another one
        availability.give_up(f"{type(error).__name__}: {error}")
        problem = availability.unavailable()
    if problem is not None:
        if defaults.enabled:
            raise ValueError(f"CoLD is this engine's default sampler, but {problem}")
        return
    scheduler, models = config.scheduler_config, config.model_config
    models.logits_processors = [*(models.logits_processors or ()), PROCESSOR_V1]
    if uses_v2_runner(config):  # asked now: before 0.31 an engine with processors falls back to V1
        models.logits_processors[-1] = PROCESSOR_V2
    # async_scheduling is resolved by now; a scheduler of the wrong kind breaks placeholders.
    scheduler.scheduler_cls = ASYNC_SCHEDULER if scheduler.async_scheduling else SCHEDULER


def engine_defaults(config: "VllmConfig") -> EngineDefaults:
    """``additional_config["cold"]``, checked."""
    additional = config.additional_config
    return parse_engine_defaults(additional.get("cold") if isinstance(additional, dict) else None)


def is_configured(config: "VllmConfig") -> bool:
    """Whether ``configure`` prepared this engine: both halves, the scheduler and a processor."""
    return config.scheduler_config.scheduler_cls in (SCHEDULER, ASYNC_SCHEDULER) and any(
        processor in (PROCESSOR_V1, PROCESSOR_V2)
        for processor in config.model_config.logits_processors or ()
    )


def uses_v2_runner(config: "VllmConfig") -> bool:
    """Whether the engine runs vLLM's V2 model runner."""
    return bool(getattr(config, "use_v2_model_runner", False))


def model_runner(config: "VllmConfig") -> str:
    """The engine's model runner as people know it: "V1" or "V2"."""
    return "V2" if uses_v2_runner(config) else "V1"


def unsupported(config: "VllmConfig") -> str | None:
    """Why CoLD cannot work in this engine, with the remedy; None if it can."""
    if (reason := availability.unavailable()) is not None:
        return reason
    from vllm import envs

    model, scheduler = config.model_config, config.scheduler_config
    if model.runner_type == "pooling":
        return "it serves a pooling model, which generates no tokens; use a generative model."
    if config.lora_config is None:
        return "LoRA is off; start the engine with enable_lora=True (--enable-lora)."
    if platform_cpu.uses_stock_lora():
        return (
            f"{platform_cpu.ENV}=stock leaves LoRA on CPU to vLLM's own operations, which CoLD "
            "does not use (before 0.33 they give rows of the base model an adapter); unset it."
        )
    if scheduler.scheduler_cls is not None and not is_configured(config):
        return (
            f"it uses its own scheduler class {scheduler.scheduler_cls!r}, which CoLD does not "
            "replace; leave scheduler_cls (--scheduler-cls) unset."
        )
    for option, needed in (
        ("max_num_seqs", "two sequences"),
        ("max_num_active_seqs", "two sequences"),
        ("max_num_batched_tokens", "two tokens a step"),
        ("max_num_scheduled_tokens", "two tokens a step"),
    ):
        value = getattr(scheduler, option, None)
        if value is not None and value < 2:
            flag = "--" + option.replace("_", "-")
            return f"{option}={value}: a CoLD request takes {needed}; set it ({flag}) to 2 or more."
    if getattr(envs, "VLLM_USE_RUST_FRONTEND", False):
        return "the Rust front end is on, which CoLD's admission does not run in; switch it off."
    if config.speculative_config is not None:
        return "speculative decoding is on, which CoLD does not support; switch it off."
    if config.kv_transfer_config is not None:
        return "a KV connector is configured (P/D or offloading), which CoLD does not support."
    if getattr(config, "ec_transfer_config", None) is not None:
        return "an encoder-cache connector is configured, which CoLD does not support."
    if model.is_encoder_decoder:
        return "it serves an encoder-decoder model, which CoLD does not support."
    if model.is_hybrid or getattr(model, "is_attention_free", False):
        return "it serves a model with state-space layers, which CoLD does not support."
    routed = getattr(getattr(config, "aux_output_config", None), "enabled", False)
    if routed or getattr(model, "enable_return_routed_experts", False):
        return "routed experts are returned, which CoLD does not support."
    for option in ("is_diffusion", "return_sampling_mask", "enable_trace_replay"):
        if getattr(model, option, False):
            return f"{option} is on, which CoLD does not support."
    if getattr(config, "watermark_config", None) is not None:
        return "watermarking is configured, which CoLD does not support."
    if isinstance(config.additional_config, dict) and config.additional_config.get(
        "enable_reduce_sample"
    ):
        return (
            "vllm-ascend's enable_reduce_sample splits the vocabulary over ranks, and CoLD needs "
            "whole rows of logits; leave it out of additional_config."
        )
    if getattr(config.parallel_config, "enable_batch_sharded_sampling", False):
        return (
            "batch-sharded sampling is on, which may put the two streams on different ranks; "
            "leave it off (enable_batch_sharded_sampling)."
        )
    stages = getattr(config.parallel_config, "pipeline_parallel_size", 1)
    if stages > 2 and versions.is_before(0, 27):
        return (
            f"pipeline_parallel_size={stages}: before 0.27, vLLM gives wrong tokens to requests "
            "that are preempted in a pipeline of more than two stages; use vLLM 0.27 or newer."
        )
    if (
        os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"
        and uses_v2_runner(config)
        and find_spec("vllm.v1.worker.gpu.sample.logits_processor") is None
    ):
        return (
            "this vLLM's V2 model runner takes no logits processors (it does since 0.31); unset "
            "VLLM_USE_V2_MODEL_RUNNER."
        )
    if not getattr(scheduler, "enable_chunked_prefill", True):
        return (
            "chunked prefill is off; CoLD needs it to keep its streams in step "
            "(--enable-chunked-prefill)."
        )
    return None
