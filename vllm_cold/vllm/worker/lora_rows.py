# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``LoraState.make_lora_inputs`` and ``GPUModelRunner.prepare_inputs`` (V2 runner),
on CPU.

Why: V2 tells the LoRA layers one adapter for each request, but with speculative decoding a request
has a row of logits for each draft and one more. LoRA of the output layer then takes other
requests' adapters; our wrapper, which sees that the rows do not add up, raises. Here each request's
adapter is repeated as often as it has rows, as V1 does it.
It is wrapped for good in a process that makes an engine with LoRA on CPU; CoLD does not need it.
Since: vLLM 0.23 to 0.33. Can go: when ``make_lora_inputs`` is told how many rows there are.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from vllm_cold.vllm.patching import PatchPoint

_ENDS = "_vllm_cold_ends"


def _make_prepare(original: Callable[..., Any]) -> Callable[..., Any]:
    def prepare_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = original(self, *args, **kwargs)
        if self.lora_config:
            setattr(self.lora_state, _ENDS, getattr(batch, "cu_num_logits_np", None))
        return batch

    return prepare_inputs


def _make_inputs(original: Callable[..., Any]) -> Callable[..., Any]:
    def make_lora_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        adapters, *others = original(self, *args, **kwargs)
        ends = vars(self).pop(_ENDS, None)
        if ends is not None and len(adapters) == len(ends) - 1:  # one for each request
            adapters = tuple(np.repeat(adapters, np.diff(ends)))
        return adapters, *others

    return make_lora_inputs


PATCH_POINTS = (
    PatchPoint("vllm.v1.worker.gpu.model_runner:GPUModelRunner.prepare_inputs", _make_prepare),
    PatchPoint("vllm.v1.worker.gpu.lora_utils:LoraState.make_lora_inputs", _make_inputs),
)
