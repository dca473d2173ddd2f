# SPDX-License-Identifier: Apache-2.0
"""What ``cold_explain`` tells a client of each token: the best candidates, and the logits and
weights that their scores follow from. Needs no vLLM.

A worker computes it for the groups whose clients ask (``explain``), next to the scores that tokens
are sampled from. The scheduler turns it into plain data (``Told``), which goes with the tokens.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vllm_cold.group.step_stats import Explained, RowStats
from vllm_cold.ops import contrastive_scores
from vllm_cold.ops.interface import Groups
from vllm_cold.ops.scoring import best
from vllm_cold.rules.statistics import Statistics

_AT_ONCE = 16  # groups: each takes some eight rows of the vocabulary for the time of it


def explain(logits: Tensor, groups: Groups, at: Sequence[int], k: int) -> Explained:
    """Explain some groups, before scores replace their experts' logits; no host sync. Many groups
    are explained in slices, which bounds the memory.

    Args:
        logits: [rows, V] float32.
        groups: All that are scored, with their weights.
        at: Which of them.
        k: How many tokens.
    """
    which = torch.tensor(at).to(logits.device, non_blocking=True)
    told = [_explain(logits, groups.at(part), k) for part in torch.split(which, _AT_ONCE)]
    return Explained(*map(torch.cat, zip(*told, strict=True)))


def _explain(logits: Tensor, asked: Groups, k: int) -> Explained:
    scores = contrastive_scores(logits, asked, check=False)
    rows = torch.where(asked.rows < 0, asked.rows[:, :1], asked.rows)
    tokens = torch.cat([best(each, k)[1] for each in (scores, logits[rows[:, 0]])], 1)
    ids = tokens.clamp(min=0)
    theirs = logits[rows.unsqueeze(2), ids.unsqueeze(1)]
    no_step = torch.zeros_like(asked.rows[:, 0])
    statistics = Statistics(logits, asked, no_step, theirs[:, 1:, :0])
    log_sums = logits[rows, statistics.argmax] - statistics.max_probability.log()
    told = tokens, scores.gather(1, ids), theirs, log_sums, asked.weights, statistics.divergence
    return Explained(*told)


def _finite(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if math.isfinite(value) else None


class Told:
    """What a group's client is told of its tokens.

    Args:
        amateurs: How many the group has at its first step.
        k: How many tokens are asked for.
    """

    def __init__(self, amateurs: int, k: int) -> None:
        self._amateurs = amateurs
        self._k = k
        self._done = 0

    def give(self, figures: Sequence[RowStats]) -> list[dict[str, Any]]:
        """The client is given the tokens that were sampled there.

        Returns:
            Of each what docs/write-a-rule.md says. An amateur that has ended has None for all
            numbers, also where a step that was under way still had a row of it.
        """
        steps = []
        for each in figures:
            steps.append(self._step(each))
            self._done |= each.done
        return steps

    def _step(self, figures: RowStats) -> dict[str, Any]:
        told = figures.explained
        assert told is not None
        there = [i for i in range(self._amateurs) if figures.present >> i & 1]
        weights = dict(zip(there, told.weights, strict=False))
        lives = {i for i in there if weights.get(i) or not self._done >> i & 1}

        def of_all(of_amateurs: Sequence[Any]) -> list[Any]:
            found = dict(zip(there, of_amateurs, strict=False))
            return [found.get(i) if i in lives else None for i in range(self._amateurs)]

        width = len(told.tokens) // 2
        columns = [i for start in (0, width) for i in range(start, start + min(self._k, width))]
        by_token = {told.tokens[i]: i for i in reversed(columns) if told.tokens[i] >= 0}
        columns = sorted(by_token.values())

        def row(values: Sequence[float]) -> list[float | None]:
            return [_finite(values[i]) for i in columns]

        expert, *others = told.logits
        return {
            "candidates": figures.candidates,
            "tokens": [told.tokens[i] for i in columns],
            "scores": row(told.scores),
            "logits": [row(expert), *of_all([row(each) for each in others])],
            "log_sums": [_finite(told.log_sums[0]), *of_all(list(map(_finite, told.log_sums[1:])))],
            "weights": of_all(told.weights),
            "divergences": of_all(told.divergences),
        }
