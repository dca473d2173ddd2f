# SPDX-License-Identifier: Apache-2.0
"""What the page states about others' code and its own files."""

import inspect

import pytest

from examples.lm_eval import make_sorting

pytestmark = pytest.mark.unit


def test_the_problems_are_those_of_the_seeds() -> None:
    assert make_sorting.FILE.read_text() == make_sorting.lines()


def test_bench_latency_has_no_adapter() -> None:
    from vllm.benchmarks import latency

    assert "lora_request" not in inspect.getsource(latency)
