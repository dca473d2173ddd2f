# SPDX-License-Identifier: Apache-2.0
"""The logits processor of the V2 model runner: since vLLM 0.34 the only one."""

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.sample.logits_processor.interface import (
    LogitsContext,
    LogitsProcessor,
    LogitsProcRequestState,
)

from vllm_cold.compat import patching, places
from vllm_cold.ops import backend_registry
from vllm_cold.settings.arguments import load_rules
from vllm_cold.wire import worker_output
from vllm_cold.wire.stream import Stream, from_extra_args
from vllm_cold.worker import ssm
from vllm_cold.worker.group_rows import GroupRows
from vllm_cold.worker.rule_weights import RuleStates


class ColdLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Scores the experts' rows of complete groups; leaves every other row alone."""

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        drafts = () if vllm_config.speculative_config is None else (places.DRAFTS,)
        patching.install(places.rows(places.WORKER, *drafts))
        self._device: torch.device = req_states.device
        self._lengths = req_states
        self._states = RuleStates(self._device)
        load_rules(vllm_config.additional_config)
        ssm.install(vllm_config)
        worker_output.tell_kernels()
        # Logs which; a missing one fails now, not at a request.
        backend_registry.choose(self._device)
        self._num_rows = np.ones(req_states.max_num_reqs, dtype=np.int64)  # by slot
        self._streams: dict[int, Stream] = {}  # by slot
        # The groups of the last step, good while the batch and its slots stay the same.
        self._batch: bytes | None = None
        self._groups: GroupRows | None = None

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Whether the request in slot ``req_idx`` is an expert; forgets the slot's last one.

        True makes the sampler copy the batch's logits, so that ``apply`` may write and raw
        logprobs stay the expert's.
        """
        self._batch = None
        stream = from_extra_args(sampling_params.extra_args)
        if stream is None:
            self._streams.pop(req_idx, None)
            return False
        self._streams[req_idx] = stream
        return stream.index == 0

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Score in place; ``logits`` is [rows, V] float32: a request has one row, or where drafts
        are verified one for each of them and one more. No host sync.
        """
        slots = ctx.idx_mapping_np
        num_rows = None if len(logits) == len(slots) else self._num_rows[slots]
        if not self._streams or (num_rows is not None and num_rows.sum() > len(logits)):
            return logits
        if (groups := self.groups_of(slots)) is None:
            return logits
        drafts = None
        if num_rows is not None:
            groups = groups.spread(num_rows)
            # A request's first row follows its last token, which may be its prompt's own.
            drafts = ctx.input_ids.masked_fill(ctx.expanded_local_pos == 0, -1)
        steps = None
        if groups.rules:
            # Of a row, the tokens after its prompt up to it. A request that is prefilled again has
            # rows amid its output, too: they must not pass for steps that have been.
            slot = ctx.expanded_idx_mapping
            known = (ctx.pos + 1).maximum(self._lengths.prefill_len.gpu[slot])
            steps = (known - self._lengths.prompt_len.gpu[slot]).long()
        worker_output.hand_over(groups.score(logits, drafts, steps, self._states))
        return logits

    def expect_rows(self, slots: np.ndarray, num_rows: np.ndarray) -> None:
        """Note how many rows of logits requests have in the next calls of ``apply``, by slot."""
        self._num_rows[slots] = num_rows

    def groups_of(self, slots: np.ndarray) -> GroupRows | None:
        """Return the complete groups of a batch, by position, as if each request had one row;
        ``slots``: [requests] slot of each request.
        """
        if not self._streams:
            return None
        key = slots.tobytes()
        if key != self._batch:
            # Slots of finished requests are not in the batch: what they still hold is not seen.
            present = [
                (position, stream)
                for position, slot in enumerate(slots.tolist())
                if (stream := self._streams.get(slot)) is not None
            ]
            self._groups = GroupRows.match(present, self._device)
            self._batch = key
        return self._groups

    def tell_amateurs(self, tokens: torch.Tensor, slots: np.ndarray) -> None:
        """Copy each expert's tokens, or counts of them, over its amateurs'; ``tokens`` is
        [requests, ...] by position, changed in place, ``slots`` as in ``groups_of``.
        """
        if (groups := self.groups_of(slots)) is not None:
            if tokens.ndim == 2:
                self._states.settle(tokens[:, 0])
            groups.tell_amateurs(tokens)
