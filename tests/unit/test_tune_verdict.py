# SPDX-License-Identifier: Apache-2.0
"""The verdict's figures against scipy and cases reckoned by hand; no more is claimed than the data
show.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from vllm_cold.tools.tune import report, verdict
from vllm_cold.tools.tune.grid import make_grid
from vllm_cold.tools.tune.verdict import FEWEST, LEVEL, Comparison, Row, Scores, compare

pytestmark = pytest.mark.unit

GRID = make_grid({"alpha": "0.1,0.3", "beta": "0.25,0.5"})
HOSTILE = "[bold]x[/bold] & <b> {{ 7 * 7 }}"


def pairs(better: int, worse: int, equal: int) -> tuple[Scores, Scores]:
    """0/1 scores (CoLD's, greedy's) with so many problems of each kind."""
    cold = np.array([1.0] * better + [0.0] * worse + [1.0] * equal)
    greedy = np.array([0.0] * better + [1.0] * worse + [1.0] * equal)
    return cold, greedy


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 6, 2 * 0.5**6),
        (8, 1, 2 * (1 + 9) / 2**9),
        (12, 5, 2 * sum(math.comb(17, k) for k in range(6)) / 2**17),
    ],
)
def test_mcnemar_by_counting(better: int, worse: int, expected: float) -> None:
    found = compare(*pairs(better, worse, 20))
    assert found.p == pytest.approx(expected, rel=1e-12)
    assert (found.better, found.worse, found.count) == (better, worse, 20 + better + worse)
    assert found.difference == pytest.approx((better - worse) / found.count)
    assert found.difference == pytest.approx(found.cold - found.greedy)


def test_scores_in_between_are_counted_by_their_sign() -> None:
    found = compare(np.array([0.5, 0.2, 0.9, 0.4, 0.3]), np.array([0.4, 0.1, 0.95, 0.4, 0.2]))
    assert (found.better, found.worse, found.p) == (3, 1, 2 * (1 + 4) / 2**4)
    assert found.difference == pytest.approx(0.05)


def test_fewer_problems_than_the_fewest_are_never_significant() -> None:
    assert compare(*pairs(FEWEST, 0, 0)).p < LEVEL <= compare(*pairs(FEWEST - 1, 0, 0)).p


def test_the_interval_by_hand() -> None:
    # Bonett and Price: (b + 1) / (n + 2) and (c + 1) / (n + 2) are the shares.
    found = compare(*pairs(30, 12, 158))
    b, c = 31 / 202, 13 / 202
    error = 1.959964 * math.sqrt((b + c - (b - c) ** 2) / 202)
    assert found.high == pytest.approx(b - c + error, abs=1e-6)
    # The exact interval (Clopper and Pearson) of 30 in 42 begins lower.
    exact = 42 / 200 * (2 * stats.beta.ppf(0.025, 30, 13) - 1)
    assert found.low == pytest.approx(exact) and exact < b - c - error
    # Of scores in between it is nearly the normal one of the mean.
    rng = np.random.default_rng(2)
    cold, greedy = rng.uniform(size=2000), rng.uniform(size=2000)
    found, mean = compare(cold, greedy), float((cold - greedy).mean())
    error = 1.959964 * float((cold - greedy).std()) / math.sqrt(2000)
    assert (found.low, found.high) == pytest.approx((mean - error, mean + error), abs=5e-4)
    # Where all are equal, there is doubt left.
    assert compare(*pairs(0, 0, 20)).low == pytest.approx(-1.959964 * math.sqrt(2) / 22)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 300))
def test_the_interval_has_zero_inside_where_the_test_finds_nothing(
    better: int, worse: int, equal: int
) -> None:
    found = compare(*pairs(better, worse, equal))
    assert -1.0 <= found.low <= found.difference <= found.high <= 1.0
    assert (found.low > 1e-12 or found.high < -1e-12) is (found.p < LEVEL)
    swapped = compare(*pairs(worse, better, equal))
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def made(dev: list[tuple[int, int]], test: tuple[int, int]) -> tuple[list[Row], Comparison]:
    """Settings that are better and worse on so many of 100 dev problems, and the picked one on as
    many held-out problems.
    """
    rows = [
        Row(setting, compare(*pairs(*one, 100 - sum(one))))
        for setting, one in zip(GRID, dev, strict=False)
    ]
    return rows, compare(*pairs(*test, 100 - sum(test)))


def test_a_gain_is_claimed_with_its_figures() -> None:
    rows, test = made([(4, 2), (12, 1), (12, 1)], (10, 1))
    best = verdict.pick(rows)
    assert best is rows[1]  # the first of two with the same score
    assert verdict.is_gain(best.dev, test)
    # p: 2 * (1 + 11) / 2**11; interval: the exact low end, and shares of 11 and 2 in 102.
    assert verdict.headline(rows, test) == (
        "Use alpha 0.1, beta 0.25, which beats greedy decoding: +9.0 points on 100 held-out "
        "problems (95 % interval +1.9 to +15.5, p = 0.012)."
    )
    assert verdict.details(rows, test) == [
        "On the 100 held-out problems greedy scores 90.0 % and alpha 0.1, beta 0.25 99.0 %: better "
        "on 10, worse on 1 (sign test, for right and wrong McNemar's exact one, two-sided).",
        "On the 100 dev problems its difference was +11.0 points. They picked it from 3 settings, "
        "so that is biased upwards.",
    ]


def test_a_gain_is_one_by_number_and_by_size() -> None:
    """Better on most problems and a worse mean is none, whatever p says."""
    cold, greedy = np.array([0.6] * 20 + [0.0] * 3), np.array([0.5] * 20 + [1.0] * 3)
    found, on_dev = compare(cold, greedy), compare(greedy, greedy - 0.1)
    assert found.p < 0.01 and found.difference < 0 < found.better - found.worse
    assert not verdict.is_gain(on_dev, found)
    mean = compare(1 - cold, 1 - greedy)  # a better mean, and worse on most
    assert mean.p < 0.01 and mean.difference > 0
    assert not verdict.is_gain(on_dev, mean)


@pytest.mark.parametrize(
    ("dev", "test", "said"),
    [
        # Not significant: 5 against none has p = 0.0625.
        ([(9, 0)], (5, 0), "alpha 0.3, beta 0.25 differs by +5.0 points on 100 held-out"),
        ([(9, 0), (8, 0)], (0, 0), ", picked from 2 settings, differs by 0.0 points on 100"),
        # Significant, the wrong way.
        ([(9, 0)], (1, 12), "beta 0.25 is significantly worse, -11.0 points on 100 held-out"),
        # Better on the held-out problems alone.
        ([(0, 3)], (12, 1), "p = 0.0034); -3.0 on 100 dev problems."),
        ([(2, 2)], (12, 1), "); 0.0 on 100 dev problems."),
    ],
)
def test_without_a_gain_greedy_is_what_to_use(
    dev: list[tuple[int, int]], test: tuple[int, int], said: str
) -> None:
    rows, found = made(dev, test)
    assert not verdict.is_gain(verdict.pick(rows).dev, found)
    headline = verdict.headline(rows, found)
    assert said in headline and headline.startswith(
        "No setting beats greedy decoding significantly, so use that: alpha 0.3, beta 0.25"
    )


@pytest.mark.parametrize("width", [80, 40])
def test_the_terminal_shows_all_and_what_is_pasted_in_one_piece(width: int) -> None:
    rows, test = made([(9, 3), (12, 1)], (10, 1))
    settings: list[Any] = [
        {"name": str(row.setting), "picked": row is rows[1], "dev": vars(row.dev)} for row in rows
    ]
    serve = "vllm serve '/models/a long name' --sampler cold --cold-alpha 0.1 --cold-beta 0.5"
    console = Console(file=io.StringIO(), width=width)
    headline = verdict.headline(rows, test)
    found = {
        "settings": settings, "details": verdict.details(rows, test), "notes": [HOSTILE],
        "run": {"server": None}, "gain": True, "serve": serve, "headline": headline,
    }  # fmt: skip
    report.show(console, found, "out/report.json")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for said in (*found["details"], HOSTILE, "Serve it with CoLD:", "Written: out/report.json"):
        assert said in " ".join(text.split())
    for figure in ("+6.0", "+11.0", "9/3", "12/1"):
        assert figure in text
    lines = text.splitlines()
    assert serve in lines and lines[-1] == headline and "…" not in text
    assert max(len(one) for one in lines if one not in (headline, serve)) <= width
