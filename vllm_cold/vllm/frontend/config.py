# SPDX-License-Identifier: Apache-2.0
"""What an engine's configuration says about vllm-cold: its defaults, whether it is prepared, what
stands in the way. Changes nothing; ``engine_config`` does.
"""

from typing import TYPE_CHECKING

from vllm_cold import places
from vllm_cold.settings.arguments import ColdArgs, parse_engine_defaults
from vllm_cold.settings.table import DEFAULT_MEGAPIXELS, MAX_AMATEURS
from vllm_cold.vllm import availability, versions
from vllm_cold.vllm.frontend import ascend, connectors
from vllm_cold.vllm.worker import drafts_v1
from vllm_cold.vllm.worker.ssm import has_states

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# Named as text: these modules are loaded where they are used, not in every process.
SCHEDULER = "vllm_cold.vllm.scheduler.scheduler.ColdScheduler"
ASYNC_SCHEDULER = "vllm_cold.vllm.scheduler.scheduler.ColdAsyncScheduler"
PROCESSOR_V1 = drafts_v1.PROCESSOR
PROCESSOR_V2 = "vllm_cold.vllm.worker.processor_v2:ColdLogitsProcessorV2"

# Limits of which each stream of a request takes one.
_LIMITS = (
    ("max_num_seqs", "sequences"),
    ("max_num_active_seqs", "sequences"),
    ("max_num_batched_tokens", "tokens a step"),
    ("max_num_scheduled_tokens", "tokens a step"),
)


def engine_defaults(config: "VllmConfig") -> ColdArgs:
    """``additional_config["cold"]``, checked."""
    return parse_engine_defaults(_said(config))


def most_amateurs(config: "VllmConfig") -> int:
    """How many amateurs a request may have. A request waits until all its streams have sequence
    slots, and others wait after it: by default it may not have the engine emptied for that.
    """
    said: int | None = engine_defaults(config).given.get("max_amateurs")
    return said or min(max(config.scheduler_config.max_num_seqs // 4, 2), MAX_AMATEURS)


def most_megapixels(config: "VllmConfig") -> float:
    """Of an image that is distorted for a client."""
    given = engine_defaults(config).given
    found: float = given.get("max_megapixels", DEFAULT_MEGAPIXELS)
    return found


def _said(config: "VllmConfig") -> object:
    additional = config.additional_config
    return additional.get("cold") if isinstance(additional, dict) else None


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
    """Why vllm-cold cannot work in this engine, with the remedy; None if it can."""
    from vllm import envs

    if (reason := availability.unavailable()) is not None:
        return reason
    model, scheduler = config.model_config, config.scheduler_config
    if model.runner_type == "pooling":
        return "it serves a pooling model, which generates no tokens; use a generative model."
    if config.lora_config is None and _said(config) in (None, False):
        return (
            "LoRA is off, and the engine was not asked for contrastive decoding; start it with "
            "--enable-lora (enable_lora=True). Without adapters, start it with --sampler cold "
            '(additional_config={"cold": True}).'
        )
    if reason := availability.unsupported_adapters(config) or ascend.unsupported(config):
        return reason
    if scheduler.scheduler_cls is not None and not is_configured(config):
        return (
            f"it uses its own scheduler class {scheduler.scheduler_cls!r}, which vllm-cold does "
            "not replace; leave scheduler_cls (--scheduler-cls) unset."
        )
    if (problem := lacks_slots(config, 2)) is not None:
        return problem
    if getattr(envs, "VLLM_USE_RUST_FRONTEND", False):
        return (
            "the Rust front end is on, which vllm-cold's admission does not run in; switch it off."
        )
    if (
        reason := _unsupported_states(config)
        or _unsupported_speculation(config)
        or connectors.unsupported(config)
    ) is not None:
        return reason
    parallel = config.parallel_config
    routed = getattr(getattr(config, "aux_output_config", None), "enabled", False)
    without = {
        "an encoder-cache connector": getattr(config, "ec_transfer_config", None) is not None,
        "an encoder-decoder model": model.is_encoder_decoder,
        "routed experts that are returned": routed
        or getattr(model, "enable_return_routed_experts", False),
        "watermarking": getattr(config, "watermark_config", None) is not None,
        "diffusion": getattr(model, "is_diffusion", False),
        "return_sampling_mask": getattr(model, "return_sampling_mask", False),
        "enable_trace_replay": getattr(model, "enable_trace_replay", False),
        # It may put the streams on different ranks.
        "batch-sharded sampling": getattr(parallel, "enable_batch_sharded_sampling", False),
    }
    if (found := next((what for what, there in without.items() if there), None)) is not None:
        return f"it has {found}, which vllm-cold does not support; start it without."
    stages = getattr(parallel, "pipeline_parallel_size", 1)
    if stages > 2 and versions.is_before(0, 27):
        return (
            f"pipeline_parallel_size={stages}: before 0.27, vLLM gives wrong tokens to requests "
            "that are preempted in a pipeline of more than two stages; use two, or vLLM 0.31."
        )
    if uses_v2_runner(config) and (changed := places.problem(places.V2)) is not None:
        return (
            f"this vLLM's V2 model runner has changed where vllm-cold takes part: {changed}. "
            f"Install vLLM {versions.RANGE}, or a newer vllm-cold, or set "
            "VLLM_USE_V2_MODEL_RUNNER=0."
        )
    if not getattr(scheduler, "enable_chunked_prefill", True):
        return (
            "chunked prefill is off, and contrastive requests need it; start with "
            "--enable-chunked-prefill."
        )
    return None


def lacks_slots(config: "VllmConfig", streams: int) -> str | None:
    """Which of the engine's limits a request of so many streams does not fit, with the remedy; None
    if it fits.
    """
    tokens, speculative = streams, config.speculative_config
    if speculative is not None:
        # Where a request is admitted, vLLM wants room for drafts, too.
        tokens *= 1 + getattr(speculative, "max_num_new_slots_for_drafting", 0)
        tokens += speculative.num_speculative_tokens
    for option, what in _LIMITS:
        value = getattr(config.scheduler_config, option, None)
        needed = streams if what == "sequences" else tokens
        if value is not None and value < needed:
            flag = "--" + option.replace("_", "-")
            takes = f"takes {needed} {what}"
            if streams > 2:
                takes = f"with {streams - 1} amateurs {takes}"
            if needed > streams:
                takes += " with speculative decoding"
            return (
                f"{option}={value}: a contrastive request {takes}; "
                f"set it ({flag}) to {needed} or more."
            )
    return None


def _unsupported_states(config: "VllmConfig") -> str | None:
    """Why vllm-cold cannot work with the model's state-space layers; None if it can, or if there
    are none.
    """
    if not has_states(config.model_config):
        return None
    if versions.is_before(0, 32):
        return (
            "it serves a model with state-space layers, which vllm-cold supports with vLLM 0.32 "
            "and newer; update vLLM, or serve another model."
        )
    cache, speculative = config.cache_config, config.speculative_config
    if (mode := cache.mamba_cache_mode) not in ("none", "align"):
        return (
            f"mamba_cache_mode={mode!r}: with state-space layers, vllm-cold supports none and "
            "align; set one of them (--mamba-cache-mode)."
        )
    if getattr(cache, "use_replayssm", False):
        return (
            "use_replayssm is on, which vllm-cold does not support with state-space layers; leave "
            "it off (--no-use-replayssm)."
        )
    if (unit := getattr(cache, "prefix_match_unit", None)) is not None:
        return (
            f"prefix_match_unit={unit}: with state-space layers, vLLM may keep a wrong state then, "
            "also of requests without contrastive decoding; leave it out."
        )
    if (ranks := getattr(config.parallel_config, "decode_context_parallel_size", 1)) > 1:
        return (
            f"decode_context_parallel_size={ranks} with state-space layers, which vllm-cold was "
            "never run with; set it to 1 (--decode-context-parallel-size)."
        )
    if config.lora_config is not None and (reason := _unsupported_adapters(config)) is not None:
        return reason
    if speculative is not None:
        why = "whose states vllm-cold's streams would lose in steps that leave them out"
        if uses_v2_runner(config):  # it keeps what V1 forgets
            why = "with which vllm-cold was not shown to be right on vLLM's V2 model runner"
        return (
            f"speculative decoding is on ({speculative.method}) with state-space layers, {why}; "
            "switch it off."
        )
    return None


def _unsupported_adapters(config: "VllmConfig") -> str | None:
    """Why adapters of a model with states may be wrong; None where they were shown to be right. In
    several processes that is with Mamba 2 layers whose groups can be divided.
    """
    if getattr(config.lora_config, "fully_sharded_loras", False):
        return (
            "fully_sharded_loras is on with state-space layers, whose adapters vLLM leaves out in "
            "part then; switch it off (--no-fully-sharded-loras)."
        )
    ranks = getattr(config.parallel_config, "tensor_parallel_size", 1)
    if ranks == 1:
        return None
    text = getattr(config.model_config, "hf_text_config", None)
    named = (getattr(text, name, None) for name in ("mamba_n_groups", "n_groups", "mamba_ngroups"))
    groups = next((number for number in named if number is not None), None)
    both = f"tensor_parallel_size={ranks} and LoRA are on with state-space layers"
    off = "switch one of them off."
    if groups is None:
        return f"{both} other than Mamba 2's, with which vllm-cold was never run; {off}"
    if groups % ranks:
        return f"{both} of {groups} groups, whose adapters vLLM cuts wrongly then; {off}"
    return None


def _unsupported_speculation(config: "VllmConfig") -> str | None:
    """Why vllm-cold cannot work with the engine's speculative decoding; None if it can, or if there
    is none.
    """
    speculative = config.speculative_config
    if speculative is None:
        return None
    from vllm.platforms import current_platform

    if versions.is_before(0, 32):
        problem = ", which vllm-cold supports with vLLM 0.32 and newer; switch it off"
    elif current_platform.is_out_of_tree():
        problem = (
            ", which vllm-cold supports with vLLM's own CPU and GPU workers only; switch it off"
        )
    elif config.parallel_config.pipeline_parallel_size > 1:
        problem = (
            " together with pipeline parallelism, which vllm-cold does not support; switch one of "
            "them off"
        )
    elif getattr(speculative, "enable_adaptive_verification", False):
        problem = (
            " with enable_adaptive_verification, which may verify different drafts in the streams "
            "of a request; leave it off"
        )
    elif getattr(config, "num_prefill_lookahead_tokens", 0) > 1:
        problem = (
            " with several MTP modules, which split prompts in a way that contrastive requests "
            "cannot follow; use another drafter"
        )
    elif not uses_v2_runner(config) and speculative.method == "ngram_gpu":
        problem = (
            " with the V1 model runner, which contrastive decoding supports with V2 only; use "
            '"ngram"'
        )
    else:
        runner = places.DRAFTS_V2 if uses_v2_runner(config) else places.DRAFTS_V1
        if (changed := places.problem(places.DRAFTS, runner)) is None:
            return None
        problem = (
            f", and this vLLM has changed where vllm-cold takes part in it: {changed}. Switch it "
            f"off, install vLLM {versions.RANGE}, or a newer vllm-cold"
        )
    return f"speculative decoding is on ({speculative.method}){problem}."
