# SPDX-License-Identifier: Apache-2.0
"""Has V2's runner clear the blocks that the scheduler lists, on CPU; V1's does so anyway."""

from typing import Any

from vllm_cold.compat.engine import can_clear
from vllm_cold.compat.patching import Original


def wrap_initialize_kv_cache(original: Original, self: Any, *args: Any, **kwargs: Any) -> None:
    """Wrap ``CPUModelRunner.initialize_kv_cache``."""
    original(self, *args, **kwargs)
    if can_clear(v2=True):
        self._init_kv_zero_meta()
