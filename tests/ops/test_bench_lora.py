# SPDX-License-Identifier: Apache-2.0
"""The LoRA benchmark checks before it measures, and divides by the right numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import bench_lora as bench

pytestmark = pytest.mark.unit

SMALL = ["--layer", "o", "embedding", "--dtype", "fp32", "--rank", "8", "--adapters", "1", "2",
         "--rows", "1", "3", "--rounds", "1"]  # fmt: skip


def test_it_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "cpu_cache", lambda: 1000)
    monkeypatch.setattr(bench.Machine, "measure", lambda dtypes: bench.Machine(1e9, {"fp32": 1e9}))
    assert bench.main(SMALL) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    # Two layers; 1 row with 1 adapter, 3 rows with 1 and 2.
    assert len(lines) == 1 + 6
    cells = [line.strip("|").split("|") for line in lines[1:]]
    assert all(len(row) == len(bench.HEAD) for row in cells)
    assert [row[-1].strip() == "" for row in cells] == [False] * 3 + [True] * 3  # no base


@pytest.mark.parametrize("system", ["cpp", "grouped", "stock"])
def test_no_speed_beside_a_wrong_result(
    system: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = getattr(bench, system)

    def wrong(buffers: bench.Buffers) -> bench.Call:
        last = buffers.load == bench.Workload("embedding", "fp32", 8, 2, 3)
        return (lambda y, copy: y.add_(1.0)) if last else right(buffers)

    monkeypatch.setattr(bench, "cpu_cache", lambda: 1000)
    monkeypatch.setattr(bench.Machine, "measure", lambda dtypes: bench.Machine(1e9, {"fp32": 1e9}))
    monkeypatch.setattr(bench, system, wrong)
    assert bench.main(SMALL) == 1
    printed = capsys.readouterr().out
    name = {"grouped": bench.TORCH}.get(system, system)
    assert printed.count(f"wrong result of {name}") == 1
    assert "No speeds" in printed and "| o |" not in printed and "GB/s" not in printed


def test_the_share_of_the_machine() -> None:
    load = bench.Workload("qkv", "bf16", 16, 4, 8)
    weights = 16 * (3 * 576 + 960)
    assert load.products == 8 * weights
    assert load.bytes_moved == 2 * (4 * weights + 8 * (576 + 2 * 960))
    assert bench.Workload("o", "fp32", 8, 4, 1).bytes_moved == 4 * (8 * 1152 + 576 * 3)
    machine = bench.Machine(bandwidth=load.bytes_moved / 2.0, rates={"bf16": load.products / 1.0})
    assert machine.share(load, 4.0) == pytest.approx(0.5)  # memory takes 2 s of the 4


def test_ratios_are_taken_within_rounds() -> None:
    load = bench.Workload("o", "bf16", 16, 1, 8)
    times: dict[str, list[float]] = {"cpp": [1.0, 2.0], "torch": [2.0, 4.0], "stock": [10.0, 20.0],
                                     "base": [4.0, 8.0]}  # fmt: skip
    cells = bench.row(load, times, bench.Machine(1e9, {"bf16": 1e9}))
    assert cells[-3:] == ["10.0", "2.0", "0.25 (0.25-0.25)"]


def test_weights_exceed_the_cache() -> None:
    load: Any = bench.Workload("qkv", "bf16", 16, 1, 8)
    per_copy = 2 * 16 * (3 * 576 + 960)
    assert bench.copies_for(load, 2**20) * per_copy > 2 * 2**20
    assert torch.tensor(bench.Buffers(load, 2).a[0][0].shape).tolist() == [1, 1, 16, 576]
