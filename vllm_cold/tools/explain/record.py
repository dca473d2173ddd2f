# SPDX-License-Identifier: Apache-2.0
"""What ``explain`` knows of answers, step by step: the one record that the page, its script and the
terminal show. ``account`` and ``collect`` make it. Tokens are ids, probabilities from 0 to 1.
"""

from __future__ import annotations

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
        amateurs: Those of the amateurs.
        score: ``ln(expert) + sum of weight * (ln(amateur) - ln(expert))`` up to a constant of the
            step; None if it is not valid, not finite, or a weight is not known.
        valid: Whether it survived alpha (and the cap on the candidates).
        taken_by: Who takes it: the method, "greedy", and "engine" if that took neither's.
    """

    token: int
    text: str
    expert: Number
    amateurs: tuple[Number, ...]
    score: Number | None
    valid: bool
    taken_by: tuple[str, ...] = ()


class Step(_Record):
    """One position of an answer.

    Attributes:
        token: What the engine put there.
        text: Its piece of the answer.
        candidates: The valid ones, best score first, then others, most probable first.
        valid_size: How many tokens are valid; at least, if ``complete`` is false.
        complete: Whether every valid token is known.
        divergences: Of the expert and each amateur, in bits; see ``account.divergence_bits``.
        greedy: What greedy decoding of the expert takes here.
        winner: What the method takes here; None if it is not known. If not all valid tokens are
            known, it is what the engine took, unless a listed one is better for certain.
        weights: The amateurs' weights here, where a rule chooses one; None for one that had ended.
            Empty where all are fixed, None where they are not known: no rule was asked there.
        ends: The amateurs, from 1, that the rule needs no more behind this token of the method's
            answer.
        wrong: Whether ``token`` is not what follows from the numbers.
        margin: By how much what follows wins then, in nats of score or ln-probability; None if
            ``token`` is not valid by the numbers.
    """

    token: int
    text: str
    candidates: tuple[Candidate, ...]
    valid_size: int
    complete: bool
    divergences: tuple[Number, ...]
    greedy: int
    winner: int | None
    weights: tuple[Number | None, ...] | None = ()
    ends: tuple[int, ...] = ()
    wrong: bool = False
    margin: Number | None = None

    @property
    def divergence(self) -> float:
        """Of the expert and that amateur which is farthest from it."""
        return max(self.divergences)

    @property
    def level(self) -> int:
        """The class of the divergence, 0 to 5."""
        return sum(self.divergence >= limit for limit in DIVERGENCE_CLASSES)

    @property
    def differs(self) -> bool:
        """Whether the method takes another token here than greedy decoding."""
        return self.winner not in (None, self.greedy)

    @property
    def size(self) -> str:
        """How many tokens are valid, in words."""
        return str(self.valid_size) if self.complete else f"at least {self.valid_size}"


class Answer(_Record):
    """An answer and the account of its steps, which are none while it is decoded.

    Attributes:
        title: The method's name, or "Greedy".
        greedy: Whether it is the expert's own answer.
        finish_reason: vLLM's: "stop", "length".
        steps: One for each token.
    """

    title: str
    greedy: bool
    finish_reason: str = ""
    steps: tuple[Step, ...] = ()


class Piece(_Record):
    """A part of what a stream reads: a text, or a message and its role."""

    text: str
    role: str | None = None


class Amateur(_Record):
    """What a prompt's answer is contrasted with.

    Attributes:
        label: Its name, what it reads and its weight.
        pieces: What it reads; none where that is the expert's prompt.
        tokens: The length of what it reads.
    """

    label: str
    pieces: tuple[Piece, ...]
    tokens: int


class Explanation(_Record):
    """One prompt, its length in tokens, its amateurs, and its two answers: the method's, and the
    greedy one.
    """

    pieces: tuple[Piece, ...]
    tokens: int
    amateurs: tuple[Amateur, ...]
    answers: tuple[Answer, Answer]


class Report(_Record):
    """Everything that a page shows.

    Attributes:
        model: The base model's name.
        adapter: The expert's name, ``BASE`` without an adapter.
        source: Where the numbers come from, in words.
        method: What is explained: a preset's name, or "CoLD".
        settings: Its mask, in words.
        explanations: One for each prompt.
    """

    model: str
    adapter: str
    source: str
    method: str
    settings: str
    explanations: tuple[Explanation, ...]
