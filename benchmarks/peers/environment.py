# SPDX-License-Identifier: Apache-2.0
"""Other programs (``benchmarks.bench_e2e --peers``): what they are started with, and their
environment, ``.venv/peers``, which is made when it is missing or was made otherwise. Its packages
stand before those of the environment that runs this, which it sees too.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import sysconfig
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from benchmarks.e2e.pool import ROOT
from benchmarks.rounds import Say

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
VENV = ROOT / ".venv" / "peers"
# Of workers, and the type of their weights by the dtype of the others'.
FAMILIES: Mapping[str, Mapping[str, str]] = {
    "llama": {"float32": "float32", "bfloat16": "bfloat16"},
    "llama-q8": {"bfloat16": "q8_0"},
}
COMMAND = (str(VENV / "bin" / "python"), "-m", "benchmarks.peers.llama")
FLAGS = {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}  # instructions of this processor


def wanted(text: str) -> list[str]:
    """The packages that a requirements file names."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def files(
    settings: Mapping[str, Any], families: Collection[str], folder: Path, longest: int
) -> dict[str, Any]:
    """Write what the programs read; the settings that name it."""
    from benchmarks.peers import weights

    model, adapter = Path(settings["model"]), folder / "adapter.gguf"
    weights.write_adapter(Path(settings["adapter"]), model, adapter)
    gguf = {}
    for family in families:
        if kind := FAMILIES[family].get(settings["dtype"]):
            gguf[family] = str(folder / f"{kind}.gguf")
            weights.write_model(model, Path(gguf[family]), kind)
    return {"lora_gguf": str(adapter), "gguf": gguf, "context": 256 * math.ceil(longest / 256)}


def prepare(say: Say, venv: Path = VENV) -> list[str]:
    """Make the environment; what could not be installed, with the reason.

    A package that fails is tried again the next time.
    """
    text = REQUIREMENTS.read_text(encoding="utf-8")
    made = venv / REQUIREMENTS.name
    if made.is_file() and made.read_text(encoding="utf-8") == text:
        return []
    python = venv / "bin" / "python"
    if not python.exists():
        say(f"making {venv}")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    folder = venv / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (folder / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    failed = []
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
            why = (lines or done.stdout.splitlines() or ["pip failed"])[-1].strip()
            failed.append(f"not installed: {package}: {why}")
    if not failed:
        made.write_text(text, encoding="utf-8")
    return failed
