# SPDX-License-Identifier: Apache-2.0
"""Reports of bugs of vLLM (tests/upstream/reports): complete, listed, and each names what says
that it can go.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, blocks

pytestmark = pytest.mark.unit

FOLDER = ROOT / "tests" / "upstream" / "reports"
REPORTS = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
each = pytest.mark.parametrize("report", REPORTS, ids=lambda path: path.stem)
HEADINGS = ["Reproduction", "Cause", "Patch", "Our cure"]


def _contracts(text: str) -> set[str]:
    tests = (ROOT / "tests" / "contracts" / "test_cpu.py").read_text()
    return set(re.findall(r"^def test_(\w+)", tests, re.M)) & set(re.findall(r"`(\w+)`", text))


@each
def test_report(report: Path) -> None:
    text = report.read_text()
    assert re.findall(r"^## (.+)$", text, re.M) == HEADINGS
    assert text.startswith("# [") and "vLLM 0.32.0" in text
    assert re.search(r"^Seen: .*Expected: ", text, re.M | re.S)
    code = next(b.text for b in blocks(report.relative_to(ROOT).as_posix()))
    imported: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert "vllm" in imported and "vllm_cold" not in imported
    assert "LLM(" not in code or 'VLLM_PLUGINS=""' in code
    assert len(_contracts(text.partition("## Our cure")[2])) == 1


@each
def test_report_is_in_the_table(report: Path) -> None:
    lines = (FOLDER / "README.md").read_text().splitlines()
    (row,) = [line for line in lines if f"({report.name})" in line]
    can_go = row.split("|")[-2]  # files of ours, one column before, may be called like a contract
    assert _contracts(can_go) == _contracts(report.read_text().partition("## Our cure")[2])
