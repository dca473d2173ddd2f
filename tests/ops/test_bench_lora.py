# SPDX-License-Identifier: Apache-2.0
"""The benchmark of adapters on experts checks before it measures."""

from __future__ import annotations

import pytest

from benchmarks import bench_lora as bench

pytestmark = pytest.mark.unit


def test_speeds_beside_right_results_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("EXPERTS", 8), ("HIDDEN", 64), ("EXPERT_SIZE", 32)):
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench, "cpu_cache", lambda: 1000)
    small = ["--dtype", "fp32", "--rank", "8", "--adapters", "1", "2", "--rows", "1", "3",
             "--rounds", "1"]  # fmt: skip
    assert bench.main(small) == 0
    printed = capsys.readouterr().out
    # 1 row with 1 adapter, 3 rows with 1 and 2.
    assert len([line for line in printed.splitlines() if line.startswith("| fp32")]) == 3
    monkeypatch.setattr(bench.Buffers, "want", lambda self: self.y.double() + 1.0)
    assert bench.main(small) == 1
    printed = capsys.readouterr().out
    assert "wrong result of adapted" in printed and "| fp32" not in printed
