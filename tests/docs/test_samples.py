# SPDX-License-Identifier: Apache-2.0
"""The sample page of the site: what was recorded for it, and that it fits any screen."""

import re
from pathlib import Path
from typing import Any

import pytest

from docs import samples


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
