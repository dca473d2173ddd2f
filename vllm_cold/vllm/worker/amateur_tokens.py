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

from vllm_cold.vllm.patching import PatchPoint

_V1, _V2 = "vllm.v1.sample.sampler", "vllm.v1.worker.gpu.sample.sampler"


def _make_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, logits: Any, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, logits, sampling_metadata, *args, **kwargs)
        for processor in sampling_metadata.logitsprocs.non_argmax_invariant:
            if (tell := getattr(processor, "tell_amateurs", None)) is not None:
                tell(output.sampled_token_ids)
        return output

    return forward


def _forward_of(sampler: str) -> PatchPoint:
    return PatchPoint(f"{sampler}.forward", _make_forward, ("logits", "sampling_metadata"))


V1 = (_forward_of(f"{_V1}:Sampler"),)


def wrap_built_on_v1() -> None:
    """Wrap what platforms build on V1's sampler with a method of its own.

    Where that cannot be done, and it does not call V1's, the scheduler ends CoLD requests as out of
    step.
    """
    kinds: list[Any] = [importlib.import_module(_V1).Sampler]
    for kind in kinds:
        kinds += kind.__subclasses__()
    for kind in kinds[1:]:
        place = _forward_of(f"{kind.__module__}:{kind.__qualname__}")
        if "forward" in vars(kind) and place.problem() is None:
            place.wrap()


def _make_call(original: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(self: Any, logits: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, logits, input_batch, *args, **kwargs)
        for processor in self.logits_processors:
            if (tell := getattr(processor, "tell_amateurs", None)) is not None:
                tell(output.sampled_token_ids, input_batch.idx_mapping_np)
        return output

    return __call__


V2 = (PatchPoint(f"{_V2}:Sampler.__call__", _make_call, ("logits", "input_batch")),)
