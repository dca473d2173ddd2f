# SPDX-License-Identifier: Apache-2.0
"""Real engines on the tiny model, in this process."""

import atexit
import functools
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Any]
BLOCK = 32  # vLLM's CPU attention takes multiples of 32 only


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine core runs in the test's process, so that its scheduler can be looked at."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    # Or it wants a NUMA node for each of several processes, and binds all engines to one.
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    allow_async_scheduling(monkeypatch)


def allow_async_scheduling(patch: pytest.MonkeyPatch) -> None:
    """vLLM switches asynchronous scheduling off on the CPU, where it is not needed; its runner and
    engine core can do it there all the same, with two steps under way.
    """
    from vllm.platforms.cpu import CpuPlatform

    from vllm_cold.compat import patching, places

    # Now, or it would be undone together with the patch.
    patching.install(places.rows(places.CPU))
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


class Pool:
    """The engines of this process by their arguments; the last few that were used are alive.

    An engine takes seconds to start, and most tests want one of a few: shared, it is started once
    as long as they come one after the other.
    """

    MOST = 3

    def __init__(self, options: dict[str, Any], runner: str) -> None:
        self.options, self._runner = options, runner
        self._alive: dict[str, Any] = {}
        self._world: Any = None

    def get(self, **kwargs: Any) -> Any:
        """A shared engine with these arguments: it is idle, and its prefix cache is empty."""
        self._forget_the_dead()
        key = repr(sorted((self.options | kwargs).items()))
        llm = self._alive.pop(key, None)
        if llm is not None and not is_fresh(llm):  # a test failed in the middle
            end(llm)
            llm = None
        if llm is None:
            while len(self._alive) >= self.MOST:
                end(self._alive.pop(next(iter(self._alive))))
            llm = self.start(**kwargs)
        self._alive[key] = llm
        return llm

    def start(self, **kwargs: Any) -> Any:
        """A new engine, which the caller ends."""
        from vllm import LLM, envs
        from vllm.distributed import parallel_state

        from tests.engine import judge
        from vllm_cold.compat.runner import runner_of

        leave_imports_alone()
        self._forget_the_dead()  # before an engine of other processes, which ends nothing here
        options = self.options | kwargs
        more = options.get("additional_config") or {}
        cold = more.get("cold", False)
        if options["enable_lora"] or cold:  # more than a quarter of few sequences
            cold = {"enabled": cold} if isinstance(cold, bool) else cold
            cold = {"max_amateurs": 32, "rules": [judge.PATH], **cold}
            options["additional_config"] = {**more, "cold": cold}
        if options["speculative_config"] and "max_num_batched_tokens" in options:
            # vLLM wants room for the drafts of all, and contrastive decoding for a request that
            # comes.
            each = 1 + options["speculative_config"]["num_speculative_tokens"]
            room = options["max_num_batched_tokens"] // each
            options["max_num_seqs"] = max(2, min(options["max_num_seqs"], room))
        llm = LLM(**options)
        envs.disable_envs_cache()  # what tests set after this start is seen
        self._world = parallel_state._WORLD
        assert runner_of(llm.llm_engine.vllm_config).value == self._runner.upper()
        client = llm.llm_engine.engine_core
        if hasattr(client, "engine_core"):  # not in a process of its own
            queue = client.engine_core.batch_queue
            stages = options.get("pipeline_parallel_size", 1)
            assert (queue is not None) == (options["async_scheduling"] or stages > 1)
        return llm

    def _forget_the_dead(self) -> None:
        """Another test has ended what all engines of a process share."""
        from vllm.distributed import parallel_state

        if self._world is not parallel_state._WORLD:
            self.close()

    def close(self) -> None:
        while self._alive:
            end(self._alive.popitem()[1])


def is_fresh(llm: Any) -> bool:
    """Whether nothing runs in the engine; its prefix cache is emptied."""
    return not scheduler(llm).requests and scheduler(llm).reset_prefix_cache()


def end(llm: Any) -> None:
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()


@pytest.fixture(scope="session")
def pool(tiny: Path, runner: str) -> Iterator[Pool]:
    options: dict[str, Any] = {
        "model": str(tiny / "model"),
        "dtype": "float32",
        "enable_lora": True,
        "max_lora_rank": 8,
        "max_loras": 2,
        "max_model_len": 256,
        "max_num_seqs": 32,
        "block_size": BLOCK,
        "enforce_eager": True,
        "disable_log_stats": True,
        "async_scheduling": False,
        "gpu_memory_utilization": 0.2,  # others may use some memory
        "speculative_config": None,
    }
    made = Pool(options, runner)
    yield made
    made.close()
    if "vllm" in sys.modules:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


@pytest.fixture
def shared_llm(pool: Pool) -> Make:
    """``shared_llm(**engine_args) -> LLM``: leave it as it was."""
    return pool.get


@pytest.fixture
def make_llm(pool: Pool) -> Iterator[Make]:
    """``make_llm(**engine_args) -> LLM``: a new engine, which ends with the test."""
    made: list[Any] = []

    def make(**kwargs: Any) -> Any:
        made.append(pool.start(**kwargs))
        return made[-1]

    yield make
    while made:
        end(made.pop())


ADAPTERS = ("one", "two", "zero", "nan", "inf", "early")


def lora(folder: Path, name: str | None) -> Any:
    """The LoRARequest of one of the adapters in a folder; None for the base model."""
    from vllm.lora.request import LoRARequest

    return name and LoRARequest(name, ADAPTERS.index(name) + 1, str(folder / name))


def scheduler(llm: Any) -> Any:
    """The scheduler object of an in-process engine."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def free_blocks(llm: Any) -> int:
    """Free KV cache blocks."""
    return int(scheduler(llm).kv_cache_manager.block_pool.get_num_free_blocks())


@pytest.fixture(scope="module")
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one for each family that this file's tests of this run want; see
    ``families``, or the module that the file calls its ``REFERENCE``. Of long prompts, too, if the
    file says ``LONG_PROMPTS``.
    """
    specs = [
        getattr(item, "callspec", None)
        for item in request.session.items
        if item.path == request.path and item.get_closest_marker("skip") is None
    ]
    wanted = {spec.params["family"] for spec in specs if spec and "family" in spec.params}
    module = getattr(request.module, "REFERENCE", "tests.engine.families")
    options = ["--long"] * getattr(request.module, "LONG_PROMPTS", False)
    return make_families(tmp_path_factory.mktemp("families"), module, *sorted(wanted), *options)


def make_families(folder: Path, module: str, *arguments: str) -> Path:
    """Let a module make families' models and references, in a process without vLLM."""
    command = [sys.executable, "-m", module, str(folder), *arguments]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder
