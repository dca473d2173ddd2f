# SPDX-License-Identifier: Apache-2.0
"""Groups as the scheduler describes them to logits processors, and the scores that they ask for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from vllm.sampling_params import SamplingParams

from tests import naive_rules
from tests.formula import group_scores
from vllm_cold.rules import registry
from vllm_cold.settings.table import DEFAULT_BETA, ColdSettings
from vllm_cold.wire.stream import AmateurStream, Stream


@dataclass(frozen=True)
class Contrast:
    """What a request asks for.

    Attributes:
        weights: Of each amateur; None where the rule chooses it.
        alpha: The plausibility threshold.
        expert_top_k: A cap on the candidates, 0 for none.
        rule: Its name, None for a request without.
        parameters: Those of the rule's that are not the defaults.
        slot: Of the rule's state.
        explain: Of how many tokens its client asks.
    """

    weights: tuple[float | None, ...] = (-0.5,)
    alpha: float = 0.1
    expert_top_k: int = 0
    rule: str | None = None
    parameters: Mapping[str, float] = field(default_factory=dict)
    slot: int | None = None
    explain: int = 0

    def stream(self, group: str, index: int) -> Stream:
        """One of the request's; beta, which fixed weights follow from, is the default's."""
        return Stream(
            ColdSettings(
                self.alpha,
                DEFAULT_BETA,
                self.rule,
                registry.parameters_of(registry.get(self.rule), self.parameters, "parameters")
                if self.rule
                else None,
                self.expert_top_k or None,
            ),
            tuple(map(AmateurStream, self.weights)),
            group,
            index,
            retires=self.rule is not None and registry.get(self.rule).retires,
            slot=self.slot,
            explain=self.explain,
        )

    def params(self, group: str, index: int) -> SamplingParams:
        """A stream's, as vLLM hands them to a processor."""
        return SamplingParams(extra_args=self.stream(group, index).to_extra_args({"other": 1}))

    def scores(self, rows: Tensor, step: int = 0, memory: dict[str, Any] | None = None) -> Tensor:
        """The reference's, of [S, V] logits: the expert's and those of its amateurs.

        Args:
            rows: The logits.
            step: How many tokens the request has got before.
            memory: Of its rule, as ``naive_rules`` keeps it.
        """
        expert, *amateurs = rows
        log_alpha, cap = math.log(self.alpha) if self.alpha else -math.inf, self.expert_top_k
        chosen: Sequence[float | None] = self.weights
        if self.rule is not None:
            valid = group_scores(expert, [], log_alpha, [], cap) > -math.inf
            memory = {} if memory is None else memory
            chosen = naive_rules.weights(self.rule, self.parameters, [*rows], valid, step, memory)
        weights = [
            float(of_rule if one is None else one)  # type: ignore[arg-type]
            for one, of_rule in zip(self.weights, chosen, strict=True)
        ]
        return group_scores(expert, amateurs, log_alpha, weights, cap)


def of_size(num_amateurs: int) -> Contrast:
    """With another weight for each amateur."""
    return Contrast((-0.5, 1.5, -0.75)[:num_amateurs])


def assert_scored(
    before: Tensor,
    after: Tensor,
    groups: Sequence[Sequence[int]],
    contrast: Contrast | None = None,
    steps: Sequence[int] | None = None,
) -> None:
    """Experts of ``groups``, rows that begin with theirs, hold the reference's scores, other rows
    are bit for bit as before.

    Args:
        before: [rows, V] logits.
        after: [rows, V] what became of them.
        groups: Of each, the rows of its streams.
        contrast: What they asked for; None: ``of_size``.
        steps: Of each, how many tokens it has got before; None for none.
    """
    left = set(range(len(before)))
    for rows, step in zip(groups, steps or [0] * len(groups), strict=True):
        want = (contrast or of_size(len(rows) - 1)).scores(before[list(rows)], step)
        torch.testing.assert_close(after[rows[0]].double(), want, rtol=1e-5, atol=1e-4)
        left.remove(rows[0])
    for row in left:
        assert torch.equal(before[row], after[row]), f"row {row} was changed"
