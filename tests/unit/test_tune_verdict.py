# SPDX-License-Identifier: Apache-2.0
"""The verdict and its figures, against cases reckoned by hand, and that no more is claimed than
the data show; all presentations say the same.
"""

from __future__ import annotations

import io
import json
import math
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from vllm_cold.tools.tune import report, verdict
from vllm_cold.tools.tune.grid import make_grid
from vllm_cold.tools.tune.verdict import Row, Scores, compare

pytestmark = pytest.mark.unit

GRID = make_grid({"alpha": "0.1,0.3", "beta": "0.25,0.5"})
HOSTILE = "<script>alert('x')</script> & \"quoted\" [bold] {{ 7 * 7 }}"


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
        (6, 0, 2 * 0.5**6),
        (0, 6, 2 * 0.5**6),
        (5, 0, 2 * 0.5**5),
        (8, 1, 2 * (1 + 9) / 2**9),
        (12, 5, 2 * sum(math.comb(17, k) for k in range(6)) / 2**17),
    ],
)
def test_mcnemar_by_counting(better: int, worse: int, expected: float) -> None:
    found = compare(*pairs(better, worse, 20), 0.95)
    assert found.p == pytest.approx(expected, rel=1e-12)
    assert (found.better, found.worse, found.count) == (better, worse, 20 + better + worse)
    assert found.difference == pytest.approx((better - worse) / found.count)
    assert found.difference == pytest.approx(found.cold - found.greedy)


def test_scores_in_between_are_counted_by_their_sign() -> None:
    found = compare(np.array([0.5, 0.2, 0.9, 0.4, 0.3]), np.array([0.4, 0.1, 0.95, 0.4, 0.2]), 0.9)
    assert (found.better, found.worse, found.p) == (3, 1, 2 * (1 + 4) / 2**4)
    assert found.difference == pytest.approx(0.05)


def test_the_interval_by_hand() -> None:
    # Bonett and Price: (b + 1) / (n + 2) and (c + 1) / (n + 2) are the shares.
    found = compare(*pairs(30, 12, 158), 0.95)
    b, c = 31 / 202, 13 / 202
    error = 1.959964 * math.sqrt((b + c - (b - c) ** 2) / 202)
    assert found.high == pytest.approx(b - c + error, abs=1e-6)
    # The exact interval (Clopper and Pearson) of 30 in 42 begins lower.
    exact = 42 / 200 * (2 * stats.beta.ppf(0.025, 30, 13) - 1)
    assert found.low == pytest.approx(exact) and exact < b - c - error
    # Four better, none worse, p = 0.125: the exact end, (2 * 0.025 ** (1/4) - 1) * 4 / 100.
    found = compare(*pairs(4, 0, 96), 0.95)
    assert found.low == pytest.approx(0.04 * (2 * 0.025**0.25 - 1))
    # Of scores in between it is nearly the normal one of the mean.
    rng = np.random.default_rng(2)
    cold, greedy = rng.uniform(size=2000), rng.uniform(size=2000)
    found, mean = compare(cold, greedy, 0.9), float((cold - greedy).mean())
    error = 1.644854 * float((cold - greedy).std()) / math.sqrt(2000)
    assert (found.low, found.high) == pytest.approx((mean - error, mean + error), abs=5e-4)
    # Where all are equal, there is doubt left.
    assert compare(*pairs(0, 0, 20), 0.95).low == pytest.approx(-1.959964 * math.sqrt(2) / 22)
    assert compare(np.full(20, 0.5), np.zeros(20), 0.95).high > 0.55


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 300), st.sampled_from([0.9, 0.95]))
def test_the_interval_has_zero_inside_where_the_test_finds_nothing(
    better: int, worse: int, equal: int, confidence: float
) -> None:
    if better + worse + equal == 0:
        return
    found = compare(*pairs(better, worse, equal), confidence)
    assert -1.0 <= found.low <= found.difference <= found.high <= 1.0
    significant = found.p < verdict.level_of(confidence)
    assert (found.low > 1e-12 or found.high < -1e-12) is significant
    swapped = compare(*pairs(worse, better, equal), confidence)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize(
    ("count", "better", "worse"), [(12, 0.1, 0.02), (30, 0.04, 0), (30, 0.9, 0.05)]
)
def test_the_interval_covers_even_if_few_differ(count: int, better: float, worse: float) -> None:
    """How often it holds the truth, over all that can be drawn."""
    inside = total = 0.0
    for b in range(count + 1):
        for c in range(count - b + 1):
            chance = stats.multinomial.pmf(
                [b, c, count - b - c], count, [better, worse, 1 - better - worse]
            )
            if chance > 1e-5:
                found = compare(*pairs(b, c, count - b - c), 0.95)
                total += chance
                inside += chance * (found.low - 1e-9 <= better - worse <= found.high + 1e-9)
    assert inside / total > 0.95


@pytest.mark.parametrize("level", [0.05, 0.01, 0.1, 0.0625])
def test_fewest_problems(level: float) -> None:
    fewest = verdict.fewest_problems(level)
    assert (
        compare(*pairs(fewest, 0, 0), 0.95).p < level <= compare(*pairs(fewest - 1, 0, 0), 0.95).p
    )


def made(
    dev: list[tuple[int, int]], test: tuple[int, int], count: int = 100, **more: Any
) -> dict[str, Any]:
    """A report on settings that are better and worse on so many dev problems, and the picked one on
    held-out problems.
    """
    rows = [
        Row(setting, compare(*pairs(*one, count - sum(one)), 0.95))
        for setting, one in zip(GRID, dev, strict=False)
    ]
    run = {"data": "p.jsonl", "server": None, "model": "M", "adapter": "sql", "engine": {"x": 1}}
    return report.build(
        rows=rows,
        test=compare(*pairs(*test, count - sum(test)), 0.95),
        confidence=0.95,
        changes=more.get("changes", []),
        notes=more.get("notes", ["A note."]),
        serve=more.get("serve", "vllm serve M"),
        run={**run, **more.get("run", {})},
    )


def test_a_gain_is_claimed_with_its_figures() -> None:
    found = made([(4, 2), (12, 1), (9, 3)], (10, 1))
    assert found["gain"] and found["best"] == {
        "name": "alpha 0.1, beta 0.25", "alpha": 0.1, "beta": 0.25,
    }  # fmt: skip
    # p: 2 * (1 + 11) / 2**11; interval: the exact low end, and shares of 11 and 2 in 102.
    assert found["headline"] == (
        "Use alpha 0.1, beta 0.25, which beats greedy decoding: +9.0 points on 100 held-out "
        "problems (95 % interval +1.9 to +15.5, p = 0.012)."
    )
    assert found["details"] == [
        "On the 100 held-out problems greedy scores 90.0 % and alpha 0.1, beta 0.25 99.0 %: better "
        "on 10, worse on 1 (sign test, for right and wrong McNemar's exact one, two-sided).",
        "On the 100 dev problems its difference was +11.0 points. They picked it from 3 settings, "
        "so that is biased upwards.",
    ]
    assert [row["picked"] for row in found["settings"]] == [False, True, False]


def test_a_gain_is_one_by_number_and_by_size() -> None:
    """Better on most problems and a worse mean is none, whatever p says."""
    cold, greedy = np.array([0.6] * 20 + [0.0] * 3), np.array([0.5] * 20 + [1.0] * 3)
    found = compare(cold, greedy, 0.95)
    assert found.p < 0.01 and found.difference < 0 < found.better - found.worse
    assert not verdict.is_gain(compare(greedy, greedy - 0.1, 0.95), found, 0.05)
    mean = compare(1 - cold, 1 - greedy, 0.95)  # a better mean, and worse on most
    assert mean.p < 0.01 and mean.difference > 0
    assert not verdict.is_gain(compare(greedy, greedy - 0.1, 0.95), mean, 0.05)


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
    assert not found["gain"] and said in found["headline"]
    assert found["headline"].startswith(
        "No setting beats greedy decoding significantly, so use that: alpha 0.3, beta 0.25"
    )


def test_of_settings_with_the_same_score_the_first_is_picked() -> None:
    dev = [(4, 6), (7, 3), (7, 3)]
    rows = [Row(s, compare(*pairs(*one, 90), 0.95)) for s, one in zip(GRID, dev, strict=False)]
    assert verdict.pick(rows) is rows[1]
    found = made([(4, 2), (7, 1), (7, 1)], (10, 1))
    assert found["best"]["name"] == "alpha 0.1, beta 0.25"


def test_figures_for_people() -> None:
    assert verdict.percent(0.54) == "54.0 %"
    assert [verdict.points(x) for x in (0.08, -0.081, 0.0, -0.0004, 1.0)] == [
        "+8.0", "-8.1", "0.0", "0.0", "+100.0",
    ]  # fmt: skip


def change(number: int, greedy: float, cold: float, text: str = "x") -> dict[str, Any]:
    texts = {"prompt": text, "answers": [text], "greedy": "same 1", "cold": f"same {text}"}
    return {"id": f"p{number}", "greedy_score": greedy, "cold_score": cold, **texts}


def text_of(found: dict[str, Any], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    report.show(console, found, "Written: here")
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("test", [(10, 1), (1, 0)])
def test_all_presentations_say_the_same(test: tuple[int, int], tmp_path: Path) -> None:
    changes = [change(1, 0.0, 1.0), change(2, 0.0, 1.0), change(3, 1.0, 0.0)]
    serve = "vllm serve '/models/a long name' --sampler cold --cold-alpha 0.1 --cold-beta 0.5"
    found = made([(9, 3), (12, 1)], test, changes=changes, serve=serve)
    report.write(found, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.html"}
    assert json.loads((tmp_path / "report.json").read_text()) == found
    text, html = text_of(found), (tmp_path / "report.html").read_text()
    plain = " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())
    devs = [compare(*pairs(*one, 100 - sum(one)), 0.95) for one in ((9, 3), (12, 1))]
    figures = ["+6.0", "+11.0", *map(verdict.interval, devs)]
    for said in (found["headline"], *found["details"], *found["notes"], *figures):
        assert said in " ".join(text.split()) and said in plain
    # In one piece, to be copied; the verdict comes last.
    assert serve in text.splitlines() and f'<pre class="copy">{serve}' in unescape(html)
    assert text.splitlines()[-1] == found["headline"]
    assert f"Serve it {'with' if found['gain'] else 'without'} CoLD" in text
    assert re.findall(r"<h3>(.*)</h3>", html) == ["Wrong to right: 2", "Right to wrong: 1"]
    assert "CoLD, judged wrong</p><pre>same <mark>x</mark></pre>" in html


def test_scores_in_between_are_no_right_or_wrong() -> None:
    found = made([(9, 3)], (10, 1), changes=[change(1, 0.25, 1.0), change(2, 1.0, 0.5)])
    html = report.render(found)
    assert re.findall(r"<h3>(.*)</h3>", html) == ["Better: 1", "Worse: 1"]
    assert "judged 0.25</p>" in html


def test_many_changes_are_named_at_least() -> None:
    many = [change(n, 0.0, 1.0) for n in range(report.SHOWN + 3)]
    found = made([(9, 3)], (10, 1), changes=many)
    html = report.render(found)
    assert html.count("<details>") == report.SHOWN
    assert "And 3 more: p100, p101, p102." in html


@pytest.mark.parametrize("width", [80, 40])
def test_no_figure_is_cut_off_in_a_narrow_terminal(width: int) -> None:
    found = made([(900, 90), (1200, 1)], (10, 1), count=2000)
    text = text_of(found, width)
    assert "…" not in text
    lines = [one for one in text.splitlines() if one not in (found["headline"], found["serve"])]
    assert max(map(len, lines)) <= width


def test_html_is_escaped_and_needs_nothing_else() -> None:
    run = {"data": HOSTILE, "model": HOSTILE, "adapter": HOSTILE, "engine": {HOSTILE: [HOSTILE]}}
    changes = [change(1, 0.0, 1.0, HOSTILE)]
    found = made([(9, 3)], (10, 1), changes=changes, run=run, notes=[HOSTILE], serve=HOSTILE)
    html = report.render(found)
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "{{ 7 * 7 }}" in html and "49 }}" not in html
    assert f'<pre class="copy">{HOSTILE}' in unescape(html) and HOSTILE in text_of(found)
    assert not re.search(r"(?:src|href)=|@import|url\(", html)
    assert "default-src 'none'" in html and '<html lang="en">' in html
