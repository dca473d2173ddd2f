# SPDX-License-Identifier: Apache-2.0
"""What ``benchmarks.quantised.check`` takes for rounding, and what for wrong."""

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.e2e.jobs import ALPHA, BETA
from benchmarks.quantised.judge import ROOM, Verdict, compare, distances, problems

EVEN = Verdict(0.96, 1.4, 0.97, 1.0, further=14, nearer=10)


def test_distances_of_a_greedy_token() -> None:
    expert = torch.tensor([[3.0, 1.0, 2.5]] * 3, dtype=torch.double)
    strict, generous = distances(expert, [], torch.tensor([0, 1, 2]), 0.5)
    assert strict.tolist() == generous.tolist() == [0.0, 2.0, 0.5]


def test_distances_of_a_contrast() -> None:
    """Behind the best score among the candidates, or as far outside of them as it is."""
    expert = torch.tensor([[3.0, 2.5, 3.0 + math.log(ALPHA) - 0.25]] * 3, dtype=torch.double)
    amateur = torch.tensor([[3.0, 1.5, -9.0]] * 3, dtype=torch.double)
    scores = expert + BETA * (expert - amateur)
    strict, _ = distances(expert, [amateur], torch.tensor([0, 1, 2]), 0.0)
    best = scores[0, :2].max()
    assert strict.tolist() == pytest.approx([*(best - scores[0, :2]).clamp(min=0).tolist(), 0.25])


def test_a_candidate_near_the_bar_may_be_none() -> None:
    bar = 3.0 + math.log(ALPHA)
    expert = torch.tensor([[3.0, bar + 0.1]], dtype=torch.double)
    amateur = torch.tensor([[3.0, -9.0]], dtype=torch.double)
    strict, generous = distances(expert, [amateur], torch.tensor([0]), 0.2)
    assert strict.item() > 1
    assert generous.item() == 0.0


def test_tokens_are_compared_one_by_one() -> None:
    own = [(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.75])), (torch.zeros(2), torch.zeros(2))]
    rounded = [(torch.tensor([0.5, 0.0]), torch.tensor([0.5, 0.0])), own[1]]
    assert compare(own, rounded) == Verdict(0.75, 0.75, 0.75, 0.5, further=1, nearer=1)


def test_what_rounding_does_too_is_right() -> None:
    assert problems({"a": EVEN, "b": replace(EVEN, behind=ROOM * 1.0)}, 0.5) == []
    alone = Verdict(1.0, 0.5, 1.0, 0.0, further=0, nearer=0)
    assert problems({"a": alone}, 0.5) == []


def test_a_token_that_is_far_off_is_wrong() -> None:
    (problem,) = problems({"a": EVEN, "b": replace(EVEN, behind=ROOM + 0.01)}, 0.5)
    assert problem.startswith("b: a token is 2.01 logits behind")


def test_many_tokens_that_are_further_off_are_wrong() -> None:
    """In each batch alone they might be chance."""
    slightly = replace(EVEN, further=18, nearer=8)
    assert problems({"a": slightly}, 0.5) == []
    (problem,) = problems({"a": slightly, "b": slightly}, 0.5)
    assert problem.startswith("a, b: of 52 tokens")
    assert "36 are further (p = 0.004)" in problem


def test_where_rounding_changes_nothing_little_is_right() -> None:
    apart = replace(EVEN, behind=0.06, rounded_behind=0.0, further=8, nearer=0)
    first, second = problems({"a": apart}, 0.05)
    assert "rounding explains 0.05" in first
    assert "8 are further (p = 0.004)" in second
