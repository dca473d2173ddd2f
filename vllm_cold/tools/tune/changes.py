# SPDX-License-Identifier: Apache-2.0
"""Which problems changed: on which the picked setting and greedy decoding score differently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm_cold.tools.tune.data import Problem
from vllm_cold.tools.tune.grid import Setting
from vllm_cold.tools.tune.stats import Scores


@dataclass(frozen=True)
class Change:
    """A held-out problem on which the two score differently.

    Attributes:
        id: The problem's.
        prompt: As it was given.
        answers: Those that count as right.
        greedy: The output of greedy decoding.
        cold: That of the picked setting.
        greedy_score: From 0 (wrong) to 1 (right).
        cold_score: The same of ``cold``.
    """

    id: str
    prompt: str
    answers: tuple[str, ...]
    greedy: str
    cold: str
    greedy_score: float
    cold_score: float

    @property
    def better(self) -> bool:
        """Whether CoLD scores higher."""
        return self.cold_score > self.greedy_score

    @property
    def way(self) -> str:
        """From which score to which."""
        return f"{judged(self.greedy_score)} to {judged(self.cold_score)}"


def judged(score: float) -> str:
    """A score in words, or a number where it is between the two."""
    return {0.0: "wrong", 1.0: "right"}.get(score, f"{score:.3g}")


def find(
    problems: Sequence[Problem],
    outputs: Callable[[Setting | None, str], str],
    best: Setting,
    greedy: Scores,
    cold: Scores,
) -> tuple[Change, ...]:
    """The problems on which ``best`` scores higher, then those where it scores lower.

    Args:
        problems: The held-out ones.
        outputs: Gives the output of a setting, or of greedy, for a problem's id.
        best: The picked setting.
        greedy: Scores [n] of greedy decoding.
        cold: Those of ``best``.
    """
    found = [
        Change(
            problem.id,
            problem.text,
            problem.answers,
            outputs(None, problem.id),
            outputs(best, problem.id),
            low,
            high,
        )
        for problem, low, high in zip(problems, greedy.tolist(), cold.tolist(), strict=True)
        if low != high
    ]
    return tuple(sorted(found, key=lambda change: not change.better))


def groups(changes: Sequence[Change]) -> list[tuple[str, list[Change]]]:
    """Those for the better and those for the worse, each with what it is called; none is empty."""
    plain = all({one.greedy_score, one.cold_score} == {0.0, 1.0} for one in changes)
    names = ("Wrong to right", "Right to wrong") if plain else ("Better", "Worse")
    found = [
        (name, [one for one in changes if one.better is better])
        for name, better in zip(names, (True, False), strict=True)
    ]
    return [(name, those) for name, those in found if those]
