# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``CPUModelRunner.initialize_kv_cache`` of the V2 runner.

Why: blocks that hold NaN are cleared before somebody else gets them (``scheduler.kv_blocks``),
by the list that vLLM's scheduler has for its own clearing. The V1 runner follows it at any time.
V2 has what follows it only where the KV cache wants its new blocks cleared, and stops with an
assertion elsewhere. So it gets one in every engine on CPU.
Since: 0.31, which is where V2 takes logits processors. Can go: when V2 makes one for every cache,
or when vLLM's attention on CPU does not read behind a sequence.
"""

from collections.abc import Callable
from typing import Any

from vllm_cold.vllm.patching import PatchPoint


def can_clear(v2: bool) -> bool:
    """Whether workers clear the blocks that the scheduler lists; ``v2``: of the V2 runner."""
    from vllm.platforms import current_platform

    return current_platform.is_cpu() and not (
        v2 and any(p.problem() for p in (PATCH_POINT, _MAKES))
    )


def _make_initialize(original: Callable[..., None]) -> Callable[..., None]:
    def initialize_kv_cache(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if can_clear(v2=True):
            self._init_kv_zero_meta()

    return initialize_kv_cache


_RUNNER = "vllm.v1.worker.cpu.model_runner:CPUModelRunner."
PATCH_POINT = PatchPoint(_RUNNER + "initialize_kv_cache", _make_initialize)
_MAKES = PatchPoint(_RUNNER + "_init_kv_zero_meta", lambda original: original)  # only looked at
