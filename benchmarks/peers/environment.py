# SPDX-License-Identifier: Apache-2.0
"""The other programs' environment, ``.venv/peers``: made when it is missing or was made otherwise.

Its packages stand before those of the environment that runs this, which it sees too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.e2e.pool import ROOT
from benchmarks.rounds import Say

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
VENV = ROOT / ".venv" / "peers"
FLAGS = {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}  # instructions of this processor


def wanted(text: str) -> list[str]:
    """The packages that a requirements file names."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def prepare(say: Say, venv: Path = VENV) -> dict[str, str]:
    """Make the environment; what could not be installed, with the reason.

    A package that fails is tried again the next time.
    """
    text = REQUIREMENTS.read_text(encoding="utf-8")
    made = venv / REQUIREMENTS.name
    if made.is_file() and made.read_text(encoding="utf-8") == text:
        return {}
    python = venv / "bin" / "python"
    if not python.exists():
        say(f"making {venv}")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    folder = venv / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (folder / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    failed = {}
    for package in wanted(text):
        say(f"installing {package}")
        done = subprocess.run(
            [sys.executable, "-m", "pip", "--python", python, "install", package],
            env={**os.environ, **FLAGS},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            lines = [line for line in done.stdout.splitlines() if "ERROR" in line]
            failed[package] = (lines or done.stdout.splitlines() or ["pip failed"])[-1].strip()
    if not failed:
        made.write_text(text, encoding="utf-8")
    return failed
