# SPDX-License-Identifier: Apache-2.0
"""What ``cold_explain`` tells a client of each token, as plain data, from what a worker found
(``worker.explain_step``). Imports no vLLM.
"""

import math
from collections.abc import Sequence
from typing import Any

from vllm_cold.wire.step_stats import RowStats


def _finite(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if math.isfinite(value) else None


class Told:
    """What a group's client is told of its tokens.

    Args:
        amateurs: How many the group has at its first step.
        k: How many tokens are asked for.
    """

    def __init__(self, amateurs: int, k: int) -> None:
        self._amateurs = amateurs
        self._k = k
        self._done = 0

    def give(self, figures: Sequence[RowStats]) -> list[dict[str, Any]]:
        """The client is given the tokens that were sampled there.

        Returns:
            Of each what docs/write-a-rule.md says. An amateur that has ended has None for all
            numbers, also where a step that was under way still had a row of it.
        """
        steps = []
        for each in figures:
            steps.append(self._step(each))
            self._done |= each.done
        return steps

    def _step(self, figures: RowStats) -> dict[str, Any]:
        told = figures.explained
        assert told is not None
        there = [i for i in range(self._amateurs) if figures.present >> i & 1]
        weights = dict(zip(there, told.weights, strict=False))
        lives = {i for i in there if weights.get(i) or not self._done >> i & 1}

        def of_all(of_amateurs: Sequence[Any]) -> list[Any]:
            found = dict(zip(there, of_amateurs, strict=False))
            return [found.get(i) if i in lives else None for i in range(self._amateurs)]

        width = len(told.tokens) // 2
        columns = [i for start in (0, width) for i in range(start, start + min(self._k, width))]
        by_token = {told.tokens[i]: i for i in reversed(columns) if told.tokens[i] >= 0}
        columns = sorted(by_token.values())

        def row(values: Sequence[float]) -> list[float | None]:
            return [_finite(values[i]) for i in columns]

        expert, *others = told.logits
        return {
            "candidates": figures.candidates,
            "tokens": [told.tokens[i] for i in columns],
            "scores": row(told.scores),
            "logits": [row(expert), *of_all([row(each) for each in others])],
            "log_sums": [_finite(told.log_sums[0]), *of_all(list(map(_finite, told.log_sums[1:])))],
            "weights": of_all(told.weights),
            "divergences": of_all(told.divergences),
        }
