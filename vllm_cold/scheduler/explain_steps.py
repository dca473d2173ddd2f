# SPDX-License-Identifier: Apache-2.0
"""What ``cold_explain`` tells a client of each token, as plain data, from what a worker found
(``worker.explain_step``). Imports no vLLM.
"""

import math
from collections.abc import Sequence
from typing import Any

from vllm_cold.wire.step_stats import Explained, RowStats


def _finite(value: float) -> float | None:
    """Return the number, None for one that JSON does not have."""
    return value if math.isfinite(value) else None


class StepExplainer:
    """Makes what a group's client is told of its tokens.

    Args:
        amateurs: How many the group has at its first step.
        k: How many tokens the client asks for.
    """

    def __init__(self, amateurs: int, k: int) -> None:
        self._amateurs = amateurs
        self._k = k
        self._done = 0

    def explain(self, figures: Sequence[RowStats]) -> list[dict[str, Any]]:
        """Explain the tokens that the client is given; their ``figures`` have ``explained``.

        Returns:
            Of each what docs/write-a-rule.md says. An amateur that has ended has None for all
            numbers, also where a step that was under way still had a row of it.
        """
        steps = []
        for row_stats in figures:
            assert row_stats.explained is not None  # see output_checks.problem
            steps.append(self._step(row_stats, row_stats.explained))
            self._done |= row_stats.done
        return steps

    def _step(self, figures: RowStats, explained: Explained) -> dict[str, Any]:
        present = [i for i in range(self._amateurs) if figures.present >> i & 1]
        weights = dict(zip(present, explained.weights, strict=False))
        alive = {i for i in present if weights.get(i) or not self._done >> i & 1}

        def of_all(of_present: Sequence[Any]) -> list[Any]:
            """Return what the group's amateurs have, from what those that are present have."""
            by_amateur = dict(zip(present, of_present, strict=False))
            return [by_amateur.get(i) if i in alive else None for i in range(self._amateurs)]

        width = len(explained.tokens) // 2
        columns = [i for start in (0, width) for i in range(start, start + min(self._k, width))]
        by_token = {explained.tokens[i]: i for i in reversed(columns) if explained.tokens[i] >= 0}
        columns = sorted(by_token.values())

        def row(values: Sequence[float]) -> list[float | None]:
            return [_finite(values[i]) for i in columns]

        expert, *amateurs = map(row, explained.logits)
        log_sum, *log_sums = map(_finite, explained.log_sums)
        step = {
            "candidates": figures.candidates,
            "tokens": [explained.tokens[i] for i in columns],
            "scores": row(explained.scores),
            "logits": [expert, *of_all(amateurs)],
            "log_sums": [log_sum, *of_all(log_sums)],
            "weights": of_all(explained.weights),
            "divergences": of_all(explained.divergences),
        }
        if figures.charges is not None:
            # Of the amateurs that the group had at first, so without gaps.
            charges = [figures.charges[i] if i in alive else None for i in range(self._amateurs)]
            step["cost"] = [charge and _finite(charge[0]) for charge in charges]
            step["left"] = [charge and _finite(charge[1]) for charge in charges]
            step["limited"] = [charge and charge[2] > 0 for charge in charges]
        return step
