# SPDX-License-Identifier: Apache-2.0
"""pytest plugin of ``make versions``: the vLLM that is imported is the one that was asked for."""

import contextlib
import importlib
import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any

import pytest

WANTED = "VLLM_COLD_TESTED_VLLM"


def pytest_sessionstart() -> None:
    """After conftest.py, which sets what vLLM reads when it is imported."""
    import vllm

    from vllm_cold.compat.versions import vllm_version

    wanted = os.environ[WANTED]
    file = Path(vllm.__file__)
    versions = {vllm.__version__, vllm_version(), importlib.metadata.version("vllm")}
    if not file.is_relative_to(sys.prefix) or {v.split("+")[0] for v in versions} != {wanted}:
        pytest.exit(f"vLLM {wanted} was wanted; {file} is {sorted(versions)}", returncode=3)
    print(f"vLLM {', '.join(sorted(versions))}: {file}")
    if wanted.startswith("0.23."):
        _prepare_0_23()


def _prepare_0_23() -> None:
    """Let engines of 0.23 run in this process, with asynchronous scheduling (see
    ``allow_async_scheduling``): its CPU worker comes with what they need, too late or not at all.
    The package leaves it so: 0.23 is supported with vllm-ascend, whose workers do without.
    """
    import torch

    # Replaces a function that pins memory. LoRA's modules must not have it before; an engine in
    # this process imports them first when vLLM's cache is empty.
    importlib.import_module("vllm.v1.worker.cpu.shm")
    # The runner has another stand-in for CUDA's streams, without `wait_stream`.
    runner = importlib.import_module("vllm.v1.worker.cpu_model_runner")
    runner._torch_cuda_wrapper = contextlib.nullcontext
    # The sampler ignores all seeds of a batch in which a row has none, so what a request gets would
    # depend on its batch.
    sampler = importlib.import_module("vllm.v1.sample.ops.topk_topp_sampler").TopKTopPSampler
    original = sampler.forward_cpu

    def forward_cpu(self: Any, logits: Any, generators: dict[int, Any], *args: Any) -> Any:
        if generators:
            rows = range(len(logits))
            generators = {row: generators.get(row, torch.default_generator) for row in rows}
        return original(self, logits, generators, *args)

    sampler.forward_cpu = forward_cpu
