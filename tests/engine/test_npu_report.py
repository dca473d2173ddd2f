# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.npu_report`` on its dry run: the stages of an NPU, each in a process of
its own, with the kernels' host build.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest

from benchmarks import npu_report as report
from tests.docs.blocks import ROOT
from tests.engine.test_gpu_report import run_dry

# Python runs it in every process, before all else: a score of the kernels' host build is wrong.
SPOILER = """
from tests.ops.ascend_host import Host

right = Host.run_scores

def wrong(self, logits, rows, *rest):
    right(self, logits, rows, *rest)
    if rest[-2] is None:
        logits[rows[:, 0], 7] = 1e4
    else:
        rest[-2][:, 7] = 1e4

Host.run_scores = wrong
"""

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


PROGRAM = ["-m", "benchmarks.npu_report"]
NAME = report.KIND.name


def test_dry_run(tmp_path: Path) -> None:
    status, found, markdown, printed = run_dry(PROGRAM, NAME, tmp_path, ROOT)
    assert (status, found["verdict"]) == (0, "PASS"), printed
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert {stage["status"] for stage in stages.values()} == {"ok"}
    assert len(stages) == 1 + len(report.plan(True, "0.32.0"))
    tests = stages["scoring against the reference"]["checks"]
    assert any(c["name"].startswith("test_conforms[") for c in tests)
    exact, half = stages["engine: eager, float32"], stages["engine: eager"]
    assert exact["facts"]["beside the reference by, logits"] == report.STEPS[0]
    assert 0 < half["facts"]["beside the reference by, logits"] <= report.MOST["float16"]
    assert half["facts"]["dtype"] == "float16" and len(half["checks"]) == 5 + 3
    assert len(stages["sampling, split prompts: eager"]["checks"]) == 6 + 1 + 3
    assert len(stages["base requests alone: eager"]["checks"]) == 2 + 1 + 2 + 3
    lora, scoring = (found["speeds"][f"{of} speed, launched from Python"]
                     for of in ("LoRA", "scoring"))  # fmt: skip
    assert "torch / ours" in lora[0] and "torch / ascend" in scoring[0]
    assert "- dry run, scoring against float64: ok" in markdown and markdown in printed
    assert {path.name for path in tmp_path.iterdir()} == {f"{NAME}.json", f"{NAME}.md"}
    for private in (str(tmp_path), str(ROOT), str(Path.home()), sys.prefix, socket.gethostname()):
        assert private not in markdown and private not in json.dumps(found)


@pytest.mark.full
@pytest.mark.full  # as of the report for GPUs, which every run looks at
def test_spoilt_kernel(tmp_path: Path) -> None:
    """Kernels and tokens are wrong, the other checks go on, and there is no speed."""
    (tmp_path / "sitecustomize.py").write_text(SPOILER)
    status, found, markdown, printed = run_dry(PROGRAM, NAME, tmp_path, tmp_path, ROOT)
    failed = {stage["stage"] for stage in found["stages"] if stage["status"] == "failed"}
    assert status == 1 and failed == {
        "scoring against the reference", "scoring against float64", "engine: eager, float32",
        "engine: eager", "sampling, split prompts: eager", "base requests alone: eager",
    }, printed  # fmt: skip
    stages = {stage["stage"]: stage for stage in found["stages"]}
    wrong = [c["result"] for c in stages["engine: eager"]["checks"] if not c["ok"]]
    assert wrong and all("beside the reference's" in text for text in wrong)
    assert stages["LoRA against float64"]["status"] == "ok"
    assert stages["LoRA speed, launched from Python"]["status"] == "left out"
    assert list(found["speeds"]) == ["note"] and "GB/s" not in markdown
