# SPDX-License-Identifier: Apache-2.0
"""The scoring benchmark checks before it measures, and divides by the right numbers."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

from benchmarks import bench_scoring as bench
from vllm_cold.ops import registry

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
SMALL = ["--groups", "2", "--streams", "2", "3", "--vocab", "1500", "--rounds", "2", "--no-compile",
         "--device", "cpu"]  # fmt: skip


def test_no_speed_beside_a_wrong_result(capsys: pytest.CaptureFixture[str]) -> None:
    right = registry.load("torch")
    for form in bench.FORMS:
        load = bench.Workload(form, "fp32", 2, 500)
        case = load.case()
        assert bench.check(load, case, right, CPU) == ""
        # Every form must see a token that is wrong, and a backend that cannot run.
        for fault in ({"side_effect": ValueError("no")}, {"return_value": None}):
            broken = replace(right, scores=mock.Mock(**fault))
            assert bench.check(load, case, broken, CPU) != ""

    def scores(logits: Any, groups: Any, out: Any, statistics: Any) -> None:
        if out is not None:  # wrong in the last form alone
            right.scores(logits, groups, out, statistics)

    with mock.patch.object(registry, "load", return_value=replace(right, scores=scores)):
        assert bench.main(SMALL) == 1
    printed = capsys.readouterr().out
    assert "form='inplace'" in printed and "form='dense'" not in printed
    assert "torch eager: " in printed and "No speeds" in printed and "GB/s" not in printed


def test_an_amateur_that_cannot_be_sampled_from_is_wrong() -> None:
    right = registry.load("torch")
    load = bench.Workload("inplace", "fp32", 2, 500, streams=3)
    case = load.case()

    def scores(logits: Any, groups: Any, *rest: Any) -> None:
        right.scores(logits, groups, *rest)
        logits[groups.rows[0, 2], 7] = torch.inf

    assert "cannot be sampled" in bench.check(load, case, replace(right, scores=scores), CPU)


def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.object(bench, "last_cache", return_value=1000):
        assert bench.main(SMALL) == 0
    lines = capsys.readouterr().out.splitlines()
    # Three systems in three workloads for each number of streams: dense in both dtypes, in place
    # in one.
    assert sum(line.startswith(tuple(f"| {form}" for form in bench.FORMS)) for line in lines) == 18
    assert bench.main([*SMALL, "--check-only"]) == 0
    assert "12 results, all right" in capsys.readouterr().out


def test_the_table_compares_within_rounds() -> None:
    load = bench.Workload("dense", "fp32", 1, 1000)
    systems = ((bench.COPY, [1e-6, 4e-6]), ("cpu", [2e-6, 8e-6]), (bench.EAGER, [8e-6, 8e-6]))
    results = [bench.Result(load, name, times) for name, times in systems]
    copy, kernel, eager = bench.rows(results)
    assert load.bytes_moved == 12_000
    assert replace(load, streams=4).bytes_moved == 20_000
    assert copy[6:9] == ["2.5 (1.6-3.4)", "4.8", "-"]  # us, GB/s
    assert kernel[8] == "0.50 (0.50-0.50)" and kernel[9].startswith("2.50 ")
    assert eager[8].startswith("0.31") and eager[9] == "-"


def test_it_measures_what_it_says() -> None:
    class Event:
        def __init__(self, enable_timing: bool) -> None: ...

        def record(self) -> None: ...

        def elapsed_time(self, other: Event) -> float:
            return 8.0

    load = bench.Workload("inplace", "fp32", 2, 500)
    results = {name: bench.Result(load, name) for name in (bench.COPY, "torch")}
    options: Any = mock.Mock(rounds=3, eager=True)
    with (
        mock.patch.multiple(
            torch.cuda, Event=Event, Stream=mock.MagicMock(), stream=mock.MagicMock(),
            synchronize=mock.Mock(),
        ),
        mock.patch.object(bench, "last_cache", return_value=2 * load.bytes_moved),
        mock.patch.object(bench, "on_cpu", lambda run: bench.on_gpu(run, True)),
    ):  # fmt: skip
        backends = {"torch": registry.load("torch")}
        bench.measure(load, load.case(), backends, results, CPU, options, random.Random(0))
    # Eight copies exceed the cache four times; 8 ms for all are 1 ms for one.
    assert all(r.seconds == [1e-3] * 3 for r in results.values())
