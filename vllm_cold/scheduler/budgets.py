# SPDX-License-Identifier: Apache-2.0
"""What the tokens of an answer have cost, of a rule that charges for them. Imports no vLLM."""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_cold.wire.step_stats import RowStats


class Budget:
    """What an answer has cost so far.

    Args:
        amateurs: How many the group has at its first step.
        parameters: The rule's.
    """

    def __init__(self, amateurs: int, parameters: Mapping[str, Any]) -> None:
        self._parameters = dict(parameters)
        self.spent = [0.0] * amateurs
        self._left: list[float | None] = [None] * amateurs
        self._reached = [False] * amateurs

    def add(self, figures: Sequence[RowStats]) -> None:
        """Add the tokens that the client is given; their ``figures`` have ``charges``."""
        for row in figures:
            assert row.charges is not None  # see output_checks.problem
            for i, (cost, left, limited) in enumerate(row.charges[: len(self.spent)]):
                self.spent[i] += cost
                self._left[i] = max(left - cost, 0.0)
                self._reached[i] |= limited > 0

    def total(self) -> list[float]:
        """Return what was spent, of each amateur; nothing where no token was given."""
        return [] if None in self._left else [*self.spent]

    def as_dict(self) -> dict[str, Any]:
        """Return what the client is told: the rule's parameters, and of each amateur what was
        spent, what was left after the last token, and whether a limit has changed the answer.
        """
        return {
            **self._parameters,
            "spent": [*self.spent],
            "left": [*self._left],
            "reached": [*self._reached],
        }
