# SPDX-License-Identifier: Apache-2.0
"""The figures of README.md and the pages are what was measured."""

import re

import pytest

from docs import tables
from tests.docs.blocks import ROOT, pages

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("page", tables.PAGES)
def test_tables_are_what_was_measured(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text == tables.written(page), "run python -m docs.tables"
    assert "<!-- table: " in text


def test_every_table_is_on_a_page_that_is_written() -> None:
    marked = {
        page: re.findall(r"<!-- table: ([\w-]+) -->", (ROOT / page).read_text()) for page in pages()
    }
    assert {page for page, names in marked.items() if names} == set(tables.PAGES)
    assert {name for names in marked.values() for name in names} == tables.TABLES.keys()
