# SPDX-License-Identifier: Apache-2.0
"""What the report claims, and that it claims no more than the data show."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from collections.abc import Sequence
from html import unescape
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vllm_cold.tools.tune import changes, heatmap, page, stats
from vllm_cold.tools.tune.changes import Change
from vllm_cold.tools.tune.data import Problem
from vllm_cold.tools.tune.grid import Setting, make_grid
from vllm_cold.tools.tune.report import (
    Report,
    conclude,
    judge_grid,
    p_text,
    p_value,
    percent,
    pick,
    points,
    size,
)
from vllm_cold.tools.tune.show import show

pytestmark = pytest.mark.unit

GRID = make_grid({"alpha": "0.05,0.1,0.3,1", "beta": "0.25,0.5,1"})
BEST = Setting(0.1, 0.5)
HOSTILE = "<script>alert('x')</script> & \"quoted\" {{ 7 * 7 }}"


def simulate(
    rng: np.random.Generator, gain: float, count: int = 100, kind: str = "binary"
) -> dict[tuple[Setting | None, str], stats.Scores]:
    """Scores of greedy and all settings; BEST is better by ``gain``, the others are as good."""
    scores: dict[tuple[Setting | None, str], stats.Scores] = {}
    for part in ("dev", "test"):
        hardness = rng.uniform(size=count)
        for setting in [None, *GRID]:
            chance = 0.5 + (gain if setting == BEST else 0.0)
            # Decodings of a problem agree mostly, as they do in fact.
            own = np.where(rng.uniform(size=count) < 0.7, hardness, rng.uniform(size=count))
            right = (own < chance).astype(np.float64)
            scores[setting, part] = right if kind == "binary" else right * 0.75 + own * 0.25
    return scores


def report_on(
    scores: dict[tuple[Setting | None, str], stats.Scores],
    changes: Sequence[Change] = (),
    run: dict[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Report:
    rows = judge_grid(lambda setting: scores[setting, "dev"], GRID, 0.95, 0)
    return conclude(
        rows=rows,
        scores=lambda setting, part: scores[setting, part],
        confidence=0.95,
        seed=0,
        changes=tuple(changes),
        notes=notes,
        serve=lambda setting: f"vllm serve M {setting}",
        use=lambda setting: f"`{setting}`",
        run={"data": "p.jsonl", "server": None, "adapter": "sql", "contrast": "the base model"}
        | {"model": "M"}
        | (run or {}),
    )


def text_of(report: Report, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(console, report, "Written: here")
    return console.file.getvalue()  # type: ignore[attr-defined]


def page_of(report: Report) -> str:
    return page.render(report, heatmap.draw(report.rows, report.best, report.confidence))


@pytest.fixture(scope="module")
def gain() -> Report:
    return report_on(simulate(np.random.default_rng(0), 0.3))


@pytest.fixture(scope="module")
def flat() -> Report:
    return report_on(simulate(np.random.default_rng(0), 0.0))


def test_a_gain_is_claimed_with_its_figures(gain: Report) -> None:
    assert gain.gain and gain.best == BEST
    assert gain.test.p < 0.05 and gain.test.low > 0
    found = gain.test
    assert gain.headline == (
        f"Use `alpha 0.1, beta 0.5`, which beats greedy decoding: {points(found.difference)} "
        f"points on 100 held-out problems (95 % interval {points(found.low)} to "
        f"{points(found.high)}, {p_text(found.p)})."
    )
    assert len(gain.details) == 2 and "biased upwards" in gain.details[1]
    assert gain.details[0] == (
        f"On the 100 held-out problems greedy scores {percent(found.greedy)} and alpha 0.1, beta "
        f"0.5 {percent(found.cold)}: better on {found.better}, worse on {found.worse} (McNemar, "
        "exact, two-sided)."
    )
    assert gain.serve == gain.serve_best == "vllm serve M alpha 0.1, beta 0.5"
    significant = [row.setting for row in gain.rows if row.significant]
    assert significant == [BEST]


def test_without_a_gain_greedy_is_what_to_serve(flat: Report) -> None:
    assert not flat.gain
    assert flat.test.difference == 0.0 and flat.needed is None and flat.detectable is not None
    assert flat.headline == (
        f"No setting beats greedy decoding significantly, so use that, `None`: {flat.best}, picked "
        "from 9 settings, differs by 0.0 points on 100 held-out problems (95 % interval -10.4 to "
        "+10.4, p = 1.00), which find a true difference of about "
        f"{size(flat.detectable)} points four times in five."
    )
    assert flat.serve == "vllm serve M None"
    assert flat.serve_best == f"vllm serve M {flat.best}"


def test_how_many_problems_would_find_what_is_seen() -> None:
    scores = {key: np.zeros(100) for key in simulate(np.random.default_rng(0), 0.0, 100)}
    scores[BEST, "dev"][:4] = scores[BEST, "test"][:4] = 1.0
    report = report_on(scores)
    assert report.needed == stats.problems_needed(0.04, 0.04, 0.05) == 197
    assert report.headline.endswith(
        ": alpha 0.1, beta 0.5, picked from 9 settings, differs by +4.0 points on 100 held-out "
        "problems (95 % interval -0.8 to +9.8, p = 0.12), and a true difference of that size takes "
        "about 197 to be found four times in five."
    )
    # Of the dev problems, too, that many differ: the two together say how often that is.
    scores[BEST, "dev"][:] = 1.0
    assert (report_on(scores).needed or 0) > 2000


def test_settings_with_the_same_score() -> None:
    """Where none beats greedy, nothing is said of standard errors."""
    scores = {key: np.zeros(100) for key in simulate(np.random.default_rng(0), 0.0, 100)}
    for setting in (BEST, Setting(0.1, 1.0)):
        scores[setting, "dev"][:2] = 1.0
    report = report_on(scores)
    assert report.best == BEST
    assert report.details[2] == "1 other setting had the same score, and it is the mildest."


def test_settings_that_are_not_told_apart() -> None:
    """The mildest, of those that beat greedy and are within one standard error of the best."""
    mild, strong = Setting(0.3, 0.25), Setting(0.1, 1.0)
    scores = {key: np.zeros(100) for key in simulate(np.random.default_rng(0), 0.0, 100)}
    for part in ("dev", "test"):
        scores[strong, part][:30] = 1.0
        scores[mild, part][4:31] = 1.0  # 4 problems and 1: sqrt(5) is less than 3
        scores[BEST, part][2:31] = 1.0  # 2 and 1
    report = report_on(scores)
    assert report.best == BEST and [row.setting for row in report.rows if row.leads] == [
        BEST, strong,
    ]  # fmt: skip
    assert report.headline.startswith("Use `alpha 0.1, beta 0.5`, which beats")
    assert report.details[2] == (
        "Those problems do not tell it apart from 1 other setting: each is within one standard "
        "error of the best score, that of alpha 0.1, beta 1 (+30.0 points), and it is the mildest."
    )
    scores[mild, "dev"][3] = 1.0  # 3 and 1
    assert report_on(scores).best == mild
    # Not where only one of the two beats greedy: 7 or 9 better, none worse; 16 better, 6 worse.
    for better, worse, other in ((range(9), 0, range(4, 11)), (range(16), 6, range(9))):
        for setting in (None, *GRID):
            scores[setting, "dev"][:] = 0.0
            scores[setting, "dev"][90:] = 1.0
        scores[strong, "dev"][better] = 1.0
        scores[strong, "dev"][90 : 90 + worse] = 0.0
        scores[mild, "dev"][other] = 1.0
        report = report_on(scores)
        assert [row.setting for row in report.rows if row.significant] == [
            mild if worse else strong
        ]
        assert report.best == strong


@pytest.mark.parametrize("name", ["gain", "flat"])
def test_all_presentations_say_the_same(name: str, request: pytest.FixtureRequest) -> None:
    report = request.getfixturevalue(name)
    flowing = " ".join(text_of(report).split())
    html = page_of(report)
    plain = " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())
    for said in (report.headline, *report.details, *report.notes):
        assert said in flowing
        assert said in plain
    assert text_of(report).splitlines()[-1] == report.headline  # in one piece
    for said in (report.serve, report.serve_best):
        assert said in text_of(report)
        assert said in html
    assert ("there is no evidence" in flowing) is not report.gain
    data = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert data["gain"] is report.gain and data["headline"] == report.headline
    assert data["test"]["difference"] == report.test.difference
    assert len(data["rows"]) == len(GRID)


def test_the_terminal_table_fits_80_columns(gain: Report) -> None:
    for report in (gain, report_on(simulate(np.random.default_rng(5), -0.4, 2000))):
        lines = text_of(report).splitlines()
        table = [line for line in lines if re.match(r" *0\.\d+ +\d[\d.]* .*\d %", line)]
        assert len(table) == 9
        assert max(map(len, table)) <= 80
        assert not any("…" in line for line in lines)


@pytest.mark.parametrize("width", [60, 40])
def test_no_figure_is_cut_off_in_a_narrow_terminal(gain: Report, width: int) -> None:
    for report in (gain, report_on(simulate(np.random.default_rng(5), -0.4, 2000))):
        text = text_of(report, width)
        to_copy = (report.serve, report.serve_best, report.headline)
        lines = [line for line in text.splitlines() if line not in to_copy]
        assert max(map(len, lines)) <= width
        assert "…" not in text
        for row in report.rows:
            start = rf"(?m)^ *{row.setting.alpha:g} +{row.setting.beta:g} .*"
            if row.dev is None:
                assert re.search(start + r"greedy *$", text)
                continue
            end = rf" {re.escape(points(row.dev.difference))}\*? .* {p_value(row.p_holm)} *$"
            assert re.search(start + end, text), (width, row)


def test_too_few_problems_are_called_so() -> None:
    scores = {key: np.zeros(50) for key in simulate(np.random.default_rng(0), 0.0, 50)}
    scores[BEST, "dev"][:3] = scores[BEST, "test"][3:5] = 1.0  # 5 in 100 differ
    report = report_on(scores)
    assert report.detectable is None
    assert report.headline.endswith(" takes about 246 to be found four times in five.")
    scores[BEST, "test"][:] = 0.0
    found = report_on(scores).headline
    assert found.endswith("p = 1.00), too few to find any difference reliably.")
    assert not any("disagree" in note for note in report.notes)
    assert "<td>none</td>" in page_of(report)
    assert text_of(report)


def test_greedy_points_are_shown_as_what_they_are(gain: Report) -> None:
    rows = [row for row in gain.rows if row.setting.alpha == 1.0]
    assert len(rows) == 3
    assert all(row.dev is None and row.p_holm is None and not row.significant for row in rows)
    assert page_of(gain).count("is greedy decoding itself") == 3
    assert len(re.findall(r"(?m)^ +1 +(?:0.25|0.5|1) +greedy *$", text_of(gain))) == 3


def test_html_is_escaped_and_needs_nothing_else() -> None:
    change = Change(HOSTILE, HOSTILE, (HOSTILE,), HOSTILE, HOSTILE, 0.0, 1.0)
    report = report_on(
        simulate(np.random.default_rng(0), 0.3),
        changes=[change],
        run={"data": HOSTILE, "adapter": HOSTILE, "stop": [HOSTILE], "engine": {"x": HOSTILE}},
        notes=[HOSTILE],
    )
    line = f"vllm serve '{HOSTILE}' --cold-alpha 0.1"
    html = page_of(dataclasses.replace(report, serve=line, serve_best=line))
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "{{ 7 * 7 }}" in html and "49 }}" not in html
    shown = re.search(r'<pre class="copy">(.*)</pre>', html)
    assert shown is not None
    assert unescape(shown[1].replace("<span>--cold-alpha</span>", "--cold-alpha")) == line
    # Nothing is loaded from anywhere: the picture is inside.
    assert re.findall(r'(?:src|href)="([^"]{0,22})', html) == ["data:image/png;base64,"]
    assert "@import" not in html and "url(" not in html
    assert "default-src 'none'; img-src data:;" in html
    png = re.search(r"data:image/png;base64,([^\"]+)", html)
    assert png is not None
    assert Image.open(io.BytesIO(base64.b64decode(png[1]))).format == "PNG"


def test_which_problems_changed() -> None:
    """All of them, both ways, with what was judged how."""
    problems = [Problem(f"p{i}", i, f"prompt {i}", ("answer",)) for i in range(5)]
    greedy, cold = np.array([0, 1, 1, 0, 0.0]), np.array([1, 0, 1, 0, 1.0])
    found = changes.find(problems, lambda s, i: f"{i} by {s}", BEST, greedy, cold)
    assert [(one.id, one.way) for one in found] == [
        ("p0", "wrong to right"),
        ("p4", "wrong to right"),
        ("p1", "right to wrong"),
    ]
    assert (found[2].greedy, found[2].cold) == ("p1 by None", f"p1 by {BEST}")
    assert [(name, len(those)) for name, those in changes.groups(found)] == [
        ("Wrong to right", 2),
        ("Right to wrong", 1),
    ]
    gained = simulate(np.random.default_rng(0), 0.3)
    report = report_on(gained, found)
    html, text = page_of(report), text_of(report)
    assert re.findall(r"<h3>(.*)</h3>", html) == ["Wrong to right: 2", "Right to wrong: 1"]
    assert html.count("<details>") == 3 and "<details open" not in html
    assert "Greedy, judged right</p><pre>p1 by <mark>None</mark></pre>" in html
    assert f"CoLD, judged wrong</p><pre>p1 by <mark>{BEST}</mark></pre>" in html
    assert "\nWrong to right: p0, p4.\nRight to wrong: p1.\n" in text
    # Scores in between are no right or wrong.
    graded = changes.find(problems, lambda s, i: i, BEST, greedy * 0.5, cold)
    assert [name for name, _ in changes.groups(graded)] == ["Better", "Worse"]
    assert graded[-1].way == "0.5 to wrong"
    assert changes.groups(()) == [] and "None of the 100 held-out" in page_of(report_on(gained))


def test_many_changes_are_named_at_least() -> None:
    many = [Change(f"p{i}", "x", ("y",), "a", "b", 0.0, 1.0) for i in range(page.SHOWN + 3)]
    report = report_on(simulate(np.random.default_rng(0), 0.3), many)
    html = page_of(report)
    assert html.count("<details>") == page.SHOWN
    assert "And 3 more: p100, p101, p102." in html
    assert "p9 and 93 more." in " ".join(text_of(report).split())
    assert len(report.as_json()["changes"]) == len(many)


def test_the_page_is_accessible(gain: Report) -> None:
    html = page_of(gain)
    assert '<html lang="en">' in html and re.search(r"<img [^>]*alt=\"Heat map", html)
    assert html.count("<table>") == html.count("</table>") == 2
    assert html.count('scope="col"') == 7 + 6 and html.count('scope="row"') == len(GRID) + 1
    assert "prefers-color-scheme: dark" in html


def drawn(report: Report) -> tuple[Any, Image.Image]:
    """The heat map's figure, and its picture."""
    from matplotlib.figure import Figure

    kept: list[Any] = []
    save = Figure.savefig

    def keep(self: Any, *args: Any, **kwargs: Any) -> None:
        kept.append(self)
        save(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        picture = heatmap.draw(report.rows, report.best, report.confidence)
    return kept[0], Image.open(io.BytesIO(picture)).convert("RGB")


def colour_at(figure: Any, image: Image.Image, axes: Any, x: float, y: float) -> Any:
    """The picture's colour at a place of one of its axes."""
    scale = image.width / figure.canvas.get_width_height()[0]
    place = axes.transData.transform((x, y)) * scale
    return image.getpixel((int(place[0]), image.height - int(place[1])))


def cell_colours(report: Report, alpha: float) -> list[tuple[int, int, int]]:
    """Colours of the heat map's cells of one alpha, at the corner, where nothing is written."""
    figure, image = drawn(report)
    alphas = sorted({row.setting.alpha for row in report.rows}, reverse=True)
    y = alphas.index(alpha) - 0.4
    return [colour_at(figure, image, figure.axes[0], x + 0.4, y) for x in range(3)]


def test_the_heat_map_is_blue_where_better_and_red_where_worse() -> None:
    scores = simulate(np.random.default_rng(0), 0.3)
    scores[Setting(0.1, 1.0), "dev"] = np.zeros(100)
    red, _, blue = zip(*cell_colours(report_on(scores), 0.1), strict=True)
    assert blue[1] > red[1] + 30  # beta 0.5
    assert red[2] > blue[2] + 30  # beta 1


def test_what_may_be_chance_is_pale() -> None:
    scores = {key: np.zeros(20) for key in simulate(np.random.default_rng(0), 0.0, 20)}
    scores[BEST, "dev"][0] = 1.0  # one problem of 20: five points, and zero within the interval
    assert min(cell_colours(report_on(scores), 0.1)[1]) > 150
    scores[BEST, "dev"][:] = 1.0
    assert min(cell_colours(report_on(scores), 0.1)[1]) < 50


def test_equal_results_give_equal_pictures(gain: Report) -> None:
    first = heatmap.draw(gain.rows, gain.best, gain.confidence)
    assert first == heatmap.draw(gain.rows, gain.best, gain.confidence)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "fraction"])
def test_luck_is_not_sold_as_a_gain(kind: str) -> None:
    """All settings are as good as greedy. Picked and judged on the same problems, the best of
    nine would often look significant; judged on others it does so at most as often as it may.
    """
    rounds, by_luck, claimed = 150, 0, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "RESAMPLES", 400)  # for speed
        for seed in range(rounds):
            report = report_on(simulate(np.random.default_rng(seed), 0.0, 300, kind))
            dev = next(row.dev for row in report.rows if row.setting == report.best)
            assert dev is not None
            by_luck += dev.p < 0.05 and dev.difference > 0
            claimed += report.gain
    assert by_luck > 0.05 * rounds  # or this simulation would be no danger
    assert claimed <= 0.05 * rounds


def test_ties_go_to_the_setting_nearest_to_greedy() -> None:
    equal = {key: np.ones(20) for key in simulate(np.random.default_rng(0), 0.0, 20)}
    equal[None, "dev"] = np.zeros(20)
    rows = judge_grid(lambda setting: equal[setting, "dev"], GRID, 0.95, 0)
    assert pick(rows) == Setting(0.3, 0.25)


def test_ties_between_a_number_and_an_adaptive_beta() -> None:
    """An adaptive beta counts as the most that it reaches, and less than a number of that size."""
    equal = np.ones(20)
    for betas, most, expected in (
        ("0.5,1,adaptive", "1", 0.5),
        ("1,adaptive", "1", "adaptive"),
        ("1,adaptive", "2", 1.0),
    ):
        grid = make_grid({"alpha": "0.1", "beta": betas, "beta_max": most})
        rows = judge_grid(lambda setting: equal * (setting is not None), grid, 0.95, 0)
        assert pick(rows).beta == expected


@pytest.mark.parametrize("width", [40, 80])
def test_an_adaptive_beta_is_a_column_behind_the_numbers(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = make_grid({"alpha": "0.1,1", "beta": "0.25,0.5,adaptive", "beta_max": "2"})
    best = Setting(0.1, "adaptive", 2.0)
    monkeypatch.setitem(globals(), "GRID", grid)
    monkeypatch.setitem(globals(), "BEST", best)
    report = report_on(simulate(np.random.default_rng(0), 0.3))
    assert report.best == best
    assert report.headline.startswith("Use `alpha 0.1, beta adaptive up to 2`, which beats")
    text = text_of(report, width)
    assert re.search(r"(?m)^ *0.1 +adaptive +pick .*[+]\d", text)
    assert re.search(r"(?m)^ *1 +adaptive +greedy *$", text)
    assert "adaptive: up to 2" in " ".join(text.split()) and "…" not in text
    lines = [line for line in text.splitlines() if not re.match("vllm serve|Use ", line)]
    assert max(map(len, lines)) <= width
    assert "alpha 0.1, beta adaptive up to 2 (picked)" in page_of(report)
    blue = [colour[2] - colour[0] for colour in cell_colours(report, 0.1)]
    assert blue[2] > max(*blue[:2], 30)
    data = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert msgspec.convert(data["best"], Setting) == best
    assert data["rows"][0]["setting"] == {
        **dict.fromkeys(("beta_max", "expert_top_k", "preset")),
        **{"alpha": 0.1, "beta": 0.25, "weights": []},
    }


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("beside", [{"alpha": "0.1,1"}, {}], ids=["beside a grid", "alone"])
def test_presets_have_names_and_a_line_of_cells(
    width: int, beside: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = make_grid({**beside, "expert_top_k": "50"}, "cad,adacad,dexperts")
    best = grid[-3]
    monkeypatch.setitem(globals(), "GRID", grid)
    monkeypatch.setitem(globals(), "BEST", best)
    report = report_on(simulate(np.random.default_rng(0), 0.3))
    assert report.best == best and best.preset == "cad"
    assert report.headline.startswith("Use `cad (alpha 0, beta 0.5, top-k 50)`, which beats")
    text = text_of(report, width)
    assert re.search(r"(?m)^cad +0 +0.5 +pick .*[+]\d", text)
    assert re.search(r"(?m)^adacad +0 +adaptive .*\d", text)
    assert re.search(r"(?m)^dexperts +0 +weights .*\d", text)
    assert ("p (Holm)" in text) is (width == 80)
    flowing = " ".join(text.split())
    assert "adaptive: up to 1. weights: 1, -1. top-k: 50." in flowing and "…" not in text
    lines = [line for line in text.splitlines() if not re.match("vllm serve|Use ", line)]
    assert max(map(len, lines)) <= width
    html = page_of(report)
    assert "cad (alpha 0, beta 0.5, top-k 50) (picked)" in html
    assert "dexperts (alpha 0, weights 1, -1, top-k 50)</th>" in html
    figure, picture = drawn(report)
    axes = figure.axes[len(beside)]  # below the grid, if there is one
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cad", "adacad", "dexperts"]
    assert axes.get_xlabel() == "presets" and len(figure.axes) == 2 + len(beside)
    red, _, blue = colour_at(figure, picture, axes, 0.4, -0.4)
    assert blue > red + 30


def test_weights_have_one_column(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = make_grid({"alpha": "0.1,0.3"}, weights=(-0.5, 0.25))
    monkeypatch.setitem(globals(), "GRID", grid)
    monkeypatch.setitem(globals(), "BEST", grid[0])
    report = report_on(simulate(np.random.default_rng(0), 0.3))
    assert report.headline.startswith("Use `alpha 0.1, weights -0.5, 0.25`, which beats")
    figure, _ = drawn(report)
    assert figure.axes[0].get_xlabel() == "weights -0.5, 0.25"
    assert len(figure.axes[0].get_xticklabels()) == 1


def test_a_setting_that_is_worse_is_called_so() -> None:
    scores = simulate(np.random.default_rng(0), 0.0)
    for setting in GRID:
        scores[setting, "dev"] = scores[setting, "test"] = np.zeros(100)
    report = report_on(scores)
    assert not report.gain
    assert report.details[1] == "Not even on the 100 dev problems was a setting better than greedy."
    assert report.details[2].startswith(
        "Significantly worse than greedy on the 100 dev problems: alpha 0.05, beta 0.25; alpha 0.05"
    )
    assert report.details[2].count("beta") == 9
    assert re.search(r"9 settings, is significantly worse, -\d+\.0 points on 100", report.headline)


def test_a_gain_on_held_out_problems_alone_is_none() -> None:
    scores = simulate(np.random.default_rng(0), 0.0)
    for setting in GRID:
        scores[setting, "dev"] = np.zeros(100)
        scores[setting, "test"] = np.ones(100)
    report = report_on(scores)
    assert report.test.p < 0.05 and report.test.difference > 0
    assert not report.gain
    assert re.search(
        r" differs by [+]\d+.0 points on 100 held.*, but -\d+.0 on the 100 dev ones",
        report.headline,
    )


@pytest.mark.parametrize(("value", "said"), [(1.0, "nothing to gain"), (0.0, "Nothing is right")])
def test_problems_that_show_nothing(value: float, said: str) -> None:
    scores = {key: np.full(30, value) for key in simulate(np.random.default_rng(0), 0.0, 30)}
    report = report_on(scores)
    assert not report.gain
    assert any(said in note for note in report.notes)
    assert any("Only 30 problems are held out" in note for note in report.notes)


def test_figures_for_people() -> None:
    assert percent(0.54) == "54.0 %"
    assert [points(x) for x in (0.08, -0.081, 0.0, -0.0004, 1.0)] == [
        "+8.0", "-8.1", "0.0", "0.0", "+100.0",
    ]  # fmt: skip
    assert [size(x) for x in (0.08, -0.081, 0.0, 0.0004, 1.0)] == [
        "8.0", "8.1", "0.0", "0.0", "100.0",
    ]  # fmt: skip
    assert [p_value(p) for p in (1.0, 0.25, 0.0312, 0.00049, 0.00001)] == [
        "1.00", "0.25", "0.031", "0.0005", "<0.0001",
    ]  # fmt: skip
    assert p_text(0.00001) == "p < 0.0001" and p_text(0.5) == "p = 0.50"
