# SPDX-License-Identifier: Apache-2.0
"""The page of ``vllm-cold tune`` in a browser: themes, widths, the line to copy."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_tune_verdict import change, made
from vllm_cold.tools.tune.report import render

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


@pytest.fixture(scope="module", params=[(10, 1), (1, 0)], ids=["gain", "none"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = [change(1, 0.0, 1.0, "one " * 80), change(2, 1.0, 0.0, "right" * 60)]
    run = {"model": "/models/" + "long" * 30}
    found = made([(9, 3), (12, 1)], request.param, changes=changes, run=run, serve=LINE)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(found), encoding="utf-8")
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
    assert len(found) > 40
    assert [text for contrast, text in found if contrast < 4.5] == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(15, 19, 24)") is (scheme == "dark")
    if width == 1280:
        cut = "e => [...e.querySelectorAll('.scroll')].map(s => s.scrollWidth - s.clientWidth)"
        assert set(page.locator("main").evaluate(cut)) == {0}


def test_a_click_selects_the_line_as_it_is(open_page: Any, file: Path) -> None:
    """Not broken into lines, whatever the width, and with nothing before or behind it."""
    page = open_page(file, viewport={"width": 360, "height": 800}).page
    page.locator("pre.copy").click()
    assert page.evaluate("getSelection().toString()") == LINE
