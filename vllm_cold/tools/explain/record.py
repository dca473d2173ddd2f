# SPDX-License-Identifier: Apache-2.0
"""Answers step by step, as the page, its script and the terminal show them; made by ``account``.
Tokens are ids, probabilities from 0 to 1.
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
    """A token that could have been next."""

    token: int
    text: str  # as it is shown: ``visible.alone``
    expert: Number  # the expert's probability
    amateurs: tuple[Number | None, ...]  # theirs; None for one that has ended
    score: Number | None  # the engine's; None if alpha or the cap on the candidates cut it off
    taken_by: tuple[str, ...] = ()  # what chooses it: the method's name, "greedy"

    @property
    def valid(self) -> bool:
        """Whether alpha and the cap leave it."""
        return self.score is not None


class ShownStep(_Record):
    """One position of an answer. What is of amateurs is None for one that has ended."""

    token: int  # the answer's
    text: str  # its piece of the answer
    # Those that the engine lists: the valid ones, best score first, then the most probable others.
    candidates: tuple[Candidate, ...]
    valid_size: int  # the number of valid tokens
    divergences: tuple[Number | None, ...]  # Jensen-Shannon, of expert and each amateur, in bits
    greedy: int  # the choice of the expert's greedy decoding
    weights: tuple[Number | None, ...] = ()  # the amateurs', if a rule chooses one
    ends: tuple[int, ...] = ()  # the amateurs, from 1, that the rule drops after this token
    # Of a rule that limits what amateurs' parts add, else empty, in bits: what the token cost, what
    # was left before it, and whether that changed the distribution.
    cost: tuple[Number | None, ...] = ()
    left: tuple[Number | None, ...] = ()
    limited: tuple[bool | None, ...] = ()

    @property
    def divergence(self) -> float:
        """Between the expert and the amateur farthest from it."""
        return max((bits for bits in self.divergences if bits is not None), default=0.0)

    @property
    def level(self) -> int:
        """The class of the divergence, 0 to 5."""
        return sum(self.divergence >= limit for limit in DIVERGENCE_CLASSES)

    @property
    def is_limited(self) -> bool:
        """Whether a limit changed the distribution."""
        return any(self.limited)

    @property
    def differs(self) -> bool:
        """Whether greedy decoding would choose another token."""
        return self.token != self.greedy


class Limit(_Record):
    """What an amateur's part may add to an answer, and what it added, in bits."""

    bits: Number | None  # None for no limit
    per_token: Number  # that come back with each token
    spent: Number
    left: Number | None  # after the last token; None if there was none
    reached: bool  # whether the limit changed the distribution anywhere

    def shares(self, cost: float | None, left: float | None, most: float) -> tuple[float, float]:
        """Return what is left after a token and before it, as shares of the limit; where there is
        none, what it costs as one of ``most``, the dearest token's.
        """
        if cost is None or left is None:
            return 0.0, 0.0
        paid = max(cost, 0.0)
        if self.bits is None:
            return 0.0, paid / most if most else 0.0
        return ((left - paid) / self.bits, left / self.bits) if self.bits else (0.0, 0.0)

    @property
    def summary(self) -> str:
        """Sum it up in a line."""
        # What became less likely counts below 0, and is not given back unless the rule says so: so
        # what was spent and what is left are not the limit together.
        spent = f"spent {self.spent:.1f} bits"
        if self.bits is None:
            return f"{spent}, no limit"
        rate = f" + {self.per_token:g} a token" if self.per_token else ""
        left = "" if self.left is None else f"{self.left:.1f} left of "
        reached = "limit reached" if self.reached else "limit not reached"
        return f"{spent}, {left}{self.bits:g}{rate}, {reached}"


class Answer(_Record):
    """An answer and its steps."""

    title: str  # the method's name or "Greedy"
    greedy: bool  # whether it is the expert's own answer
    num_prompt_tokens: int  # of what the expert read
    finish_reason: str  # vLLM's: "stop", "length"
    steps: tuple[ShownStep, ...]  # one for each token
    limits: tuple[Limit, ...] = ()  # of each amateur, if a rule limits them

    def dearest(self, amateur: int) -> float:
        """Return what the dearest token cost of an amateur's limit, 0 or more."""
        return max((step.cost[amateur] or 0.0 for step in self.steps), default=0.0)

    @property
    def summary(self) -> str:
        """Sum it up in a line."""
        steps = self.steps
        mean = math.fsum(step.divergence for step in steps) / len(steps)
        is_finished = self.finish_reason == "stop"
        ended = "finished (EOS or stop)" if is_finished else "cut at --max-tokens"
        facts = [f"{len(steps)} tokens, {ended}"]
        if not self.greedy:
            facts.append(f"{sum(step.differs for step in steps)} differ from greedy's choice")
        facts.append(f"mean disagreement {mean:.3f} bits")
        if self.limits:
            several = len(self.limits) > 1
            facts += [
                f"amateur {i}: {limit.summary}" if several else limit.summary
                for i, limit in enumerate(self.limits, 1)
            ]
        return " · ".join(facts)


class Piece(_Record):
    """A part of what a stream reads: a text, or a message and its role."""

    text: str
    role: str | None = None


class ShownAmateur(_Record):
    """What a prompt's answer is contrasted with."""

    label: str  # its name, what it reads and its weight
    pieces: tuple[Piece, ...]  # what it reads; none where that is the expert's prompt


class Explanation(_Record):
    """One prompt, its amateurs, and its answers: the method's and the greedy one."""

    pieces: tuple[Piece, ...]
    amateurs: tuple[ShownAmateur, ...]
    answers: tuple[Answer, Answer]


class Report(_Record):
    """Everything that a page shows."""

    model: str  # the base model's name
    adapter: str  # the expert's name, ``BASE`` without an adapter
    source: str  # what made the answers, in words
    method: str  # a preset's name or "contrastive"
    settings: str  # alpha and the cap, or a rule's parameters, in words; "" for none
    explanations: tuple[Explanation, ...]  # one for each prompt
    has_weights: bool = True  # whether amateurs have weights; not with a rule of scores

    @property
    def has_limits(self) -> bool:
        """Whether a rule limits what a part adds."""
        return any(answer.limits for e in self.explanations for answer in e.answers)
