# SPDX-License-Identifier: Apache-2.0
"""The page of ``vllm-cold explain`` in a browser: keyboard, pointer, widths, texts."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.browser.reports import ENDS, HOSTILE, make_report
from vllm_cold.tools.explain import page as pages
from vllm_cold.tools.explain.record import Report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report() -> Report:
    """Two answers side by side, with two amateurs."""
    return make_report(several=True)


@pytest.fixture(scope="module")
def file(report: Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page's address."""
    path = tmp_path_factory.mktemp("page") / "explain.html"
    path.write_text(pages.render(report), encoding="utf-8")
    return path.as_uri()


# All rows at once: each look at the page is a message to the browser and back.
ROWS = """() => [...document.querySelectorAll("#rows tr:not(.group)")].map((row) => ({
    token: row.querySelector("th").innerText,
    cells: [...row.querySelectorAll("td")].map((cell) => cell.innerText.trim()),
    cut: row.classList.contains("cut"),
}))"""


def check_panel(page: Any, report: Report, box: int, index: int) -> None:
    """The panel shows this step, with every number of every candidate."""
    answer = report.explanations[0].answers[box]
    step = answer.steps[index]
    where = f"Token {index + 1} of {len(answer.steps)}, {answer.title} answer"
    assert page.inner_text("#where") == where
    bits, weights = (
        ", ".join("ended" if one is None else f"{one + 0.0:.3f}" for one in values)
        for values in (step.divergences, step.weights)
    )
    numbers = page.locator("#numbers dd").all_inner_texts()
    told = [f"{bits} bits", str(step.valid_size), *[weights][: len(weights)]]
    assert numbers == [*told, *["amateur 1"][: len(step.ends)]]
    names = {c.token: f"“{c.text}”" for c in step.candidates}
    verdict = page.inner_text("#verdict")
    assert names[step.greedy] in verdict and names[step.token] in verdict
    assert ("also" in verdict) == (not answer.greedy and not step.differs)
    rows = page.evaluate(ROWS)
    ordered = sorted(step.candidates, key=lambda c: not c.valid)
    for row, c in zip(rows, ordered, strict=True):
        assert row["token"].replace("\n", "") == "".join([c.text, *c.taken_by])
        *chances, score = row["cells"]
        for shown, share in zip(chances, (c.expert, *c.amateurs), strict=True):
            if share is None:
                assert shown == "ended"
                continue
            value = 100 * share
            if value < 0.001:
                assert shown == "< 0.001 %"
            else:  # one decimal, or two digits
                most = 0.051 * min(1.0, value)
                assert float(shown.removesuffix(" %")) == pytest.approx(value, abs=most)
        expected = "" if c.score is None else pytest.approx(c.score, abs=0.0051)
        assert (score and float(score.replace("−", "-"))) == expected
        assert row["cut"] == (not c.valid)


def focused(page: Any) -> tuple[int, int]:
    """Box and index of the token that has the focus; (-1, -1) if none has."""
    found = page.evaluate(
        """() => {
            const boxes = [...document.querySelectorAll(".tokens")];
            const box = boxes.findIndex((b) => b.contains(document.activeElement));
            const at = document.activeElement;
            return box < 0 ? [-1, -1] : [box, [...boxes[box].children].indexOf(at)];
        }"""
    )
    return found[0], found[1]


def tab_to(page: Any, box: int) -> None:
    for _ in range(30):
        page.keyboard.press("Tab")
        if focused(page)[0] == box:
            return
    pytest.fail(f"Tab does not reach answer {box}")


def test_by_keyboard(report: Report, file: str, open_page: Any) -> None:
    page = open_page(file)
    steps = report.explanations[0].answers[0].steps
    # It begins with the token where expert and amateur part most, and the answers, too.
    apart = [max(d or 0 for d in step.divergences) + (step.token != step.greedy) for step in steps]
    first = apart.index(max(apart))
    assert page.locator("#where").inner_text().startswith(f"Token {first + 1} of ")
    tab_to(page, 0)
    last = len(steps) - 1
    for index in range(last + 1):
        assert focused(page) == (0, index)
        if index in (0, ENDS, ENDS + 1):
            check_panel(page, report, 0, index)
        page.keyboard.press("ArrowRight")
    assert focused(page) == (0, last)  # stays at the end
    differing = [i for i, step in enumerate(steps) if step.differs]
    page.keyboard.press("p")
    assert focused(page)[1] == max(i for i in differing if i < last)
    page.keyboard.press("Home")
    for index in [i for i in differing if i > 0][:3]:
        page.keyboard.press("n")
        assert focused(page) == (0, index)
    at = focused(page)
    tab_to(page, 1)  # one stop of Tab for each answer
    assert focused(page) == (1, 0)
    check_panel(page, report, 1, 0)
    page.locator(".tokens").first.locator(".t").nth(at[1]).focus()
    page.keyboard.press("Escape")
    assert not page.locator("#details").is_visible()
    assert focused(page) == at  # the place is not lost
    page.keyboard.press("Enter")
    check_panel(page, report, *at)
    assert page.locator("[aria-selected=true]").count() == 1
    # Nothing of the tokens was taken for markup.
    assert page.evaluate("() => window.hacked") is None and page.locator("img").count() == 0
    text = page.inner_text("body")
    assert HOSTILE in text and not re.search("[\\x00-\\x08\\x1b\\u202e]", text)


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_limits(width: int, scheme: str, open_page: Any, tmp_path: Path) -> None:
    """A token and its bars are one; the panel says what it cost, and what was left."""
    report, path = make_report(bits=[8.0, 4.0]), tmp_path / "limits.html"
    path.write_text(pages.render(report), encoding="utf-8")
    size = {"width": width, "height": 844}
    page = open_page(path.as_uri(), viewport=size, color_scheme=scheme)
    wide = "() => document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= width
    answer = report.explanations[0].answers[0]
    assert page.locator(".bars").count() == 2  # the greedy answer has none
    for index in (0, 6, 20):
        page.locator(".bars").first.locator("i").nth(index).click()
        assert focused(page) == (0, index)
        page.mouse.move(1, 1)  # what it points at would be shown
        assert page.locator(".bars i.current").count() == 2
        step = answer.steps[index]
        names = page.locator("#numbers dt").all_inner_texts()
        said = dict(zip(names, page.locator("#numbers dd").all_inner_texts(), strict=True))
        assert "Weights" not in said
        cost = ", ".join(f"{bits + 0.0:.2f}".replace("-", "−") for bits in step.cost)
        assert said["Cost"] == f"{cost} bits"
        assert said["Left before"].split("\n") == [
            f"{left:.2f} of {limit.bits:g} bits"
            for left, limit in zip(step.left, answer.limits, strict=True)
        ]
        assert said["Limit changed it"].startswith("yes" if step.is_limited else "no")
        assert page.evaluate(wide) <= width
        page.keyboard.press("Escape")
    box = page.locator(".bars").first.bounding_box()
    assert box["width"] > 200 and box["height"] > 30


def test_by_pointer(report: Report, file: str, open_page: Any) -> None:
    page = open_page(file)
    tokens = page.locator(".tokens").nth(1).locator(".t")
    tokens.nth(5).click()
    assert focused(page) == (1, 5)
    tokens.nth(8).hover()
    check_panel(page, report, 1, 8)
    page.hover("h1")  # back to the one that was chosen
    check_panel(page, report, 1, 5)
    page.click("#close")
    assert not page.locator("#details").is_visible()


@pytest.mark.parametrize(("width", "scheme"), [(320, "dark"), (1280, "light")])
def test_on_screens(width: int, scheme: str, report: Report, file: str, open_page: Any) -> None:
    """Nothing to scroll sideways, with the panel closed and open; the answers stand beside each
    other where there is room.
    """
    page = open_page(file, viewport={"width": width, "height": 740}, color_scheme=scheme)
    wide = "() => document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= width
    boxes = [box.bounding_box() for box in page.locator(".side .card").all()]
    assert (len({round(box["y"]) for box in boxes}) == 2) == (width == 320)
    token = page.locator(".tokens").first.locator(".t").nth(9)
    token.focus()
    check_panel(page, report, 0, 9)
    assert page.evaluate(wide) <= width
    box, panel = token.bounding_box(), page.locator("#panel").bounding_box()
    beside = box["x"] + box["width"] <= panel["x"]
    assert beside or box["y"] + box["height"] <= panel["y"]  # the panel does not cover the token
    behind = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", behind))) > 384) == (scheme == "light")


def test_without_script(report: Report, file: str, open_page: Any) -> None:
    """The answers can be read; the page says what is missing."""
    assert not open_page(file).get_by_text("Without JavaScript").is_visible()
    page = open_page(file, java_script_enabled=False)
    assert page.locator(".t").count() == sum(len(a.steps) for a in report.explanations[0].answers)
    assert page.get_by_text("Without JavaScript").is_visible()
