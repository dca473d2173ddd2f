# SPDX-License-Identifier: Apache-2.0
"""Blocks are to be cleared only where somebody does it: V2 stops with an assertion elsewhere."""

from typing import Any

import pytest

from vllm_cold.compat import engine
from vllm_cold.compat.patching import bind
from vllm_cold.worker import block_zeroer

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", ["initialize_kv_cache", "_init_kv_zero_meta"])
def test_v2_without_it_clears_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker.cpu.model_runner import CPUModelRunner

    assert engine.can_clear(v2=False) and engine.can_clear(v2=True)
    for kind in CPUModelRunner.__mro__:  # another test may have wrapped it, below where it is from
        if name in vars(kind):
            monkeypatch.delattr(kind, name)
    assert not engine.can_clear(v2=True)
    assert engine.can_clear(v2=False)


def test_other_platforms_clear_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    assert not engine.can_clear(v2=False)


@pytest.mark.parametrize("profiling", [False, True])
def test_every_new_cache_gets_one(profiling: bool) -> None:
    """That of the profiling run, which is thrown away, is not kept for the next."""
    done: list[Any] = []

    class Runner:
        def initialize_kv_cache(self, config: str, is_profiling: bool) -> None:
            done.append((config, is_profiling))

        def _init_kv_zero_meta(self) -> None:
            done.append("zeroer")

    wrapped = bind(block_zeroer.wrap_initialize_kv_cache, Runner.initialize_kv_cache)
    wrapped(Runner(), "config", is_profiling=profiling)
    assert done == [("config", profiling), "zeroer"]
