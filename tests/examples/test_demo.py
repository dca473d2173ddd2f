# SPDX-License-Identifier: Apache-2.0
"""``make demo`` as a person runs it: the real model, the shipped adapters, a real engine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.demo", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )


def test_demo_shows_both_answers_and_speeds() -> None:
    done = run_demo()
    assert done.returncode == 0, done.stderr[-3000:]
    text = done.stdout
    for label in ("adapter, greedy", "adapter, CoLD"):
        speed = re.search(rf"^{label}\s+([\d.]+) tokens/s .* (\d) of 6 right$", text, re.M)
        assert speed, text
        assert float(speed[1]) > 0
    assert text.count("sorting  Sort these") == 4
    assert text.count("orders  ") == 2
    assert re.search(r"token \d+", text), "no prompt on which the two part"


def test_demo_refuses_a_bad_alpha() -> None:
    done = run_demo("--alpha", "-1")
    assert done.returncode == 2
    assert "alpha=-1.0: must be a number in [0, 1]" in done.stderr
