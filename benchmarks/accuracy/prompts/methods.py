# SPDX-License-Identifier: Apache-2.0
"""The ways to decode that are compared. Their keys name them in files and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.accuracy.prompts.problem import Problem
from vllm_cold.method.presets import PresetName


@dataclass(frozen=True)
class Method:
    """A way to decode.

    Attributes:
        key: Names it.
        knobs: Arguments of ``ColdParams`` besides the amateurs.
        preset: Name of the preset that says them instead.
        prompt: "prompt", "without" (what the amateur reads, alone), or the name of one of the
            problem's plain prompts.
        unasked: Weight of a second amateur, which reads the part and not what is asked; None: there
            is none.
    """

    key: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    preset: PresetName | None = None
    prompt: str = "prompt"
    unasked: float | None = None

    @property
    def contrasts(self) -> bool:
        """Whether it does: with knobs or a preset."""
        return bool(self.knobs) or self.preset is not None

    def is_for(self, problem: Problem) -> bool:
        """Whether the problem has such prompts."""
        if self.unasked is not None and problem.unasked is None:
            return False
        return self.prompt in ("prompt", "without") or self.prompt in problem.plain


def fixed(alpha: float, beta: float) -> Method:
    """A contrast with a mask and a weight."""
    return Method(f"alpha {alpha:g}, beta {beta:g}", {"alpha": alpha, "beta": beta})


def preset(name: PresetName) -> Method:
    """A contrast by a preset's values."""
    return Method(name, preset=name)


GREEDY = Method("greedy")
# Without a contrast.
PLAIN = (
    Method("without the part", prompt="without"),
    Method("better prompt", prompt="better"),
    Method("part repeated", prompt="repeated"),
)
ADAPTIVE = Method("adaptive", {"alpha": 0.1, "beta": "adaptive"})
# What the text makes likely whatever is asked counts against a token, too.
UNASKED = (Method("unasked too", {"alpha": 0.1, "beta": 0.5}, unasked=-0.5),
           Method("unasked too, lighter", {"alpha": 0.1, "beta": 0.25}, unasked=-0.5))  # fmt: skip
# cfg has the values of cad.
CONTRASTS = (preset("cad"), fixed(0.1, 0.5), fixed(0.1, 1.0), fixed(0.3, 0.5), preset("adacad"),
             ADAPTIVE)  # fmt: skip
METHODS = (GREEDY, *PLAIN, *CONTRASTS, *UNASKED)
