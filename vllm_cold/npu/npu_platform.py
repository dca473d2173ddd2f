# SPDX-License-Identifier: Apache-2.0
"""Has vllm-ascend's platform name our class for LoRA (``lora_bgmv``) in engines that we serve."""

from collections.abc import Callable
from typing import Any

from vllm_cold.compat import environment, hardware, patching, places
from vllm_cold.compat.patching import original_of

STOCK = "vllm_ascend.lora.punica_npu.PunicaWrapperNPU"
OURS = "vllm_cold.npu.lora_bgmv.BgmvPunicaWrapperNPU"
# Until 0.26, its kernels for A copy at least 32 bytes of float32; those for B know ranks of 8, 16,
# 32 and 64.
_LEAST_RANK = 8


def named() -> str:
    """The class that vllm-ascend itself names."""
    from vllm.platforms import current_platform

    method = type(current_platform).get_punica_wrapper.__func__
    return str(original_of(method)(type(current_platform)))


def computes_with_torch(max_lora_rank: int) -> bool:
    """Whether vllm-ascend computes LoRA of this rank with torch operations, not with kernels."""
    from vllm_ascend.utils import AscendDeviceType, get_ascend_device_type

    return max_lora_rank >= 128 or get_ascend_device_type() == AscendDeviceType._310P


def unsupported(config: Any) -> str | None:
    """Why contrastive decoding cannot use LoRA in the engine of a ``VllmConfig``, with the remedy;
    None if it can, or if this is no NPU.
    """
    if (lora := config.lora_config) is None or not hardware.is_on("npu"):
        return None
    problem = patching.problems(places.rows(places.NPU, places.NPU_LORA))
    if (name := named()) != STOCK:
        problem = f"it is {name}"
    if problem is not None:
        return (
            f"this vllm-ascend has changed where vllm-cold's LoRA takes part: {problem}. Install "
            "vllm-ascend 0.23, or a newer vllm-cold."
        )
    if (choice := environment.read(environment.LORA)) not in (None, "bgmv"):
        return f"{environment.LORA}={choice!r}: on NPUs it may only be bgmv, the default; unset it."
    rank = lora.max_lora_rank
    if computes_with_torch(rank):
        return (
            f"max_lora_rank={rank}: vllm-ascend computes LoRA with torch operations here, which "
            "give rows of the base model an adapter; set it (--max-lora-rank) to 64 or less, and "
            "use an Atlas A2 or A3."
        )
    if lora.fully_sharded_loras:
        rank //= config.parallel_config.tensor_parallel_size
    if rank < _LEAST_RANK:
        return (
            f"max_lora_rank={lora.max_lora_rank}: vllm-ascend's kernels need {_LEAST_RANK} or more "
            "on each device; set it (--max-lora-rank) higher."
        )
    return None


def wrap_npu_punica_wrapper(
    original: Callable[..., str], cls: type[Any], *args: Any, **kwargs: Any
) -> str:
    """Wrap ``Platform.get_punica_wrapper``."""
    name = original(cls, *args, **kwargs)
    return OURS if name == STOCK and _is_for_ours() else name


def _is_for_ours() -> bool:
    """Whether we serve the engine that is being loaded. If vLLM does not say which it is: yes, as
    our class is right in any.
    """
    from vllm.config import get_current_vllm_config_or_none

    config = get_current_vllm_config_or_none()
    return config is None or hardware.is_contrastive(config)
