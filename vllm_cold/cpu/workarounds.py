# SPDX-License-Identifier: Apache-2.0
"""Workarounds for bugs that vLLM has in engines with LoRA on CPU, with contrastive decoding or
without it; ``places`` describes each bug. They stay in a process that has made such an engine.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from weakref import WeakSet

import numpy as np
import torch

# The objects that compute LoRA in the engines of this process; have ``without_adapters()``.
wrappers: WeakSet[Any] = WeakSet()
_ENDS = "_vllm_cold_ends"


def wrap_cpu_sample_tokens(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``CPUModelRunner.sample_tokens``."""

    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        if not generators:
            return original(self, *args, **kwargs)
        discarded = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0]
        set_aside = {row: generators.pop(row) for row in discarded.tolist() if row in generators}
        try:
            return original(self, *args, **kwargs)
        finally:
            generators.update(set_aside)

    return sample_tokens


def wrap_get_lora_device(original: Callable[..., torch.device]) -> Callable[..., torch.device]:
    """Wrap ``_get_lora_device``."""

    def _get_lora_device(base_layer: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.device:
        if getattr(base_layer, "weight", base_layer) is None:
            return torch.device("cpu")
        return original(base_layer, *args, **kwargs)

    return _get_lora_device


def wrap_drafter(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``propose`` and ``dummy_run`` of vLLM's drafters."""

    def without_adapters(self: Any, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for wrapper in tuple(wrappers):  # no two engines of a process run at a time
                stack.enter_context(wrapper.without_adapters())
            return original(self, *args, **kwargs)

    return without_adapters


def wrap_prepare_inputs(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``GPUModelRunner.prepare_inputs``."""

    def prepare_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = original(self, *args, **kwargs)
        if self.lora_config:
            setattr(self.lora_state, _ENDS, batch.cu_num_logits_np)
        return batch

    return prepare_inputs


def wrap_make_lora_inputs(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``LoraState.make_lora_inputs``."""

    def make_lora_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        adapters, *others = original(self, *args, **kwargs)
        ends = vars(self).pop(_ENDS, None)
        if ends is not None and len(adapters) == len(ends) - 1:  # one for each request
            adapters = tuple(np.repeat(adapters, np.diff(ends)))
        return adapters, *others

    return make_lora_inputs
