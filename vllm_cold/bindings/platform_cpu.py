# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``CpuPlatform.get_punica_wrapper`` (which class runs LoRA on CPU).

Why: see ``punica_cpu``, which the platform is made to name. Only looked at by engines with LoRA,
and only on CPU. Since: 0.23 to 0.33. Can go together with ``punica_cpu``.
"""

from collections.abc import Callable
from typing import Any

from vllm_cold.bindings.patching import wrap

STOCK = "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"
OURS = "vllm_cold.bindings.punica_cpu.GroupedPunicaWrapperCPU"


def install() -> None:
    """Make the CPU platform name our wrapper; other platforms are not touched."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    wrap(type(current_platform), "get_punica_wrapper", _make)


def _make(original: Callable[..., str]) -> Callable[..., str]:
    def get_punica_wrapper(cls: type[Any]) -> str:
        name = original(cls)
        # A platform that brings its own wrapper keeps it.
        return OURS if name == STOCK else name

    return get_punica_wrapper
