# SPDX-License-Identifier: Apache-2.0
"""The verdict's figures against cases calculated by hand; no more is claimed than the data show."""

import io
import math
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from vllm_cold.tools.tune import tune_report, verdict
from vllm_cold.tools.tune.grid import Setting, make_grid
from vllm_cold.tools.tune.verdict import FEWEST, LEVEL, Result, Verdict, compare, findings

pytestmark = pytest.mark.unit

GRID = make_grid({"alpha": "0.1,0.3", "beta": "0.25,0.5"})
Pair = tuple[int, int]  # problems on which one is better than the other, and worse


@cache
def pairs(better: int, worse: int, equal: int) -> verdict.Comparison:
    """Scores of 0 and 1, with so many problems of each kind."""
    counts = (better, worse, equal)
    return compare(np.repeat([1.0, 0, 1], counts), np.repeat([0.0, 1, 1], counts))


@cache
def halves(better: int, worse: int, count: int = 100) -> verdict.Comparison:
    """So many problems, of which greedy solves half and so many differ."""
    half = count // 2
    counts = (better, worse, half - worse, half - better)
    return compare(np.repeat([1.0, 0, 1, 0], counts), np.repeat([0.0, 1, 1, 0], counts))


def row(setting: Setting, answered: Pair, silent: Pair | None = None) -> Result:
    """On 100 problems whose text answers, and as many whose text does not."""
    if silent is None:
        return Result(setting, halves(*answered), None, halves(*answered))
    whole = halves(answered[0] + silent[0], answered[1] + silent[1], 200)
    return Result(setting, halves(*answered), halves(*silent), whole)


def test_the_sign_test_by_counting() -> None:
    found = pairs(8, 1, 20)
    assert found.p == pytest.approx(2 * (1 + 9) / 2**9, rel=1e-12)
    assert (found.better, found.worse, found.count) == (8, 1, 29)
    assert found.difference == pytest.approx(7 / 29) == pytest.approx(found.cold - found.greedy)
    # Scores in between count by the sign of their difference.
    found = compare(np.array([0.5, 0.2, 0.9, 0.4, 0.3]), np.array([0.4, 0.1, 0.95, 0.4, 0.2]))
    assert (found.better, found.worse, found.p) == (3, 1, 2 * (1 + 4) / 2**4)
    assert found.difference == pytest.approx(0.05) and pairs(0, 0, 20).p == 1.0
    assert pairs(FEWEST, 0, 0).p < LEVEL <= pairs(FEWEST - 1, 0, 0).p


def test_the_interval_by_hand() -> None:
    # Bonett and Price: (b + 1) / (n + 2) and (c + 1) / (n + 2) are the shares.
    found = pairs(30, 12, 158)
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
    assert pairs(0, 0, 20).low == pytest.approx(-1.959964 * math.sqrt(2) / 22)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 300))
def test_the_interval_has_zero_inside_where_the_test_finds_nothing(
    better: int, worse: int, equal: int
) -> None:
    found, swapped = pairs(better, worse, equal), pairs(worse, better, equal)
    assert -1.0 <= found.low <= found.difference <= found.high <= 1.0
    assert (found.low > 1e-12 or found.high < -1e-12) is (found.p < LEVEL)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_significant_is_better_by_number_and_by_size() -> None:
    """Better on most problems and a worse mean is neither, whatever p says."""
    cold, greedy = np.array([0.6] * 20 + [0.0] * 3), np.array([0.5] * 20 + [1.0] * 3)
    for found in (compare(cold, greedy), compare(1 - cold, 1 - greedy)):
        assert found.p < 0.01 and found.difference * (found.better - found.worse) < 0
        assert not found.is_better and not found.is_worse


# What is advised

NO_TEXT, BETTER, TWICE = (
    Setting(baseline=name) for name in ("no text", "a stronger prompt", "the text repeated")
)
CAD, BOTH = Setting("cad"), Setting("cad", baseline=TWICE.baseline)


class Tried(NamedTuple):
    """A baseline on the held-out problems."""

    test: Pair
    against: Pair  # the setting against it
    silent: Pair | None = None
    dev: Pair | None = None  # the same as there


def judged(
    test: Pair,
    tried: dict[Setting, Tried] | None = None,
    silent: Pair | None = None,
    dev: Pair = (20, 0),
    setting: Setting = CAD,
    untested: bool = False,
) -> Verdict:
    """A setting on the held-out problems, and where the text does not answer."""
    tried = tried or {}
    rows = {baseline: row(baseline, how.dev or how.test) for baseline, how in tried.items()}
    rows[setting] = row(setting, dev)
    held_out = {baseline: row(baseline, how.test, how.silent) for baseline, how in tried.items()}
    held_out[setting] = row(setting, test, silent)
    against = {baseline: halves(*how.against) for baseline, how in tried.items()}
    return Verdict(rows, setting, held_out, against, untested)


WITHOUT = Tried((0, 45), (50, 5))
ONLY = "Use cad only where the text is known to answer, which"
STRONGER = "Use a stronger prompt, without a contrast: "
NO_GAIN = "Use greedy decoding: no setting beats it significantly; cad differs by "
NOR = "Use greedy decoding: no setting or baseline beats it significantly"
ADVICE: dict[str, list[tuple[str, Verdict]]] = {
    "a gain, or none": [
        # p: 2 * (1 + 11) / 2**11; interval: the exact low end, and shares of 11 and 2 in 102.
        ("Use cad, which beats greedy decoding: +9.0 points on 100 held-out problems (95 % "
         "interval +1.9 to +15.5, p = 0.012).", judged((10, 1))),
        ("Use cad, which ... p = 0.012); irrelevant context was not tested.",
         judged((10, 1), untested=True)),
        # Not significant: 5 against none has p = 0.0625. Then the wrong way.
        (NO_GAIN + "+5.0 points on 100 held-out", judged((5, 0))),
        (NO_GAIN + "-11.0 points on 100 held-out", judged((1, 12))),
        # Better on the held-out problems alone.
        (NO_GAIN + "... p = 0.0034); -3.0 on 100 dev problems.", judged((12, 1), dev=(0, 3))),
    ],
    "baselines": [
        ("Use cad, which beats greedy decoding: +20.0",
         judged((20, 0), {NO_TEXT: WITHOUT, BETTER: Tried((9, 1), (13, 2))})),
        # A gain at no extra cost, which the contrast does not beat significantly.
        (STRONGER + "+17.0 points on 100 held... p = 7.6e-05); cad (+20.0) does not beat it.",
         judged((20, 0), {NO_TEXT: WITHOUT, BETTER: Tried((18, 1), (6, 3))})),
        # No gain by itself, and yet it scores as much, where texts answer.
        ("Leave the text out, without a contrast: +8.0 points on 100",
         judged((8, 0), {NO_TEXT: Tried((22, 14), (9, 9), (0, 0))}, (9, 0))),
        # No contrast gains: the dev problems pick the prompt, too.
        ("Use the text repeated, without a contrast: +20.0 points",
         judged((4, 2), {BETTER: Tried((9, 0), (0, 20), dev=(5, 0)),
                         TWICE: Tried((21, 1), (0, 20), dev=(9, 0))})),
        (NOR + "; cad differs by +2.0 points", judged((4, 2), {BETTER: Tried((5, 0), (0, 20))})),
        # One that is combined with the setting gains something, and not significantly.
        ("Use the text repeated, without a contrast: +7.0 points on ...; cad with the text "
         "repeated (+9.0) does not beat it.",
         judged((11, 2), {TWICE: Tried((10, 3), (2, 0))}, setting=BOTH)),
        ("Use cad with the text repeated, which beats greedy...), and the text repeated alone by "
         "+11.0 points (p = 0.0034).",
         judged((11, 2), {TWICE: Tried((10, 3), (12, 1))}, setting=BOTH)),
    ],
    "baselines alone": [
        # What the dev problems pick, though another one is better on the held-out ones.
        ("Use the text repeated: +9.0 points on 100 held-out problems",
         judged((10, 1), {BETTER: Tried((20, 0), (0, 10), dev=(4, 0)),
                          TWICE: Tried((10, 1), (0, 0))}, setting=TWICE)),
        # Another one is better on all problems: this one's gain is none the less for that.
        ("Use the text repeated: +20.0 points",
         judged((20, 0), {BETTER: Tried((18, 0), (0, 0), (9, 0), dev=(4, 0)),
                          TWICE: Tried((20, 0), (0, 0), (1, 3))}, (1, 3), setting=TWICE)),
        ("Leave the text out only where",
         judged((20, 0), {NO_TEXT: Tried((20, 0), (0, 0), (0, 30))}, (0, 30), setting=NO_TEXT)),
        ("Keep the prompt as it is: no baseline beats it significantly; the text repeated differs "
         "by +5.0 points", judged((5, 0), {TWICE: Tried((5, 0), (0, 0))}, setting=TWICE)),
    ],
    "texts that do not answer": [
        (ONLY + " beats greedy decoding: +20.0 points on 100 held-out problems whose text answers "
         "(95 % ...; where the text does not answer, -30.0 points on 100 held-out",
         judged((20, 0), {NO_TEXT: WITHOUT}, (0, 30))),
        ("Use cad, which beats greedy", judged((20, 0), {NO_TEXT: WITHOUT}, (1, 4))),
        # Not significantly worse there; by a prompt more are right in all.
        (STRONGER + "+6.0 points ...; cad (+20.0) does not beat it; where the text does not",
         judged((20, 0), {BETTER: Tried((8, 2), (14, 0), (9, 0))}, (3, 9))),
        # No better than greedy decoding in all.
        (ONLY, judged((10, 1), {BETTER: Tried((0, 9), (9, 0), (0, 0))}, (20, 33))),
        (ONLY, judged((10, 1), {BETTER: Tried((0, 9), (9, 0), (0, 0))}, (22, 31))),
        # The prompt has more right in all, but far fewer where texts answer.
        (ONLY, judged((10, 1), {BETTER: Tried((0, 45), (45, 0), (50, 0))}, (3, 9))),
        ("Use cad, which", judged((10, 1), {BETTER: Tried((0, 45), (45, 0), (40, 0))}, (3, 9))),
    ],
}  # fmt: skip


@pytest.mark.parametrize("about", ADVICE)
def test_what_is_advised(about: str) -> None:
    for said, found in ADVICE[about]:
        headline = found.headline()
        start, *parts = said.split("...")
        assert headline.startswith(start) and all(part in headline for part in parts), headline
        assert not said.endswith(".") or headline.endswith(parts[-1] if parts else start)
        only = " only where" in headline
        beats = not headline.startswith(("Use greedy", "Keep")) and "a contrast" not in headline
        assert (found.gain, found.only) == (beats and not only, beats and only)


def test_what_the_dev_problems_pick() -> None:
    """The first of the best; and what gains less and harms less."""
    rows = [row(one, said) for one, said in zip(GRID, [(4, 2), (12, 1), (12, 1)], strict=False)]
    assert verdict.pick(rows) is rows[1]
    rows = [row(CAD, (30, 0), (0, 30)), row(TWICE, (14, 0), (0, 7))]
    assert verdict.pick(rows) is rows[1]


def test_what_is_told_before_the_search() -> None:
    helps, harms, little = (1, 40), (40, 2), (3, 2)
    assert findings([row(NO_TEXT, helps, harms), row(BETTER, little, (0, 7))], "text", False) == [
        "The text helps: 50.0 % are right with it, 11.0 % without (100 problems, p = 3.8e-11).",
        "Where the text does not answer, it harms: 50.0 % are right with it, 88.0 % without (100 "
        "problems, p = 4.1e-10): leave it out.",
        "Baseline (no extra cost), a stronger prompt: +1.0 points (p = 1), where the text does not "
        "answer -7.0 points (p = 0.016).",
    ]
    said = findings([row(NO_TEXT, (2, 2)), row(TWICE, (12, 1))], "instruction", True)
    assert said[:2] == [
        "The instruction has no clear effect: 50.0 % are right with it, 50.0 % without (100 "
        "problems, p = 1).",
        "Baseline (no extra cost), the text repeated: +11.0 points (p = 0.0034).",
    ]
    assert said[2].startswith('Not tested: irrelevant context. Add problems with "answers": false')
    assert findings([], "", False) == []


@pytest.mark.parametrize(("width", "silent"), [(40, None), (80, (0, 8))])
def test_the_terminal_shows_all_and_what_is_pasted_in_one_piece(
    width: int, silent: Pair | None
) -> None:
    dev = zip(GRID, [(9, 3), (12, 1)], strict=False)
    rows = {setting: row(setting, score, silent) for setting, score in dev}
    found = replace(judged((10, 1), setting=GRID[1]), dev=rows)
    hostile, headline = "[bold]x[/bold] & <b> {{ 7 * 7 }}", found.headline()
    serve = "vllm serve '/models/a long name' --sampler cold --cold-alpha 0.1 --cold-beta 0.5"
    report: dict[str, Any] = {"first": ["The text helps."], "notes": [hostile], "serve": serve}
    report |= {"headline": headline, "run": {"server": None}}
    console = Console(file=io.StringIO(), width=width)
    tune_report.show(console, report, found, "out.json")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    figures = ("+6.0", "+11.0", "9/3", "12/1", *(("-8.0",) if silent else ()))
    for part in (hostile, "Serve it with contrastive decoding:", "Written: out.json", *figures):
        assert part in " ".join(text.split())
    lines = text.splitlines()
    assert serve in lines and lines[-1] == headline and "…" not in text
    assert max(len(line) for line in lines if line not in (headline, serve)) <= width
