# SPDX-License-Identifier: Apache-2.0
"""Which bugs of vLLM are cured in engines with LoRA on CPU, with CoLD or without it."""

from vllm.platforms import current_platform

from vllm_cold.vllm import patching
from vllm_cold.vllm.patching import Place
from vllm_cold.vllm.worker import (
    cpu_generators,
    cpu_speculation,
    lora_device,
    lora_drafts,
    lora_rows,
)


def places() -> tuple[Place, ...]:
    """Where they are cured; CoLD does not need them."""
    if not current_platform.is_cpu():
        return ()
    return (
        *cpu_generators.PLACES,
        *cpu_speculation.PLACES,
        *lora_device.PLACES,
        *lora_drafts.PLACES,
        *lora_rows.PLACES,
    )


def install() -> None:
    """Wrap what there is of them."""
    patching.cure(places())
