# SPDX-License-Identifier: Apache-2.0
"""Engines of several processes give the tokens of one: tensor parallelism, a pipeline, and Ray as
executor back end. For data parallelism see ``tests/server``.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import ROOT
from tests.engine import ray_on_cpu, test_ssm
from tests.engine.conftest import free_blocks, scheduler
from tests.engine.streams import RULES, decode, num_adapters, short_groups, short_rules
from tests.naive import NaiveCold, assert_same_tokens

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TWO = {"tensor_parallel_size": 2, "kv_cache_memory_bytes": 2**26}
LONG_PROMPTS = True


@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.full)])
def test_tensor_parallel(sharded: bool, make_llm: Any, tiny: Path, naive: NaiveCold) -> None:
    """Two processes share each layer. Fully sharded adapters are computed in halves, with
    communication between them; eager, as the others are compiled.
    """
    groups = short_groups(36) + short_rules()
    assert {group.rule for group in groups} == {None, "judge", "bound", *dict(RULES)}
    llm = make_llm(
        fully_sharded_loras=sharded,
        enforce_eager=sharded,
        **TWO,
    )
    mode = llm.llm_engine.vllm_config.compilation_config.mode.name
    assert (mode == "NONE") == sharded
    assert_same_tokens(decode(llm, tiny, groups), naive.generate_many(groups))


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["align-chunks", "none-chunks"])
@pytest.mark.parametrize("family", ["granite-4-hybrid"])
def test_tensor_parallel_with_states(family: str, name: str, folders: Path, make_llm: Any) -> None:
    """Each process has half of a state. Mamba 2 layers whose groups cannot be divided have no
    adapters there.
    """
    pairs = zip(*test_ssm.cases(folders / family, name), strict=True)
    chosen = [(group, trace) for group, trace in pairs if not num_adapters(group)]
    groups, expected = (list(each) for each in zip(*chosen, strict=True))
    options = {"enable_lora": False, "additional_config": {"cold": True}, **TWO}
    llm = test_ssm.engine_of(make_llm, folders / family, name, **options)
    for _ in range(2):
        assert_same_tokens(decode(llm, folders / family, groups), expected)


@pytest.mark.full
def test_pipeline(make_llm: Any, tiny: Path, naive: NaiveCold) -> None:
    """Two stages of a layer each. Compiled, because vLLM on CPU makes the second stage's buffers
    when it warms up, and it warms up nothing else.
    """
    groups = short_groups(36)
    llm = make_llm(
        pipeline_parallel_size=2,
        enforce_eager=False,
        max_num_batched_tokens=64,
        kv_cache_memory_bytes=2**26,
    )
    before = free_blocks(llm)
    assert_same_tokens(decode(llm, tiny, groups), naive.generate_many(groups))
    assert free_blocks(llm) == before
    assert scheduler(llm).use_pp


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster in this machine, with room for two workers."""
    import ray
    from vllm.platforms.cpu import CpuPlatform

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setattr(CpuPlatform, "ray_device_key", CpuPlatform.ray_device_key)
    ray_on_cpu.declare_devices()
    ray.init(
        address="local",  # not one that runs here already
        num_cpus=2,
        num_gpus=2,
        include_dashboard=False,
        object_store_memory=2**27,
        runtime_env={
            "worker_process_setup_hook": ray_on_cpu.declare_devices,
            # Where the hook is found, and what stands in for a GPU's Triton.
            "env_vars": {
                "PYTHONPATH": os.pathsep.join(
                    filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
                )
            },
        },
    )
    yield ray
    ray.shutdown()


@pytest.mark.full
def test_ray(ray: Any, make_llm: Any, tiny: Path, naive: NaiveCold) -> None:
    """The workers are Ray actors, which load the plugin by themselves."""
    groups = short_groups(36)
    llm = make_llm(distributed_executor_backend="ray", **TWO)
    executor = llm.llm_engine.engine_core.engine_core.model_executor
    assert type(executor).__name__ == "RayExecutorV2"
    assert len(executor.ray_worker_handles) == 2
    assert_same_tokens(decode(llm, tiny, groups), naive.generate_many(groups))
