# SPDX-License-Identifier: Apache-2.0
"""The browser of tests/browser."""

from tests.browser.conftest import chromium

__all__ = ["chromium"]
