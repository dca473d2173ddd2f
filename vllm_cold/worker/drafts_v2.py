# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding on V2, where a request has a row of logits for each draft and one more. A
drafter may have other drafts for amateurs than for their expert: it may read their hidden states,
or prompts of their own. So they are told the expert's.
"""

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch

from vllm_cold.compat.patching import Original
from vllm_cold.worker.group_rows import GroupRows

# The groups of the batch that this thread verifies, if it has any.
_verified: ContextVar[GroupRows | None] = ContextVar("_verified", default=None)


def _ours(sampler: Any) -> list[Any]:
    return [p for p in sampler.logits_processors if hasattr(p, "expect_rows")]


def _bounds(num_requests: int, groups: GroupRows) -> np.ndarray:
    """Return the positions at which no group is split, 0 and ``num_requests`` among them."""
    inside = np.zeros(num_requests + 1, dtype=np.int64)
    for members in groups.members:
        inside[min(members) + 1 : max(members) + 1] = 1
    return np.flatnonzero(inside == 0)


def wrap_iter_request_chunks(
    original: Original, cu_num_logits: np.ndarray, max_chunk_logits: int, *args: Any, **kwargs: Any
) -> Iterator[tuple[int, int]]:
    """Wrap ``_iter_request_chunks``."""
    if (groups := _verified.get()) is None:
        yield from original(cu_num_logits, max_chunk_logits, *args, **kwargs)
        return
    bounds = _bounds(len(cu_num_logits) - 1, groups)
    for start, end in original(cu_num_logits[bounds], max_chunk_logits, *args, **kwargs):
        yield int(bounds[start]), int(bounds[end])


def wrap_rejection_call(
    original: Original, self: Any, logits: Any, input_batch: Any, *args: Any, **kwargs: Any
) -> Any:
    """Wrap ``RejectionSampler.__call__``."""
    slots = input_batch.idx_mapping_np
    ours = _ours(self.sampler)
    for processor in ours:
        processor.expect_rows(slots, np.diff(input_batch.cu_num_logits_np))
        _verified.set(processor.groups_of(slots))
    try:
        output = original(self, logits, input_batch, *args, **kwargs)
    finally:
        _verified.set(None)
    for processor in ours:
        for column in (output.sampled_token_ids, output.num_sampled, output.num_rejected):
            processor.tell_amateurs(column, slots)
    return output


@torch.inference_mode()
def wrap_sample_tokens(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap ``GPUModelRunner.sample_tokens``."""
    state = self.execute_model_state
    output = original(self, *args, **kwargs)
    if state is None or self.speculator is None or self.sampler is None:
        return output
    batch, drafts = state.input_batch, self.req_states.draft_tokens
    for processor in _ours(self.sampler):
        if (groups := processor.groups_of(batch.idx_mapping_np)) is not None:
            of_batch = drafts[batch.idx_mapping]
            groups.tell_amateurs(of_batch)
            drafts[batch.idx_mapping] = of_batch
    return output
