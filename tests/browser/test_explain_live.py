# SPDX-License-Identifier: Apache-2.0
"""The page of ``vllm-cold explain --serve`` in a browser, before a made-up server."""

import base64
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.made_up_server import ADAPTER, MadeUp, serving
from tests.unit.test_explain_serve import made_app
from tests.unit.test_pictures import file, pixels
from vllm_cold.tools.explain import serve

pytestmark = pytest.mark.browser


@pytest.fixture
def live() -> Iterator[tuple[str, MadeUp]]:
    """The page's address, and the server that it asks."""
    with serving() as (url, made), socket.create_server(("127.0.0.1", 0)) as listening:
        app = made_app(url, "--adapter", ADAPTER)
        config = serve.uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        server = serve.uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/", made
        server.should_exit = True
        thread.join()


def test_live(live: tuple[str, MadeUp], open_page: Any) -> None:
    """By keyboard: text while the answers are decoded, then all of it; a mistake as a sentence,
    Stop.
    """
    url, made = live
    page = open_page(url, f"{url}answer", viewport={"width": 390, "height": 800})
    unlabelled = "(all) => all.filter((one) => !one.labels.length).length"
    assert page.locator("input, select, textarea").evaluate_all(unlabelled) == 0
    page.get_by_label("Prompt", exact=True).fill("<b>ab")
    page.get_by_label("Tokens").fill("20")
    page.get_by_label("Preset").select_option("cold")
    beta = page.get_by_label("beta", exact=True)
    beta.fill("-1")
    beta.press("Enter")
    page.get_by_text("--beta=-1.0: must be a number >= 0").wait_for()

    made.delay = 0.05
    beta.fill("2")
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    page.locator("[aria-busy=true] span").first.wait_for()  # before the end
    assert not page.locator("#error").is_visible()
    page.get_by_text("Done.").wait_for()
    assert page.locator("[aria-busy]").count() == 0
    assert page.locator(".t").count() == 40
    page.locator(".tokens").nth(0).locator(".t").first.focus()
    assert page.inner_text("#where") == "Token 1 of 20, cold answer"
    assert page.locator("#rows tr:not(.group)").count() > 3
    assert page.locator(".prompt").first.inner_text() == "<b>ab"
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390

    made.hold.clear()
    page.get_by_role("button", name="Decode").press("Enter")
    page.get_by_text("Decoding …").wait_for()
    page.get_by_role("button", name="Stop").press("Enter")
    page.get_by_text("Stopped.").wait_for()
    assert page.get_by_role("button", name="Stop").is_disabled()
    made.hold.set()


def test_an_image(live: tuple[str, MadeUp], open_page: Any, tmp_path: Path) -> None:
    """A file from the reader's machine: it goes to the server, and its name onto the page."""
    url, made = live
    (tmp_path / "photo.png").write_bytes(data := file(pixels()))
    page = open_page(url, f"{url}answer")
    page.get_by_label("Prompt", exact=True).fill("ab")
    page.get_by_label("Image", exact=True).set_input_files(tmp_path / "photo.png")
    page.get_by_label("Tokens").fill("4")
    page.get_by_label("Preset").select_option("vcd")
    page.get_by_role("button", name="Decode").click()
    page.get_by_text("Done.").wait_for()
    shown = page.locator(".prompt").all_inner_texts()
    assert "photo.png, 8 × 6]" in shown[0] and "photo.png, 8 × 6, noise:500]" in shown[1]
    assert "base64" not in page.content()
    sent = [body for _, body in made.bodies if body.get("stream")]
    urls = [body["messages"][0]["content"][0]["image_url"]["url"] for body in sent]
    assert [base64.b64decode(one.partition(",")[2]) for one in urls] == [data, data]
