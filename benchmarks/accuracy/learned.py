# SPDX-License-Identifier: Apache-2.0
"""A beta learned from what a rule may look at, to see if there is something to be found.

A small network makes beta, from 0 to 2, of the statistics of a step. It is fitted to the right
tokens' likelihood under CoLD's scores, and judged on problems that it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.accuracy.position import Numbers, Position, Rule, solved

HIDDEN, STEPS, LEARNING_RATE, DECAY = 16, 600, 1e-2, 1e-3
MOST = 2.0
ACROSS, WITHIN = "learned on the other tasks", "learned on other problems of the task"


def statistics(at: Position) -> Tensor:
    """[n, 9] what the network sees of each step."""
    columns = [
        np.log(at.reach + 1e-6), np.sqrt(at.reach), at.divergence, at.everywhere, at.uncertainty,
        np.log(at.mass + 1e-9), at.largest, np.log(at.valid.sum(1)), at.agree,
    ]  # fmt: skip
    return torch.tensor(np.stack(columns, 1), dtype=torch.float32)


class LearnedBeta(nn.Module):
    """Beta of a step's statistics."""

    def __init__(self, seen: Tensor) -> None:
        super().__init__()
        self.mean = seen.mean(0)
        self.spread = seen.std(0, correction=0).clamp(min=1e-3)
        self.layers = nn.Sequential(
            nn.Linear(seen.shape[1], HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1)
        )
        nn.init.zeros_(self.layers[2].weight)
        nn.init.constant_(self.layers[2].bias, 0.25)  # for all steps the same

    def forward(self, seen: Tensor) -> Tensor:
        """[n, 9] to [n]."""
        raw: Tensor = self.layers((seen - self.mean) / self.spread)
        # Exactly 0 is within reach: between equal logits the smallest beta decides.
        return raw[:, 0].clamp(0, MOST)


def fit(parts: list[dict[str, Numbers]], alpha: float) -> LearnedBeta:
    """Fitted where there is something to choose: two candidates or more, one of them right."""
    experts, differences, right, seen = [], [], [], []
    for found in parts:
        at = Position(found, alpha)
        gold = found["gold"].astype(int)
        chosen = (at.valid.sum(1) > 1) & (gold >= 0)
        chosen &= at.valid[np.arange(len(gold)), np.maximum(gold, 0)]
        e, a = found["e"][chosen], found["a"][chosen]
        experts.append(torch.tensor(np.where(at.valid[chosen], e, -np.inf), dtype=torch.float32))
        masked = np.where(at.valid[chosen], e - a, 0.0)
        differences.append(torch.tensor(masked, dtype=torch.float32))
        right.append(torch.tensor(gold[chosen]))
        seen.append(statistics(at)[torch.tensor(chosen)])
    e, difference, gold, inputs = map(torch.cat, (experts, differences, right, seen))
    torch.manual_seed(0)
    network = LearnedBeta(inputs)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, weight_decay=DECAY)
    for _ in range(STEPS):
        scores = e + network(inputs)[:, None] * difference
        loss = nn.functional.cross_entropy(scores, gold)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        optimizer.step()
    return network.requires_grad_(False)


def as_rule(network: LearnedBeta) -> Rule:
    """The network as a rule for ``solved``."""
    return lambda at: network(statistics(at)).numpy().astype(float)


def half(found: dict[str, Numbers], which: int) -> dict[str, Numbers]:
    """The steps of every other problem."""
    chosen = found["prob"].astype(int) % 2 == which
    return {name: values[chosen] for name, values in found.items()}


def judge(
    found: dict[str, dict[str, Numbers]], task_of: Callable[[str], str], alpha: float
) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """For each adapter of ``found`` the problems that are solved with a beta that was learned on
    the adapters of the other tasks, and with one learned on every other problem of its own task.

    Returns:
        ``ACROSS`` and ``WITHIN`` -> adapter -> [problems] bool.
    """
    judged: dict[str, dict[str, NDArray[np.bool_]]] = {ACROSS: {}, WITHIN: {}}
    for task in sorted({task_of(name) for name in found}):
        names = [name for name in found if task_of(name) == task]
        others = [part for name, part in found.items() if name not in names]
        if others:
            rule = as_rule(fit(others, alpha))
            judged[ACROSS] |= {name: solved(found[name], rule, alpha) for name in names}
        # Adapters of a task have the same problems: none of a half is in the other one.
        even, odd = (
            as_rule(fit([half(found[name], which) for name in names], alpha)) for which in (0, 1)
        )
        for name in names:
            on_even, on_odd = solved(found[name], odd, alpha), solved(found[name], even, alpha)
            judged[WITHIN][name] = np.where(np.arange(len(on_even)) % 2 == 0, on_even, on_odd)
    return judged
