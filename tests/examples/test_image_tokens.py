# SPDX-License-Identifier: Apache-2.0
"""The example that guides a model of image tokens draws what its naive loop draws."""

import os
import re
import subprocess
import sys

import pytest

from tests.examples.installed import ROOT


@pytest.mark.engine
@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("guidance", ["3", "7"])
def test_vllm_draws_what_the_naive_loop_draws(guidance: str) -> None:
    command = [sys.executable, "-m", "examples.image_tokens", "--guidance", guidance]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"guidance {guidance} is beta={int(guidance) - 1}, alpha=0" in done.stdout
    assert "128 of 128 tokens equal the naive loop's" in done.stdout
    other = re.search(r"(\d+) differ from those without guidance", done.stdout)
    assert other is not None and int(other[1]) > 64
