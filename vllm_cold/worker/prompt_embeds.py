# SPDX-License-Identifier: Apache-2.0
"""Works around a bug of vLLM with LoRA and prompts of embeddings, on V1: see the table."""

from typing import Any

import numpy as np
from torch import Tensor

from vllm_cold.compat.patching import Original


def wrap_runner_preprocess(
    original: Original, self: Any, scheduler_output: Any, *args: Any, **kwargs: Any
) -> Any:
    """Wrap ``GPUModelRunner._preprocess``."""
    if not (self.enable_prompt_embeds and self.lora_config) or self.supports_mm_inputs:
        return original(self, scheduler_output, *args, **kwargs)
    is_token = self.is_token_ids.np[: scheduler_output.total_num_scheduled_tokens]
    rows, embed = np.nonzero(is_token)[0], self.model.embed_input_ids

    def embed_input_ids(input_ids: Tensor) -> Tensor:
        ids = input_ids.new_zeros(len(is_token))
        ids[rows] = input_ids
        embeddings: Tensor = embed(ids)[rows]
        return embeddings

    self.model.embed_input_ids = embed_input_ids
    try:
        return original(self, scheduler_output, *args, **kwargs)
    finally:
        del self.model.embed_input_ids  # the class's again
