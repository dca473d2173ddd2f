# SPDX-License-Identifier: Apache-2.0
"""The example package of a rule, installed as a user would, but into a folder of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "examples" / "rule"


def install(folder: Path) -> Path:
    """Where the package lies, below ``folder``, for PYTHONPATH. Needs no network."""
    source, target = folder / "source", folder / "installed"
    shutil.copytree(SOURCE, source)  # pip builds where the sources are
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return target
