# SPDX-License-Identifier: Apache-2.0
"""What ``explain`` knows of an answer, step by step: plain data, no vLLM. ``account`` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_cold.method.settings import ColdSettings

GREEDY, COLD = "greedy", "cold"

# Upper ends of the classes of disagreement, in bits; the last class is open.
DIVERGENCE_CLASSES = (0.01, 0.03, 0.1, 0.2, 0.4)


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token of one stream's distribution.

    Attributes:
        value: ln of the probability; -inf where it is zero.
        text: The token as vLLM decodes it alone; "" if it is a part of a character.
    """

    value: float
    text: str = ""


Row = Mapping[int, Logprob]
"""One stream's distribution at one position, as far as it is known: by token id."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could have been next.

    Attributes:
        token: Its id.
        text: Its text.
        expert: The expert's ln-probability; None if the server did not tell.
        amateur: The amateur's; None if the server did not tell.
        score: ``(1 + beta) * expert - beta * amateur`` in nats, up to a constant of the step; None
            if a probability is missing, or beta.
        valid: Whether it survived alpha (and the cap on the candidates).
        amateur_is_bound: ``amateur`` is the most that it can be, and ``score`` the least.
    """

    token: int
    text: str
    expert: float | None
    amateur: float | None
    score: float | None
    valid: bool
    amateur_is_bound: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One position of an answer.

    Attributes:
        token: The id that the engine put there.
        text: Its piece of the answer.
        candidates: The valid ones, best score first, then others, most probable first.
        valid_size: How many tokens are valid; at least, if ``valid_complete`` is false.
        valid_complete: Whether every valid token is known.
        divergence: Of expert and amateur, in bits; see ``account.divergence_bits``.
        winner: The id that CoLD takes here; None if it is not known.
        greedy: The id that greedy decoding of the expert takes here.
        beta: The contrast strength here; None if it is not known. An adaptive one follows from all
            valid tokens under both streams: where one is missing, so are beta, scores and winner.
    """

    token: int
    text: str
    candidates: tuple[Candidate, ...]
    valid_size: int
    valid_complete: bool
    divergence: float
    winner: int | None
    greedy: int
    beta: float | None

    @property
    def differs(self) -> bool:
        """Whether CoLD takes another token here than greedy decoding."""
        return self.winner is not None and self.winner != self.greedy

    @property
    def level(self) -> int:
        """The class of the divergence, 0 to 5."""
        return sum(self.divergence >= limit for limit in DIVERGENCE_CLASSES)

    def find(self, token: int) -> Candidate | None:
        """The candidate with this id, None if it is not listed."""
        return next((c for c in self.candidates if c.token == token), None)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A step at which the engine took another token than the numbers here say.

    Attributes:
        index: The step, from 0.
        expected: The id that wins by the numbers.
        margin: By how much, in nats: of score (CoLD) or ln-probability (greedy). None if the
            engine's token is not valid by these numbers, or its score is not known.
    """

    index: int
    expected: int
    margin: float | None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and the account of its steps.

    Attributes:
        kind: ``GREEDY`` or ``COLD``.
        text: As vLLM returned it, without special tokens.
        finish_reason: vLLM's: "stop", "length".
        steps: One for each token.
    """

    kind: str
    text: str
    finish_reason: str
    steps: tuple[Step, ...]

    @property
    def mismatches(self) -> tuple[Mismatch, ...]:
        """Where the engine's token is not the one that follows from the numbers."""
        found = []
        for index, step in enumerate(self.steps):
            expected = step.winner if self.kind == COLD else step.greedy
            if expected is not None and step.token != expected:
                found.append(Mismatch(index, expected, self._margin(step, expected)))
        return tuple(found)

    @property
    def unknown_betas(self) -> tuple[int, ...]:
        """The steps, from 0, at which beta is not known."""
        return tuple(i for i, step in enumerate(self.steps) if step.beta is None)

    def _margin(self, step: Step, expected: int) -> float | None:
        best, taken = step.find(expected), step.find(step.token)
        if best is None or taken is None:
            return None
        if self.kind == GREEDY:
            values = best.expert, taken.expert
        else:
            values = best.score, taken.score if taken.valid else None
        if values[0] is None or values[1] is None:
            return None
        return values[0] - values[1]


@dataclass(frozen=True, slots=True)
class Explanation:
    """One prompt with its two answers.

    Attributes:
        prompt: As it was given.
        prompt_tokens: Its length in tokens, those of the chat template included.
        cold: The answer with CoLD.
        greedy: The expert's own answer.
    """

    prompt: str
    prompt_tokens: int
    cold: Answer
    greedy: Answer

    @property
    def parting(self) -> int | None:
        """The first step at which the answers differ; None if they are equal."""
        a = [step.token for step in self.cold.steps]
        b = [step.token for step in self.greedy.steps]
        if a == b:
            return None
        both = zip(a, b, strict=False)
        return next((i for i, (x, y) in enumerate(both) if x != y), min(len(a), len(b)))


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a page shows.

    Attributes:
        model: The base model's name or path.
        adapter: The expert's name.
        amateur: The name of what it is contrasted with.
        source: Where the numbers come from, in words.
        settings: CoLD's.
        chat: Whether the prompts went through the model's chat template.
        explanations: One for each prompt.
    """

    model: str
    adapter: str
    amateur: str
    source: str
    settings: ColdSettings
    chat: bool
    explanations: tuple[Explanation, ...]


def beta_text(settings: ColdSettings) -> str:
    """The setting of beta in a line."""
    return f"adaptive up to {settings.strength:g}" if settings.adaptive else str(settings.beta)
