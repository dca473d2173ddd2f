# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding on V1: the rows in which drafts are verified are scored too, before
penalties as everywhere on V1.
"""

from dataclasses import replace
from typing import Any

from vllm_cold.compat import patching, places
from vllm_cold.compat.patching import Original
from vllm_cold.compat.runner import Runner


def _ours(logitsprocs: Any) -> list[Any]:
    """Return vllm-cold's processors, if a group is complete in this step."""
    processors = logitsprocs.non_argmax_invariant
    return [p for p in processors if hasattr(p, "apply_to_drafts") and p.has_groups()]


def wrap_apply_logits_processors(
    original: Original,
    self: Any,
    logits: Any,
    sampling_metadata: Any,
    metadata: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Wrap ``RejectionSampler.apply_logits_processors``."""
    ours = _ours(sampling_metadata.logitsprocs)
    if not ours:
        return original(self, logits, sampling_metadata, metadata, *args, **kwargs)
    masks = replace(sampling_metadata, no_penalties=True)
    logits = original(self, logits, masks, metadata, *args, **kwargs)
    for processor in ours:
        processor.apply_to_drafts(logits, metadata.num_draft_tokens, metadata.draft_token_ids)
    if sampling_metadata.no_penalties:
        return logits
    penalties = replace(
        sampling_metadata,
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=type(sampling_metadata.logitsprocs)(),
        thinking_budget_state_holder=None,
    )
    return original(self, logits, penalties, metadata, *args, **kwargs)


def wrap_rejection_forward(
    original: Original,
    self: Any,
    metadata: Any,
    draft_probs: Any,
    logits: Any,
    sampling_metadata: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Wrap ``RejectionSampler.forward``."""
    for processor in _ours(sampling_metadata.logitsprocs):
        processor.expect_drafts(metadata.num_draft_tokens)
    output = original(self, metadata, draft_probs, logits, sampling_metadata, *args, **kwargs)
    for processor in _ours(sampling_metadata.logitsprocs):
        processor.tell_amateurs(output.sampled_token_ids)
    return output


def wrap_propose_draft_token_ids(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap ``GPUModelRunner.propose_draft_token_ids``."""
    drafts = original(self, *args, **kwargs)
    for processor in _ours(self.input_batch.logitsprocs):
        processor.tell_amateurs(drafts)
    return drafts


def wrap_build_logitsprocs(
    original: Original,
    vllm_config: Any,
    device: Any,
    is_pin_memory: bool,
    is_pooling_model: bool,
    custom_logitsprocs: Any = (),
) -> Any:
    """Wrap ``build_logitsprocs``."""
    args, name = (vllm_config, device, is_pin_memory, is_pooling_model), Runner.V1.processor
    if vllm_config.speculative_config is None or name not in custom_logitsprocs:
        return original(*args, custom_logitsprocs)
    from vllm_cold.worker.v1.processor_v1 import ColdLogitsProcessorV1

    patching.install(places.rows(places.V1_DRAFTS))
    others = original(*args, [p for p in custom_logitsprocs if p != name])
    ours = ColdLogitsProcessorV1(vllm_config, device, is_pin_memory)
    return type(others)([*others.all, ours])
