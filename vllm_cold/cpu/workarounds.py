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

from vllm_cold.compat.patching import Original

# The objects that compute LoRA in the engines of this process; have ``without_adapters()``.
wrappers: WeakSet[Any] = WeakSet()
_ENDS = "_vllm_cold_ends"


def wrap_get_lora_device(
    original: Callable[..., torch.device], base_layer: torch.nn.Module, *args: Any, **kwargs: Any
) -> torch.device:
    """Wrap ``_get_lora_device``."""
    if getattr(base_layer, "weight", base_layer) is None:
        return torch.device("cpu")
    return original(base_layer, *args, **kwargs)


def wrap_drafter(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap ``propose`` and ``dummy_run`` of vLLM's drafters."""
    with ExitStack() as stack:
        for wrapper in tuple(wrappers):  # no two engines of a process run at a time
            stack.enter_context(wrapper.without_adapters())
        return original(self, *args, **kwargs)


def wrap_prepare_inputs(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap ``GPUModelRunner.prepare_inputs``."""
    batch = original(self, *args, **kwargs)
    if self.lora_config:
        setattr(self.lora_state, _ENDS, batch.cu_num_logits_np)
    return batch


def wrap_make_lora_inputs(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap ``LoraState.make_lora_inputs``."""
    adapters, *others = original(self, *args, **kwargs)
    ends = vars(self).pop(_ENDS, None)
    if ends is not None and len(adapters) == len(ends) - 1:  # one for each request
        adapters = tuple(np.repeat(adapters, np.diff(ends)))
    return adapters, *others
