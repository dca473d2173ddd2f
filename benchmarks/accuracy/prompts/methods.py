# SPDX-License-Identifier: Apache-2.0
"""The ways to decode that are compared. Their keys name them in files and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.accuracy.prompts.problem import Cell, Problem
from vllm_cold.method.presets import PresetName

# What the amateur is: the expert's adapter with the prompt without its part, the base model with
# it, or the base model with the expert's own prompt (CoLD).
AmateurKind = Literal["without", "base without", "base"]


@dataclass(frozen=True)
class Method:
    """A way to decode.

    Attributes:
        key: Names it.
        knobs: Arguments of ``ColdParams`` besides the amateurs.
        preset: Name of the preset that says them instead.
        prompt: "prompt", "without" (what the amateur reads, alone), or the name of one of the
            problem's plain prompts.
        amateur: What it is.
        unasked: Weight of a second amateur, which reads the part and not what is asked; None: there
            is none.
        sampling: Arguments of ``SamplingParams`` other than greedy decoding's.
        votes: Answers drawn, of which the most frequent one counts.
    """

    key: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    preset: PresetName | None = None
    prompt: str = "prompt"
    amateur: AmateurKind = "without"
    unasked: float | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    votes: int = 1

    @property
    def contrasts(self) -> bool:
        """Whether it does: with knobs or a preset."""
        return bool(self.knobs) or self.preset is not None

    def is_for(self, cell: Cell, problem: Problem) -> bool:
        """Whether the cell asks for such methods and the problem has such prompts."""
        if self.sampling and not cell.sampled:
            return False
        if self.contrasts and self.amateur != "without" and cell.adapter is None:
            return False
        lacking = self.amateur != "base" if self.contrasts else self.prompt == "without"
        if lacking and problem.without == problem.prompt:
            return False
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
# Of what was tried with one amateur, what loses least on dev for what it gains.
CAREFUL = Method("careful", {"alpha": 0.3, "beta": "adaptive"})
# What the text makes likely whatever is asked counts against a token, too.
UNASKED = (Method("unasked too", {"alpha": 0.1, "beta": 0.5}, unasked=-0.5),
           Method("unasked too, lighter", {"alpha": 0.1, "beta": 0.25}, unasked=-0.5),
           Method("grounded", preset="grounded", unasked=-0.25))  # fmt: skip
# cfg has the values of cad.
CONTRASTS = (preset("cad"), fixed(0.1, 0.5), fixed(0.1, 1.0), fixed(0.3, 0.5), preset("adacad"),
             ADAPTIVE, CAREFUL)  # fmt: skip
# Of an expert with an adapter.
ADAPTED = (Method("base without the part", {"alpha": 0.1, "beta": 0.5}, amateur="base without"),
           Method("base with the same prompt", {"alpha": 0.1, "beta": 0.5}, amateur="base"),
           Method("base, beta 2", {"alpha": 0.01, "beta": 2.0}, amateur="base"))  # fmt: skip
# At temperature 1. A contrast makes a distribution sharper by 1 + beta and cuts it off at alpha:
# so does min_p at a lower temperature. vLLM takes min_p of the sharper distribution: 0.1 there is
# 0.22 here, and 0.1 here is 0.03 there.
SAMPLED = (
    Method("sampled", sampling={"temperature": 1.0}),
    Method("sampled, min_p 0.1", sampling={"temperature": 1.0, "min_p": 0.1}),
    Method("sampled, min_p 0.1 at T / 1.5", sampling={"temperature": 1 / 1.5, "min_p": 0.1}),
    Method("sampled, min_p 0.03 at T / 1.5", sampling={"temperature": 1 / 1.5, "min_p": 0.1**1.5}),
    Method("sampled, alpha 0.1, beta 0.5", {"alpha": 0.1, "beta": 0.5},
           sampling={"temperature": 1.0}),
)  # fmt: skip
# As many tokens as a contrast takes, and more.
VOTES = tuple(Method(f"vote of {n}", sampling={"temperature": 0.7}, votes=n) for n in (2, 3, 5))
METHODS = (GREEDY, *PLAIN, *CONTRASTS, *UNASKED, *ADAPTED, *SAMPLED, *VOTES)
