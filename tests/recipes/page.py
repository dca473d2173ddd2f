# SPDX-License-Identifier: Apache-2.0
"""Runs the blocks of pages as a reader does, and reads what lm_eval leaves behind."""

import json
import os
import shlex
import string
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.docs.blocks import ROOT

SHELL = ["bash", "-euo", "pipefail", "-c"]


def words(command: str, variables: Mapping[str, str]) -> list[str]:
    """The words of a block that is one command, with its variables replaced."""
    joined = command.replace("\\\n", " ")
    return shlex.split(string.Template(joined).substitute(variables))


def served(command: str, own: Mapping[str, str]) -> list[str]:
    """What a block gives ``vllm serve``, with its variables and words of ``own`` replaced."""
    program, verb, *options = [own.get(word, word) for word in words(command, own)]
    assert (program, verb) == ("vllm", "serve")
    return options


def offline(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a recipe: commands from this interpreter's folder, and no hub."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        **variables,
    }


def run(script: str, folder: Path, variables: Mapping[str, str], timeout: float = 280) -> str:
    """Run a block in ``folder`` as a shell does; return its stdout.

    Raises:
        AssertionError: a command failed; with the end of what was printed.
    """
    done = finished([*SHELL, script], folder, variables, timeout)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def run_python(text: str, url: str, python: Path | str = sys.executable, **own: str) -> str:
    """What a block prints that talks to the server of the pages, here that at ``url``."""
    assert "http://localhost:8000" in text
    text = text.replace("http://localhost:8000", url)
    done = finished([str(python), "-c", text], None, own, 200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def finished(
    command: list[str], folder: Path | None, variables: Mapping[str, str], timeout: float = 280
) -> subprocess.CompletedProcess[str]:
    """A recipe's process, once it has ended."""
    return subprocess.run(
        command,
        cwd=folder,
        env=offline(variables),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def python_with(requirement: str) -> Path:
    """The interpreter of an environment for a client that cannot live next to vLLM's packages,
    under .venv/recipes; made once, from pip's index.
    """
    folder = ROOT / ".venv" / "recipes" / requirement
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.exists():
        venv.create(folder, symlinks=True)
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
        subprocess.run([*pip, "install", "--quiet", "--no-compile", requirement], check=True)
        done.touch()
    return python


def accuracy(folder: Path, task: str) -> float:
    """The share of right answers in the one results file of lm_eval below ``folder``."""
    (file,) = folder.rglob("results_*.json")
    results: dict[str, Any] = json.loads(file.read_text())["results"][task]
    return float(results["exact_match,answer"])


def answers(folder: Path, task: str) -> list[str]:
    """The generated texts of a task, by document, before any filter."""
    (file,) = folder.rglob(f"samples_{task}_*.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    texts = {sample["doc_id"]: sample["resps"][0][0] for sample in samples}
    return [texts[document] for document in sorted(texts)]
