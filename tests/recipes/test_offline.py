# SPDX-License-Identifier: Apache-2.0
"""The recipes without a server: the page's own blocks, in real processes."""

import json
from pathlib import Path

import pytest

from tests.docs.blocks import block
from tests.recipes.page import accuracy, run

pytestmark = [pytest.mark.engine, pytest.mark.full]

PAGE = "docs/benchmarking.md"


def test_lm_eval_offline(checkout: Path, variables: dict[str, str]) -> None:
    """The engine's default is vllm-cold: it solves the problems that greedy decoding cannot. A
    second task, in the same run, opts out.
    """
    task = (checkout / "examples" / "lm_eval" / "sorting.yaml").read_text()
    assert "task: sorting" in task and "generation_kwargs:" in task
    task = task.replace("task: sorting", "task: plain")
    task = task.replace("generation_kwargs:", "generation_kwargs:\n  extra_args: {cold: 0}")
    (checkout / "examples" / "lm_eval" / "plain.yaml").write_text(task)
    command = block(PAGE, "lm-eval-offline").rstrip()
    assert "--tasks sorting" in command
    run(
        command.replace("--tasks sorting", "--tasks sorting,plain")
        + " --model_args dtype=float32,enforce_eager=True",
        checkout,
        variables,
    )
    results = checkout / "results" / "offline"
    assert accuracy(results, "sorting") == 1.0
    assert accuracy(results, "plain") == 0.0


def test_bench_throughput(checkout: Path, variables: dict[str, str]) -> None:
    script = block(PAGE, "bench-throughput").rstrip() + " --dtype float32 --enforce-eager"
    run(script, checkout, variables)
    result = json.loads((checkout / "results" / "throughput.json").read_text())
    assert result["num_requests"] == 32
    assert result["total_num_tokens"] == 32 * (128 + 64)
    # Its requests do use vllm-cold: a cache that holds a request once, not twice, is too small.
    small = "--max-model-len 256 --block-size 32 --num-gpu-blocks-override 10"
    with pytest.raises(AssertionError, match="two streams of a contrastive request need"):
        run(f"{script} {small}", checkout, variables)
