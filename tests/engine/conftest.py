# SPDX-License-Identifier: Apache-2.0
"""Real engines on the tiny model, in this process: an engine starts in seconds."""

import atexit
import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine core runs in the test's process, so that its scheduler can be looked at."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    allow_async_scheduling(monkeypatch)


def allow_async_scheduling(patch: pytest.MonkeyPatch) -> None:
    """vLLM switches asynchronous scheduling off on the CPU, where it is not needed; its runner and
    engine core can do it there all the same, with two steps under way.
    """
    from vllm.platforms.cpu import CpuPlatform

    from vllm_cold.cpu import cpu_platform
    from vllm_cold.vllm import patching

    patching.install(cpu_platform.places())  # now, or it would be undone together with the patch
    original = CpuPlatform.check_and_update_config

    @functools.wraps(original.__func__)  # the plugin looks at vLLM's
    def keep(cls: type, vllm_config: Any) -> None:
        wanted = vllm_config.scheduler_config.async_scheduling
        original(vllm_config)
        vllm_config.scheduler_config.async_scheduling = wanted

    patch.setattr(CpuPlatform, "check_and_update_config", classmethod(keep))


@functools.cache
def leave_imports_alone() -> None:
    """From now on garbage collections in this process leave out what engines import: vLLM collects
    the whole heap several times for each engine, which takes as long as a tiny one's start.
    """
    import vllm.entrypoints.openai.api_server
    import vllm.model_executor.models.llama
    import vllm.v1.worker.cpu_worker  # noqa: F401

    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # or nanobind tells of leaks
    # vLLM would freeze its engine, too, and let all go again when that ends.
    gc.freeze = gc.unfreeze = lambda: None


@pytest.fixture(scope="session")
def speculation(
    tiny: Path, runner: str, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any] | None:
    """What engines of this run speculate with: see ``--drafter``."""
    from tests.engine import drafters

    folder = tmp_path_factory.mktemp("drafter")
    match pytestconfig.getoption("drafter"):
        case "ngram":
            return drafters.ngram(device=runner == "v2")
        case "draft_model":
            return drafters.draft_model(tiny / "model", folder)
        case "eagle":
            return drafters.eagle(tiny / "model", folder)
    return None


@contextmanager
def making(tiny: Path, runner: str, speculation: dict[str, Any] | None) -> Iterator[Make]:
    """A function that starts engines, which end with the context."""
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    from vllm_cold.vllm.frontend.config import model_runner

    leave_imports_alone()
    made: list[Any] = []

    def make(**kwargs: Any) -> Any:
        options: dict[str, Any] = {
            "model": str(tiny / "model"),
            "dtype": "float32",
            "enable_lora": True,
            "max_lora_rank": 8,
            "max_model_len": 256,
            "max_num_seqs": 32,
            "enforce_eager": True,
            "disable_log_stats": True,
            "async_scheduling": False,
            "gpu_memory_utilization": 0.2,  # others may use some memory
            "speculative_config": speculation,
        }
        options |= kwargs
        if options["speculative_config"] and "max_num_batched_tokens" in options:
            # vLLM wants room for the drafts of all, and CoLD for a request that comes.
            each = 1 + options["speculative_config"]["num_speculative_tokens"]
            room = options["max_num_batched_tokens"] // each
            options["max_num_seqs"] = max(2, min(options["max_num_seqs"], room))
        made.append(LLM(**options))
        config = made[-1].llm_engine.vllm_config
        assert model_runner(config).lower() == runner
        client = made[-1].llm_engine.engine_core
        if hasattr(client, "engine_core"):  # not in a process of its own
            queue = client.engine_core.batch_queue
            stages = options.get("pipeline_parallel_size", 1)
            assert (queue is not None) == (options["async_scheduling"] or stages > 1)
        return made[-1]

    yield make
    while made:
        made.pop().llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()  # and collects garbage


@pytest.fixture
def make_llm(tiny: Path, runner: str, speculation: dict[str, Any] | None) -> Iterator[Make]:
    """``make_llm(**engine_args) -> LLM``; the engine ends with the test."""
    with making(tiny, runner, speculation) as make:
        yield make


@pytest.fixture(scope="module")
def shared_llm(tiny: Path, runner: str, speculation: dict[str, Any] | None) -> Iterator[Make]:
    """``shared_llm(**engine_args) -> LLM``: the module's engine with these arguments. It goes on
    until other arguments are asked for, or a test has left requests in it. Behind a test with
    ``make_llm`` it cannot be used any more: that ends what all engines of a process share.
    """
    with pytest.MonkeyPatch.context() as patch, ExitStack() as engine:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        allow_async_scheduling(patch)
        now: dict[str, Any] = {}

        def get(**kwargs: Any) -> Any:
            if not now or now["arguments"] != kwargs or scheduler(now["llm"]).requests:
                now.clear()
                engine.close()
                make = engine.enter_context(making(tiny, runner, speculation))
                now.update(arguments=kwargs, llm=make(**kwargs))
            return now["llm"]

        yield get
        now.clear()


def lora(tiny: Path, name: str) -> Any:
    """The LoRARequest of one of the tiny adapters."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(name, ("one", "two", "zero").index(name) + 1, str(tiny / name))


def scheduler(llm: Any) -> Any:
    """The scheduler object of an in-process engine."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def free_blocks(llm: Any) -> int:
    """Free KV cache blocks."""
    return int(scheduler(llm).kv_cache_manager.block_pool.get_num_free_blocks())
