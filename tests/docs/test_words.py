# SPDX-License-Identifier: Apache-2.0
"""The documentation stays short. Figures and internals belong beside the code that they are of.
CONTRIBUTING.md and CHANGELOG.md are not counted: the one is for people who change the code, the
other grows. Nor is the table of vLLM's places, which is made from the code and looked things up in.
"""

import re

import pytest

from tests.docs.blocks import ROOT, pages

pytestmark = pytest.mark.unit

MOST = 18_000
LONGEST = 1_600  # of a page: a question each
MADE = "docs/reference/places.md"


def words(text: str) -> int:
    """Words of prose, tables and code alike; lines of a table and dashes are none."""
    return sum(bool(re.search(r"\w", word)) for word in text.split())


def counted() -> dict[str, int]:
    """Words by page; README.md is the site's first one."""
    return {page: words((ROOT / page).read_text()) for page in pages() if page != MADE}


def test_all_pages_together_are_short() -> None:
    found = counted()
    assert len(found) > 15
    assert sum(found.values()) <= MOST, found


def test_each_page_is_short() -> None:
    assert {page: count for page, count in counted().items() if count > LONGEST} == {}


def test_words_are_counted() -> None:
    assert words("| a | `b c` |\n|---|--:|\n- one, two: 3.5 %") == 6
