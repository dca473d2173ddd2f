# SPDX-License-Identifier: Apache-2.0
"""Works around bugs of vLLM's sampling on CPU, with a contrast or with LoRA."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_cold.compat.patching import Original


def wrap_expand_batch_to_tokens(
    original: Callable[..., Tensor],
    x: Tensor,
    cu_num_tokens: Tensor,
    num_tokens: int,
    replace_from: int = 0,
    replace_to: int = 0,
) -> Tensor:
    """Wrap ``expand_batch_to_tokens``."""
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    expanded = x.repeat_interleave(counts, output_size=num_tokens)
    return expanded.masked_fill_(expanded == replace_from, replace_to)


def wrap_cpu_sample_tokens(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap ``CPUModelRunner.sample_tokens``."""
    generators = self.input_batch.generators
    if not generators:
        return original(self, *args, **kwargs)
    discarded = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0]
    set_aside = {row: generators.pop(row) for row in discarded.tolist() if row in generators}
    try:
        return original(self, *args, **kwargs)
    finally:
        generators.update(set_aside)
