# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark from end to end, small: train, evaluate, evaluate again, report."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.accuracy.choose import chosen
from benchmarks.accuracy.evaluate import SAMPLED, SEARCHES, methods
from benchmarks.accuracy.store import Adapter, Cell

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

CHECKOUT = Path(__file__).parents[2]
MAIN = Cell(Adapter("dates", 16, 100), "ordinary")
PROBLEMS = 6


def run(module: str, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.accuracy.{module}", *arguments],
        cwd=CHECKOUT,
        env=os.environ | {"COLD_ACCURACY": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_from_training_to_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("train", tmp_path, "--tasks", "dates", "--ranks", "16", "--steps", "8")
    adapters = sorted(path.name for path in (tmp_path / "adapters").iterdir())
    assert adapters == ["dates-r16-100", "dates-r16-25", "dates-r16-50"]
    records = [
        json.loads((tmp_path / "adapters" / name / "training.json").read_text())
        for name in adapters
    ]
    assert [record["steps_done"] for record in records] == [8, 2, 4]

    arguments = ("--tasks", "dates", "--problems", str(PROBLEMS))
    said = run("evaluate", tmp_path, *arguments)
    assert "not trained, and left out: dates-r4-100, dates-r4-25, dates-r4-50" in said
    results = {
        path.name: json.loads(path.read_text()) for path in (tmp_path / "measured").iterdir()
    }
    assert len(results) == 3 * 2
    dev = results["dates-r16-100-ordinary-dev.json"]["outcomes"]
    assert set(dev) == {method.key for method in methods(MAIN, "dev")}
    monkeypatch.setattr(
        "benchmarks.accuracy.evaluate.chosen", lambda cell: chosen(cell, tmp_path / "measured")
    )
    test = results["dates-r16-100-ordinary-test.json"]
    wanted = [*methods(MAIN, "test"), *SAMPLED, *SEARCHES]
    assert test["outcomes"].keys() | test["not_offered"].keys() == {m.key for m in wanted}
    assert "beam" in test["outcomes"]
    for found in (*dev.values(), *test["outcomes"].values()):
        assert len(found["right"]) == PROBLEMS
        assert found["tokens"] >= PROBLEMS
    for key, found in dev.items():
        # Every token of CoLD's is scored, and no other one; without the mask no step has only one
        # candidate.
        assert found["steps"] == (0 if key == "greedy" else found["tokens"])
        assert found["one_valid"] <= found["steps"]
        assert found["one_valid"] == 0 or not key.startswith("cfg")

    started = time.perf_counter()
    run("evaluate", tmp_path, *arguments)
    again = {path.name: json.loads(path.read_text()) for path in (tmp_path / "measured").iterdir()}
    assert again == results
    assert time.perf_counter() - started < 60  # no engine was started

    run("report", tmp_path, "--docs", str(tmp_path / "docs"), "--tables", str(tmp_path))
    assert "| rank 16, 100 %, 1 task: *SmolLM2* |" in (tmp_path / "report.md").read_text()
    assert "**CoLD is no gain here.**" in (tmp_path / "docs/accuracy.md").read_text()
    page = (tmp_path / "tables.md").read_text()
    assert "### dates: formatting" in page
    assert "Not measured yet:" in page
