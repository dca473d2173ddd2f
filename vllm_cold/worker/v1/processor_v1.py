# SPDX-License-Identifier: Apache-2.0
"""The logits processor of the V1 model runner."""

from collections.abc import Sequence
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor.interface import (
    BatchUpdate,
    LogitsProcessor,
    MoveDirectionality,
)

from vllm_cold.compat import patching, places
from vllm_cold.ops import backend_registry
from vllm_cold.settings.arguments import load_rules
from vllm_cold.wire import worker_output
from vllm_cold.wire.stream import Stream, from_extra_args
from vllm_cold.worker import ssm
from vllm_cold.worker.group_rows import GroupRows
from vllm_cold.worker.rule_weights import RuleStates


class ColdLogitsProcessorV1(LogitsProcessor):  # type: ignore[misc]
    """Scores the experts' rows of complete groups; leaves every other row alone."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        # By row; with each its request's tokens so far, which vLLM adds to.
        self._streams: dict[int, tuple[Stream, Sequence[int]]] = {}
        self._num_drafts: Sequence[int] | None = None
        self._device = device
        self._states = RuleStates(device)
        load_rules(vllm_config.additional_config)
        self._rows: GroupRows | None = None
        backend_registry.choose(device)  # says which; a missing one fails now, not at a request
        # The model is loaded after this.
        patching.install(places.rows(places.V1, places.V1_ON_CPU))
        ssm.install(vllm_config)
        worker_output.tell_kernels()

    def is_argmax_invariant(self) -> bool:
        """False: vllm-cold changes which token is best."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the rows of the persistent batch (order of vLLM's contract: removed, added,
        moved).
        """
        if batch_update is None:
            return
        streams = self._streams
        for row in batch_update.removed:
            streams.pop(row, None)
        for row, params, _, tokens in batch_update.added:
            stream = from_extra_args(params.extra_args)
            if stream is None:
                streams.pop(row, None)
            else:
                streams[row] = stream, tokens
        for source, target, direction in batch_update.moved:
            a, b = streams.pop(source, None), streams.pop(target, None)
            if a is not None:
                streams[target] = a
            if b is not None and direction == MoveDirectionality.SWAP:
                streams[source] = b
        by_row = ((row, stream) for row, (stream, _) in streams.items())
        self._rows = GroupRows.match(by_row, self._device)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Score in place; ``logits`` is [batch rows, V] float32: of each request the row that its
        next token is sampled from, after all its drafts.
        """
        if self._rows is None:
            return logits
        steps = None
        if self._rows.rules:
            steps = self._on_device(self._steps(len(logits), self._num_drafts))
        worker_output.hand_over(self._rows.score(logits, steps=steps, states=self._states))
        return logits

    def _steps(self, num_rows: int, drafts: Sequence[int] | None) -> list[int]:
        """Return how many tokens the request of each row has got, or is about to get by as many
        drafts; 0 for regular requests.
        """
        steps = [0] * num_rows
        for row, (_, tokens) in self._streams.items():
            steps[row] = len(tokens) + (drafts[row] if drafts else 0)
        return steps

    def _on_device(self, steps: list[int]) -> torch.Tensor:
        return torch.tensor(steps).to(self._device, non_blocking=True)

    def expect_drafts(self, num_drafts: Sequence[int]) -> None:
        """Note how many drafts of each request of the batch are verified in front of the rows that
        ``apply`` is called with next.
        """
        self._num_drafts = num_drafts

    def has_groups(self) -> bool:
        """Whether a group is complete in this step."""
        return self._rows is not None

    def apply_to_drafts(
        self, logits: torch.Tensor, num_drafts: Sequence[int], drafts: torch.Tensor
    ) -> None:
        """Score in place the rows in which drafts are verified, after ``apply``.

        Args:
            logits: [drafts, V] float32, in the order of the batch.
            num_drafts: Of each request of the batch.
            drafts: [drafts] tokens.
        """
        if self._rows is None:
            return
        self._num_drafts = None
        steps = None
        if self._rows.rules:
            first = zip(self._steps(len(num_drafts), None), num_drafts, strict=True)
            steps = self._on_device([step + n for step, num in first for n in range(num)])
        stats = self._rows.spread(num_drafts).score(logits, drafts, steps, self._states)
        worker_output.hand_over(stats, in_front=True)

    def tell_amateurs(self, tokens: torch.Tensor | list[Any]) -> None:
        """Copy each expert's tokens, or drafts, over its amateurs'; ``tokens`` is
        [batch rows, ...], changed in place.
        """
        if self._rows is not None:
            if isinstance(tokens, torch.Tensor):
                self._states.settle(tokens[:, 0])
            self._rows.tell_amateurs(tokens)
