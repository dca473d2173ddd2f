# SPDX-License-Identifier: Apache-2.0
"""Answers step by step, as the page, its script and the terminal show them; made by ``account`` and
``collect``. Tokens are ids, probabilities from 0 to 1.
"""

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer

BASE = "base model"

# Upper ends of the classes of disagreement, in bits; the last class is open.
DIVERGENCE_CLASSES = (0.01, 0.03, 0.1, 0.2, 0.4)

# Significant digits, not decimals: small probabilities matter.
Number = Annotated[float, PlainSerializer(lambda value: float(f"{value:.6g}"))]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Candidate(_Record):
    """A token that could have been next.

    Attributes:
        text: As it is shown: ``visible.alone``.
        expert: The expert's probability.
        amateurs: The amateurs'; None for one that has ended.
        score: The engine's; None if alpha or the cap on the candidates cut it off.
        taken_by: What chooses it: the method's name, "greedy".
    """

    token: int
    text: str
    expert: Number
    amateurs: tuple[Number | None, ...]
    score: Number | None
    taken_by: tuple[str, ...] = ()

    @property
    def valid(self) -> bool:
        """Whether alpha and the cap leave it."""
        return self.score is not None


class ShownStep(_Record):
    """One position of an answer.

    Attributes:
        token: The answer's.
        text: Its piece of the answer.
        candidates: Those that the engine told: the valid ones, best score first, then others, most
            probable first.
        valid_size: The number of valid tokens.
        divergences: Jensen-Shannon, of the expert and each amateur, in bits; None for one that has
            ended.
        greedy: The choice of the expert's greedy decoding.
        weights: The amateurs', if a rule chooses one; None for one that has ended. Empty if all are
            fixed.
        ends: The amateurs, from 1, that the rule drops after this token.
    """

    token: int
    text: str
    candidates: tuple[Candidate, ...]
    valid_size: int
    divergences: tuple[Number | None, ...]
    greedy: int
    weights: tuple[Number | None, ...] = ()
    ends: tuple[int, ...] = ()

    @property
    def divergence(self) -> float:
        """Between the expert and the amateur farthest from it."""
        return max((bits for bits in self.divergences if bits is not None), default=0.0)

    @property
    def level(self) -> int:
        """The class of the divergence, 0 to 5."""
        return sum(self.divergence >= limit for limit in DIVERGENCE_CLASSES)

    @property
    def differs(self) -> bool:
        """Whether greedy decoding would choose another token."""
        return self.token != self.greedy


class Answer(_Record):
    """An answer and its steps, of which there are none while it is decoded.

    Attributes:
        title: The method's name or "Greedy".
        greedy: Whether it is the expert's own answer.
        num_prompt_tokens: Of what the expert read.
        finish_reason: vLLM's: "stop", "length".
        steps: One for each token.
    """

    title: str
    greedy: bool
    num_prompt_tokens: int | None = None
    finish_reason: str = ""
    steps: tuple[ShownStep, ...] = ()


class Piece(_Record):
    """A part of what a stream reads: a text, or a message and its role."""

    text: str
    role: str | None = None


class ShownAmateur(_Record):
    """What a prompt's answer is contrasted with.

    Attributes:
        label: Its name, what it reads and its weight.
        pieces: What it reads; none where that is the expert's prompt.
    """

    label: str
    pieces: tuple[Piece, ...]


class Explanation(_Record):
    """One prompt, its amateurs, and its answers: the method's and the greedy one."""

    pieces: tuple[Piece, ...]
    amateurs: tuple[ShownAmateur, ...]
    answers: tuple[Answer, Answer]

    def summary(self, answer: Answer) -> str:
        """Sum up one of the answers in a line."""
        steps = answer.steps
        if not steps:
            return "decoding"
        mean = math.fsum(step.divergence for step in steps) / len(steps)
        ended = (
            "finished (EOS or stop)" if answer.finish_reason == "stop" else "cut at --max-tokens"
        )
        facts = [f"{len(steps)} tokens, {ended}"]
        if not answer.greedy:
            facts.append(f"{sum(step.differs for step in steps)} differ from greedy's choice")
        facts.append(f"mean disagreement {mean:.3f} bits")
        cold, greedy = ([step.token for step in either.steps] for either in self.answers)
        if not answer.greedy and cold != greedy:
            # One of them may only be longer.
            same = [a == b for a, b in zip(cold, greedy, strict=False)]
            first = (*same, False).index(False) + 1
            facts.append(f"first differs from the greedy answer at token {first}")
        return " · ".join(facts)


class Report(_Record):
    """Everything that a page shows.

    Attributes:
        model: The base model's name.
        adapter: The expert's name, ``BASE`` without an adapter.
        source: What made the answers, in words.
        method: A preset's name or "contrastive".
        settings: Alpha and the cap, in words.
        explanations: One for each prompt.
    """

    model: str
    adapter: str
    source: str
    method: str
    settings: str
    explanations: tuple[Explanation, ...]
