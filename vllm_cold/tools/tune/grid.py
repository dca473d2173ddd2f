# SPDX-License-Identifier: Apache-2.0
"""The settings to try: alpha times beta, checked as everywhere else in the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vllm_cold.method.settings import (
    ADAPTIVE,
    DEFAULT_BETA_MAX,
    ColdError,
    ColdSettings,
    check,
    check_together,
)
from vllm_cold.tools.errors import ToolError

ALPHAS, BETAS = "0.1,0.3", "0.5,1,adaptive"  # examples


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of the grid. Where a setting may be greedy decoding, that is None.

    Attributes:
        alpha: A number in [0, 1].
        beta: A number, or "adaptive".
        beta_max: The most that an adaptive beta reaches; None where beta is a number.
    """

    alpha: float
    beta: float | Literal["adaptive"]
    beta_max: float | None = None

    @property
    def values(self) -> list[Any]:
        """What it is made from, for JSON: ``Setting(*values)``, without a beta_max of None."""
        return [self.alpha, self.beta] + ([] if self.beta_max is None else [self.beta_max])

    @property
    def strength(self) -> float:
        """beta, or the most that it reaches if it is adaptive."""
        return ColdSettings(self.alpha, self.beta, self.beta_max).strength

    @property
    def is_greedy(self) -> bool:
        """Whether CoLD with it is greedy decoding of the adapter (docs/method.md), so that
        nothing needs to be decoded.
        """
        return self.strength == 0.0 or self.alpha == 1.0

    @property
    def beta_text(self) -> str:
        """Beta in a table."""
        adaptive = self.beta == ADAPTIVE
        return f"{ADAPTIVE} up to {self.strength:g}" if adaptive else f"{self.beta:g}"

    def __str__(self) -> str:
        return f"alpha {self.alpha:g}, beta {self.beta_text}"


def _values(name: str, parts: Sequence[str], text: str, example: str) -> list[float]:
    option, found = f"--{name}", set[float]()
    for part in parts:
        try:
            number = float(part)
        except ValueError:
            raise ToolError(
                f"{option}={text!r}: {part.strip()!r} is not a number; give numbers separated by "
                f"commas, such as {example}"
            ) from None
        try:
            found.add(check(name, number, option))
        except ColdError as error:
            raise ToolError(str(error)) from None
    return sorted(found)


def make_grid(alphas: str, betas: str, beta_max: float | None = None) -> list[Setting]:
    """All pairs of the comma-separated values, by alpha, then beta, each once.

    Args:
        alphas: Numbers.
        betas: Numbers and "adaptive", which comes behind them.
        beta_max: The most that an adaptive beta reaches; None for the package's default.

    Raises:
        ToolError: a value is something else or out of range, ``beta_max`` is given without an
            adaptive beta, or no point differs from greedy.
    """
    parts = betas.split(",")
    numbers = [part for part in parts if part.strip() != ADAPTIVE]
    strengths: list[tuple[Any, float | None]] = [
        (beta, None) for beta in _values("beta", numbers, betas, BETAS)
    ]
    try:
        most = check("beta_max", beta_max, "--beta-max")
        check_together("--beta-max", most, betas if numbers == parts else ADAPTIVE)
    except ColdError as error:
        raise ToolError(str(error)) from None
    if numbers != parts:
        # Said here and now: outputs that are kept must not change their meaning with the default.
        strengths.append((ADAPTIVE, DEFAULT_BETA_MAX if most is None else most))
    grid = [
        Setting(alpha, beta, most)
        for alpha in _values("alpha", alphas.split(","), alphas, ALPHAS)
        for beta, most in strengths
    ]
    if all(setting.is_greedy for setting in grid):
        raise ToolError(
            f"--alpha={alphas} --beta={betas}: alpha 1 and beta 0 both mean greedy decoding, so "
            "there is nothing to compare; add an alpha below 1 and a beta above 0"
        )
    return grid
