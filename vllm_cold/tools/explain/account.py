# SPDX-License-Identifier: Apache-2.0
"""A step of an answer, from what the engine tells of it (docs/write-a-rule.md). Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel

from vllm_cold.tools.explain import visible
from vllm_cold.tools.explain.record import Candidate, ShownStep

LISTED = 20  # tokens that are asked for: the best by score, and the expert's most probable


class ToldStep(BaseModel):
    """What the engine tells of a step. Lists about tokens are parallel; None stands for an amateur
    that has ended.

    Attributes:
        candidates: The number of valid tokens.
        tokens: Ids.
        texts: Each token decoded alone.
        scores: None for tokens that are not valid.
        logits: By stream, the expert's first; None for forbidden tokens.
        log_sums: By stream, ln of the sum of exp(logit).
        weights: By amateur.
        divergences: By amateur, from the expert, in bits.
    """

    candidates: int
    tokens: list[int]
    texts: list[str | None]
    scores: list[float | None]
    logits: list[list[float | None] | None]
    log_sums: list[float | None]
    weights: list[float | None]
    divergences: list[float | None]

    def text(self, token: int) -> str:
        """The token decoded alone; "" for a part of a character."""
        text = dict(zip(self.tokens, self.texts, strict=True))[token]
        return "" if text is None or "\ufffd" in text else text

    def shares(self, stream: int) -> list[float | None]:
        """The tokens' probabilities in a stream."""
        logits, log_sum = self.logits[stream], self.log_sums[stream]
        if logits is None or log_sum is None:
            return [None] * len(self.tokens)
        return [0.0 if x is None else min(1.0, math.exp(x - log_sum)) for x in logits]


def make_step(
    told: ToldStep,
    token: int,
    text: str,
    method: str | None,
    *,
    ruled: bool = False,
    ends: Sequence[int] = (),
) -> ShownStep:
    """The account of one position.

    Args:
        told: By the engine.
        token: The id that it chose, one of ``told.tokens``.
        text: Its piece of the answer.
        method: What the method is called; None for the expert's own answer.
        ruled: Whether a rule chooses weights.
        ends: The amateurs that end here.
    """
    expert, *amateurs = (told.shares(i) for i in range(len(told.logits)))
    most = max(share or 0.0 for share in expert)
    best = [t for t, share in zip(told.tokens, expert, strict=True) if share == most]
    greedy = token if token in best else min(best)
    takers = {method: token, "greedy": greedy}
    candidates = [
        Candidate(
            token=each,
            text=visible.alone(told.text(each), each),
            expert=expert[i] or 0.0,
            amateurs=tuple(shares[i] for shares in amateurs),
            score=told.scores[i],
            taken_by=tuple(name for name, taken in takers.items() if name and taken == each),
        )
        for i, each in enumerate(told.tokens)
    ]
    candidates.sort(key=lambda c: (not c.valid, -(c.score or 0.0), -c.expert, c.token))
    return ShownStep(
        token=token,
        text=text,
        candidates=tuple(candidates),
        valid_size=told.candidates,
        divergences=tuple(told.divergences),
        greedy=greedy,
        weights=tuple(told.weights) if ruled else (),
        ends=tuple(ends),
    )


def ending(now: ToldStep, then: ToldStep | None) -> list[int]:
    """Which amateurs, from 1, end with a step, according to its weights and the next one's."""
    both = enumerate(zip(now.weights, then.weights if then else (), strict=False), 1)
    return [number for number, (one, later) in both if one is not None and later is None]


def spread(text: str, pieces: Sequence[str]) -> list[str]:
    """The answer's text, cut up into the pieces of its tokens, each of which is decoded alone.

    SentencePiece tokenizers drop the leading space of a token that they decode alone: it comes back
    from the whole text. A piece that is not next in the text (a special token, or a part of a
    character) stays as it is.
    """
    found, at = [], 0
    for piece in pieces:
        for space in ("", " "):
            if piece and text.startswith(space + piece, at):
                piece = space + piece
                at += len(piece)
                break
        found.append(piece)
    return found
