# SPDX-License-Identifier: Apache-2.0
"""The naive rules give the numbers that were worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests import naive_rules

pytestmark = pytest.mark.unit

EVEN_2, EVEN_4 = (1 / 2, 1 / 2), (1 / 4,) * 4
LOW, HIGH = (3 / 4, 1 / 4), (1 / 4, 3 / 4)
SURE, OTHER = (1.0, 0.0), (0.0, 1.0)
SURE_4, HALF_4 = (1.0, 0.0, 0.0, 0.0), (1 / 2, 1 / 2, 0.0, 0.0)
PEAK_4 = (0.97, 0.01, 0.01, 0.01)


def logits(p: tuple[float, ...], shift: float = 0.0) -> torch.Tensor:
    """Of a distribution; any shift leaves it as it is."""
    # What the expert cannot say at all, amateurs are not asked about.
    return torch.tensor(p, dtype=torch.float64).clamp(min=1e-30).log() + shift


def weigh(
    name: str,
    p: tuple[float, ...],
    *others: tuple[float, ...],
    step: int = 0,
    valid: tuple[bool, ...] | None = None,
    memory: dict[str, Any] | None = None,
    **parameters: float,
) -> list[float]:
    rows = [logits(row, shift) for shift, row in enumerate((p, *others))]
    mask = torch.tensor(valid or [True] * len(p))
    memory = {} if memory is None else memory
    return naive_rules.weights(name, parameters, rows, mask, step, memory)


TWO_OF_3 = {"valid": (True, True, False)}
HAND: list[tuple[str, tuple[float, ...], tuple[float, ...], dict[str, Any], float]] = [
    # 3/4 log2 (3/2) + 1/4 log2 (1/2), twice, halved
    ("adaptive", LOW, HIGH, {}, -0.188722),
    ("adaptive", LOW, HIGH, {"beta_max": 3.0}, -0.566166),
    ("adaptive", LOW, LOW, {}, 0.0),
    # 1/2 1/2 against 3/4 1/4 is .048795; .3 / .6 of it
    ("adaptive", (0.4, 0.4, 0.2), (0.3, 0.1, 0.6), TWO_OF_3, -0.0243975),
    ("adaptive", LOW, HIGH, {"valid": (True, False)}, 0.0),
    ("adaptive", (0.4, 0.4, 0.2), (0.0, 0.0, 1.0), TWO_OF_3, 0.0),
    # (1/2 log2 (2/3) + 1/2 log2 2 + log2 (4/3)) / 2
    ("arr", SURE, EVEN_2, {}, -0.311278),
    ("arr", EVEN_2, SURE, {}, 0.311278),
    ("arr", EVEN_2, SURE, {"beta_max": 2.0}, 0.622556),
    ("arr", LOW, HIGH, {}, 0.188722),  # as sure as the other
    ("arr", SURE, OTHER, {"valid": (True, False)}, 1.0),
    # 2 bits of 2 + 1; 1 of 1 + .811278
    ("acd", EVEN_4, HALF_4, {}, 2 / 3),
    ("acd", EVEN_2, LOW, {}, 0.552096),
    ("acd", EVEN_2, SURE, {}, 1.0),
    ("acd", SURE, EVEN_2, {}, 0.0),
    ("acd", SURE, OTHER, {}, 0.0),
    # 1 / (1 + e^-1); 1 / (1 + e^(ln 4 - 1)); sum q / p is 1.11, H_p .325083
    ("cocoa", EVEN_4, EVEN_4, {}, -0.731059),
    ("cocoa", EVEN_4, SURE_4, {}, -0.404610),
    ("cocoa", (0.9, 0.1), SURE, {}, -0.419437),
    ("cocoa", PEAK_4, EVEN_4, {}, -0.9),
    ("cocoa", SURE, OTHER, {"gamma": 0.5}, 0.5 - 0.622459),  # 1 / (1 + e^-.5)
    # ln 4 = 1.386, ln 2 = .693
    ("mti", EVEN_4, SURE_4, {}, -0.5),
    ("mti", EVEN_2, SURE, {}, 0.0),
    ("mti", EVEN_2, SURE, {"tau": 0.69, "beta": 2.0}, -2.0),
    ("mti", EVEN_2, SURE, {"tau": 0.70, "beta": 2.0}, 0.0),
    ("m3id", EVEN_4, SURE_4, {}, -0.0202013),
    ("m3id", EVEN_4, SURE_4, {"step": 49}, -1.7182818),
    ("m3id", EVEN_2, SURE, {"step": 49}, 0.0),
    ("m3id", EVEN_2, SURE, {"step": 9, "threshold": 0.6, "gamma": 0.1}, -1.7182818),
    # ln 8 / (ln 8 + ln 5/3) = .802790
    ("grd", (0.5, 0.3, 0.2), (0.1, 0.8, 0.1), {}, 0.799302),
    ("grd", (0.5, 0.3, 0.2), (0.1, 0.8, 0.1), {"lam": 0.0}, 0.197210),
    ("grd", (0.5, 0.3, 0.2), (0.1, 0.8, 0.1), {"lam": 1.0}, 1.0),
    ("grd", (0.4, 0.3, 0.3), (0.1, 0.49, 0.41), {}, 0.0),  # not sure enough
    ("grd", (0.98, 0.01, 0.01), (0.2, 0.8, 0.0), {}, 0.0),  # less sure than the expert
    ("grd", (0.3, 0.6, 0.1), (0.1, 0.8, 0.1), {}, 0.0),  # agree
    ("grd", (0.6, 0.0, 0.4), (0.1, 0.8, 0.1), {}, 0.9926414),  # ln 8 / (ln 8 + ln .6e30)
    ("grd", (0.5, 0.3, 0.2), (0.0, 0.8, 0.2), {}, 0.7518411),  # ln .8e30 / (ln .8e30 + ln 5/3)
    ("grd", (0.6, 0.0, 0.4), (0.0, 0.8, 0.2), {}, 0.8747383),
]


@pytest.mark.parametrize(("name", "p", "q", "settings", "want"), HAND)
def test_by_hand(
    name: str, p: tuple[float, ...], q: tuple[float, ...], settings: dict[str, Any], want: float
) -> None:
    assert weigh(name, p, q, **settings) == [pytest.approx(want, rel=3e-6, abs=1e-12)]


def test_grd_decides_once() -> None:
    """And at the first step at which the best tokens differ."""
    agreeing, conflict = (0.3, 0.6, 0.1), (0.5, 0.3, 0.2)
    sure, unsure = (0.1, 0.8, 0.1), (0.3, 0.5, 0.2)
    prior: dict[str, Any] = {}
    assert weigh("grd", agreeing, sure, memory=prior) == [0.0]
    assert weigh("grd", conflict, sure, memory=prior) == [pytest.approx(0.799302, rel=1e-5)]
    assert weigh("grd", agreeing, sure, memory=prior) == [0.0]
    assert weigh("grd", conflict, unsure, memory=prior) == [pytest.approx(0.875)]  # tau 1/2
    assert "done" not in prior
    text: dict[str, Any] = {}
    assert weigh("grd", agreeing, sure, memory=text) == [0.0]
    assert "done" not in text
    assert weigh("grd", conflict, (0.3, 0.45, 0.25), memory=text) == [0.0]
    assert text["done"]
    assert weigh("grd", conflict, sure, memory=text) == [0.0]


def test_grd_is_done_when_no_amateur_is_needed() -> None:
    conflict, sure, unsure = (0.5, 0.3, 0.2), (0.1, 0.8, 0.1), (0.25, 0.45, 0.3)
    memory: dict[str, Any] = {}
    assert weigh("grd", conflict, unsure, conflict, memory=memory) == [0.0, 0.0]
    assert "done" not in memory  # the second has not been asked yet
    assert weigh("grd", conflict, sure, unsure, memory=memory) == [0.0, 0.0]
    assert memory["done"]
    memory = {}
    for _ in range(2):
        found = weigh("grd", conflict, sure, unsure, memory=memory)
        assert found == [pytest.approx(0.799302, rel=1e-5), 0.0]
        assert "done" not in memory


def test_grd_at_no_depth_ties_the_two_best_tokens() -> None:
    p, q = (0.5, 0.3, 0.2), (0.1, 0.8, 0.1)
    (w,) = weigh("grd", p, q, **{"lam": 0.0})
    score = logits(p) + w * (logits(q) - logits(p))
    assert score[0] == pytest.approx(score[1])
    assert score[0] > score[2]


@pytest.mark.parametrize("name", naive_rules.RULES)
def test_each_amateur_is_judged_by_itself(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = 3 * torch.randn(3, 40, generator=generator)
    draws[0, :5] = draws[1, 3:8] = -math.inf
    valid = draws[0] >= draws[0].max() - 3
    expert, *amateurs = draws
    both = naive_rules.weights(name, {}, draws, valid, 3, {})
    alone = [naive_rules.weights(name, {}, [expert, a], valid, 3, {}) for a in amateurs]
    assert both == [w for (w,) in alone]
    assert all(math.isfinite(w) for w in both)


def test_a_parameter_that_the_rule_does_not_take() -> None:
    with pytest.raises(ValueError, match=r"acd takes \[\], not \['beta'\]"):
        weigh("acd", LOW, HIGH, beta=1.0)
