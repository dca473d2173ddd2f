# SPDX-License-Identifier: Apache-2.0
"""The page of ``vllm-cold explain`` in a browser: keyboard, pointer, themes, widths, texts."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from tests.browser.reports import ADAPTIVE, CHAT, WRONG, make_report, several, without_system
from vllm_cold.method.settings import ColdSettings
from vllm_cold.tools.explain import page as pages
from vllm_cold.tools.explain import visible
from vllm_cold.tools.explain.trace import Candidate, Report, Step

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report() -> Report:
    return make_report()


@pytest.fixture(scope="module")
def file(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "explain.html"
    path.write_text(pages.render(report), encoding="utf-8")
    return path


def steps(report: Report, box: int) -> tuple[Step, ...]:
    """The steps of the page's box of tokens: CoLD and greedy of each prompt in turn."""
    explanation = report.explanations[box // 2]
    return (explanation.cold, explanation.greedy)[box % 2].steps


def percent(logprob: float | None) -> str:
    assert logprob is not None
    value = 100 * math.exp(logprob)
    if value >= 1:
        return f"{value:.1f} %"
    return f"{float(f'{value:.2g}'):g} %" if value >= 0.001 else "< 0.001 %"


def name(step: Step, token: int) -> str:
    found = step.find(token)
    assert found is not None
    return visible.alone(found.text, token)


# All rows at once: each look at the page is a message to the browser and back.
ROWS = """() => [...document.querySelectorAll("#rows tr:not(.group)")].map((row) => ({
    token: row.querySelector("th").innerText,
    cells: [...row.querySelectorAll("td")].map((cell) => cell.innerText.trim()),
    badges: [...row.querySelectorAll(".badge")].map((badge) => badge.innerText),
    cut: row.classList.contains("cut"),
}))"""


def check_panel(page: Any, report: Report, box: int, index: int) -> None:
    """The panel shows this step, with every number of every candidate."""
    step = steps(report, box)[index]
    kind = ("CoLD", "Greedy")[box % 2]
    total = len(steps(report, box))
    assert page.inner_text("#where") == f"Token {index + 1} of {total}, {kind} answer"
    assert page.inner_text("#divergence") == f"{step.divergence:.3f} bits"
    size = page.inner_text("#size")
    assert size.startswith(("" if step.valid_complete else "at least ") + f"{step.valid_size},")
    verdict = page.inner_text("#verdict")
    assert f"“{name(step, step.winner)}”" in verdict
    assert ("greedy would take" in verdict) == step.differs
    for row, candidate in zip(page.evaluate(ROWS), step.candidates, strict=True):
        check_row(row, step, candidate)
    assert page.locator("#mismatch").is_visible() == (box == 0 and index == WRONG)


def check_row(row: dict[str, Any], step: Step, candidate: Candidate) -> None:
    assert row["token"].startswith(visible.alone(candidate.text, candidate.token))
    expert, *amateurs, score = row["cells"]
    assert expert == percent(candidate.expert)
    assert amateurs == [percent(value) for value in candidate.amateurs]
    assert float(score.replace("−", "-")) == pytest.approx(candidate.score, abs=0.0051)
    assert ("CoLD" in row["badges"]) == (candidate.token == step.winner)
    assert ("greedy" in row["badges"]) == (candidate.token == step.greedy)
    assert row["cut"] == (not candidate.valid)


@pytest.mark.parametrize("cap", [None, 3])
def test_the_least_that_is_valid(cap: int | None, tmp_path: Path, open_page: Any) -> None:
    """Without a cap the limit that alpha sets, with one the least that is left."""
    report = make_report(1, settings=ColdSettings(alpha=0.1, beta=1.0, expert_top_k=cap))
    path = tmp_path / "page.html"
    path.write_text(pages.render(report), encoding="utf-8")
    page = open_page(path).page
    lower = 0
    for index, step in enumerate(steps(report, 0)):
        page.locator(".tokens").first.locator(".t").nth(index).focus()
        best = max(c.expert for c in step.candidates if c.expert is not None)
        least = min(c.expert for c in step.candidates if c.valid and c.expert is not None)
        limit = best + math.log(0.1)
        lower += percent(limit) != percent(least)
        shown = percent(limit if cap is None else least)
        assert page.inner_text("#size").endswith(f"{step.valid_size}, from {shown} up")
    assert lower > 20  # the two are not the same


def test_an_adaptive_beta(tmp_path: Path, open_page: Any) -> None:
    report = make_report(1, settings=ADAPTIVE)
    path = tmp_path / "page.html"
    path.write_text(pages.render(report), encoding="utf-8")
    page = open_page(path).page
    unknown = 0
    for index, step in enumerate(steps(report, 0)):
        page.locator(".tokens").first.locator(".t").nth(index).focus()
        verdict = page.inner_text("#verdict")
        if step.beta is None:
            unknown += 1
            assert page.inner_text("#beta") == "not known"
            assert verdict.endswith("what CoLD takes is not known.")
            assert "CoLD" not in page.locator("#rows .badge").all_inner_texts()
            cells = page.locator("#rows tr:not(.group) td:last-child").all_inner_texts()
            assert set(cells) == {"?"}
        else:
            assert page.inner_text("#beta") == f"{step.beta:.3f}"
            assert ("greedy would take" in verdict) == step.differs
    assert 0 < unknown < 40
    chart = page.locator("svg.chart").first
    assert "Beta" in chart.locator("text").all_text_contents()
    assert chart.locator("rect:not(.cursor)").count() == 3 * 40 - unknown
    assert chart.locator("path.mark").count() == sum(step.differs for step in steps(report, 0))
    # The next token that differs is never one where that is not known.
    page.locator(".tokens").first.locator(".t").first.focus()
    page.keyboard.press("n")
    following = [i for i, step in enumerate(steps(report, 0)) if i > 0 and step.differs]
    assert focused(page) == (0, following[0])
    top, bottom = chart.evaluate("svg => [svg.clientHeight, svg.getBBox().height]")
    assert bottom <= top


def written(report: Report, folder: Path) -> Path:
    path = folder / "page.html"
    path.write_text(pages.render(report), encoding="utf-8")
    return path


@pytest.mark.parametrize("num", [2, 3, 32])
def test_several_amateurs(num: int, tmp_path: Path, open_page: Any) -> None:
    """A column for each; where they are many, the table can be scrolled and the page need not."""
    report = several(num)
    page = open_page(written(report, tmp_path)).page
    for index in (0, 5, WRONG):
        page.locator(".tokens").first.locator(".t").nth(index).focus()
        step = steps(report, 0)[index]
        for row, candidate in zip(page.evaluate(ROWS), step.candidates, strict=True):
            check_row(row, step, candidate)
        bits = ", ".join(f"{value:.3f}" for value in step.divergences)
        assert page.inner_text("#divergence") == f"{bits} bits"
    names = page.locator("#names th")
    columns = [f"Amateur {i + 1}" for i in range(num)]
    assert names.all_inner_texts() == ["Token", "Expert", *columns, "Score"]
    assert names.nth(2).get_attribute("title") == report.explanations[0].amateurs[0].label
    panel = page.locator("#panel")
    assert panel.evaluate("(panel) => panel.scrollWidth - panel.clientWidth") <= 0
    assert page.locator(".amateur").count() == num


@pytest.mark.parametrize("several_weights", [False, True])
def test_adaptive_weights(several_weights: bool, tmp_path: Path, open_page: Any) -> None:
    report = several(3 if several_weights else 1, ADAPTIVE)
    page = open_page(written(report, tmp_path)).page
    seen = set()
    for index, step in enumerate(steps(report, 0)):
        page.locator(".tokens").first.locator(".t").nth(index).focus()
        assert page.inner_text("#strength") == ("Weights" if several_weights else "Beta")
        values = step.weights if several_weights else (step.beta,)
        texts = ["not known" if v is None else f"{v:.3f}".replace("-", "−") for v in values]
        found = page.inner_text("#beta").replace("−0.000", "0.000")
        assert found == ", ".join(texts).replace("−0.000", "0.000")
        seen.add(None in values)
    assert seen == {False, True}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_what_an_amateur_does_not_read(
    scheme: str, width: int, tmp_path: Path, open_page: Any
) -> None:
    report = without_system()
    size = {"width": width, "height": 740}
    page = open_page(
        written(report, tmp_path), viewport=size, color_scheme=scheme, reduced_motion="reduce"
    ).page
    gone = page.locator(".prompt del")
    assert gone.all_inner_texts() == [visible.in_text(CHAT[0][1], 0)]
    assert "line-through" in gone.evaluate("(node) => getComputedStyle(node).textDecorationLine")
    assert page.evaluate("() => window.hacked") is None
    page.locator(".tokens").first.locator(".t").nth(WRONG).focus()
    assert page.inner_text("#size") == "all, as alpha is 0"
    assert [x for x in page.evaluate(LUMINANCE, "body *:not(script)") if x[0] < 4.5] == []
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    titles = page.locator("svg.chart").first.locator("text").all_text_contents()
    assert "Disagreement, bits" in titles and "Valid tokens" not in titles


def focused(page: Any) -> tuple[int, int]:
    """Box and index of the token that has the focus; (-1, -1) if none has."""
    found = page.evaluate(
        """() => {
            const boxes = [...document.querySelectorAll(".tokens")];
            const box = boxes.findIndex((b) => b.contains(document.activeElement));
            if (box < 0) return [-1, -1];
            return [box, [...boxes[box].children].indexOf(document.activeElement)];
        }"""
    )
    return found[0], found[1]


def tab_to(page: Any, box: int) -> None:
    for _ in range(30):
        page.keyboard.press("Tab")
        if focused(page)[0] == box:
            return
    pytest.fail(f"Tab does not reach answer {box}")


def test_by_keyboard(report: Report, file: Path, open_page: Any) -> None:
    page = open_page(file).page
    assert not page.locator("#details").is_visible()
    tab_to(page, 0)
    assert focused(page) == (0, 0)
    last = len(steps(report, 0)) - 1
    for index in range(last + 1):
        assert focused(page) == (0, index)
        check_panel(page, report, 0, index)
        page.keyboard.press("ArrowRight")
    assert focused(page) == (0, last)  # stays at the end
    page.keyboard.press("Home")
    assert focused(page) == (0, 0)
    page.keyboard.press("ArrowLeft")
    assert focused(page) == (0, 0)
    page.keyboard.press("End")
    assert focused(page) == (0, last)
    check_panel(page, report, 0, last)
    differing = [i for i, step in enumerate(steps(report, 0)) if step.differs]
    assert len(differing) > 3
    page.keyboard.press("p")
    assert focused(page)[1] == max(i for i in differing if i < last)
    page.keyboard.press("Home")
    for index in [i for i in differing if i > 0][:3]:
        page.keyboard.press("n")
        assert focused(page) == (0, index)
    # One stop of Tab for each answer, and it is where the reader left.
    at = focused(page)
    tab_to(page, 1)
    assert focused(page) == (1, 0)
    check_panel(page, report, 1, 0)
    for _ in range(9):
        page.keyboard.press("Shift+Tab")
        if focused(page)[0] == 0:
            break
    assert focused(page) == at
    page.keyboard.press("Escape")
    assert not page.locator("#details").is_visible()
    assert focused(page) == at  # the place is not lost
    page.keyboard.press("Enter")
    check_panel(page, report, *at)


def test_lines_up_and_down(file: Path, open_page: Any) -> None:
    """From each token to the nearest one of the line above or below, and not beyond the ends."""
    page = open_page(file).page
    tab_to(page, 0)
    places = page.evaluate(
        """() => [...document.querySelector(".tokens").children].map((token) => {
            const r = token.getClientRects()[0];
            return [r.x + r.width / 2, r.y + r.height / 2];
        })"""
    )
    lines: list[list[int]] = []  # tokens are taller or lower by a few pixels, lines 34 apart
    for index, (_, y) in enumerate(places):
        if not lines or abs(places[lines[-1][0]][1] - y) > 15:
            lines.append([])
        lines[-1].append(index)
    assert len(lines) > 4
    assert max(map(len, lines)) > 4
    box = page.locator(".tokens").first.locator(".t")
    for number, line in enumerate(lines):
        for key, other in (("ArrowUp", number - 1), ("ArrowDown", number + 1)):
            for index in line:
                box.nth(index).focus()
                page.keyboard.press(key)
                reached = focused(page)[1]
                if other not in range(len(lines)):
                    assert reached == index
                    continue
                away = {i: abs(places[i][0] - places[index][0]) for i in lines[other]}
                assert away[reached] == min(away.values())


def test_by_pointer(report: Report, file: Path, open_page: Any) -> None:
    page = open_page(file).page
    tokens = page.locator(".tokens").nth(1).locator(".t")
    for index in (3, 0, 17):
        tokens.nth(index).hover()
        check_panel(page, report, 1, index)
    page.hover("h1")
    assert not page.locator("#details").is_visible()
    tokens.nth(5).click()
    assert focused(page) == (1, 5)
    tokens.nth(8).hover()
    check_panel(page, report, 1, 8)
    page.hover("h1")  # back to the one that was chosen
    check_panel(page, report, 1, 5)
    page.click("#close")
    assert not page.locator("#details").is_visible()
    chart = page.locator(".chart").nth(1)
    box = chart.bounding_box()
    assert box is not None
    length = len(steps(report, 1))
    chart.hover(position={"x": 34 + (box["width"] - 38) * 12.5 / length, "y": 60})
    check_panel(page, report, 1, 12)


def test_what_is_read_aloud(report: Report, file: Path, open_page: Any) -> None:
    page = open_page(file).page
    assert page.locator("#verdict").get_attribute("aria-live") == "polite"
    tab_to(page, 0)
    page.keyboard.press("ArrowRight")
    selected = page.locator("[aria-selected=true]")
    assert selected.count() == 1
    assert selected.get_attribute("role") == "option"
    assert page.locator(".tokens [tabindex='0']").count() == 4  # one in each answer
    for index in range(4):
        label = page.locator(".chart").nth(index).get_attribute("aria-label")
        most = max(range(40), key=lambda i: steps(report, index)[i].divergence)  # noqa: B023
        assert f"at token {most + 1};" in label


def test_the_chart_has_every_step(report: Report, file: Path, open_page: Any) -> None:
    page = open_page(file).page
    for index in range(4):
        chart = page.locator(".chart").nth(index)
        chart.locator(".bar").nth(39).wait_for(state="attached")  # drawn when it has a size
        for bars, values in (
            (".bar", [s.divergence for s in steps(report, index)]),
            (".bar-2", [float(s.valid_size) for s in steps(report, index)]),
        ):
            script = "(bars) => bars.map((b) => Number(b.getAttribute('height')))"
            heights = chart.locator(bars).evaluate_all(script)
            assert len(heights) == len(values)
            tall = [(h, v) for h, v in zip(heights, values, strict=True) if h > 1]
            assert len(tall) > 10
            for height, value in tall:
                assert height / tall[0][0] == pytest.approx(value / tall[0][1], rel=1e-4)
        marks = sum(step.differs for step in steps(report, index))
        assert chart.locator(".mark").count() == marks


LUMINANCE = """(root) => {
    const parse = (text) => {
        const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
        return [r, g, b, a];
    };
    const over = (top, below) =>
        top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3]));
    const background = (node) => {
        const layers = [];
        for (let n = node; n; n = n.parentElement) {
            layers.push(parse(getComputedStyle(n).backgroundColor));
        }
        return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
    };
    const light = (rgb) => {
        const [r, g, b] = rgb
            .map((c) => c / 255)
            .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const found = [];
    for (const node of document.querySelectorAll(root)) {
        const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        if (!own || !node.getClientRects().length) continue;
        const behind = background(node);
        const front = over(parse(getComputedStyle(node).color), behind);
        const [a, b] = [light(front), light(behind)].sort((x, y) => y - x);
        found.push([(a + 0.05) / (b + 0.05), node.tagName + "." + node.className, behind.join()]);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme: str, report: Report, file: Path, open_page: Any) -> None:
    """All text, at least 4.5 to 1 (WCAG AA), with the panel open on a step that has it all."""
    page = open_page(file, color_scheme=scheme, reduced_motion="reduce").page
    page.locator(".tokens").first.locator(".t").nth(WRONG).focus()
    assert page.locator("#mismatch").is_visible()
    found = page.evaluate(LUMINANCE, "body *:not(script)")
    assert len(found) > 100
    assert [x for x in found if x[0] < 4.5] == []
    behind = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", behind))) > 384
    assert light == (scheme == "light")
    levels = {x[2] for x in found if x[1].startswith("SPAN.t ")}
    used = {step.level for box in range(4) for step in steps(report, box)}
    assert used == set(range(6))
    assert len(levels) == 6  # six classes, six colours


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_can_be_switched(scheme: str, file: Path, open_page: Any) -> None:
    page = open_page(file, color_scheme=scheme).page
    colour = "() => getComputedStyle(document.body).backgroundColor"
    first = page.evaluate(colour)
    other = open_page(file, color_scheme="dark" if scheme == "light" else "light").page
    page.focus("#theme")
    page.keyboard.press("Enter")
    assert page.evaluate(colour) == other.evaluate(colour) != first
    page.keyboard.press("Enter")
    assert page.evaluate(colour) == first


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_widths(width: int, report: Report, file: Path, open_page: Any) -> None:
    """Nothing to scroll sideways, with the panel closed and open."""
    size = {"width": width, "height": 740}
    page = open_page(file, viewport=size, reduced_motion="reduce").page
    wide = "() => document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= width
    token = page.locator(".tokens").first.locator(".t").nth(WRONG)
    token.focus()
    check_panel(page, report, 0, WRONG)
    assert page.evaluate(wide) <= width
    inner = "(panel) => panel.scrollWidth - panel.clientWidth"
    assert page.locator("#panel").evaluate(inner) <= 0
    box, panel = token.bounding_box(), page.locator("#panel").bounding_box()
    assert box is not None
    assert panel is not None
    beside = box["x"] + box["width"] <= panel["x"]
    assert beside or box["y"] + box["height"] <= panel["y"]  # the panel does not cover the token


def test_the_chart_follows_the_width(file: Path, open_page: Any) -> None:
    page = open_page(file).page
    chart = page.locator(".chart").first
    for width in (1280, 500, 360):
        page.set_viewport_size({"width": width, "height": 740})
        page.wait_for_function("(width) => innerWidth === width", arg=width)
        box = chart.bounding_box()
        assert box is not None
        drawn = f"0 0 {round(box['width'])} 158"
        page.wait_for_function(
            "(drawn) => document.querySelector('.chart').getAttribute('viewBox') === drawn",
            arg=drawn,
            timeout=10_000,
        )


def test_hostile_text_is_inert(file: Path, open_page: Any) -> None:
    page = open_page(file).page
    tab_to(page, 0)
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("() => window.hacked") is None
    assert page.locator("img").count() == 0
    text = page.inner_text("body")
    assert "</script><img src=x onerror=window.hacked=1>" in text
    assert not re.search("[\\x00-\\x08\\x1b\\u202e]", text)


def test_reduced_motion(file: Path, open_page: Any) -> None:
    script = "() => getComputedStyle(document.querySelector('.t')).transitionDuration"
    moving = open_page(file, reduced_motion="no-preference").page
    assert moving.evaluate(script) != "0s"
    still = open_page(file, reduced_motion="reduce").page
    assert still.evaluate(script) == "0s"


def test_without_script(report: Report, file: Path, open_page: Any) -> None:
    """The answers can be read; the page says what is missing."""
    assert not open_page(file).page.get_by_text("Without JavaScript").is_visible()
    page = open_page(file, java_script_enabled=False).page
    assert page.locator(".t").count() == sum(len(steps(report, box)) for box in range(4))
    assert page.get_by_text("Without JavaScript").is_visible()


def test_a_network_request_is_noticed(tmp_path: Path, open_page: Any) -> None:
    """The guard of these tests sees what a page asks for."""
    page = tmp_path / "bad.html"
    page.write_text('<link rel="icon" href="data:,"><img src="http://192.0.2.1/x.png">')
    opened = open_page(page)
    assert opened.requests == ["http://192.0.2.1/x.png"]
    assert opened.complaints
    opened.requests.clear()
    opened.complaints.clear()
