# SPDX-License-Identifier: Apache-2.0
"""LoRA on Ascend NPUs by vllm-ascend's BGMV kernels alone; ``places`` says why."""

from dataclasses import replace
from typing import Any

from vllm_ascend.lora.punica_npu import PunicaWrapperNPU


class BgmvPunicaWrapperNPU(PunicaWrapperNPU):  # type: ignore[misc]
    """Has vllm-ascend take its BGMV kernels in every step."""

    def update_metadata(self, mapping: Any, *args: Any, **kwargs: Any) -> None:
        """``mapping`` is vLLM's ``LoRAMapping``, of a step."""
        super().update_metadata(replace(mapping, is_prefill=False), *args, **kwargs)
