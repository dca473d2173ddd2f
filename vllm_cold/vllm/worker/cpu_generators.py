# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``CPUModelRunner.sample_tokens`` (V1 runner on CPU), and up to vLLM 0.28 its
``TopKTopPSampler.forward``.

Why: after sampling, the V1 runner rewinds the random generator of each seeded request that is
still prefilling with ``Generator.set_offset``, which CPU generators do not have ("CPU Generator
does not use offset"): a seeded request whose prompt is split over steps kills the engine, CoLD or
not. Here such rows keep their generator out of the step: their sample is thrown away anyway.
Since: vLLM 0.23 to 0.33. Can go: when the CPU runner does not rewind by offset.

Up to 0.28 the sampler on CPU ignores all seeds of a batch in which a row has none. There rows
without a seed get torch's own generator. The runner bound the method when it was made, so it is
replaced in the object and not through ``Place``.
Can go: with the support of 0.28.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from vllm_cold.vllm.patching import Place

_IGNORED = "if len(generators) != logits.shape[0]"


def _make(original: Callable[..., Any]) -> Callable[..., Any]:
    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        if not generators:
            return original(self, *args, **kwargs)
        if (sampler := getattr(self.sampler, "topk_topp_sampler", None)) is not None:
            _keep_seeds(sampler)
        discarded = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0]
        set_aside = {row: generators.pop(row) for row in discarded.tolist() if row in generators}
        try:
            return original(self, *args, **kwargs)
        finally:
            generators.update(set_aside)

    return sample_tokens


def _keep_seeds(sampler: Any) -> None:
    if hasattr(sampler, "_vllm_cold_seen"):
        return
    sampler._vllm_cold_seen = True
    on_cpu = getattr(type(sampler), "forward_cpu", None)
    if on_cpu is None or _IGNORED not in inspect.getsource(on_cpu):
        return
    forward = sampler.forward

    def seeded(logits: torch.Tensor, generators: dict[int, Any], *args: Any) -> Any:
        if generators:
            rows = range(logits.shape[0])
            generators = {row: generators.get(row, torch.default_generator) for row in rows}
        return forward(logits, generators, *args)

    sampler.forward = seeded


PLACES = (Place("vllm.v1.worker.cpu_model_runner:CPUModelRunner.sample_tokens", _make),)
