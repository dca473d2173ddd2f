# SPDX-License-Identifier: Apache-2.0
"""The settings to try: alpha times beta, checked as everywhere else in the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vllm_cold.settings import ColdError, check_alpha, check_beta
from vllm_cold.tools.errors import ToolError


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of the grid. Where a setting may be greedy decoding, that is None."""

    alpha: float
    beta: float

    @property
    def is_greedy(self) -> bool:
        """Whether CoLD with it is greedy decoding of the adapter (docs/method.md), so that
        nothing needs to be decoded.
        """
        return self.beta == 0.0 or self.alpha == 1.0

    def __str__(self) -> str:
        return f"alpha {self.alpha:g}, beta {self.beta:g}"


def _values(option: str, text: str, check: Callable[[str, object], float]) -> list[float]:
    found: set[float] = set()
    for part in text.split(","):
        try:
            number = float(part)
        except ValueError:
            raise ToolError(
                f"{option}={text!r}: {part.strip()!r} is not a number; give numbers separated by "
                "commas, such as 0.1,0.3"
            ) from None
        try:
            found.add(check(option, number))
        except ColdError as error:
            raise ToolError(str(error)) from None
    return sorted(found)


def make_grid(alphas: str, betas: str) -> list[Setting]:
    """All pairs of the comma-separated values, by alpha, then beta, each once.

    Raises:
        ToolError: a value is no number or out of range, or no point differs from greedy.
    """
    grid = [
        Setting(alpha, beta)
        for alpha in _values("--alpha", alphas, check_alpha)
        for beta in _values("--beta", betas, check_beta)
    ]
    if all(setting.is_greedy for setting in grid):
        raise ToolError(
            f"--alpha={alphas} --beta={betas}: alpha 1 and beta 0 both mean greedy decoding, so "
            "there is nothing to compare; add an alpha below 1 and a beta above 0"
        )
    return grid
