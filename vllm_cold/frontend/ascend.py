# SPDX-License-Identifier: Apache-2.0
"""Which of vllm-ascend's own options stand in the way of contrastive decoding, as ``support`` says
of vLLM's, and what vllm-ascend computes wrongly with contrastive decoding or without.
"""

import logging
import os
from typing import Any

from vllm.config import VllmConfig

from vllm_cold.compat import hardware, refused_options, versions

logger = logging.getLogger("vllm." + __name__)

# Options that its layers with LoRA ignore: each computes part of a layer in a class that LoRA's
# replaces, or a model of its own without adapters.
_SIZES = "finegrained_tp_config"
_NOT_WITH_LORA = ("xlite_graph_config", _SIZES)
_NOT_WITH_LORA_ON_RANKS = (
    "enable_flashcomm1",
    "enable_flashcomm2_parallel_size",
    "enable_shared_expert_dp",
)
# Replaces the queue of waiting requests, which vllm-cold puts streams into; splits the
# vocabulary over ranks, where vllm-cold needs whole rows of logits.
_NEVER = ("short_request_first_config", "enable_reduce_sample")
_VARIABLES = {
    "enable_flashcomm1": "VLLM_ASCEND_ENABLE_FLASHCOMM1",
    "enable_flashcomm2_parallel_size": "VLLM_ASCEND_FLASHCOMM2_PARALLEL_SIZE",
}


def unsupported(config: VllmConfig) -> str | None:
    """Say why vllm-cold cannot work in this engine, with the remedy; None if it can, or not on an
    NPU.
    """
    if not hardware.is_on("npu"):
        return None
    options = list(_NEVER)
    if config.lora_config is not None:
        options += _NOT_WITH_LORA
        if config.parallel_config.tensor_parallel_size > 1:
            options += _NOT_WITH_LORA_ON_RANKS
    for option in options:
        if _is_on(config, option):
            return (
                f"vllm-ascend's {option} is on, which vllm-cold does not support; leave it out of "
                "additional_config, and of the environment."
            )
    return next(refused_options.refused(config, refused_options.NPU), None)


def warn(config: VllmConfig) -> None:
    """Log what vllm-ascend computes wrongly in this engine, which has contrastive decoding."""
    if config.lora_config is None or not hardware.is_on("npu"):
        return
    graphs = config.compilation_config
    mode = graphs.cudagraph_mode
    if graphs.cudagraph_specialize_lora and mode is not None and mode.has_full_cudagraphs():
        logger.warning(
            "vllm-cold: vllm-ascend %s keeps one list of attention's parameters for full graphs "
            "with and without LoRA, so that requests without an adapter may get wrong tokens; "
            'start with --compilation-config \'{"cudagraph_mode": "PIECEWISE"}\'.',
            versions.ascend_version(),
        )


def _is_on(config: VllmConfig, option: str) -> bool:
    """Whether an option is on, wherever vllm-ascend looks for it."""
    additional = config.additional_config
    additional = additional if isinstance(additional, dict) else {}
    values = [additional.get(option)]
    if isinstance(within := additional.get("scheduler_config"), dict):
        values.append(within.get(option))
    if option not in additional:  # else vllm-ascend does not read the variable
        values.append(os.environ.get(_VARIABLES.get(option, ""), "").strip("0"))
    return any(_means_on(option, value) for value in values)


def _means_on(option: str, value: Any) -> bool:
    if not isinstance(value, dict):
        return bool(value)
    return any(value.values()) if option == _SIZES else bool(value.get("enabled"))
