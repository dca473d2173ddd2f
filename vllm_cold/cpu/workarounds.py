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
from torch import Tensor

# The objects that compute LoRA in the engines of this process; have ``without_adapters()``.
wrappers: WeakSet[Any] = WeakSet()
_ENDS = "_vllm_cold_ends"


def _make_sample(original: Callable[..., Any]) -> Callable[..., Any]:
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


def _make_expand(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def expand_batch_to_tokens(
        x: Tensor,
        cu_num_tokens: Tensor,
        num_tokens: int,
        replace_from: int = 0,
        replace_to: int = 0,
    ) -> Tensor:
        counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
        expanded = x.repeat_interleave(counts, output_size=num_tokens)
        return expanded.masked_fill_(expanded == replace_from, replace_to)

    return expand_batch_to_tokens


def _make_device(original: Callable[..., torch.device]) -> Callable[..., torch.device]:
    def _get_lora_device(base_layer: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.device:
        if getattr(base_layer, "weight", base_layer) is None:
            return torch.device("cpu")
        return original(base_layer, *args, **kwargs)

    return _get_lora_device


def _make_drafter(original: Callable[..., Any]) -> Callable[..., Any]:
    def without_adapters(self: Any, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for wrapper in tuple(wrappers):  # no two engines of a process run at a time
                stack.enter_context(wrapper.without_adapters())
            return original(self, *args, **kwargs)

    return without_adapters


def _make_preprocess(original: Callable[..., Any]) -> Callable[..., Any]:
    def _preprocess(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if not (self.enable_prompt_embeds and self.lora_config) or self.supports_mm_inputs:
            return original(self, scheduler_output, *args, **kwargs)
        is_token = self.is_token_ids.np[: scheduler_output.total_num_scheduled_tokens]
        rows, embed = np.nonzero(is_token)[0], self.model.embed_input_ids

        def embed_input_ids(input_ids: Tensor) -> Tensor:
            ids = input_ids.new_zeros(len(is_token))
            ids[rows] = input_ids
            found: Tensor = embed(ids)[rows]
            return found

        self.model.embed_input_ids = embed_input_ids
        try:
            return original(self, scheduler_output, *args, **kwargs)
        finally:
            del self.model.embed_input_ids  # the class's again

    return _preprocess


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
