# SPDX-License-Identifier: Apache-2.0
"""Runs the shell blocks of docs/benchmarking.md as a reader does."""

import os
import shlex
import string
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PAGE = "docs/benchmarking.md"
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
