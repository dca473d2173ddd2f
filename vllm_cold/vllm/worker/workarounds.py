# SPDX-License-Identifier: Apache-2.0
"""Which bugs of vLLM are cured in engines with LoRA on CPU, with CoLD or without it."""

from vllm.platforms import current_platform

from vllm_cold.vllm import patching
from vllm_cold.vllm.patching import PatchPoint
from vllm_cold.vllm.worker import (
    cpu_generators,
    cpu_speculation,
    lora_device,
    lora_drafts,
    lora_rows,
)


def patch_points() -> tuple[PatchPoint, ...]:
    """Where they are cured; CoLD does not need them."""
    if not current_platform.is_cpu():
        return ()
    return (
        *cpu_generators.PATCH_POINTS,
        *cpu_speculation.PATCH_POINTS,
        *lora_device.PATCH_POINTS,
        *lora_drafts.PATCH_POINTS,
        *lora_rows.PATCH_POINTS,
    )


def install() -> None:
    """Wrap what there is of them."""
    patching.install_workarounds(patch_points())
