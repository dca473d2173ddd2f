# SPDX-License-Identifier: Apache-2.0
"""Works around a bug of vLLM in speculative decoding on CPU, with a contrast or with LoRA: see the
tables of both.
"""

from collections.abc import Callable

import torch
from torch import Tensor


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
