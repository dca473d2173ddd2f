# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``RejectionSampler``, ``GPUModelRunner.propose_draft_token_ids`` (V1 runner), and
``build_logitsprocs``.

Why: with speculative decoding, V1 asks its logits processors about a request's last row alone, the
one behind its drafts. Here CoLD also scores the rows in which drafts are verified, before penalties
as everywhere on V1, and the amateurs are told the expert's drafts and those that were right.
V1 loads no logits processor under speculation, which cannot know of the rows of drafts, and says so
with an error; ours does, so it is loaded.
Since: 0.32. Can go: when V1's logits processors are given the rows of drafts.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vllm_cold.vllm import patching
from vllm_cold.vllm.patching import PatchPoint

PROCESSOR = "vllm_cold.vllm.worker.processor_v1:ColdLogitsProcessorV1"


def _ours(logitsprocs: Any) -> list[Any]:
    """CoLD's, if a group is complete in this step."""
    found = logitsprocs.non_argmax_invariant
    return [p for p in found if hasattr(p, "apply_to_drafts") and p.has_groups()]


def _make_apply(original: Callable[..., Any]) -> Callable[..., Any]:
    def apply_logits_processors(
        self: Any, logits: Any, sampling_metadata: Any, metadata: Any
    ) -> Any:
        ours = _ours(sampling_metadata.logitsprocs)
        if not ours:
            return original(self, logits, sampling_metadata, metadata)
        masks = replace(sampling_metadata, no_penalties=True)
        logits = original(self, logits, masks, metadata)
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
        return original(self, logits, penalties, metadata)

    return apply_logits_processors


def _make_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(
        self: Any, metadata: Any, draft_probs: Any, logits: Any, sampling_metadata: Any
    ) -> Any:
        for processor in _ours(sampling_metadata.logitsprocs):
            processor.expect_drafts(metadata.num_draft_tokens)
        output = original(self, metadata, draft_probs, logits, sampling_metadata)
        for processor in _ours(sampling_metadata.logitsprocs):
            processor.tell_amateurs(output.sampled_token_ids)
        return output

    return forward


def _make_propose(original: Callable[..., Any]) -> Callable[..., Any]:
    def propose_draft_token_ids(self: Any, *args: Any, **kwargs: Any) -> Any:
        drafts = original(self, *args, **kwargs)
        for processor in _ours(self.input_batch.logitsprocs):
            processor.tell_amateurs(drafts)
        return drafts

    return propose_draft_token_ids


_SAMPLER = "vllm.v1.sample.rejection_sampler:RejectionSampler."
PATCH_POINTS = (
    PatchPoint(
        _SAMPLER + "apply_logits_processors",
        _make_apply,
        ("logits", "sampling_metadata", "metadata"),
    ),
    PatchPoint(
        _SAMPLER + "forward",
        _make_forward,
        ("metadata", "draft_probs", "logits", "sampling_metadata"),
    ),
    PatchPoint(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner.propose_draft_token_ids", _make_propose
    ),
)


def _make_build(original: Callable[..., Any]) -> Callable[..., Any]:
    def build_logitsprocs(
        vllm_config: Any,
        device: Any,
        is_pin_memory: bool,
        is_pooling_model: bool,
        custom_logitsprocs: Any = (),
    ) -> Any:
        args = vllm_config, device, is_pin_memory, is_pooling_model
        if vllm_config.speculative_config is None or PROCESSOR not in custom_logitsprocs:
            return original(*args, custom_logitsprocs)
        from vllm_cold.vllm.worker import workarounds
        from vllm_cold.vllm.worker.processor_v1 import ColdLogitsProcessorV1

        patching.install(PATCH_POINTS)
        workarounds.install()
        found = original(*args, [p for p in custom_logitsprocs if p != PROCESSOR])
        ours = ColdLogitsProcessorV1(vllm_config, device, is_pin_memory)
        return type(found)([*found.all, ours])

    return build_logitsprocs


def builders() -> tuple[PatchPoint, ...]:
    """Where V1's runners get it from: they are loaded behind plugins, mostly."""
    names = ["vllm.v1.sample.logits_processor"]
    names += [name for name in ("vllm.v1.worker.gpu_model_runner",) if name in sys.modules]
    takes = ("vllm_config", "device", "is_pin_memory", "is_pooling_model", "custom_logitsprocs")
    return tuple(PatchPoint(f"{name}:build_logitsprocs", _make_build, takes) for name in names)
