# SPDX-License-Identifier: Apache-2.0
"""The browser of tests/browser."""

from tests.browser.conftest import chromium, open_page

__all__ = ["chromium", "open_page"]
