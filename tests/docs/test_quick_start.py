# SPDX-License-Identifier: Apache-2.0
"""README.md's quick start as a reader follows it: each block as it stands, as a shell command, a
script or a server, in an empty folder outside the checkout. Only the server's port is another.

``QUICK_START_BIN`` names the folder of another environment's commands, such as one into which the
wheel was installed; otherwise it is this environment that is "activated".
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import block, blocks
from tests.server.conftest import serve

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]

PAGE_URL = "http://localhost:8000"
# Set by the tests, or a way to find the checkout; a reader has none of them.
NOT_THEIRS = ("PYTHONPATH", "VLLM_CPU_KVCACHE_SPACE")
# What the page shows: an answer without a contrast, and with one.
(SHOWN,) = (b.text.splitlines() for b in blocks("README.md") if b.language == "text")
SORTED = "['44.7', '60', '78', '80']"


def run(script: str) -> str:
    """What a shell prints for these lines; warnings and errors are on stderr."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where everything happens, with the example's model and adapter in it."""
    path = tmp_path_factory.mktemp("reader")
    commands = os.environ.get("QUICK_START_BIN") or str(Path(sys.executable).parent)
    with pytest.MonkeyPatch.context() as patch:
        for name in NOT_THEIRS:
            patch.delenv(name, raising=False)
        patch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
        patch.chdir(path)
        run(block("README.md", "example"))
        yield path


def test_offline(folder: Path) -> None:
    """The script prints the text's answer, and the numbers in order."""
    (folder / "offline.py").write_text(block("README.md", "offline"))
    printed = run("python offline.py").splitlines()
    assert [line for line in printed if line in (SHOWN[1], SORTED)] == [SHOWN[1], SORTED]


def test_serve(folder: Path) -> None:
    """The server starts, and answers as the page shows."""
    command = f'exec {block("README.md", "serve").rstrip()} "$@"'
    with serve(folder, [], command=["bash", "-c", command, "bash"]) as server:
        asked = block("README.md", "curl")
        assert PAGE_URL in asked
        assert run(asked.replace(PAGE_URL, server.url)).splitlines() == SHOWN
        assert server.metric("vllm:cold_requests_total") == 1
