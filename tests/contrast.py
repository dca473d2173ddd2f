# SPDX-License-Identifier: Apache-2.0
"""Groups as the scheduler describes them to logits processors, and the scores that they ask for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from vllm.sampling_params import SamplingParams

from vllm_cold.group.stream import AmateurStream, Stream
from vllm_cold.method.settings import ColdSettings
from vllm_cold.ops.scoring_reference import group_scores


@dataclass(frozen=True)
class Contrast:
    """What a request asks for.

    Attributes:
        weights: Of each amateur.
        adaptive: Of each amateur; empty if none is.
        alpha: The plausibility threshold.
        expert_top_k: A cap on the candidates, 0 for none.
    """

    weights: tuple[float, ...] = (-0.5,)
    adaptive: tuple[bool, ...] = ()
    alpha: float = 0.1
    expert_top_k: int = 0

    def stream(self, group: str, index: int) -> Stream:
        """One of the request's; beta, which the weights follow from, is the default's."""
        adaptive = self.adaptive or (False,) * len(self.weights)
        return Stream(
            ColdSettings(self.alpha, expert_top_k=self.expert_top_k or None),
            tuple(map(AmateurStream, self.weights, adaptive)),
            group,
            index,
        )

    def params(self, group: str, index: int) -> SamplingParams:
        """A stream's, as vLLM hands them to a processor."""
        return SamplingParams(extra_args=self.stream(group, index).to_extra_args({"other": 1}))

    def scores(self, rows: Tensor) -> Tensor:
        """The reference's, of [S, V] logits: the expert's and those of its amateurs."""
        expert, *amateurs = rows
        log_alpha = math.log(self.alpha) if self.alpha else -math.inf
        return group_scores(
            expert, amateurs, log_alpha, self.weights, self.expert_top_k, self.adaptive or None
        )


def of_size(num_amateurs: int) -> Contrast:
    """With another weight for each amateur."""
    return Contrast((-0.5, 1.5, -0.75)[:num_amateurs])


def assert_scored(
    before: Tensor,
    after: Tensor,
    groups: Sequence[Sequence[int]],
    contrast: Contrast | None = None,
) -> None:
    """Experts of ``groups``, rows that begin with theirs, hold the reference's scores, other rows
    are bit for bit as before.

    Args:
        before: [rows, V] logits.
        after: [rows, V] what became of them.
        groups: Of each, the rows of its streams.
        contrast: What they asked for; None: ``of_size``.
    """
    left = set(range(len(before)))
    for rows in groups:
        want = (contrast or of_size(len(rows) - 1)).scores(before[list(rows)])
        torch.testing.assert_close(after[rows[0]].double(), want, rtol=1e-5, atol=1e-4)
        left.remove(rows[0])
    for row in left:
        assert torch.equal(before[row], after[row]), f"row {row} was changed"
