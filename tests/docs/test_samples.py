# SPDX-License-Identifier: Apache-2.0
"""The sample page of the site shows what was recorded, in the look of today, on any screen."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from docs import samples


def visible(page: str) -> str:
    """A page's letters and digits, without what only scripts and styles read."""
    text = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S)
    return letters(html.unescape(re.sub(r"<[^>]+>", "", text)))


def letters(text: str) -> str:
    return re.sub(r"\W", "", text)


def recorded(name: str) -> Any:
    return json.loads((samples.FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.unit
def test_explain_shows_each_answer() -> None:
    page = visible(samples.explain())
    prompts = recorded("explain")["explanations"]
    assert len(prompts) == 2
    for prompt in prompts:
        assert len(prompt["answers"]) == 2
        for answer in prompt["answers"]:
            shown = letters("".join(step["text"] for step in answer["steps"]))
            assert shown and shown in page


@pytest.mark.unit
@pytest.mark.parametrize("name", samples.PAGES)
def test_what_was_recorded_is_nobodys_machine(name: str) -> None:
    text = (samples.FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert not re.search(r"/(root|home|tmp|work|usr|mnt)/", text)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", samples.PAGES)
def test_on_a_phone(name: str, scheme: str, tmp_path: Path, open_page: Any) -> None:
    (tmp_path / "page.html").write_text(samples.PAGES[name](), encoding="utf-8")
    size = {"width": 390, "height": 844}
    page = open_page((tmp_path / "page.html").as_uri(), viewport=size, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
