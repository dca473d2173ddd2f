# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``CPUModelRunner.sample_tokens`` (V1 runner on CPU).

Why: after sampling, the V1 runner rewinds the random generator of each seeded request that is
still prefilling with ``Generator.set_offset``, which CPU generators do not have ("CPU Generator
does not use offset"): a seeded request whose prompt is split over steps kills the engine, CoLD or
not. Here such rows keep their generator out of the step: their sample is thrown away anyway.
Since: vLLM 0.23. Can go: when the CPU runner does not rewind by offset.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from vllm_cold.vllm.patching import PatchPoint


def _make(original: Callable[..., Any]) -> Callable[..., Any]:
    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        if not generators:
            return original(self, *args, **kwargs)
        discarded = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0]
        set_aside = {row: generators.pop(row) for row in discarded.tolist() if row in generators}
        try:
            return original(self, *args, **kwargs)
        finally:
            generators.update(set_aside)

    return sample_tokens


PATCH_POINTS = (PatchPoint("vllm.v1.worker.cpu_model_runner:CPUModelRunner.sample_tokens", _make),)
