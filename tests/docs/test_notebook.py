# SPDX-License-Identifier: Apache-2.0
"""The notebook runs from its first cell to its last, outside the checkout."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gain, a harm and an adapter, as its text says."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    cells = json.loads((ROOT / "examples" / "demo.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    script = "\nprint('---')\n".join(code)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    _, _, gain, harm, adapter, told = (part.strip() for part in done.stdout.split("---\n"))
    assert gain.splitlines()[-1] == "The shop opens at 11 o'clock."
    assert "Euro" in harm.splitlines()[0] and "pound" in harm.splitlines()[1]
    assert adapter.splitlines()[-1] == "['44.7', '60', '78', '80']"
    assert len(told.splitlines()) == 6 and told.splitlines()[2].startswith("[(' opens', ")
