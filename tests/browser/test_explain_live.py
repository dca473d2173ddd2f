# SPDX-License-Identifier: Apache-2.0
"""Several methods on the page of ``vllm-cold explain`` in a browser: side by side, copied, and live
as ``--serve`` shows them, before a made-up server.
"""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.test_explain_page import LUMINANCE
from tests.made_up_server import ADAPTER, MadeUp, serving
from tests.unit.test_explain_command import parse
from tests.unit.test_explain_methods import COLUMNS, compared
from vllm_cold.tools.explain import markdown, serve
from vllm_cold.tools.explain import page as pages

pytestmark = pytest.mark.browser

WIDE = "() => document.documentElement.scrollWidth"


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "side.html"
    path.write_text(pages.render(*compared(), columns=COLUMNS), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_side_by_side(side: Path, width: int, scheme: str, open_page: Any) -> None:
    size = {"width": width, "height": 800}
    page = open_page(side, viewport=size, color_scheme=scheme, reduced_motion="reduce").page
    boxes = [box.bounding_box() for box in page.locator(".answer").all()]
    assert len({round(box["y"]) for box in boxes}) == (1 if width == 1280 else 3)
    assert page.evaluate(WIDE) <= width
    page.locator(".tokens").nth(2).locator(".t").nth(5).focus()
    assert page.inner_text("#where") == "Token 6 of 40, cfg answer"
    assert page.inner_text("#size") == "all, as alpha is 0"
    assert page.inner_text("#rows .won .badge.cold") == "cfg"
    page.locator(".tokens").nth(1).locator(".t").nth(5).focus()
    assert page.inner_text("#verdict").startswith("cold, beta 2 takes")
    assert page.inner_text("#size") != "all, as alpha is 0"
    found = page.evaluate(LUMINANCE, "body *:not(script)")
    assert [one for one in found if one[0] < 4.5] == []


def test_copy_as_markdown(side: Path, open_page: Any) -> None:
    page = open_page(side, permissions=["clipboard-read", "clipboard-write"]).page
    page.get_by_role("button", name="Copy as Markdown").press("Enter")
    page.get_by_text("Copied.").wait_for()
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert copied == markdown.write(compared(), COLUMNS, 0)


@pytest.fixture
def live() -> Iterator[tuple[str, MadeUp]]:
    """The page's address, and the server that it asks."""
    with serving() as (url, made), socket.create_server(("127.0.0.1", 0)) as listening:
        app = serve.make_app(parse("--serve", "--url", url, "--adapter", ADAPTER))
        config = serve.uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        server = serve.uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/", made
        server.should_exit = True
        thread.join()


def test_live(live: tuple[str, MadeUp], chromium: Any) -> None:
    """By keyboard: tokens and their colours while the answers are decoded, then all of it; a
    mistake as a sentence, Stop, and nothing asked for elsewhere.
    """
    url, made = live
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda m: m.type in ("error", "warning") and complaints.append(m.text))
    page.goto(url)
    assert page.locator("input:visible, select:visible, textarea:visible").count() == 13
    unlabelled = "(all) => all.filter((one) => !one.labels.length).length"
    assert page.locator("input, select, textarea").evaluate_all(unlabelled) == 0
    page.get_by_label("Prompt", exact=True).fill("<b>ab")
    page.get_by_label("Tokens").fill("20")
    beta = page.get_by_label("beta")
    assert [one.is_disabled() for one in beta.all()] == [True, False, True]  # greedy, cold, none
    beta.nth(1).fill("-1")
    beta.nth(1).press("Enter")
    page.get_by_text("--beta=-1.0: must be a number >= 0").wait_for()

    made.delay, made.fails = 0.05, None
    beta.nth(1).fill("2")
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    page.locator("[aria-busy=true] .t:not(.l0)").first.wait_for()  # coloured before the end
    assert not page.locator("#error").is_visible()
    token = page.locator(".tokens").nth(1).locator(".t:not(.l0)").first
    token.focus()
    assert page.inner_text("#where").endswith("cold, beta 2 answer")
    assert page.locator("#rows tr:not(.group)").count() > 3
    page.get_by_text("Done.").wait_for()
    assert page.locator("[aria-busy]").count() == 0
    assert page.locator(".t").count() == 40
    assert page.evaluate("() => document.activeElement.className").startswith("t ")
    assert page.locator(".prompt").first.inner_text() == "<b>ab"
    assert page.locator(".chart .bar").count() == 40
    assert page.evaluate(WIDE) <= 390
    found = page.evaluate(LUMINANCE, "body *:not(script):not(option):not(:disabled)")
    assert [one for one in found if one[0] < 4.5] == []

    made.hold.clear()
    page.get_by_role("button", name="Decode").press("Enter")
    page.get_by_text("Decoding …").wait_for()
    page.get_by_role("button", name="Stop").press("Enter")
    page.get_by_text("Stopped.").wait_for()
    assert page.get_by_role("button", name="Stop").is_disabled()
    made.hold.set()
    assert {one for one in asked if not one.startswith("data:")} == {url, f"{url}answer"}
    assert complaints == []
    page.close()
