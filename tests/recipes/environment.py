# SPDX-License-Identifier: Apache-2.0
"""Environments for clients that cannot live next to vLLM's packages, under .venv/recipes; made
once, from pip's index.
"""

import subprocess
import sys
import venv
from pathlib import Path

from tests.docs.blocks import ROOT


def python_with(requirement: str) -> Path:
    """The interpreter of an environment with this package and what it asks for."""
    folder = ROOT / ".venv" / "recipes" / requirement
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.exists():
        venv.create(folder, symlinks=True)
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
        subprocess.run([*pip, "install", "--quiet", "--no-compile", requirement], check=True)
        done.touch()
    return python
