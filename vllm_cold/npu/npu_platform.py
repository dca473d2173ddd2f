# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM Ascend: ``NPUPlatform.get_punica_wrapper`` (which class runs LoRA on Ascend NPUs).

Why: see ``lora_bgmv``, which the platform is made to name in engines that CoLD is in. All others
keep vllm-ascend's.
``COLD_LORA`` chooses by hand: ``bgmv``, or ``ascendc`` for ``lora_ascendc``.
Since: vllm-ascend 0.23. Can go together with ``lora_bgmv``.
"""

import logging
from collections.abc import Callable
from typing import Any

from vllm_cold import environment
from vllm_cold.vllm.patching import PatchPoint

# Below "vllm." so that a server's logging shows it.
logger = logging.getLogger("vllm." + __name__)

STOCK = "vllm_ascend.lora.punica_npu.PunicaWrapperNPU"
WRAPPERS = {
    "bgmv": "vllm_cold.npu.lora_bgmv.BgmvPunicaWrapperNPU",
    "ascendc": "vllm_cold.npu.lora_ascendc.AscendcPunicaWrapperNPU",
}


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


def choice() -> str:
    """What computes LoRA on NPUs in an engine with CoLD: a key of ``WRAPPERS``.

    Raises:
        ValueError: if ``COLD_LORA`` names none.
        RuntimeError: if it names one that cannot run here.
    """
    name = environment.read(environment.LORA) or "bgmv"
    if name not in WRAPPERS:
        allowed = ", ".join(WRAPPERS)
        raise ValueError(f"{environment.LORA}={name!r}: on NPUs it must be one of {allowed}.")
    if name == "ascendc":
        import torch

        from vllm_cold.npu import lora_ops

        if reason := lora_ops.missing(torch.device("npu")):
            raise RuntimeError(f"{environment.LORA}=ascendc was asked for. {reason}")
    return name


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
        if name != STOCK or not _is_for_cold():
            return name
        chosen = choice()
        logger.info("vllm-cold: LoRA on NPUs: %s.", chosen)
        return WRAPPERS[chosen]

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
