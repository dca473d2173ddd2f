# SPDX-License-Identifier: Apache-2.0
"""The scheduler's benchmark decodes with pairs, and shows no ratio beside a step that is wrong."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_scheduler as bench

pytestmark = [pytest.mark.unit, pytest.mark.slow]

SMALL = ["--pairs", "2", "--steps", "3", "--rounds", "2", "--waiting", "3", "--policy", "priority"]


@pytest.fixture(autouse=True)
def nothing_stays_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark silences its process, which is the tests' own here."""
    monkeypatch.setattr(logging.root.manager, "disable", logging.NOTSET)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(SMALL) == 0
    lines = capsys.readouterr().out.splitlines()
    # Both schedulers; pairs are requests of two sequences each.
    assert sum(line.startswith("| CoLD's, pairs (2)") for line in lines) == 2
    stock = [line for line in lines if line.startswith(f"| {bench.STOCK} (4)")]
    assert len(stock) == 2
    for line in stock:  # of a decoding step, and of the one that admits
        assert line.count("1.000 (1.000-1.000)") == 2


def test_no_speed_beside_a_wrong_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def decode(*args: Any) -> tuple[float, float]:
        _, system, _, is_async = args
        if is_async and system.pairs:  # the last that is measured
            raise bench.WrongError("step 1 left requests out")
        return 1e-3, 1e-3

    monkeypatch.setattr(bench, "decode", decode)
    assert bench.main(SMALL) == 1
    printed = capsys.readouterr().out
    assert "No speeds" in printed and printed.count("step 1 left requests out") == 1
    assert "1000" not in printed and "ratio to stock" not in printed


def test_a_step_that_leaves_a_request_out_is_seen(
    monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    from tests.scheduler import harness

    def starved(model: Path, setup: harness.Setup, classes: object) -> object:
        return make(model, replace(setup, num_blocks=3), classes)

    make = harness.make_scheduler
    monkeypatch.setattr(harness, "make_scheduler", starved)
    system = bench.make_systems(4)[-1]
    with pytest.raises(bench.WrongError, match="step 0 left requests out"):
        bench.decode(tiny / "model", system, bench.Load(3), False)
