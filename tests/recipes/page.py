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
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=offline(variables),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout
