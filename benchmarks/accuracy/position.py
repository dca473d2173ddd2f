# SPDX-License-Identifier: Apache-2.0
"""The steps of right answers, what a rule for beta may look at there, and what it makes of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


class Position:
    """Of all positions at once, what a rule may use; each [n] but ``valid`` [n, TOP].

    Attributes:
        valid: the candidates.
        mass: of the amateur's probability, on the candidates.
        reach: the amateur's best candidate against its best token.
        divergence: Jensen-Shannon, in bits, of both over the candidates.
        everywhere: the same over the whole vocabulary.
        uncertainty: the expert's entropy over the candidates, of the largest possible.
        largest: the expert's largest probability among them.
        agree: 1.0 where the amateur's best candidate is the expert's.
    """

    def __init__(self, found: dict[str, Numbers], alpha: float) -> None:
        e, a = found["e"], found["a"]
        self.valid = e >= e[:, :1] + np.log(alpha)
        p, q = _softmax(e, self.valid), _softmax(a, self.valid)
        masked = np.where(self.valid, a, -np.inf)
        self.mass = np.exp(masked).sum(1)
        self.reach = np.exp(masked.max(1) - found["abest"])
        self.divergence = (_relative(p, (p + q) / 2) + _relative(q, (p + q) / 2)) / 2
        self.everywhere = found["jsd"]
        entropy = -np.where(p > 0, p * np.log2(np.where(p > 0, p, 1)), 0).sum(1)
        self.largest = p.max(1)
        self.agree = (q.argmax(1) == 0).astype(float)
        self.uncertainty = entropy / np.log2(np.maximum(self.valid.sum(1), 2))


def _softmax(logits: Numbers, valid: NDArray[np.bool_]) -> Numbers:
    masked = np.where(valid, logits, -np.inf)
    weights = np.exp(masked - masked.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def _relative(p: Numbers, middle: Numbers) -> Numbers:
    """KL divergence in bits, [n]."""
    there = p > 0
    ratio = np.where(there, p, 1) / np.where(there, middle, 1)
    return np.where(there, p * np.log2(ratio), 0).sum(1)


Rule = Callable[[Position], Numbers | float]


def solved(found: dict[str, Numbers], rule: Rule, alpha: float) -> NDArray[np.bool_]:
    """[problems] whether CoLD with ``rule`` as beta writes the right answer."""
    at = Position(found, alpha)
    beta = np.broadcast_to(np.asarray(rule(at), dtype=float), len(found["e"]))[:, None]
    difference = np.where(at.valid, found["e"] - found["a"], 0.0)
    chosen = np.where(at.valid, found["e"] + beta * difference, -np.inf).argmax(1)
    right = np.ones(int(found["prob"].max()) + 1, dtype=bool)
    np.logical_and.at(right, found["prob"].astype(int), chosen == found["gold"])
    return right
