# SPDX-License-Identifier: Apache-2.0
"""The verdict's figures against scipy and cases reckoned by hand; no more is claimed than the data
show.
"""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from vllm_cold.tools.tune import report, verdict
from vllm_cold.tools.tune.grid import Setting, make_grid
from vllm_cold.tools.tune.verdict import FEWEST, LEVEL, Row, Scores, Verdict, compare, findings

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
    cold, greedy = np.random.default_rng(2).uniform(size=(2, 2000))
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


def hundred(better: int, worse: int) -> verdict.Comparison:
    """100 problems, of which so many differ."""
    return compare(*pairs(better, worse, 100 - better - worse))


def table(*rows: Row) -> dict[Setting, Row]:
    return {row.setting: row for row in rows}


def made(dev: list[tuple[int, int]], test: tuple[int, int], **more: Any) -> Verdict:
    """Settings that are better and worse on so many of 100 dev problems, and the picked one on as
    many held-out problems.
    """
    rows = [Row(setting, hundred(*one)) for setting, one in zip(GRID, dev, strict=False)]
    return Verdict(table(*rows), table(Row(verdict.pick(rows).setting, hundred(*test))), {}, **more)


def test_a_gain_is_claimed_with_its_figures() -> None:
    found = made([(4, 2), (12, 1), (12, 1)], (10, 1))
    assert found.best.setting == GRID[1]  # the first of two with the same score
    assert found.gain
    # p: 2 * (1 + 11) / 2**11; interval: the exact low end, and shares of 11 and 2 in 102.
    assert found.headline() == (
        "Use alpha 0.1, beta 0.25, which beats greedy decoding: +9.0 points on 100 held-out "
        "problems (95 % interval +1.9 to +15.5, p = 0.012)."
    )
    blind = made([(12, 1)], (10, 1), blind=True).headline()
    assert blind.endswith("p = 0.012); nothing is known of texts that do not answer.")


# Plain prompts, and what a setting does beside them


def half(better: int, worse: int) -> verdict.Comparison:
    """100 problems, of which greedy solves 50 and so many differ."""
    counts = (better, worse, 50 - worse, 50 - better)
    cold, greedy = (np.repeat(scores, counts) for scores in ([1.0, 0, 1, 0], [0.0, 1, 1, 0]))
    return compare(cold, greedy)


NAMES = ("no text", "a better prompt", "the text twice")
PLAIN = [Setting(plain=name) for name in NAMES]
CAD = Setting("cad")
Pair = tuple[int, int]  # problems on which it is better, and worse
Told = tuple[Pair, Pair, Pair]  # on dev, held out; and the setting against it
WITHOUT: Told = ((0, 45), (0, 45), (50, 5))
NOTHING: Told = ((0, 0), (0, 0), (20, 0))


def beside(dev: Pair, test: Pair, plain: list[Told], silent: Pair | None = None) -> Verdict:
    """A setting and plain prompts; what the setting does where the text does not answer."""
    told = dict(zip(PLAIN, plain, strict=False))
    best = Row(CAD, half(*test), None if silent is None else half(*silent))
    return Verdict(
        table(*(Row(one, half(*said[0])) for one, said in told.items()), Row(CAD, half(*dev))),
        table(*(Row(one, half(*said[1])) for one, said in told.items()), best),
        {one: half(*said[2]) for one, said in told.items()},
    )


def test_a_setting_that_beats_all_plain_prompts_is_used() -> None:
    found = beside((20, 0), (20, 0), [WITHOUT, ((8, 2), (9, 1), (13, 2)), NOTHING])
    assert found.gain and found.headline().startswith("Use cad, which beats greedy decoding: +20.0")


@pytest.mark.parametrize(
    ("cad", "better", "said"),
    [
        # A gain for nothing, which the contrast does not beat significantly.
        ((20, 0), ((15, 0), (18, 1), (6, 3)), "+17.0 points on 100 held-out"),
        # No gain by itself, and yet it scores as much as the contrast.
        ((8, 0), ((9, 8), (22, 14), (9, 9)), "+8.0 points on 100 held-out"),
    ],
)
def test_a_contrast_that_a_plain_prompt_replaces_is_not_advised(
    cad: Pair, better: Told, said: str
) -> None:
    found = beside((20, 0), cad, [WITHOUT, better, NOTHING])
    assert not found.gain
    assert found.headline().startswith(f"Use a better prompt, and no contrast: {said}")
    assert found.headline().endswith(f"; cad (+{cad[0]}.0) is not significantly better than that.")


def test_a_plain_prompt_is_used_where_no_contrast_gains() -> None:
    better: Told = ((5, 0), (30, 0), (0, 20))
    found = beside((3, 2), (4, 2), [WITHOUT, better, ((20, 0), (21, 1), (0, 20))])
    assert not found.gain  # the dev problems pick the prompt, too
    said = "Use the text twice, and no contrast: +20.0 points on 100 held-out"
    assert found.headline().startswith(said)
    better = ((5, 0), (5, 0), (0, 20))
    found = beside((3, 2), (4, 2), [WITHOUT, better, NOTHING])
    assert found.use is None and found.headline().startswith(
        "No setting and no plain prompt beats greedy decoding significantly, so use that: cad "
        "differs by +2.0 points"
    )


def test_what_harms_where_texts_do_not_answer_is_for_texts_that_do() -> None:
    found = beside((20, 0), (20, 0), [WITHOUT], silent=(0, 30))
    assert found.only and not found.gain
    assert found.headline().startswith(
        "Use cad only where the text is known to answer, which beats greedy decoding: +20.0 points "
        "on 100 held-out problems whose text answers (95 % "
    )
    assert "; where the text does not answer, -30.0 points on 100 held-out" in found.headline()
    found = beside((20, 0), (20, 0), [WITHOUT], silent=(1, 4))
    assert found.gain and found.headline().startswith("Use cad, which beats greedy")
    assert "; where the text does not answer, -3.0 points on 100 held-out" in found.headline()


def test_a_setting_is_picked_by_all_problems() -> None:
    """What gains less and harms less wins over what gains more and harms more."""
    rows = [Row(GRID[0], half(30, 0), half(0, 30)), Row(GRID[1], half(14, 0), half(0, 7))]
    assert verdict.pick(rows) is rows[1]
    assert [row.score for row in rows] == pytest.approx([0.5, 0.535])


def test_what_is_told_before_the_search() -> None:
    helps, harms, little = hundred(1, 60), hundred(40, 2), hundred(3, 2)
    rows = [Row(PLAIN[0], helps, harms), Row(PLAIN[1], little, hundred(0, 7))]
    assert findings(rows, "text", False) == [
        "The text helps: 99.0 % are right with it, 40.0 % without (100 problems, p = 5.4e-17).",
        "Where it does not answer, the text harms: 60.0 % are right with it, 98.0 % without (100 "
        "problems, p = 4.1e-10): better leave it out.",
        "For nothing, a better prompt: +1.0 points (p = 1), where it does not answer -7.0 points "
        "(p = 0.016).",
    ]
    (said,) = findings([Row(PLAIN[0], little)], "instruction", False)
    assert said.startswith("The instruction has no clear effect: 97.0 % are right with it, 98.0 %")
    said, blind = findings([Row(PLAIN[0], harms)], "text", True)
    assert said.startswith("The text harms: ")
    assert blind.startswith('Blind spot: no problem says "answers": false')
    assert findings([], "", False) == []


def test_a_gain_is_one_by_number_and_by_size() -> None:
    """Better on most problems and a worse mean is none, whatever p says."""
    cold, greedy = np.array([0.6] * 20 + [0.0] * 3), np.array([0.5] * 20 + [1.0] * 3)
    found = compare(cold, greedy)
    assert found.p < 0.01 and found.difference < 0 < found.better - found.worse
    mean = compare(1 - cold, 1 - greedy)  # a better mean, and worse on most
    assert mean.p < 0.01 and mean.difference > 0
    for one in (found, mean):
        assert not verdict.is_better(one) and not verdict.is_worse(one)


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
    found = made(dev, test)
    assert not found.gain
    headline = found.headline()
    assert said in headline and headline.startswith(
        "No setting beats greedy decoding significantly, so use that: alpha 0.3, beta 0.25"
    )


@pytest.mark.parametrize("width", [80, 40])
def test_the_terminal_shows_all_and_what_is_pasted_in_one_piece(width: int) -> None:
    judged = made([(9, 3), (12, 1)], (10, 1))
    if width > 40:
        judged = replace(
            judged, dev={k: v._replace(silent=hundred(0, 8)) for k, v in judged.dev.items()}
        )
    serve = "vllm serve '/models/a long name' --sampler cold --cold-alpha 0.1 --cold-beta 0.5"
    console = Console(file=io.StringIO(), width=width)
    headline = judged.headline()
    found = {
        "first": ["The text helps."], "notes": [HOSTILE], "run": {"server": None}, "serve": serve,
        "headline": headline,
    }  # fmt: skip
    report.show(console, found, judged, "out/report.json")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for said in (HOSTILE, "Serve it with CoLD:", "Written: out/report.json"):
        assert said in " ".join(text.split())
    for figure in ("+6.0", "+11.0", "9/3", "12/1", *(["-8.0", "100.0 %"] if width > 40 else [])):
        assert figure in text
    lines = text.splitlines()
    assert serve in lines and lines[-1] == headline and "…" not in text
    assert max(len(one) for one in lines if one not in (headline, serve)) <= width
