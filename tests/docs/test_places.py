# SPDX-License-Identifier: Apache-2.0
"""The pages about what vllm-cold hooks in vLLM say what the table says."""

import re

import pytest

from docs import places as page
from tests.docs.blocks import ROOT
from vllm_cold.compat import places

pytestmark = pytest.mark.unit


def test_the_page_is_made_from_the_table() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.text(), "run python -m docs.places"


@pytest.mark.parametrize(
    ("heading", "can_go"),
    [
        ("A group of requests that go in lockstep", places.GROUPS),
        ("A hook after the logits of all rows", places.LOGITS),
        ("Prompts rendered for a derived request", places.DERIVED),
        ("What is left", places.CHANNEL),
    ],
)
def test_what_each_seam_would_end(heading: str, can_go: str) -> None:
    text = (ROOT / "docs" / "for-vllm.md").read_text(encoding="utf-8")
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    named = re.findall(r"`((?:frontend|scheduler|worker|wire)\.\w+)`", section)
    ended = {hook.file for hook in page.HOOKS if hook.can_go == can_go}
    assert set(named) == ended and len(named) >= 4
