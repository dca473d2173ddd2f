# SPDX-License-Identifier: Apache-2.0
"""The table of tested releases names those that ``make versions`` tests, and how far."""

import re

import pytest

from tests.docs.blocks import ROOT
from tests.upstream.versions import RELEASES
from vllm_cold.compat.versions import RANGE, VALIDATED, minor

pytestmark = pytest.mark.unit


def test_each_release_is_in_the_table() -> None:
    text = (ROOT / "docs" / "hardware.md").read_text(encoding="utf-8")
    section = text.split("\n## vLLM versions\n")[1].split("\n## ")[0]
    assert f"is for {RANGE}" in section
    with_engines: dict[str, bool] = {}
    for line in section.splitlines():
        if line.startswith("| 0."):
            first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            for version in re.findall(r"\b0\.\d+\.\d+\b", first):
                assert version not in with_engines
                with_engines[version] = cells[-1] == "yes"
    assert with_engines == {
        version: "exact" in release.suites for version, release in RELEASES.items()
    }
    run = {minor(version) for version, engines in with_engines.items() if engines}
    assert run == set(VALIDATED)
