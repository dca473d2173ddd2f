# SPDX-License-Identifier: Apache-2.0
"""Has vLLM's platform for CPUs name our class for LoRA, and compile models with LoRA as others.
``COLD_LORA`` chooses by hand: ``cpp``, ``torch`` or ``stock``.
"""

import inspect
import logging
import os
from collections.abc import Callable
from functools import cache
from typing import Any

from vllm_cold.compat import environment, hardware, patching, places, versions
from vllm_cold.compat.patching import Original

logger = logging.getLogger("vllm." + __name__)

ENV = environment.LORA
STOCK = "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"
WRAPPERS = {
    "cpp": "vllm_cold.cpu.lora_wrapper.NativePunicaWrapperCPU",
    "torch": "vllm_cold.cpu.lora_fallback.GroupedPunicaWrapperCPU",
    "stock": STOCK,
}

is_loaded = False  # whether vLLM has loaded the plugin ``cold_cpu``


def register() -> None:
    """Be the plugin ``cold_cpu`` of vLLM's entry point ``vllm.general_plugins``: on CPUs, LoRA and
    products of few rows, with the contrast or without it.

    It wraps a few methods of vLLM's platform; workers load the rest. It never raises: vLLM calls
    plugins unguarded, several times in every process. ``COLD_ENABLED=0`` switches it off, as does
    leaving ``cold_cpu`` out of vLLM's own ``VLLM_PLUGINS``.
    """
    global is_loaded
    if environment.is_off(environment.ENABLED) or is_loaded:
        return
    is_loaded = True
    try:
        patching.install(places.rows(places.CPU, places.CPU_WORKERS))
    except Exception as error:  # whatever vLLM raises when it is imported
        logger.warning("vllm-cold: LoRA is vLLM's own (%s: %s).", type(error).__name__, error)


def _is_stock(cls: type[Any]) -> bool:
    """Whether the platform names vLLM's own wrapper, not one that it brings itself."""
    method = inspect.getattr_static(cls, "get_punica_wrapper").__func__
    return bool(patching.original_of(method)(cls) == STOCK)


@cache
def lacks() -> str | None:
    """What our classes need and this vLLM lacks; None if nothing."""
    if (problem := patching.problems(places.rows(places.CPU, places.CPU_LORA))) is not None:
        logger.warning("vllm-cold: LoRA on CPU is left to vLLM, as %s.", problem)
    return problem


def choice() -> str:
    """What computes LoRA on CPU: a key of ``WRAPPERS``; "stock" where this vLLM lacks something.

    Raises:
        ValueError: ``COLD_LORA`` has another value.
        RuntimeError: ``COLD_LORA`` asks for one that cannot run here.
    """
    name = environment.read(ENV)
    if name is not None and name not in WRAPPERS:
        raise ValueError(f"{ENV}={name!r}: must be one of {', '.join(WRAPPERS)}.")
    if name == "stock" or lacks() is not None:
        return "stock"
    if name == "torch":
        return name
    from vllm_cold.cpu import operators

    reason = operators.missing()
    if reason is None:
        return "cpp"
    if name == "cpp":
        raise RuntimeError(f"{ENV}=cpp was asked for. {reason}")
    return "torch"


def unsupported(config: Any) -> str | None:
    """Why rows with and without an adapter cannot share a batch in the engine of a ``VllmConfig``,
    with the remedy; None if they can, or if this is no CPU.
    """
    if config.lora_config is None or not hardware.is_on("cpu"):
        return None
    if not is_loaded:
        return (
            "vLLM did not load the plugin cold_cpu (VLLM_PLUGINS="
            f"{os.environ.get('VLLM_PLUGINS', 'not set')}), and with its own LoRA for CPUs rows of "
            "the base model may get an adapter; add cold_cpu to VLLM_PLUGINS, or install vllm-cold "
            "again."
        )
    if (lacking := lacks()) is not None:
        return (
            f"this vLLM has changed where vllm-cold's LoRA for CPUs takes part: {lacking}. Install "
            f"vLLM {versions.RANGE}, or a newer vllm-cold."
        )
    if environment.read(ENV) != "stock":
        return None
    return (
        f"{ENV}=stock leaves LoRA on CPU to vLLM's own operations, which vllm-cold does not use "
        "(before 0.33 they give rows of the base model an adapter); unset it."
    )


def wrap_get_punica_wrapper(
    original: Callable[..., str], cls: type[Any], *args: Any, **kwargs: Any
) -> str:
    """Wrap ``Platform.get_punica_wrapper``."""
    name = original(cls, *args, **kwargs)
    if name != STOCK:
        return name  # a platform that brings its own wrapper keeps it
    chosen = choice()
    if chosen == "torch" and not environment.read(ENV):
        from vllm_cold.cpu import operators

        logger.warning(
            "vllm-cold: LoRA on CPU falls back to torch operations, not compiled and slow. %s",
            operators.missing(),
        )
    return WRAPPERS[chosen]


def wrap_register_overrides(original: Original, cls: type[Any], *args: Any, **kwargs: Any) -> None:
    """Wrap ``Platform.register_triton_kernel_overrides``."""
    original(cls, *args, **kwargs)
    try:
        patching.install(places.rows(places.CPU_MODEL))
    except Exception as error:  # whatever vLLM raises: the engine may not have asked for anything
        logger.warning("vllm-cold: products are vLLM's own (%s: %s).", type(error).__name__, error)


def wrap_check_and_update_config(
    original: Original, cls: type[Any], vllm_config: Any, *args: Any, **kwargs: Any
) -> None:
    """Wrap ``Platform.check_and_update_config``."""
    lora = vllm_config.lora_config
    if lora is None or not _is_stock(cls) or choice() != "cpp":
        original(cls, vllm_config, *args, **kwargs)
        return
    vllm_config.lora_config = None
    try:
        original(cls, vllm_config, *args, **kwargs)
    finally:
        vllm_config.lora_config = lora
