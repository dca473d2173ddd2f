# SPDX-License-Identifier: Apache-2.0
"""What an engine's configuration says about vllm-cold: its defaults, whether it is prepared, what
stands in the way. Changes nothing; ``engine_config`` does.
"""

import math
from collections.abc import Iterator

from vllm.config import VllmConfig

from vllm_cold.compat import active, availability, patching, places, versions
from vllm_cold.compat.engine import (
    EngineFacts,
    cold_setting,
    has_connector,
    is_configured,
    slots_of,
)
from vllm_cold.compat.refused_options import ALWAYS, SPECULATION, SSM, refused
from vllm_cold.compat.runner import Runner
from vllm_cold.frontend import ascend, kv_connectors
from vllm_cold.settings.arguments import ColdArgs, parse_engine_defaults


def engine_defaults(config: VllmConfig) -> ColdArgs:
    """Return ``additional_config["cold"]``, checked."""
    return parse_engine_defaults(cold_setting(config.additional_config))


def unsupported(config: VllmConfig) -> str | None:
    """Say why vllm-cold cannot work in this engine, with the remedy; None if it can."""
    if (reason := active.unavailable) is not None:
        return reason
    model, scheduler = config.model_config, config.scheduler_config
    if model.runner_type == "pooling":
        return "it serves a pooling model, which generates no tokens; use a generative model."
    if config.lora_config is None and cold_setting(config.additional_config) in (None, False):
        return (
            "LoRA is off, and the engine was not asked for contrastive decoding; start it with "
            "--enable-lora (enable_lora=True). Without adapters, start it with --sampler cold "
            '(additional_config={"cold": True}).'
        )
    engine = EngineFacts.of(config)
    if engine.runner is Runner.STANDALONE:
        return (
            "vLLM's model runner for CPUs without Triton takes no logits processors; install "
            "Triton with its backend for CPUs (triton-cpu), with which vLLM has another runner."
        )
    if reason := availability.unsupported_adapters(config) or ascend.unsupported(config):
        return reason
    if scheduler.scheduler_cls is not None and not is_configured(config):
        return (
            f"it uses its own scheduler class {scheduler.scheduler_cls!r}, which vllm-cold does "
            "not replace; leave scheduler_cls (--scheduler-cls) unset."
        )
    if not scheduler.enable_chunked_prefill:
        return (
            "chunked prefill is off, and contrastive requests need it; start with "
            "--enable-chunked-prefill."
        )
    return (
        lacks_slots(config, 2)
        or _needs_another_vllm(engine)
        or _has_unsupported(config, engine)
        or kv_connectors.unsupported(config)
    )


def _needs_another_vllm(engine: EngineFacts) -> str | None:
    """Say what the engine has that vllm-cold supports with other releases of vLLM only; None if it
    has nothing of it.
    """
    runner, v2 = engine.runner, engine.runner is Runner.V2
    remedy = " (VLLM_USE_V2_MODEL_RUNNER=0 chooses V1)" if versions.is_before("0.34") else ""
    for what, there, times in (
        ("the V2 model runner" + remedy, v2, runner.times(False)),
        ("the V1 model runner", not v2, runner.times(False)),
        ("a KV connector", engine.has_connector, (places.CONNECTOR,)),
        ("state-space layers", engine.has_ssm, (places.SSM,)),
        ("speculative decoding", engine.has_drafts, runner.times(True)),
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
    if (lacks := patching.lacks_methods(runner.processor)) is not None:
        return f"{lacks}. Install vLLM {versions.RANGE}, or a newer vllm-cold."
    return None


def _has_unsupported(config: VllmConfig, engine: EngineFacts) -> str | None:
    """Say what the engine has that vllm-cold does not support; None if it has nothing of it."""
    if (feature := next(_unsupported_features(config, engine), None)) is None:
        return None
    return f"it has {feature}, which vllm-cold does not support; start it without."


def _unsupported_features(config: VllmConfig, engine: EngineFacts) -> Iterator[str]:
    yield from refused(config, ALWAYS)
    # vLLM gives wrong tokens to requests that are preempted there.
    if config.parallel_config.pipeline_parallel_size > 2 and versions.is_before("0.27"):
        yield "more than two pipeline stages before vLLM 0.27"
    if (speculative := config.speculative_config) is not None:
        for feature in _unsupported_with_speculation(config, engine):
            yield f"speculative decoding ({speculative.method}) together with {feature}"
    if engine.has_ssm:
        for feature in _unsupported_with_ssm(config):
            yield f"{feature} together with state-space layers"


def _unsupported_with_speculation(config: VllmConfig, engine: EngineFacts) -> Iterator[str]:
    from vllm.platforms import current_platform

    if current_platform.is_out_of_tree():
        yield "workers other than vLLM's own for CPUs and GPUs"
    if engine.runner is Runner.V1 and config.parallel_config.pipeline_parallel_size > 1:
        yield "pipeline parallelism on the V1 model runner"
    yield from refused(config, SPECULATION)
    # Streams would lose SSM states in steps that leave them out. V2 keeps these; that it is right
    # was not shown.
    if engine.has_ssm:
        yield "state-space layers"
    if engine.runner is Runner.V1 and config.speculative_config.method == "ngram_gpu":
        yield "ngram_gpu on the V1 model runner (ngram is supported)"


def _unsupported_with_ssm(config: VllmConfig) -> Iterator[str]:
    """Yield what is not supported with state-space layers. Adapters were shown to be right in one
    process, and in several with Mamba 2 layers whose groups can be divided.
    """
    if has_connector(config):
        yield "a KV connector"
    yield from refused(config, SSM)
    ranks = 1 if config.lora_config is None else config.parallel_config.tensor_parallel_size
    if ranks > 1:
        # Each family of models has a name of its own for them.
        names = ("mamba_n_groups", "n_groups", "mamba_ngroups")
        numbers = (getattr(config.model_config.hf_text_config, name, None) for name in names)
        groups = next((number for number in numbers if number is not None), None)
        if groups is None or groups % ranks:
            yield "LoRA and a --tensor-parallel-size that divides no groups of Mamba 2"


def lacks_slots(config: VllmConfig, streams: int) -> str | None:
    """Say which of the engine's limits a request of so many streams does not fit, with the remedy;
    None if it fits.
    """
    tokens, speculative = streams, config.speculative_config
    if speculative is not None:
        # Where a request is admitted, vLLM wants room for drafts, too.
        tokens *= 1 + speculative.max_num_new_slots_for_drafting
        tokens += speculative.num_speculative_tokens
    slots = slots_of(config)
    if slots.contrastive < streams <= slots.engine:
        return (
            f"max_share={slots.max_share}: of {slots.engine} sequence slots contrastive requests "
            f"have {slots.contrastive}, and this one takes {streams}; set it (--cold-max-share) to "
            f"{math.ceil(1000 * streams / slots.engine) / 1000} or more."
        )
    for option, needed in (
        ("max_num_seqs", streams),
        ("max_num_active_seqs", streams),
        ("max_num_batched_tokens", tokens),
        ("max_num_scheduled_tokens", tokens),
    ):
        value = getattr(config.scheduler_config, option, None)  # max_num_active_seqs since 0.31
        if value is not None and value < needed:
            drafts = " and their drafts" if needed > streams else ""
            flag = "--" + option.replace("_", "-")
            return (
                f"{option}={value}: the {streams} streams of a contrastive request{drafts} take "
                f"{needed}; set it ({flag}) to {needed} or more."
            )
    return None
