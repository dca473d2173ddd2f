# SPDX-License-Identifier: Apache-2.0
"""README.md's quick start as a reader follows it: each block as it stands, as a shell command, a
script or a server, in an empty folder outside the checkout. Only the server's port is another.

``QUICK_START_BIN`` names the folder of another environment's commands, such as one into which the
wheel was installed; otherwise it is this environment that is "activated".
"""

import ast
import json
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
# What the page shows of a sorting by the adapter alone, and by its contrast with the base model.
(SHOWN,) = (b.text.splitlines() for b in blocks("README.md") if b.language == "text")


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
    """The script prints what the page shows, among vLLM's own messages."""
    (folder / "offline.py").write_text(block("README.md", "offline"))
    printed = run("python offline.py").splitlines()
    found = [line for line in printed if line in SHOWN]
    # The adapter alone may sort right, too, as the page says: it depends on the CPU.
    assert found in (SHOWN, [*SHOWN[:2], SHOWN[3], SHOWN[3]])


def test_serve(folder: Path) -> None:
    """The server starts, and both clients get what the script was given."""
    command = f'exec {block("README.md", "serve").rstrip()} "$@"'
    with serve(folder, [], command=["bash", "-c", command, "bash"]) as server:

        def here(text: str) -> str:
            assert PAGE_URL in text
            return text.replace(PAGE_URL, server.url)

        answer = json.loads(run(here(block("README.md", "curl"))))
        assert answer["choices"][0]["message"]["content"] == SHOWN[1]
        assert server.metric("vllm_cold_requests_total") == 1

        (folder / "client.py").write_text(here(block("README.md", "client")))
        lines = run("python client.py").splitlines()
        answers = {line[: line.index("}") + 1]: line[line.index("}") + 2 :] for line in lines}
        assert list(answers) == ["{}", "{'cold_beta': 1.0}", "{'cold': 0}"]
        assert answers["{}"] == SHOWN[3]
        assert answers["{'cold': 0}"] in SHOWN[2:]  # by the CPU, as the page says
        assert server.metric("vllm_cold_requests_total") == 3


@pytest.mark.unit
def test_what_is_shown() -> None:
    """Four answers: the document counts with the contrast alone, and the sorting comes right."""
    memory, document, wrong, right = SHOWN
    assert "Denver" in memory and "Phoenix" in document
    assert ast.literal_eval(right) == sorted(ast.literal_eval(wrong), key=float)
    assert wrong != right
