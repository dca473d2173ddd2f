# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.device_report`` on its dry run, each stage in a process of its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.full, pytest.mark.timeout(1800)]


def test_dry_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.device_report", "--dry-run"],
        cwd=tmp_path,
        env={**os.environ, "COLD_LORA": "nothing", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1700,
        check=False,
    )
    text = (tmp_path / "vllm-cold-report.md").read_text()
    assert done.returncode == 0, text
    assert text.startswith("# vllm-cold on a device: PASS") and "Dry run" in text
    assert "cases are right" in text and "100.0% of plugin CoLD and naive cold" in text
    assert "plugin CoLD / plugin adapter" in text  # its ratio, in speeds
    for private in (str(tmp_path), str(ROOT), str(Path.home()), sys.prefix, socket.gethostname()):
        assert private not in text
