# SPDX-License-Identifier: Apache-2.0
"""Tells each amateur the token that was sampled from its expert's row."""

from typing import Any

from vllm_cold.compat.patching import Original


def wrap_sampler_forward(
    original: Original, self: Any, logits: Any, sampling_metadata: Any, *args: Any, **kwargs: Any
) -> Any:
    """Wrap ``Sampler.forward``."""
    output = original(self, logits, sampling_metadata, *args, **kwargs)
    for processor in sampling_metadata.logitsprocs.non_argmax_invariant:
        if hasattr(processor, "tell_amateurs"):  # ours
            processor.tell_amateurs(output.sampled_token_ids)
    return output


def wrap_sampler_call(
    original: Original, self: Any, logits: Any, input_batch: Any, *args: Any, **kwargs: Any
) -> Any:
    """Wrap ``Sampler.__call__``."""
    output = original(self, logits, input_batch, *args, **kwargs)
    for processor in self.logits_processors:
        if hasattr(processor, "tell_amateurs"):  # ours
            processor.tell_amateurs(output.sampled_token_ids, input_batch.idx_mapping_np)
    return output
