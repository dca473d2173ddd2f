# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``rejection_sampler.expand_batch_to_tokens`` (V1 runner), on CPU.

Why: with speculative decoding it gives each draft's row the temperature, top-k and top-p of its
request. On CPU the kernel behind it writes into an int64 copy of the output, and what comes back is
memory that nobody wrote. As soon as one request of a batch samples at random, the tokens of all are
wrong, greedy ones too. Here torch operations do it.
It is replaced for good in a process that makes an engine with LoRA on CPU; CoLD does not need it.
Since: vLLM 0.23 to 0.33. Can go: when the kernel writes its output (vLLM issue 55005).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vllm_cold.vllm.patching import PatchPoint


def _make(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
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


PATCH_POINTS = (
    PatchPoint(
        "vllm.v1.sample.rejection_sampler:expand_batch_to_tokens",
        _make,
        ("x", "cu_num_tokens", "num_tokens", "replace_from", "replace_to"),
    ),
)
