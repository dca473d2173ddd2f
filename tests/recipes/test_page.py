# SPDX-License-Identifier: Apache-2.0
"""What the page states about its own files and blocks."""

import re

import pytest

from examples.lm_eval import make_sorting
from tests.docs.blocks import block, blocks

pytestmark = pytest.mark.unit

PAGE = "docs/benchmarking.md"


def test_the_problems_are_those_of_the_seeds() -> None:
    assert make_sorting.FILE.read_text() == make_sorting.lines()


def test_variables_are_set_before_they_are_used() -> None:
    """By the first block, and by that of the page that it names."""
    first = block("docs/explain.md", "setup") + block(PAGE, "setup")
    known = set(re.findall(r"\b(\w+)=", first))
    for text in (b.text for b in blocks(PAGE) if b.language == "bash"):
        own = set(re.findall(r"\bfor (\w+) in|^(?:export )?(\w+)=", text, re.M))
        used = set(re.findall(r"\$\{?([A-Za-z_]\w*)", text))
        assert used <= known.union(*own), text
    assert {"MODEL", "ADAPTERS", "URL"} <= known
