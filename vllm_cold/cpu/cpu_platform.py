# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``CpuPlatform.get_punica_wrapper`` (which class runs LoRA on CPU) and
``CpuPlatform.check_and_update_config`` (which switches compilation off for LoRA on CPU).

Why: see ``lora_fallback`` and ``lora_wrapper``, which the platform is made to name. vLLM's own
LoRA operations on CPU cannot be compiled; ours can, and a compiled model is up to twice as fast. So
the configuration is made as if there were no LoRA. ``--enforce-eager`` switches compilation off, as
everywhere. Only engines with LoRA, and only on CPU, see a difference.
``COLD_LORA`` chooses by hand: ``cpp``, ``torch`` or ``stock``.
Since: 0.23 to 0.33. Can go together with ``lora_fallback``.
"""

import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm_cold import environment
from vllm_cold.vllm import availability
from vllm_cold.vllm.patching import PatchPoint

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# Below "vllm." so that a server's logging shows it.
logger = logging.getLogger("vllm." + __name__)

ENV = environment.LORA
_WRAPPER, _CONFIG = "get_punica_wrapper", "check_and_update_config"
STOCK = "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"
WRAPPERS = {
    "cpp": "vllm_cold.cpu.lora_wrapper.NativePunicaWrapperCPU",
    "torch": "vllm_cold.cpu.lora_fallback.GroupedPunicaWrapperCPU",
    "stock": STOCK,
}


def patch_points() -> tuple[PatchPoint, ...]:
    """What makes the CPU platform name our wrapper and compile; none on other platforms."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return ()
    where = "vllm.platforms:current_platform."
    return (
        PatchPoint(where + _WRAPPER, _make_wrapper, kind=classmethod),
        PatchPoint(where + _CONFIG, _make_config, ("vllm_config",), classmethod),
    )


def _is_stock(cls: type[Any]) -> bool:
    """Whether the platform names vLLM's own wrapper, not one that it brings itself."""
    method = inspect.getattr_static(cls, _WRAPPER).__func__
    return bool(getattr(method, "_vllm_cold_original", method)(cls) == STOCK)


def choice() -> str:
    """What computes LoRA on CPU: a key of ``WRAPPERS``; "stock" where CoLD is unavailable.

    Raises:
        ValueError: if ``COLD_LORA`` names none.
        RuntimeError: if it names one that cannot run here.
    """
    if availability.verify() is not None:
        return "stock"
    name = environment.read(ENV)
    if name is not None and name not in WRAPPERS:
        raise ValueError(f"{ENV}={name!r}: must be one of {', '.join(WRAPPERS)}.")
    if name not in (None, "cpp"):
        return name
    from vllm_cold.cpu import lora_ops

    reason = lora_ops.missing()
    if reason is None:
        return "cpp"
    if name == "cpp":
        raise RuntimeError(f"{ENV}=cpp was asked for. {reason}")
    return "torch"


def uses_stock_lora() -> bool:
    """Whether this is a CPU whose LoRA was left to vLLM's own operations, by hand."""
    from vllm.platforms import current_platform

    return current_platform.is_cpu() and environment.read(ENV) == "stock"


def _make_wrapper(original: Callable[..., str]) -> Callable[..., str]:
    def get_punica_wrapper(cls: type[Any], *args: Any, **kwargs: Any) -> str:
        name = original(cls, *args, **kwargs)
        if name != STOCK:
            return name  # a platform that brings its own wrapper keeps it
        chosen = choice()
        if chosen == "torch" and not environment.read(ENV):
            from vllm_cold.cpu import lora_ops

            logger.warning(
                "vllm-cold: LoRA on CPU falls back to torch operations, not compiled and slow. %s",
                lora_ops.missing(),
            )
        else:
            logger.info("vllm-cold: LoRA on CPU: %s.", chosen)
        return WRAPPERS[chosen]

    return get_punica_wrapper


def _make_config(original: Callable[..., None]) -> Callable[..., None]:
    def check_and_update_config(
        cls: type[Any], vllm_config: "VllmConfig", *args: Any, **kwargs: Any
    ) -> None:
        lora = vllm_config.lora_config
        if lora is None or not _is_stock(cls) or choice() != "cpp":
            original(cls, vllm_config, *args, **kwargs)
            return
        vllm_config.lora_config = None
        try:
            original(cls, vllm_config, *args, **kwargs)
        finally:
            vllm_config.lora_config = lora

    return check_and_update_config
