# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``Sampler.forward`` (V1 runner) and ``Sampler.__call__`` (V2 runner).

Why: the scores stand in the expert's row alone, from which the sampler draws as from any other.
Each amateur must get the same token. So it is told: its entry of what the sampler returns is
overwritten, whatever was drawn there, by whatever random numbers. That is the first point at which
the tokens are known, and they are still on the device.
Since: 0.23 to 0.33 (V2: 0.31). Can go: when logits processors are asked after sampling too.
"""

import importlib
from collections.abc import Callable
from typing import Any

from vllm_cold.vllm.patching import Place

_V1, _V2 = "vllm.v1.sample.sampler", "vllm.v1.worker.gpu.sample.sampler"


def _make_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, logits: Any, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, logits, sampling_metadata, *args, **kwargs)
        for processor in sampling_metadata.logitsprocs.non_argmax_invariant:
            if (tell := getattr(processor, "tell_followers", None)) is not None:
                tell(output.sampled_token_ids)
        return output

    return forward


def v1() -> tuple[Place, ...]:
    """For the V1 runner: the sampler, and those built on it that bring a method of their own."""
    sampler = getattr(importlib.import_module(_V1), "Sampler", object)
    subclasses = sampler.__subclasses__() if sampler is not object else ()
    built_on_it = [kind for kind in subclasses if "forward" in vars(kind)]
    names = [f"{kind.__module__}:{kind.__qualname__}" for kind in built_on_it]
    return tuple(
        Place(f"{name}.forward", _make_forward, ("logits", "sampling_metadata"))
        for name in (f"{_V1}:Sampler", *names)
    )


def _make_call(original: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(self: Any, logits: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, logits, input_batch, *args, **kwargs)
        for processor in self.logits_processors:
            if (tell := getattr(processor, "tell_followers", None)) is not None:
                tell(output.sampled_token_ids, input_batch.idx_mapping_np)
        return output

    return __call__


def v2() -> tuple[Place, ...]:
    """For the V2 runner."""
    return (Place(f"{_V2}:Sampler.__call__", _make_call, ("logits", "input_batch")),)
