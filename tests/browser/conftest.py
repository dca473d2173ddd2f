# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium that counts what a page asks the network for and what it complains about."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    """The system's Chromium or Chrome; ``CHROMIUM`` names another."""
    named = os.environ.get("CHROMIUM")
    names = [named] if named else ["chromium", "chromium-browser", "google-chrome"]
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser; a machine without one skips these tests, but not under CI.

    For a module at a time: while it is open, playwright's event loop counts as running in this
    process, and neither another playwright nor ``asyncio.run`` of other tests would start.
    """
    path = find_chromium()
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        sync_playwright = None
    if path is None or sync_playwright is None:
        missing = "Chromium (apt-get install chromium)" if path is None else "playwright (pip)"
        message = f"the browser tests need {missing}"
        if os.environ.get("CI"):
            pytest.fail(message + "; they are not skipped where CI is set")
        pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Any]:
    """``open_page(url, **context_options)`` opens a page. It must complain of nothing, and ask for
    nothing else, which the test's end checks.
    """
    contexts: list[Any] = []
    blocked: list[str] = []
    complaints: list[str] = []

    def make(url: str, **options: Any) -> Any:
        context = chromium.new_context(
            **{"viewport": {"width": 1280, "height": 900}, "locale": "en-GB", **options}
        )
        contexts.append(context)

        def route(route: Any) -> None:
            asked = route.request.url
            if asked == url or asked.startswith("data:"):
                route.continue_()
            else:
                blocked.append(asked)
                route.abort()

        context.route("**/*", route)
        page = context.new_page()
        page.on("console", lambda m: m.type in ("error", "warning") and complaints.append(m.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        return page

    yield make
    assert (blocked, complaints) == ([], [])
    for context in contexts:
        context.close()
