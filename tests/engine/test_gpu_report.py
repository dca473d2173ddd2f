# SPDX-License-Identifier: Apache-2.0
"""``benchmarks/gpu_report.py`` as a user has it, the file alone, on its dry run: the same stages as
on a GPU, each in a process of its own.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_report
from tests.docs.blocks import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

# Python runs it in every process, before all else: a score of each row of the Triton
# kernel's is wrong.
SPOILER = """
from dataclasses import replace

from vllm_cold.ops import scoring_triton

right = scoring_triton.BACKEND

def wrong(logits, pairs, out, statistics):
    right.scores(logits, pairs, out, statistics)
    for row in [logits[at] for at in pairs.expert_rows] if out is None else out:
        row[7] = 1e4

scoring_triton.BACKEND = replace(right, scores=wrong)
"""


def dry_run(folder: Path, *path: Path) -> tuple[int, dict[str, Any], str, str]:
    """Status, JSON, Markdown and what was printed."""
    script = shutil.copy(ROOT / "benchmarks" / "gpu_report.py", folder)
    return run_dry([Path(script).name], gpu_report.NAME, folder, *path)


def run_dry(
    program: list[str], name: str, folder: Path, *path: Path
) -> tuple[int, dict[str, Any], str, str]:
    """The same of a report by its name, and Python's arguments for it."""
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [*map(str, path), *(p for p in inherited if p)]
    done = subprocess.run(
        [sys.executable, *program, "--dry-run"],
        cwd=folder,
        env={**os.environ, "COLD_LORA": "nothing", "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1700,
        check=False,
    )
    found = folder / f"{name}.json"
    assert found.exists(), done.stdout
    markdown = found.with_suffix(".md").read_text()
    return done.returncode, json.loads(found.read_text()), markdown, done.stdout


def test_dry_run(tmp_path: Path, runner: str) -> None:
    status, found, markdown, printed = dry_run(tmp_path)
    assert (status, found["verdict"]) == (0, "PASS"), printed
    assert found["dry run"] and found["speeds"]["note"] == gpu_report.DRY_NOTE
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert {stage["status"] for stage in stages.values()} == {"ok"}
    assert len(stages) == 1 + len(gpu_report.plan(True, "0.32.0"))
    kernels = stages["kernels against the reference"]["checks"]
    assert len(kernels) == len(gpu_report.kernel_cases(True))
    for dtype in gpu_report.DTYPES:
        assert any(dtype in c["name"] for c in kernels)
    assert "COLD_LORA" in found["machine"]["set here, not passed on"]
    engine = stages["engine: eager, sync"]
    assert engine["facts"]["model runner"].lower() == runner
    assert engine["facts"]["scheduler"] == "ColdScheduler"
    assert len(engine["checks"]) == 6 + 2  # tokens; what was asked for
    scoring, latency = (found["speeds"][t] for t in ("scoring speed", "CoLD against greedy"))
    assert [row["beta"] for row in scoring] == ["fixed", "adaptive"]
    assert [row["batch"] for row in latency] == [1, 2]
    for row in (*scoring, *latency):
        spreads = [value for value in row.values() if isinstance(value, list)]
        assert spreads and all(0 < low <= middle <= high for middle, low, high in spreads)
    assert f"**{gpu_report.DRY_NOTE}**" in markdown and markdown in printed
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"gpu_report.py", f"{gpu_report.NAME}.json", f"{gpu_report.NAME}.md"}
    for private in (str(tmp_path), str(ROOT), str(Path.home()), sys.prefix, socket.gethostname()):
        assert private not in markdown and private not in json.dumps(found)


@pytest.mark.full
def test_spoilt_kernel(tmp_path: Path) -> None:
    """Kernels and tokens are wrong, the other checks go on, and there is no speed."""
    spoiler = tmp_path / "spoiler"
    spoiler.mkdir()
    (spoiler / "sitecustomize.py").write_text(SPOILER)
    status, found, markdown, printed = dry_run(tmp_path, spoiler)
    assert status == 1
    assert found["verdict"] == "FAIL: kernels against the reference, engine: eager, sync", printed
    stages = {stage["stage"]: stage for stage in found["stages"]}
    wrong = {c["name"]: c["result"] for c in stages["engine: eager, sync"]["checks"] if not c["ok"]}
    assert len(wrong) == 4
    assert all("differs first at token 0: the engine has 7" in text for text in wrong.values())
    assert any("other candidates" in c["result"] for c in
               stages["kernels against the reference"]["checks"])  # fmt: skip
    assert stages["scoring speed"]["status"] == "left out"
    assert list(found["speeds"]) == ["note"]
    assert "tokens/s" not in markdown and "GB/s" not in markdown
    for text in (markdown, json.dumps(found)):
        assert str(tmp_path) not in text and str(ROOT) not in text
        assert getpass.getuser() == "root" or getpass.getuser() not in text
