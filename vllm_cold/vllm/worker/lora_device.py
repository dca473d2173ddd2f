# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``_get_lora_device``, by which a linear LoRA layer finds its device, on CPU.

Why: it is the device of the base layer's weight. Where weights and inputs are int8, oneDNN's
kernel keeps the weight to itself and leaves None in its place, so that no engine with LoRA starts
on a CPU without AMX ("'NoneType' object has no attribute 'device'").
It is wrapped for good in a process that makes an engine with LoRA on CPU; CoLD does not need it.
Since: vLLM 0.23 to 0.32. Can go: when ``_get_lora_device`` takes a layer without a weight.
"""

from collections.abc import Callable
from typing import Any

import torch

from vllm_cold.vllm.patching import PatchPoint


def _make(original: Callable[..., torch.device]) -> Callable[..., torch.device]:
    def _get_lora_device(base_layer: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.device:
        if getattr(base_layer, "weight", base_layer) is None:
            return torch.device("cpu")
        return original(base_layer, *args, **kwargs)

    return _get_lora_device


PATCH_POINTS = (
    PatchPoint("vllm.lora.layers.base_linear:_get_lora_device", _make, ("base_layer",)),
)
