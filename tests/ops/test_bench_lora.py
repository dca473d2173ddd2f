# SPDX-License-Identifier: Apache-2.0
"""The LoRA benchmark checks before it measures, and divides by the right numbers."""

from __future__ import annotations

import pytest

from benchmarks import bench_lora as bench

pytestmark = pytest.mark.unit

SMALL = ["--layer", "o", "down", "--dtype", "fp32", "--rank", "8", "--adapters", "1", "2",
         "--rows", "1", "3", "--rounds", "1"]  # fmt: skip


def test_it_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "cpu_cache", lambda: 1000)
    assert bench.main(SMALL) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    # Two layers; 1 row with 1 adapter, 3 rows with 1 and 2.
    assert len(lines) == 2 + 6


def test_it_runs_with_experts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "cpu_cache", lambda: 1000)
    monkeypatch.setattr(bench, "EXPERTS", 8)
    monkeypatch.setattr(bench, "HIDDEN", 64)
    monkeypatch.setattr(bench, "EXPERT_SIZE", 32)
    loads = ["--layer", "o", "experts", *SMALL[3:]]
    assert bench.main(loads) == 0
    printed = capsys.readouterr().out
    assert len([line for line in printed.splitlines() if line.startswith("| experts")]) == 3
    assert "adapted/kernel" in printed and "| o " in printed
    monkeypatch.setattr(bench.ExpertBuffers, "want", lambda self: self.y.double() + 1.0)
    assert bench.main(loads) == 1
    assert "wrong result of adapted" in capsys.readouterr().out


@pytest.mark.parametrize("system", ["cpp", "grouped", "stock"])
def test_no_speed_beside_a_wrong_result(
    system: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = getattr(bench, system)

    def wrong(buffers: bench.Buffers) -> bench.Call:
        last = buffers.load == bench.Workload("down", "fp32", 8, 2, 3)
        return (lambda y, copy: y.add_(1.0)) if last else right(buffers)

    monkeypatch.setattr(bench, "cpu_cache", lambda: 1000)
    monkeypatch.setattr(bench, system, wrong)
    assert bench.main(SMALL) == 1
    printed = capsys.readouterr().out
    name = {"grouped": bench.TORCH}.get(system, system)
    assert printed.count(f"wrong result of {name}") == 1
    assert "No speeds" in printed and "| o " not in printed
