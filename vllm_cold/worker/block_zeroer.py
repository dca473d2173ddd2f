# SPDX-License-Identifier: Apache-2.0
"""Has V2's runner clear the blocks that the scheduler lists, on CPU; V1's does so anyway."""

from collections.abc import Callable
from typing import Any

from vllm_cold.compat.engine import can_clear


def wrap_initialize_kv_cache(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``CPUModelRunner.initialize_kv_cache``."""

    def initialize_kv_cache(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if can_clear(v2=True):
            self._init_kv_zero_meta()

    return initialize_kv_cache
