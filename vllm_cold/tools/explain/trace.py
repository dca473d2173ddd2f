# SPDX-License-Identifier: Apache-2.0
"""What ``explain`` knows of an answer, step by step: plain data, no vLLM. ``account`` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_cold.method.settings import ColdSettings, Weight
from vllm_cold.tools.contrast import Prompt

GREEDY, COLD = "greedy", "cold"  # kinds of answers
COLD_NAME = "CoLD"  # of the method, where nobody names another

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
        amateurs: Those of the amateurs; None where the server did not tell.
        bounds: Of each amateur, whether its value is the most that it can be.
        score: ``expert + sum of weight * (amateur - expert)`` in nats, up to a constant of the
            step; None if a probability is missing, or a weight.
        score_is: ``EXACT``; ``LEAST`` or ``MOST`` that it can be, if a value is a bound.
        valid: Whether it survived alpha (and the cap on the candidates).
    """

    token: int
    text: str
    expert: float | None
    amateurs: tuple[float | None, ...]
    bounds: tuple[bool, ...]
    score: float | None
    score_is: int
    valid: bool


EXACT, LEAST, MOST = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Step:
    """One position of an answer.

    Attributes:
        token: The id that the engine put there.
        text: Its piece of the answer.
        candidates: The valid ones, best score first, then others, most probable first.
        valid_size: How many tokens are valid; at least, if ``valid_complete`` is false.
        valid_complete: Whether every valid token is known.
        divergences: Of the expert and each amateur, in bits; see ``account.divergence_bits``.
        winner: The id that CoLD takes here; None if it is not known.
        greedy: The id that greedy decoding of the expert takes here.
        weights: The amateurs' weights here; None where one is not known. An adaptive one follows
            from all valid tokens under both streams: where one of these is missing, so are the
            weight and the scores.
        told: Whether ``winner`` is the engine's own choice, which the numbers here neither prove
            nor contradict: a token that is not known could have a better score.
    """

    token: int
    text: str
    candidates: tuple[Candidate, ...]
    valid_size: int
    valid_complete: bool
    divergences: tuple[float, ...]
    winner: int | None
    greedy: int
    weights: tuple[float | None, ...]
    told: bool = False

    @property
    def divergence(self) -> float:
        """Of the expert and that amateur which is farthest from it."""
        return max(self.divergences)

    @property
    def beta(self) -> float | None:
        """The contrast strength: of the weight that is farthest from 0, with the sign turned; None
        if a weight is not known.
        """
        known = [weight for weight in self.weights if weight is not None]
        return 0.0 - max(known, key=abs) if len(known) == len(self.weights) else None

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
        """The steps, from 0, at which beta, or a weight, is not known."""
        return tuple(i for i, step in enumerate(self.steps) if None in step.weights)

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

    @property
    def told(self) -> tuple[int, ...]:
        """The steps, from 0, at which CoLD's choice is the engine's word."""
        return tuple(i for i, step in enumerate(self.steps) if step.told)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of what a stream reads.

    Attributes:
        text: The text.
        role: Of the message that it is; None for a part of a text.
        gone: Whether an amateur does not read it.
    """

    text: str
    role: str | None = None
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Amateur:
    """What a prompt's answer is contrasted with.

    Attributes:
        name: The adapter's, or ``BASE``.
        weight: Its weight.
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
        """Its name, and what it reads."""
        return self.name if self.reads is None else f"{self.name} reading {self.reads}"

    @property
    def leaves_out(self) -> bool:
        """Whether it reads the expert's prompt without a part of it."""
        return any(piece.gone for piece in self.pieces)

    @property
    def weight_text(self) -> str:
        """Its weight in a line."""
        value = f"{self.weight.weight:+g}" if self.weight.weight else "0"
        return f"adaptive to {value}" if self.weight.adaptive else value


BASE = "base model"


@dataclass(frozen=True, slots=True)
class Explanation:
    """One prompt with its two answers.

    Attributes:
        prompt: As it was given.
        prompt_tokens: Its length in tokens, those of the chat template included.
        cold: The answer with CoLD.
        greedy: The expert's own answer.
        amateurs: What it is contrasted with.
    """

    prompt: Prompt
    prompt_tokens: int
    cold: Answer
    greedy: Answer
    amateurs: tuple[Amateur, ...]

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
    """Everything that a page shows of one method.

    Attributes:
        model: The base model's name or path.
        adapter: The expert's name, ``BASE`` without an adapter.
        source: Where the numbers come from, in words.
        settings: CoLD's.
        chat: Whether the prompts went through the model's chat template.
        explanations: One for each prompt.
        name: What the method is called.
    """

    model: str
    adapter: str
    source: str
    settings: ColdSettings
    chat: bool
    explanations: tuple[Explanation, ...]
    name: str = COLD_NAME

    @property
    def amateur(self) -> str:
        """What the expert is contrasted with, in a line."""
        found = {" and ".join(one.label for one in e.amateurs) for e in self.explanations}
        return found.pop() if len(found) == 1 else "amateurs that differ from prompt to prompt"

    @property
    def strength(self) -> tuple[str, str]:
        """What says how strong the contrast is, beta or the amateurs' weights, and its value."""
        settings = self.settings
        beta = -settings.strength, settings.adaptive
        if all(one.weight == beta for e in self.explanations for one in e.amateurs):
            return "beta", beta_text(settings)
        found = {", ".join(one.weight_text for one in e.amateurs) for e in self.explanations}
        return "weights", found.pop() if len(found) == 1 else "differ from prompt to prompt"


@dataclass(frozen=True, slots=True)
class Column:
    """An answer's place on a page.

    Attributes:
        method: Which report it is in, counted from 0.
        kind: ``GREEDY`` or ``COLD``.
    """

    method: int
    kind: str


STACKED = (Column(0, COLD), Column(0, GREEDY))
"""The answers of one method, one below the other."""


def beta_text(settings: ColdSettings) -> str:
    """The setting of beta in a line."""
    return f"adaptive up to {settings.strength:g}" if settings.adaptive else str(settings.beta)


def no_mask(settings: ColdSettings) -> bool:
    """Whether every token is valid."""
    return settings.alpha == 0.0 and settings.expert_top_k is None
