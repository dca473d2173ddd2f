# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM Ascend: ``NPUPlatform.get_punica_wrapper`` (which class runs LoRA on Ascend NPUs).

Why: see ``lora_bgmv``, which the platform is made to name in engines that CoLD is in. All others
keep vllm-ascend's.
Since: vllm-ascend 0.23. Can go together with ``lora_bgmv``.
"""

from collections.abc import Callable
from typing import Any

from vllm_cold.vllm.patching import PatchPoint

STOCK = "vllm_ascend.lora.punica_npu.PunicaWrapperNPU"
OURS = "vllm_cold.npu.lora_bgmv.BgmvPunicaWrapperNPU"


def is_npu() -> bool:
    """Whether vLLM runs on vllm-ascend's platform."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_out_of_tree()) and current_platform.device_type == "npu"


def patch_points() -> tuple[PatchPoint, ...]:
    """What makes vllm-ascend's platform name our wrapper; none on other platforms."""
    if not is_npu():
        return ()
    where = "vllm.platforms:current_platform.get_punica_wrapper"
    return (PatchPoint(where, _make_wrapper, kind=classmethod),)


def named() -> str:
    """The class that vllm-ascend itself names."""
    from vllm.platforms import current_platform

    method = type(current_platform).get_punica_wrapper.__func__
    return str(getattr(method, "_vllm_cold_original", method)(type(current_platform)))


def computes_with_torch(max_lora_rank: int) -> bool:
    """Whether vllm-ascend computes LoRA of this rank with torch operations, not with kernels."""
    from vllm_ascend.utils import AscendDeviceType, get_ascend_device_type

    return max_lora_rank >= 128 or get_ascend_device_type() == AscendDeviceType._310P


def _make_wrapper(original: Callable[..., str]) -> Callable[..., str]:
    def get_punica_wrapper(cls: type[Any], *args: Any, **kwargs: Any) -> str:
        name = original(cls, *args, **kwargs)
        return OURS if name == STOCK and _is_for_cold() else name

    return get_punica_wrapper


def _is_for_cold() -> bool:
    """Whether the engine that is being loaded has CoLD. If vLLM does not say which it is: yes, as
    ours is right in any.
    """
    from vllm.config import get_current_vllm_config_or_none

    config = get_current_vllm_config_or_none()
    if config is None:
        return True
    processors = config.model_config.logits_processors or ()
    return any(str(processor).startswith("vllm_cold.") for processor in processors)
