# SPDX-License-Identifier: Apache-2.0
"""What an engine's configuration says about vllm-cold: its defaults, whether it is prepared, what
stands in the way. Changes nothing; ``engine_config`` does.
"""

from vllm.config import VllmConfig

from vllm_cold.compat import active, availability, places, versions
from vllm_cold.compat.engine import has_ssm, is_configured, uses_v2_runner
from vllm_cold.frontend import ascend, kv_connectors
from vllm_cold.settings.arguments import ColdArgs, parse_engine_defaults


def engine_defaults(config: VllmConfig) -> ColdArgs:
    """``additional_config["cold"]``, checked."""
    return parse_engine_defaults(_said(config))


def _said(config: VllmConfig) -> object:
    additional = config.additional_config
    return additional.get("cold") if isinstance(additional, dict) else None


def unsupported(config: VllmConfig) -> str | None:
    """Why vllm-cold cannot work in this engine, with the remedy; None if it can."""
    if (reason := active.unavailable) is not None:
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
    if not getattr(scheduler, "enable_chunked_prefill", True):
        return (
            "chunked prefill is off, and contrastive requests need it; start with "
            "--enable-chunked-prefill."
        )
    return (
        lacks_slots(config, 2)
        or _needs_another_vllm(config)
        or _has_unsupported(config)
        or kv_connectors.unsupported(config)
    )


def _needs_another_vllm(config: VllmConfig) -> str | None:
    """What the engine has that vllm-cold supports with other releases of vLLM only."""
    v2, ssm = uses_v2_runner(config), has_ssm(config.model_config)
    connector, drafts = kv_connectors.has_one(config), config.speculative_config is not None
    of_drafts = [places.DRAFTS, places.DRAFTS_V2 if v2 else places.DRAFTS_V1]
    for what, there, times in (
        ("the V2 model runner (VLLM_USE_V2_MODEL_RUNNER=0 chooses V1)", v2, [places.V2]),
        ("a KV connector", connector, [places.CONNECTOR]),
        ("state-space layers", ssm, [places.SSM]),
        ("speculative decoding", drafts, of_drafts),
    ):
        if there and versions.is_before(release := places.since(*times)):
            return (
                f"it has {what}, which vllm-cold supports with vLLM {release} and newer; update "
                "vLLM, or start it without."
            )
        if there and (changed := places.problem(*times)) is not None:
            return (
                f"it has {what}, and this vLLM has changed where vllm-cold takes part in it: "
                f"{changed}. Start it without, or install vLLM {versions.RANGE}, or a newer "
                "vllm-cold."
            )
    return None


def _has_unsupported(config: VllmConfig) -> str | None:
    """What the engine has that vllm-cold does not support."""
    from vllm import envs

    model, parallel = config.model_config, config.parallel_config
    routed = getattr(getattr(config, "aux_output_config", None), "enabled", False)
    stages = getattr(parallel, "pipeline_parallel_size", 1)
    features = {
        "the Rust front end": getattr(envs, "VLLM_USE_RUST_FRONTEND", False),
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
        # vLLM gives wrong tokens to requests that are preempted there.
        "more than two pipeline stages before vLLM 0.27": stages > 2 and versions.is_before("0.27"),
        **_with_speculation(config),
        **_with_ssm(config),
    }
    if (found := next((what for what, there in features.items() if there), None)) is not None:
        return f"it has {found}, which vllm-cold does not support; start it without."
    return None


def _with_speculation(config: VllmConfig) -> dict[str, bool]:
    """What is not supported together with speculative decoding, and whether the engine has it."""
    from vllm.platforms import current_platform

    if (speculative := config.speculative_config) is None:
        return {}
    stages = getattr(config.parallel_config, "pipeline_parallel_size", 1)
    features = {
        "workers other than vLLM's own for CPUs and GPUs": current_platform.is_out_of_tree(),
        "pipeline parallelism": stages > 1,
        # Different drafts may be verified in the streams of a request.
        "enable_adaptive_verification": getattr(speculative, "enable_adaptive_verification", False),
        # They split prompts in a way that contrastive requests cannot follow.
        "several MTP modules": getattr(config, "num_prefill_lookahead_tokens", 0) > 1,
        # Streams would lose SSM states in steps that leave them out. V2 keeps these; that it is
        # right was not shown.
        "state-space layers": has_ssm(config.model_config),
        "ngram_gpu on the V1 model runner (ngram is supported)": not uses_v2_runner(config)
        and speculative.method == "ngram_gpu",
    }
    used = f"speculative decoding ({speculative.method}) together with"
    return {f"{used} {what}": there for what, there in features.items()}


def _with_ssm(config: VllmConfig) -> dict[str, bool]:
    """What is not supported with state-space layers, and whether the engine has it.

    Adapters were shown to be right in one process, and in several with Mamba 2 layers whose groups
    can be divided.
    """
    model, lora = config.model_config, config.lora_config
    if not has_ssm(model):
        return {}
    cache, parallel = config.cache_config, config.parallel_config
    ranks = 1 if lora is None else getattr(parallel, "tensor_parallel_size", 1)
    text = getattr(model, "hf_text_config", None)
    named = (getattr(text, name, None) for name in ("mamba_n_groups", "n_groups", "mamba_ngroups"))
    groups = next((number for number in named if number is not None), None)
    features = {
        "a KV connector": kv_connectors.has_one(config),
        "a --mamba-cache-mode other than none and align": cache.mamba_cache_mode
        not in ("none", "align"),
        "--use-replayssm": getattr(cache, "use_replayssm", False),
        # vLLM may keep a wrong SSM state then, also of requests without contrastive decoding.
        "--prefix-match-unit": getattr(cache, "prefix_match_unit", None) is not None,
        "--decode-context-parallel-size": getattr(parallel, "decode_context_parallel_size", 1) > 1,
        # Of these adapters vLLM leaves out a part.
        "--fully-sharded-loras": getattr(lora, "fully_sharded_loras", False),
        "LoRA and a --tensor-parallel-size that divides no groups of Mamba 2": ranks > 1
        and (groups is None or groups % ranks > 0),
    }
    return {f"{what} together with state-space layers": there for what, there in features.items()}


def lacks_slots(config: VllmConfig, streams: int) -> str | None:
    """Which of the engine's limits a request of so many streams does not fit, with the remedy; None
    if it fits.
    """
    tokens, speculative = streams, config.speculative_config
    if speculative is not None:
        # Where a request is admitted, vLLM wants room for drafts, too.
        tokens *= 1 + getattr(speculative, "max_num_new_slots_for_drafting", 0)
        tokens += speculative.num_speculative_tokens
    for option, needed in (
        ("max_num_seqs", streams),
        ("max_num_active_seqs", streams),
        ("max_num_batched_tokens", tokens),
        ("max_num_scheduled_tokens", tokens),
    ):
        value = getattr(config.scheduler_config, option, None)
        if value is not None and value < needed:
            drafts = " and their drafts" if needed > streams else ""
            flag = "--" + option.replace("_", "-")
            return (
                f"{option}={value}: the {streams} streams of a contrastive request{drafts} take "
                f"{needed}; set it ({flag}) to {needed} or more."
            )
    return None
