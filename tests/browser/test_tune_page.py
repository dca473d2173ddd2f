# SPDX-License-Identifier: Apache-2.0
"""The page of ``vllm-cold tune`` in a browser: themes, widths, the picture, the line to copy."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit import test_tune_report
from tests.unit.test_tune_report import page_of, report_on, simulate
from vllm_cold.tools.tune.changes import Change
from vllm_cold.tools.tune.grid import make_grid

pytestmark = pytest.mark.browser

LINE = shlex.join(
    ["vllm", "serve", "/models/it's <b>here</b>", "--enable-lora", "--lora-modules"]
    + ["sql=/data/a long name/sql", "--sampler", "cold", "--cold-alpha", "0.1", "--cold-beta", "2"]
)

# The contrast of each element that holds text of its own with what is behind it (WCAG 2).
CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
    const x = c[i] / 255;
    return sum + weight * (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  }, 0);
  const found = [];
  for (const element of document.querySelectorAll("main *")) {
    if (![...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    let behind = element;
    while (behind && parse(getComputedStyle(behind).backgroundColor)[3] === 0)
      behind = behind.parentElement;
    const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor]
      .map((text) => luminance(parse(text)));
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML]);
  }
  return found;
}"""


CASES = {
    "gain": (0.3, test_tune_report.GRID),
    "flat": (0.0, test_tune_report.GRID),
    "presets": (0.3, make_grid({"alpha": "0.1", "beta": "0.5,adaptive"}, "cad,adacad,dexperts")),
}


@pytest.fixture(scope="module", params=CASES)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    gain, grid = CASES[request.param]
    changes = [
        Change("p1", "one " * 80, ("right",), "wrong", "right" * 60, 0.0, 1.0),
        Change("p2", "two", ("right",), "right", "wrong", 1.0, 0.0),
    ]
    run: dict[str, Any] = {
        "contrast": "itself without system",
        "model": "/models/" + "long" * 30,
        "engine": {"max_lora_rank": 8},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_tune_report, "GRID", grid)
        scores = simulate(np.random.default_rng(0), gain)
        report = report_on(scores, changes, run, ["A note."])
    report = dataclasses.replace(report, serve=LINE, serve_best=LINE)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page_of(report), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_can_be_read(open_page: Any, file: Path, scheme: str, width: int) -> None:
    """In both themes and on narrow screens; ``open_page`` checks that nothing is asked for."""
    page = open_page(file, color_scheme=scheme, viewport={"width": width, "height": 800}).page
    for summary in page.locator("summary").all():
        summary.press("Enter")
    assert page.locator("details[open]").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") == width
    found = page.evaluate(CONTRAST)
    assert len(found) > 50
    assert [text for contrast, text in found if contrast < 4.5] == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(15, 19, 24)") is (scheme == "dark")


def test_the_picture_is_there_and_sharp(open_page: Any, file: Path) -> None:
    image = open_page(file).page.locator("img")
    natural, shown = image.evaluate("image => [image.naturalWidth, image.clientWidth]")
    assert natural > 600
    assert shown == pytest.approx(natural * 96 / 160, abs=1)


def test_tables_fit_a_wide_screen(open_page: Any, file: Path) -> None:
    page = open_page(file, viewport={"width": 1280, "height": 800}).page
    cut = "e => [...e.querySelectorAll('.scroll')].map(s => s.scrollWidth - s.clientWidth)"
    assert set(page.locator("main").evaluate(cut)) == {0}


def test_a_click_selects_the_line_as_it_is(open_page: Any, file: Path) -> None:
    """Not broken into lines, whatever the width, and with nothing before or behind it."""
    page = open_page(file, viewport={"width": 360, "height": 800}).page
    page.locator("pre.copy").click()
    assert page.evaluate("getSelection().toString()") == LINE
