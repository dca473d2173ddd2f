# SPDX-License-Identifier: Apache-2.0
"""Two processes that share each layer give the tokens of one."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.streams import decode, short_groups
from tests.naive import NaiveCold, assert_same_tokens

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.mark.parametrize("fully_sharded_loras", [False, True])
def test_tensor_parallel(
    make_llm: Any,
    tiny: Path,
    naive: NaiveCold,
    fully_sharded_loras: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fully sharded adapters are computed in halves, with communication between them; eager, as the
    others are compiled.
    """
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # vLLM wants a NUMA node each
    groups = short_groups(36)
    llm = make_llm(
        tensor_parallel_size=2,
        fully_sharded_loras=fully_sharded_loras,
        max_loras=2,
        enforce_eager=fully_sharded_loras,
        kv_cache_memory_bytes=2**26,
    )
    mode = llm.llm_engine.vllm_config.compilation_config.mode.name
    assert (mode == "NONE") == fully_sharded_loras
    assert_same_tokens(decode(llm, tiny, groups), naive.generate_many(groups))
