# SPDX-License-Identifier: Apache-2.0
"""The options of vLLM that an engine with contrastive decoding must not have. Data alone.

An option is read by its name, and one that vLLM renames would not be refused any more, without a
word. So all of them stand here, and are among what vLLM is checked for before the first engine
(``frontend_places``).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vllm_cold.compat.patching import Relies, named

# With what an option is refused.
ALWAYS = "always"
SPECULATION = "with speculative decoding"
SSM = "with state-space layers"
MEDIA = "with prompts that have media"
NPU = "on NPUs"


@dataclass(frozen=True, slots=True)
class RefusedOption:
    """An option that an engine must not have.

    Attributes:
        owner: What has it, as "module:Class", or "module".
        name: Its name there.
        when: With what it is refused.
        what: What it is called where it is refused; with media and on NPUs, the whole refusal.
        is_on: Whether an engine with this value has it.
        since: The oldest of the supported releases of vLLM that has it.
        until: The release that has another in its place.
    """

    owner: str
    name: str
    when: str
    what: str
    is_on: Callable[[Any], bool] = bool
    since: str = "0.31"
    until: str = ""

    def is_on_in(self, config: Any) -> bool:
        """Whether the engine of a ``VllmConfig`` has it."""
        path = _IN_CONFIG.get(self.owner)
        owner = named(self.owner) if path is None else getattr(config, path) if path else config
        # An engine may have no such configuration, and a vLLM before ``since`` no such option.
        value = getattr(owner, self.name, None)
        return value is not None and self.is_on(value)


_ENGINE = "vllm.config:VllmConfig"
_MODEL = "vllm.config:ModelConfig"
_SCHEDULER = "vllm.config:SchedulerConfig"
_CACHE = "vllm.config:CacheConfig"
_PARALLEL = "vllm.config:ParallelConfig"
_SPECULATIVE = "vllm.config:SpeculativeConfig"
_LORA = "vllm.config:LoRAConfig"
# Where an engine's configuration has them.
_IN_CONFIG = {
    _ENGINE: "",
    _MODEL: "model_config",
    _SCHEDULER: "scheduler_config",
    _CACHE: "cache_config",
    _PARALLEL: "parallel_config",
    _SPECULATIVE: "speculative_config",
    _LORA: "lora_config",
}


def _are_several(number: int) -> bool:
    return number > 1


# fmt: off
OPTIONS = (
    RefusedOption("vllm.envs", "VLLM_USE_RUST_FRONTEND", ALWAYS, "the Rust front end",
                  since="0.23"),
    RefusedOption(_ENGINE, "ec_transfer_config", ALWAYS, "an encoder-cache connector",
                  since="0.23"),
    RefusedOption(_MODEL, "is_encoder_decoder", ALWAYS, "an encoder-decoder model", since="0.23"),
    RefusedOption(_ENGINE, "aux_output_config", ALWAYS, "routed experts that are returned",
                  lambda aux_output: aux_output.enabled),
    RefusedOption(_MODEL, "enable_return_routed_experts", ALWAYS,
                  "routed experts that are returned", since="0.23", until="0.31"),
    RefusedOption(_ENGINE, "watermark_config", ALWAYS, "watermarking"),
    RefusedOption(_MODEL, "is_diffusion", ALWAYS, "diffusion"),
    RefusedOption(_MODEL, "return_sampling_mask", ALWAYS, "return_sampling_mask"),
    RefusedOption(_MODEL, "enable_trace_replay", ALWAYS, "enable_trace_replay"),
    # It may put the streams on different ranks.
    RefusedOption(_PARALLEL, "enable_batch_sharded_sampling", ALWAYS, "batch-sharded sampling"),
    # It moves requests past a group that waits, beyond the bounds that overtaking has.
    RefusedOption(_SCHEDULER, "cache_aware_admission_window", ALWAYS,
                  "--cache-aware-admission-window", since="0.34"),
    # It keeps requests in a queue of its own, where streams of a request would start alone.
    RefusedOption(_SCHEDULER, "max_num_inflight_kv_loads", ALWAYS, "--max-num-inflight-kv-loads",
                  since="0.34"),
    # It keeps drafts that the contrast did not choose, against what rules promise.
    RefusedOption(_SPECULATIVE, "rejection_sample_method", SPECULATION,
                  "rejection_sample_method=fly", "fly".__eq__),
    # Another package's drafts may come from where the amateurs' are not replaced.
    RefusedOption(_SPECULATIVE, "custom_method", SPECULATION, "a custom method", since="0.34"),
    # Different drafts may be verified in the streams of a request.
    RefusedOption(_SPECULATIVE, "enable_adaptive_verification", SPECULATION,
                  "enable_adaptive_verification"),
    # They split prompts in a way that contrastive requests cannot follow.
    RefusedOption(_ENGINE, "num_prefill_lookahead_tokens", SPECULATION, "several MTP modules",
                  _are_several),
    RefusedOption(_CACHE, "mamba_cache_mode", SSM, "a --mamba-cache-mode other than none and align",
                  lambda mode: mode not in ("none", "align"), since="0.23"),
    RefusedOption(_CACHE, "use_replayssm", SSM, "--use-replayssm"),
    # vLLM may keep a wrong SSM state then, also of requests without contrastive decoding.
    RefusedOption(_CACHE, "prefix_match_unit", SSM, "--prefix-match-unit"),
    RefusedOption(_PARALLEL, "decode_context_parallel_size", SSM, "--decode-context-parallel-size",
                  _are_several, since="0.23"),
    # Of these adapters vLLM leaves out a part.
    RefusedOption(_LORA, "fully_sharded_loras", SSM, "--fully-sharded-loras", since="0.23"),
    RefusedOption(_LORA, "enable_tower_connector_lora", MEDIA,
                  "enable_tower_connector_lora is on, with which the same image is another one for "
                  "each adapter; start the engine without, or send text only.", since="0.23"),
    RefusedOption(_LORA, "default_mm_loras", MEDIA,
                  "default_mm_loras gives such prompts adapters of its own; start the engine "
                  "without, or send text only.", since="0.23"),
    RefusedOption(_PARALLEL, "prefill_context_parallel_size", NPU,
                  "prefill context parallelism is on, which vllm-cold does not support on NPUs.",
                  _are_several, since="0.23"),
)
# fmt: on


def refused(config: Any, when: str) -> Iterator[str]:
    """Yield what an engine has of these options, as ``RefusedOption.what`` says it."""
    return (option.what for option in OPTIONS if option.when == when and option.is_on_in(config))


def places() -> tuple[Relies, ...]:
    """Return what vLLM has to have, so that each of them can be refused. Releases with an option
    that is gone since do not change any more.
    """
    return tuple(Relies(o.owner, has=o.name, since=o.since) for o in OPTIONS if not o.until)
