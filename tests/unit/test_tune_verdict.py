# SPDX-License-Identifier: Apache-2.0
"""The verdict's figures against cases calculated by hand; no more is claimed than the data show."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from vllm_cold.tools.tune import report, verdict
from vllm_cold.tools.tune.grid import Setting, make_grid
from vllm_cold.tools.tune.verdict import FEWEST, LEVEL, Outcome, Result, Verdict, compare, findings

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


def outcome(found: Pair, silent: Pair | None = None) -> Outcome:
    """On 100 problems whose text answers, and as many whose text does not."""
    if silent is None:
        return Outcome(halves(*found), None, halves(*found))
    whole = halves(found[0] + silent[0], found[1] + silent[1], 200)
    return Outcome(halves(*found), halves(*silent), whole)


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
        assert not verdict.is_better(found) and not verdict.is_worse(found)


# Baselines, and what settings do compared with them

NO_TEXT, BETTER, TWICE = (
    Setting(baseline=name) for name in ("no text", "a stronger prompt", "the text repeated")
)
CAD, BOTH = Setting("cad"), Setting("cad", baseline=TWICE.baseline)
Told = tuple[Pair, Pair, Pair]  # on dev, held out; and the setting against it
WITHOUT: Told = ((0, 45), (0, 45), (50, 5))
NOTHING: Told = ((0, 0), (0, 0), (20, 0))


def judged(
    dev: dict[Setting, Pair],
    test: Pair,
    baselines: dict[Setting, Told] | None = None,
    silent: Pair | None = None,
    untested: bool = False,
    baseline_silent: dict[Setting, Pair] | None = None,
) -> Verdict:
    """Settings on dev problems, the picked one on others, and where the text does not answer."""
    silently, told = baseline_silent or {}, baselines or {}
    rows = {one: Result(one, outcome(said[0])) for one, said in told.items()}
    settings = {one: Result(one, outcome(said)) for one, said in dev.items()}
    best = verdict.pick(list(settings.values())).setting
    held_out = {one: Result(one, outcome(said[1], silently.get(one))) for one, said in told.items()}
    held_out[best] = Result(best, outcome(test, silent))
    against = {one: halves(*said[2]) for one, said in told.items()}
    return Verdict({**rows, **settings}, best, held_out, against, untested)


def test_a_gain_is_claimed_with_its_figures() -> None:
    found = judged(dict(zip(GRID, [(4, 2), (12, 1), (12, 1)], strict=False)), (10, 1))
    assert found.best.setting == GRID[1]  # the first of two with the same score
    assert found.gain
    # p: 2 * (1 + 11) / 2**11; interval: the exact low end, and shares of 11 and 2 in 102.
    assert found.headline() == (
        "Use alpha 0.1, beta 0.25, which beats greedy decoding: +9.0 points on 100 held-out "
        "problems (95 % interval +1.9 to +15.5, p = 0.012)."
    )
    untested = judged({CAD: (12, 1)}, (10, 1), untested=True).headline()
    assert untested.endswith("p = 0.012); irrelevant context was not tested.")
    better: Told = ((8, 2), (9, 1), (13, 2))
    found = judged({CAD: (20, 0)}, (20, 0), {NO_TEXT: WITHOUT, BETTER: better, TWICE: NOTHING})
    assert found.gain and found.headline().startswith("Use cad, which beats greedy decoding: +20.0")


@pytest.mark.parametrize(
    ("dev", "cad", "better", "twice", "said"),
    [
        # A gain at no extra cost, which the contrast does not beat significantly.
        ((20, 0), (20, 0), ((15, 0), (18, 1), (6, 3)), NOTHING, "a stronger prompt +17.0"),
        # No gain by itself, and yet it scores as much as the contrast.
        ((20, 0), (8, 0), ((9, 8), (22, 14), (9, 9)), NOTHING, "a stronger prompt +8.0"),
        # No contrast gains; the dev problems pick the prompt, too.
        ((3, 2), (4, 2), ((5, 0), (9, 0), (0, 20)), ((9, 0), (21, 1), (0, 20)), "the text repeated +20.0"),  # noqa: E501
        ((3, 2), (4, 2), ((5, 0), (5, 0), (0, 20)), NOTHING, ""),
    ],
)  # fmt: skip
def test_a_contrast_that_a_baseline_replaces_is_not_advised(
    dev: Pair, cad: Pair, better: Told, twice: Told, said: str
) -> None:
    baselines = {NO_TEXT: WITHOUT, BETTER: better, TWICE: twice}
    found = judged({CAD: dev}, cad, baselines)
    assert not found.gain
    if not said:
        assert found.use is None
        said = "Use greedy decoding: no setting or baseline beats it significantly; cad differs by "
        assert found.headline().startswith(f"{said}+2.0 points")
        return
    name, _, gained = said.rpartition(" ")
    assert found.headline().startswith(
        f"Use {name}, without a contrast: {gained} points on 100 held"
    )
    end = f"; cad (+{cad[0]}.0) does not beat it."
    assert found.headline().endswith(end) is (dev == (20, 0))


def test_a_contrast_that_a_baseline_equals_is_not_advised() -> None:
    """Where texts answer, although it has more right where they do not."""
    better: Told = ((9, 8), (22, 14), (9, 9))
    for baseline, said in (BETTER, "Use a stronger prompt"), (NO_TEXT, "Leave the text out"):
        found = judged(
            {CAD: (20, 0)}, (8, 0), {baseline: better}, (9, 0), baseline_silent={baseline: (0, 0)}
        )
        assert found.best.score.whole.cold > found.held_out[baseline].score.whole.cold
        assert found.headline().startswith(f"{said}, without a contrast: +8.0 points on 100")


@pytest.mark.parametrize(("over", "advised"), [((2, 0), False), ((12, 1), True)])
def test_a_contrast_has_to_beat_the_baseline_that_it_is_combined_with(
    over: Pair, advised: bool
) -> None:
    """That gains something, and not significantly."""
    baselines = ((9, 3), (10, 3), over)
    found = judged({CAD: (5, 3), BOTH: (20, 0)}, (11, 2), {NO_TEXT: WITHOUT, TWICE: baselines})
    assert found.gain is advised
    if advised:
        assert found.headline().startswith("Use cad with the text repeated, which beats greedy")
        assert found.headline().endswith(", and the text repeated alone by +11.0 (p = 0.0034).")
    else:
        said = "; cad with the text repeated (+9.0) does not beat it."
        assert found.headline().startswith(
            "Use the text repeated, without a contrast: +7.0 points on"
        )
        assert found.headline().endswith(said)


def test_what_harms_where_texts_do_not_answer_is_for_texts_that_do() -> None:
    found = judged({CAD: (20, 0)}, (20, 0), {NO_TEXT: WITHOUT}, silent=(0, 30))
    assert found.only and not found.gain
    assert found.headline().startswith(
        "Use cad only where the text is known to answer, which beats greedy decoding: +20.0 points "
        "on 100 held-out problems whose text answers (95 % "
    )
    assert "; where the text does not answer, -30.0 points on 100 held-out" in found.headline()
    found = judged({CAD: (20, 0)}, (20, 0), {NO_TEXT: WITHOUT}, silent=(1, 4))
    assert found.gain and found.headline().startswith("Use cad, which beats greedy")
    # What gains less and harms less is picked.
    rows = [Result(CAD, outcome((30, 0), (0, 30))), Result(TWICE, outcome((14, 0), (0, 7)))]
    assert verdict.pick(rows) is rows[1]


@pytest.mark.parametrize(
    ("cad", "silent", "baselines", "baseline_silent", "said"),
    [
        # Not significantly worse where no text answers; by a prompt more are right in all.
        ((20, 0), (3, 9), ((9, 2), (8, 2), (14, 0)), (9, 0),
         "Use a stronger prompt, without a contrast: +6.0 points"),
        ((10, 1), (3, 9), ((9, 2), (6, 2), (6, 1)), (0, 0),
         "Use a stronger prompt, without a contrast: +4.0 points"),
        # No better than greedy decoding in all.
        ((10, 1), (20, 33), ((0, 9), (0, 9), (9, 0)), (0, 0), "Use cad only where"),
        ((10, 1), (22, 31), ((0, 9), (0, 9), (9, 0)), (0, 0), "Use cad only where"),
        # The prompt has more right in all, but far fewer where texts answer.
        ((10, 1), (3, 9), ((0, 9), (0, 45), (45, 0)), (50, 0), "Use cad only where"),
        ((10, 1), (3, 9), ((0, 9), (0, 45), (45, 0)), (40, 0), "Use cad, which beats greedy"),
    ],
)  # fmt: skip
def test_what_has_fewer_right_in_all_is_not_advised(
    cad: Pair, silent: Pair, baselines: Told, baseline_silent: Pair, said: str
) -> None:
    found = judged(
        {CAD: (20, 0)}, cad, {BETTER: baselines}, silent, baseline_silent={BETTER: baseline_silent}
    )
    assert found.headline().startswith(said)
    assert found.gain is said.startswith("Use cad, which") and found.only is ("only" in said)
    end = "; cad (+20.0) does not beat it; where the text does not"
    assert (end in found.headline()) is (cad == (20, 0))


@pytest.mark.parametrize(
    ("dev", "test", "said"),
    [
        # Not significant: 5 against none has p = 0.0625.
        ([(9, 0)], (5, 0), "alpha 0.3, beta 0.25 differs by +5.0 points on 100 held-out"),
        ([(9, 0), (8, 0)], (0, 0), "beta 0.25 differs by 0.0 points on 100"),
        # Significant, the wrong way.
        ([(9, 0)], (1, 12), "beta 0.25 differs by -11.0 points on 100 held-out"),
        # Better on the held-out problems alone.
        ([(0, 3)], (12, 1), "p = 0.0034); -3.0 on 100 dev problems."),
        ([(2, 2)], (12, 1), "); 0.0 on 100 dev problems."),
    ],
)
def test_without_a_gain_greedy_is_what_to_use(dev: list[Pair], test: Pair, said: str) -> None:
    found = judged(dict(zip(GRID, dev, strict=False)), test)
    assert not found.gain and said in found.headline()
    assert found.headline().startswith(
        "Use greedy decoding: no setting beats it significantly; alpha 0.3, beta 0.25"
    )


def test_what_is_told_before_the_search() -> None:
    helps, harms, little = (1, 40), (40, 2), (3, 2)
    rows = [Result(NO_TEXT, outcome(helps, harms)), Result(BETTER, outcome(little, (0, 7)))]
    assert findings(rows, "text", False) == [
        "The text helps: 50.0 % are right with it, 11.0 % without (100 problems, p = 3.8e-11).",
        "Where the text does not answer, it harms: 50.0 % are right with it, 88.0 % without (100 "
        "problems, p = 4.1e-10): leave it out.",
        "Baseline (no extra cost), a stronger prompt: +1.0 points (p = 1), where the text does not "
        "answer -7.0 points (p = 0.016).",
    ]
    said, untested = findings([Result(NO_TEXT, outcome(little))], "instruction", True)
    assert said.startswith("The instruction has no clear effect: 50.0 % are right with it, 51.0 %")
    assert untested.startswith('Not tested: irrelevant context. Add problems with "answers": false')
    assert findings([], "", False) == []


# What must be kept, too

Three = tuple[Pair, Pair, Pair]  # both at once, what is matched, and what is kept
BARGAIN: Three = ((12, 1), (20, 0), (0, 35))  # gains, by what it must not pay with
FAIR: Three = ((12, 1), (16, 1), (2, 6))
SAME: Three = ((2, 2), (3, 3), (1, 1))


def row(setting: Setting, said: Three, silent: Three | None = None) -> Result:
    others = silent or (None, None, None)
    return Result(setting, *map(outcome, said, others))


def joint(
    setting: Setting,
    test: Three,
    baselines: dict[Setting, tuple[Three, Pair]] | None = None,
    silent: Three | None = None,
) -> Verdict:
    """A setting that gains on the dev problems, as all baselines do, and what it and they do on
    the others: the pair is the setting against that prompt.
    """
    told = baselines or {}
    dev = {one: row(one, FAIR) for one in (*told, setting)}
    held_out = {one: row(one, said[0]) for one, said in told.items()}
    held_out[setting] = row(setting, test, silent)
    return Verdict(dev, setting, held_out, {one: halves(*said[1]) for one, said in told.items()})


def test_a_gain_that_loses_what_must_be_kept_is_never_advised() -> None:
    found = joint(CAD, BARGAIN)
    assert found.use is None and not found.gain and not found.only
    assert found.headline() == (
        "Use greedy decoding: cad matches more (+20.0 points) but loses what must be kept: -35.0 "
        "points (p = 5.8e-11); +11.0 points of both at once on 100 held-out problems (95 % "
        "interval +3.6 to +17.9, p = 0.0034; matched +20.0, kept -35.0 with p = 5.8e-11)."
    )
    worse = verdict.loss(row(CAD, ((0, 9), (0, 3), (0, 20))))
    assert worse == "cad loses what must be kept: -20.0 points (p = 1.9e-06)"
    # What is kept does not make up for it: both at once decide.
    assert joint(CAD, ((5, 4), (4, 5), (40, 0))).use is None


def test_a_gain_of_both_at_once_is_advised_with_all_figures() -> None:
    found = joint(CAD, FAIR)
    assert found.gain and found.headline() == (
        "Use cad, which beats greedy decoding: +11.0 points of both at once on 100 held-out "
        "problems (95 % interval +3.6 to +17.9, p = 0.0034; matched +15.0, kept -4.0 with "
        "p = 0.29)."
    )
    # The least loss that is significant, and the largest that is not.
    assert verdict.loss(row(CAD, (FAIR[0], FAIR[1], (0, 6))))
    for kept in ((0, 5), (6, 0), (9, 9)):
        assert joint(CAD, (FAIR[0], FAIR[1], kept)).gain


@pytest.mark.parametrize(
    ("cad", "baselines", "said"),
    [
        # The most by far, and no rival: it loses what the setting keeps.
        (FAIR, {TWICE: (((40, 0), (50, 0), (0, 20)), (0, 30))}, "Use cad, which beats"),
        (SAME, {TWICE: (((40, 0), (50, 0), (0, 20)), (0, 30))},
         "Use greedy decoding: no setting or baseline beats it significantly and keeps what must "
         "be kept; cad differs by 0.0 points of both"),
        # Another one is to be had.
        (SAME, {TWICE: (((40, 0), (50, 0), (0, 20)), (0, 30)), BETTER: (FAIR, (0, 8))},
         "Use a stronger prompt, without a contrast: +11.0 points of both"),
        # The setting loses it, and the prompt does not.
        (BARGAIN, {BETTER: (FAIR, (9, 9))}, "Use a stronger prompt, without a contrast: +11.0"),
        (BARGAIN, {BETTER: (SAME, (9, 9))}, "Use greedy decoding: cad matches more (+20.0"),
        # Both keep it: who has more of both at once, and of two with the same the prompt.
        (FAIR, {BETTER: (FAIR, (6, 6))}, "Use a stronger prompt, without a contrast: +11.0 points"),
        (FAIR, {BETTER: (((9, 2), (30, 2), (3, 4)), (12, 1))}, "Use cad, which beats greedy"),
        (FAIR, {BETTER: (((20, 1), (30, 2), (3, 4)), (0, 8))}, "Use a stronger prompt, with"),
    ],
)  # fmt: skip
def test_baselines_are_judged_by_both_at_once(
    cad: Three, baselines: dict[Setting, tuple[Three, Pair]], said: str
) -> None:
    found = joint(CAD, cad, baselines)
    assert found.headline().startswith(said)
    assert found.gain is said.startswith("Use cad")
    lost = "; cad matches more (+20.0 points) but loses what must be kept: -35.0 points (p = "
    assert (lost in found.headline()) is (cad == BARGAIN and "a contrast" in said)


def test_a_setting_need_not_beat_its_baseline_if_that_is_not_to_be_used() -> None:
    for kept, advised in (((0, 20), BOTH), ((2, 6), TWICE)):
        found = joint(BOTH, FAIR, {TWICE: (((10, 4), (30, 0), kept), (5, 3))})
        assert found.use is not None and found.use.setting == advised
        assert "alone by" not in found.headline()
    found = joint(BOTH, FAIR, {TWICE: (((10, 4), (30, 0), (2, 6)), (12, 1))})
    assert found.gain and ", and the text repeated alone by +11.0 (p =" in found.headline()


def test_what_loses_on_the_dev_problems_is_picked_last() -> None:
    rows = [row(GRID[0], FAIR), row(GRID[1], ((30, 0), (40, 0), (0, 9))), row(GRID[2], FAIR)]
    assert verdict.pick(rows) is rows[0]  # the first of two with the same score
    assert verdict.pick(rows[1:]) is rows[2]
    assert verdict.pick([row(GRID[0], BARGAIN), rows[1]]) is rows[1]


def test_what_is_lost_where_texts_do_not_answer_harms_there() -> None:
    found = joint(CAD, FAIR, silent=((2, 2), (9, 0), (0, 30)))
    assert found.only and not found.gain and found.best.lost is None
    assert found.headline().startswith("Use cad only where the text is known to answer, which")
    end = "; matched +9.0, kept -30.0 with p = 1.9e-09)."
    assert found.headline().endswith(end)
    silent: Three = ((2, 2), (9, 0), (0, 0))
    for baselines in ({}, {TWICE: (((40, 0), (50, 0), (0, 20)), (0, 30))}):  # which has more in all
        assert joint(CAD, FAIR, baselines, silent).gain
    # On neither side significantly, on both together.
    found = joint(CAD, (FAIR[0], FAIR[1], (0, 5)), silent=((2, 2), (9, 0), (0, 5)))
    assert found.use is None and ": -5.0 points (p = 0.002); " in found.headline()
    # Where they answer, whatever it does elsewhere.
    assert joint(CAD, BARGAIN, silent=((2, 2), (9, 0), (40, 0))).use is None


COUNTS = st.tuples(*[st.sampled_from([0, 5, 6, 20])] * 2)


@given(st.lists(st.tuples(COUNTS, COUNTS, COUNTS), min_size=4, max_size=4), COUNTS, COUNTS)
def test_nothing_advised_loses_what_must_be_kept(said: list[Three], one: Pair, other: Pair) -> None:
    found = joint(BOTH, said[0], {BETTER: (said[2], one), TWICE: (said[3], other)}, said[1])
    if use := found.use:
        assert use.keep is not None and not verdict.is_worse(use.keep.found)
    if found.gain:
        keep = found.best.keep
        assert keep is not None and keep.silent is not None
        assert not verdict.is_worse(keep.whole) and not verdict.is_worse(keep.silent)


def test_what_is_told_of_both_before_the_search() -> None:
    said = findings([row(NO_TEXT, SAME), row(TWICE, BARGAIN)], "instruction", False)
    assert said == [
        "The instruction has no clear effect: 50.0 % are right and kept with it, 50.0 % without "
        "(100 problems, p = 1).",
        "Baseline (no extra cost), the text repeated: +11.0 points (p = 0.0034); what must be kept "
        "-35.0 points (p = 5.8e-11).",
    ]


@pytest.mark.parametrize(("width", "keeps"), [(80, False), (40, False), (80, True)])
def test_the_terminal_shows_all_and_what_is_pasted_in_one_piece(width: int, keeps: bool) -> None:
    dev = dict(zip(GRID, [(9, 3), (12, 1)], strict=False))
    found, silent = judged(dev, (10, 1)), (0, 8) if width > 40 else None
    rows = {one: Result(one, outcome(each, silent)) for one, each in dev.items()}
    if keeps:
        kept = (((0, 8), (0, 0), (0, 0)), (20, 0), (0, 35))
        rows = {one: row(one, (each, *kept[1:]), kept[0]) for one, each in dev.items()}
    found = replace(found, dev=rows)
    hostile, headline = "[bold]x[/bold] & <b> {{ 7 * 7 }}", found.headline()
    serve = "vllm serve '/models/a long name' --sampler cold --cold-alpha 0.1 --cold-beta 0.5"
    said: dict[str, Any] = {"first": ["The text helps."], "notes": [hostile], "serve": serve}
    console = Console(file=io.StringIO(), width=width)
    report.show(console, {**said, "headline": headline, "run": {"server": None}}, found, "out.json")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in (hostile, "Serve it with contrastive decoding:", "Written: out.json"):
        assert part in " ".join(text.split())
    more = ["-8.0", "50.0 %"] if width > 40 else []
    more += ["matched", "70.0 %", "kept", "15.0 %", "both"] if keeps else []
    for figure in ("+6.0", "+11.0", "9/3", "12/1", *more):
        assert figure in text
    lines = text.splitlines()
    assert serve in lines and lines[-1] == headline and "…" not in text
    assert max(len(one) for one in lines if one not in (headline, serve)) <= width
