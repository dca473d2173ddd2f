# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium that counts what a page asks the network for and what it complains about."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
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


@dataclass
class Opened:
    """A page, and what went wrong on it.

    Attributes:
        page: Playwright's.
        requests: URLs that it asked for beyond its own file; each was blocked.
        complaints: Errors and warnings of its console and script.
    """

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Any]:
    """``open_page(file, **context_options) -> Opened``; the test's end checks that it was quiet."""
    opened: list[Opened] = []
    contexts: list[Any] = []

    def make(file: Path, **options: Any) -> Opened:
        context = chromium.new_context(
            **{"viewport": {"width": 1280, "height": 900}, "locale": "en-GB", **options}
        )
        contexts.append(context)
        found = Opened(context.new_page())
        own = file.as_uri()

        def route(route: Any) -> None:
            url = route.request.url
            if url in (own, "data:,"):
                route.continue_()
            else:
                found.requests.append(url)
                route.abort()

        context.route("**/*", route)
        found.page.on(
            "console",
            lambda m: m.type in ("error", "warning") and found.complaints.append(m.text),
        )
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.goto(own)
        opened.append(found)
        return found

    yield make
    for page in opened:
        assert page.requests == []
        assert page.complaints == []
    for context in contexts:
        context.close()
