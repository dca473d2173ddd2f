# SPDX-License-Identifier: Apache-2.0
"""The scoring benchmark checks before it measures."""

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from benchmarks import bench_scoring as bench
from vllm_cold.ops import backend_registry

pytestmark = pytest.mark.unit

SMALL = ["--groups", "2", "--streams", "2", "3", "--vocab", "1500", "--rounds", "2", "--no-compile",
         "--device", "cpu"]  # fmt: skip


def test_no_speed_beside_a_wrong_result(capsys: pytest.CaptureFixture[str]) -> None:
    right = backend_registry.load("torch")

    def scores(logits: Any, groups: Any, out: Any, statistics: Any) -> None:
        if out is not None:  # wrong in the last form alone
            right.scores(logits, groups, out, statistics)

    with mock.patch.object(backend_registry, "load", return_value=replace(right, scores=scores)):
        assert bench.main(SMALL) == 1
    printed = capsys.readouterr().out
    assert "form='inplace'" in printed and "form='dense'" not in printed
    assert "torch eager: " in printed and "No speeds" in printed and "GB/s" not in printed
