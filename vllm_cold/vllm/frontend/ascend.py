# SPDX-License-Identifier: Apache-2.0
"""What of vllm-ascend's own options stands in the way of CoLD, as ``config`` says it of vLLM's."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vllm_cold.npu_lora import npu_platform

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# Options that its layers with LoRA do not know: each computes part of a layer in a class that
# LoRA's takes the place of, or a model of its own without adapters.
_NOT_WITH_LORA = ("xlite_graph_config", "finegrained_tp_config")
_NOT_WITH_LORA_ON_RANKS = (
    "enable_flashcomm1",
    "enable_flashcomm2_parallel_size",
    "enable_shared_expert_dp",
)
# Replaces the queue of waiting requests, which CoLD puts streams into.
_NEVER = ("short_request_first_config",)
_VARIABLES = {
    "enable_flashcomm1": "VLLM_ASCEND_ENABLE_FLASHCOMM1",
    "enable_flashcomm2_parallel_size": "VLLM_ASCEND_FLASHCOMM2_PARALLEL_SIZE",
}
# The kernels for the second half of LoRA know no others (from 128 on torch operations are used).
_LEAST_RANK = 8


def unsupported(config: "VllmConfig") -> str | None:
    """Why CoLD cannot work in this engine, with the remedy; None if it can, or not on an NPU."""
    if not npu_platform.is_npu():
        return None
    parallel, lora = config.parallel_config, config.lora_config
    ranks = getattr(parallel, "tensor_parallel_size", 1)
    options = list(_NEVER)
    if lora is not None:
        options += _NOT_WITH_LORA
        if ranks > 1:
            options += _NOT_WITH_LORA_ON_RANKS
    for option in options:
        if any(map(_is_on, _values(config, option))):
            return (
                f"vllm-ascend's {option} is on, with which CoLD does not get the right logits or "
                "requests; leave it out of additional_config, and of the environment."
            )
    if getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        return "prefill context parallelism is on, which CoLD does not support on NPUs."
    if lora is None:
        return None
    if (named := npu_platform.named()) != npu_platform.STOCK:
        return (
            f"vllm-ascend computes LoRA with {named}, which CoLD does not know; "
            "install vllm-ascend 0.23, or a newer vllm-cold."
        )
    rank = lora.max_lora_rank
    if getattr(lora, "fully_sharded_loras", False):
        rank //= ranks
    if rank < _LEAST_RANK:
        return (
            f"max_lora_rank={lora.max_lora_rank}: vllm-ascend's kernels need {_LEAST_RANK} or more "
            "on each device; set it (--max-lora-rank) higher."
        )
    return None


def _values(config: "VllmConfig", option: str) -> Iterator[Any]:
    """What an option is set to, wherever vllm-ascend looks for it."""
    additional = config.additional_config
    if isinstance(additional, dict):
        yield additional.get(option)
        if isinstance(within := additional.get("scheduler_config"), dict):
            yield within.get(option)
    value = os.environ.get(_VARIABLES.get(option, ""), "0")
    yield value if value.strip("0") else None


def _is_on(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value["enabled"]) if "enabled" in value else any(value.values())
    return bool(value)
