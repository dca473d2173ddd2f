# SPDX-License-Identifier: Apache-2.0
"""Seeds count on CPU, whatever else is in the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vllm_cold.vllm.worker.cpu_generators import _keep_seeds

pytestmark = pytest.mark.unit


class Sampler:
    """As vLLM's up to 0.28: a batch that is not all seeded is drawn without any seed."""

    def __init__(self) -> None:
        self.forward = self.forward_cpu

    def forward_cpu(self, logits: torch.Tensor, generators: dict[int, Any]) -> torch.Tensor:
        noise = torch.empty_like(logits).exponential_()
        if len(generators) != logits.shape[0]:
            return (logits / noise).argmax(1)
        for row, generator in generators.items():
            noise[row].exponential_(generator=generator)
        return (logits / noise).argmax(1)


class Cured(Sampler):
    """As vLLM's since then."""

    def forward_cpu(self, logits: torch.Tensor, generators: dict[int, Any]) -> torch.Tensor:
        return logits.argmax(1)


def test_rows_with_the_same_seed_draw_the_same_beside_rows_without() -> None:
    sampler = Sampler()
    for _ in range(2):
        _keep_seeds(sampler)
    logits = torch.ones(5, 1000)
    for _ in range(3):
        generators = {row: torch.Generator().manual_seed(5) for row in (0, 3)}
        drawn = sampler.forward(logits, generators).tolist()
        assert drawn[0] == drawn[3]
        assert len(set(drawn)) == 4
        assert set(generators) == {0, 3}


def test_a_sampler_that_keeps_them_is_left_alone() -> None:
    sampler = Cured()
    forward = sampler.forward
    _keep_seeds(sampler)
    assert sampler.forward == forward
