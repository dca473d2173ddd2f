# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold doctor`` as a user runs it: what is well is found well, what is broken is named."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import block
from vllm_cold.tools.doctor.self_test import CASES

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

# A warning that names something about the machine and not something to mend.
UNDERSTOOD = {"validated"}

# Another plugin of vLLM, which makes one score of a kernel wrong in every process.
SPOILER = """
def register():
    from dataclasses import replace

    from vllm_cold.ops import scoring_{kernel} as kernel

    right = kernel.BACKEND

    def wrong(logits, groups, out, statistics):
        right.scores(logits, groups, out, statistics)
        logits[groups.rows[:, 0], 7] = 1e4

    kernel.BACKEND = replace(right, scores=wrong)
"""


def doctor(
    *arguments: str, script: str = "vllm-cold doctor", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command of the pages, with more arguments, as a shell does."""
    folder = Path(sys.executable).parent
    if "PYTHONPATH" in environment:
        path = environment["PYTHONPATH"], os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    return subprocess.run(
        ["bash", "-c", " ".join([script.strip(), *arguments])],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )


def sections(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Each section's entries by name, as (status, value)."""
    return {
        title: {entry["name"]: (entry["status"], entry["value"]) for entry in entries}
        for title, entries in json.loads(done.stdout)["sections"].items()
    }


def named(done: subprocess.CompletedProcess[str], status: str) -> set[str]:
    """The names of the entries of this status."""
    return {
        name
        for entries in sections(done).values()
        for name, (found, _) in entries.items()
        if found == status
    }


def test_nothing_is_wrong_here(runner: str) -> None:
    """The command of the quick start, with the whole report."""
    script = block("docs/install.md", "doctor")
    done = doctor("--json", script=script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert named(done, "problem") == set()
    assert named(done, "warning") <= UNDERSTOOD
    found = sections(done)
    assert {"products", "LoRA", "LoRA of experts"} < found["Kernels"].keys()
    assert found["Kernels"]["scoring"][0] == "ok"
    test = found["Self-test"]
    said = rf"{runner.upper()} runner, \w+ scheduling, started and decoded in \d+ s"
    assert re.fullmatch(said, test["engine"][1])
    assert all(test[case.name] == ("ok", "the reference's 24 tokens") for case in CASES)


def test_plugin_that_is_switched_off() -> None:
    """By the commands of docs/troubleshooting.md, of which docs/install.md has the first."""
    lines = block("docs/troubleshooting.md", "doctor").splitlines()
    first, second = (line.partition("#")[0].strip() for line in lines)
    assert first == block("docs/install.md", "doctor").strip()
    done = doctor(script=second, COLD_ENABLED="0")
    assert done.returncode == 1
    found = sections(done)
    assert "COLD_ENABLED=0 is set; unset it" in found["Plugin"]["contrastive decoding"][1]
    assert "contrastive decoding" in named(done, "problem") and "Self-test" not in found


def test_kernel_that_gives_wrong_tokens(runner: str, tmp_path: Path) -> None:
    """The kernel is spoilt: its scores and all contrastive requests differ, others do not."""
    kernel = {"v1": "cpu", "v2": "triton"}[runner]
    (tmp_path / "spoiler.py").write_text(SPOILER.format(kernel=kernel))
    metadata = tmp_path / "spoiler-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: spoiler\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[vllm.general_plugins]\nspoiler=spoiler:register\n")
    done = doctor("--json", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    cold = {case.name for case in CASES if case.cold is not None}
    assert named(done, "problem") == cold
    test = sections(done)["Self-test"]
    for name in cold:
        assert "differs: the engine has [7, " in test[name][1]
    assert test["log"][0] == "log" and re.search(r"(INFO|WARNING) \d\d-\d\d ", test["log"][1])
