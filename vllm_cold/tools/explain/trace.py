# SPDX-License-Identifier: Apache-2.0
"""What ``explain`` knows of answers, step by step: plain data, no vLLM. ``account`` makes it.

Tokens are ids, probabilities natural logarithms, steps counted from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from vllm_cold.method.settings import ColdSettings, Weight

GREEDY = "greedy"
BASE = "base model"

# Upper ends of the classes of disagreement, in bits; the last class is open.
DIVERGENCE_CLASSES = (0.01, 0.03, 0.1, 0.2, 0.4)


class Logprob(NamedTuple):
    """ln of a probability, and the token decoded alone; "" for a part of a character."""

    value: float
    text: str = ""


Row = Mapping[int, Logprob]
"""One stream's distribution at one position, as far as it is known: by token id."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could have been next.

    Attributes:
        expert: The expert's ln-probability.
        amateurs: Those of the amateurs.
        score: ``expert + sum of weight * (amateur - expert)`` in nats, up to a constant of the
            step; None if it is not valid, or a weight is not known.
        valid: Whether it survived alpha (and the cap on the candidates).
    """

    token: int
    text: str
    expert: float
    amateurs: tuple[float, ...]
    score: float | None
    valid: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One position of an answer.

    Attributes:
        token: What the engine put there.
        text: Its piece of the answer.
        candidates: The valid ones, best score first, then others, most probable first.
        valid_size: How many tokens are valid; at least, if ``complete`` is false.
        complete: Whether every valid token is known.
        divergences: Of the expert and each amateur, in bits; see ``account.divergence_bits``.
        greedy: What greedy decoding of the expert takes here.
        winner: What CoLD takes here; None if it is not known.
        told: Whether ``winner`` is the engine's own choice, which the numbers here neither prove
            nor contradict: a token that is not listed could have a better score.
        weights: The amateurs' weights here; None for an adaptive one where a valid token is not
            known, from all of which it follows: there are no scores then.
    """

    token: int
    text: str
    candidates: tuple[Candidate, ...]
    valid_size: int
    complete: bool
    divergences: tuple[float, ...]
    greedy: int
    winner: int | None
    told: bool
    weights: tuple[float | None, ...]

    @property
    def divergence(self) -> float:
        """Of the expert and that amateur which is farthest from it."""
        return max(self.divergences)

    @property
    def differs(self) -> bool:
        """Whether CoLD takes another token here than greedy decoding."""
        return self.winner is not None and self.winner != self.greedy

    @property
    def level(self) -> int:
        """The class of the divergence, 0 to 5."""
        return sum(self.divergence >= limit for limit in DIVERGENCE_CLASSES)

    def find(self, token: int | None) -> Candidate | None:
        """The candidate with this id, None if it is not listed."""
        return next((c for c in self.candidates if c.token == token), None)


class Mismatch(NamedTuple):
    """A step at which the engine took another token than the numbers say, which one they say, and
    by how much that wins, in nats of score (CoLD) or ln-probability (greedy). The margin is None if
    the engine's token is not valid by these numbers, or its score is not known.
    """

    step: int
    expected: int
    margin: float | None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and the account of its steps; empty while it is decoded.

    Attributes:
        method: Which method of the report it is accounted for with, counted from 0.
        greedy: Whether it is the expert's own answer.
        text: As vLLM returned it, without special tokens.
        finish_reason: vLLM's: "stop", "length".
        steps: One for each token.
    """

    method: int
    greedy: bool
    text: str = ""
    finish_reason: str = ""
    steps: tuple[Step, ...] = ()

    @property
    def mismatches(self) -> tuple[Mismatch, ...]:
        """Where the engine's token is not the one that follows from the numbers."""
        found = []
        for index, step in enumerate(self.steps):
            expected = step.greedy if self.greedy else step.winner
            if expected is not None and step.token != expected:
                found.append(Mismatch(index, expected, self._margin(step, expected)))
        return tuple(found)

    def _margin(self, step: Step, expected: int) -> float | None:
        best, taken = step.find(expected), step.find(step.token)
        if best is None or taken is None:
            return None
        if self.greedy:
            return best.expert - taken.expert
        if best.score is None or taken.score is None:
            return None
        return best.score - taken.score


class Piece(NamedTuple):
    """A part of what a stream reads, the role of the message that it is (None for a part of a
    text), and whether an amateur does not read it.
    """

    text: str
    role: str | None = None
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Amateur:
    """What a prompt's answer is contrasted with.

    Attributes:
        name: The adapter's, or ``BASE``.
        reads: What its prompt is, in words; None for the expert's prompt.
        pieces: The expert's prompt with what is left out of it, or what the amateur reads instead;
            none where it reads the expert's prompt.
        tokens: The length of what it reads.
    """

    name: str
    weight: Weight
    reads: str | None = None
    pieces: tuple[Piece, ...] = ()
    tokens: int = 0

    @property
    def label(self) -> str:
        """Its name, what it reads and its weight."""
        value = f"{self.weight.weight:+g}" if self.weight.weight else "0"
        weight = f"adaptive to {value}" if self.weight.adaptive else value
        reads = "" if self.reads is None else f" reading {self.reads}"
        return f"{self.name}{reads}, weight {weight}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """One prompt, its length in tokens, each method's amateurs, and each column's answer."""

    pieces: tuple[Piece, ...]
    tokens: int
    amateurs: tuple[tuple[Amateur, ...], ...]
    answers: tuple[Answer, ...]

    def parting(self, answer: Answer) -> int | None:
        """The first step at which an answer is not the greedy one's; None if it has them all, or
        there is no greedy answer.
        """
        greedy = next((one for one in self.answers if one.greedy), answer)
        a, b = ([step.token for step in one.steps] for one in (answer, greedy))
        if a == b:
            return None
        both = zip(a, b, strict=False)
        return next((i for i, (x, y) in enumerate(both) if x != y), min(len(a), len(b)))


@dataclass(frozen=True, slots=True)
class Method:
    """A way to decode that is explained: what it is called, and CoLD's settings."""

    name: str
    settings: ColdSettings

    @property
    def no_mask(self) -> bool:
        """Whether every token is valid."""
        return self.settings.alpha == 0.0 and self.settings.expert_top_k is None

    @property
    def facts(self) -> str:
        """Its settings in a line."""
        cap = self.settings.expert_top_k
        return f"alpha {self.settings.alpha:g}" + ("" if cap is None else f", expert_top_k {cap}")


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a page shows.

    Attributes:
        model: The base model's name or path.
        adapter: The expert's name, ``BASE`` without an adapter.
        source: Where the numbers come from, in words.
        methods: One or more; those that contrast.
        explanations: One for each prompt.
    """

    model: str
    adapter: str
    source: str
    methods: tuple[Method, ...]
    explanations: tuple[Explanation, ...]

    def title(self, answer: Answer) -> str:
        """What an answer is called."""
        return "Greedy" if answer.greedy else self.methods[answer.method].name
