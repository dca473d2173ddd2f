# SPDX-License-Identifier: Apache-2.0
"""What a model runner gets of vllm-cold, as one object: its class, and the runners of other engines
in the process, stay as they are.

Scores are computed after bad words and before penalties. Each amateur gets its expert's token, and
with speculative decoding the expert's accepted drafts and its next ones: a drafter may have other
drafts for amateurs, as it may read their hidden states, or prompts of their own. The figures of the
groups leave with the step's output.
"""

from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import numpy as np

from vllm_cold.compat.hardware import is_on
from vllm_cold.compat.patching import Original
from vllm_cold.wire import worker_output
from vllm_cold.worker.group_rows import GroupRows

# The groups of the batch that this thread verifies, if it has any.
_verified: ContextVar[GroupRows | None] = ContextVar("_verified", default=None)


def wrap_initialize_kv_cache(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Extend the runner when its model and its samplers are loaded, before its first step. On CPUs
    have it clear the blocks that the scheduler lists, in each cache that it makes: one more is made
    for profiling.
    """
    extend(self)
    result = original(self, *args, **kwargs)
    if is_on("cpu"):
        self._init_kv_zero_meta()
    return result


def extend(runner: Any) -> None:
    """Have a runner tell vllm-cold's logits processor of its steps, if it has one; once.

    Raises:
        RuntimeError: see ``in_order``.
    """
    sampler = runner.sampler  # None except in the last pipeline stage
    processors = [] if sampler is None else sampler.logits_processors
    ours = [p for p in processors if hasattr(p, "tell_amateurs")]
    if not ours or "sample" in vars(runner):
        return
    (processor,) = ours
    sampler.logits_processors = in_order(processors, processor)
    runner.sample = partial(_sample, processor, runner.rejection_sampler, runner.sample)
    runner.sample_tokens = partial(_sample_tokens, runner.sample_tokens)
    if (speculator := runner.speculator) is not None:
        speculator.propose = partial(_propose, processor, speculator.propose)


def in_order(processors: list[Any], ours: Any) -> list[Any]:
    """Return the processors of a sampler, with vllm-cold's after bad words and before penalties.

    vLLM has it after penalties, which it applies to each row according to the row's own prompt, and
    that may differ between an amateur and its expert. Requests without a contrast keep their
    tokens: what bad words forbid is -inf in either order.

    Raises:
        RuntimeError: the sampler lacks one of these, so that penalised rows would be scored.
    """
    named = {type(p).__name__: p for p in processors}
    penalties, bad_words = named.get("PenaltiesState"), named.get("BadWordsState")
    if penalties is None or bad_words is None:
        raise RuntimeError(
            "vllm-cold: this vLLM's sampler has no PenaltiesState or no BadWordsState among its "
            "logits processors, so penalties would be scored; install a vLLM that vllm-cold "
            "supports."
        )
    others = [p for p in processors if p not in (bad_words, ours)]
    at = others.index(penalties)
    return [*others[:at], bad_words, ours, *others[at:]]


def _sample(
    processor: Any,
    rejection_sampler: Any,
    original: Original,
    hidden_states: Any,
    input_batch: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Say which rows a request has, where drafts are verified, and tell the amateurs what was
    sampled: the tokens are still on the device, and nothing has read them.
    """
    slots = input_batch.idx_mapping_np
    if input_batch.num_draft_tokens == 0 or rejection_sampler is None:
        returned = original(hidden_states, input_batch, *args, **kwargs)
        processor.tell_amateurs(returned[0].sampled_token_ids, slots)
        return returned
    processor.expect_rows(slots, np.diff(input_batch.cu_num_logits_np))
    _verified.set(processor.groups_of(slots))
    try:
        returned = original(hidden_states, input_batch, *args, **kwargs)
    finally:
        _verified.set(None)
    output, num_sampled, num_rejected = returned
    for column in (output.sampled_token_ids, num_sampled, num_rejected):
        processor.tell_amateurs(column, slots)
    return returned


def _sample_tokens(original: Original, *args: Any, **kwargs: Any) -> Any:
    """Have the step's output take the figures of its groups along."""
    output = original(*args, **kwargs)
    if output is not None:
        worker_output.attach(getattr(output, "model_runner_output", output))
    return output


def _propose(
    processor: Any, original: Original, input_batch: Any, *args: Any, **kwargs: Any
) -> Any:
    """Tell the amateurs their experts' drafts, before the host or another stage gets them."""
    drafts = original(input_batch, *args, **kwargs)
    if (groups := processor.groups_of(input_batch.idx_mapping_np)) is not None:
        groups.tell_amateurs(drafts)
    return drafts


def _bounds(num_requests: int, groups: GroupRows) -> np.ndarray:
    """Return the positions at which no group is split, 0 and ``num_requests`` among them."""
    inside = np.zeros(num_requests + 1, dtype=np.int64)
    for members in groups.members:
        inside[min(members) + 1 : max(members) + 1] = 1
    return np.flatnonzero(inside == 0)


def wrap_iter_request_chunks(
    original: Original, cu_num_logits: np.ndarray, max_chunk_logits: int, *args: Any, **kwargs: Any
) -> Iterator[tuple[int, int]]:
    """Verify large batches in chunks of requests that do not separate a group."""
    if (groups := _verified.get()) is None:
        yield from original(cu_num_logits, max_chunk_logits, *args, **kwargs)
        return
    bounds = _bounds(len(cu_num_logits) - 1, groups)
    for start, end in original(cu_num_logits[bounds], max_chunk_logits, *args, **kwargs):
        yield int(bounds[start]), int(bounds[end])
