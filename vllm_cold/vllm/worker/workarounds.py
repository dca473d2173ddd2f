# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: what has a bug in engines with LoRA on CPU, with CoLD or without it.

Wrapped for good in a process that makes such an engine; CoLD does not need it.

Why:

- ``CPUModelRunner.sample_tokens`` (V1 runner; 0.23 to 0.33) rewinds the random generator of each
  seeded request that is still prefilling with ``Generator.set_offset``, which CPU generators do not
  have ("CPU Generator does not use offset"): a seeded request whose prompt is split over steps
  kills the engine. Here such rows keep their generator out of the step: their sample is thrown away
  anyway.
- ``rejection_sampler.expand_batch_to_tokens`` (V1; 0.23 to 0.33) gives each draft's row the
  temperature, top-k and top-p of its request. The kernel behind it writes into an int64 copy of the
  output, and what comes back is memory that nobody wrote. As soon as one request of a batch samples
  at random, the tokens of all are wrong, greedy ones too. Here torch operations do it.
- ``_get_lora_device`` (0.23 to 0.32), by which a linear LoRA layer finds its device, takes that of
  the base layer's weight. Where weights and inputs are int8, oneDNN's kernel keeps the weight to
  itself and leaves None in its place, so that no engine with LoRA starts on a CPU without AMX
  ("'NoneType' object has no attribute 'device'").
- ``SpecDecodeBaseProposer.propose`` and ``dummy_run`` (V1), and
  ``TargetDependentARSpeculator.propose`` (V2; both 0.32): drafters such as EAGLE and MTP compute
  with the target's embedding, which is a LoRA layer, for rows of their own. It would take the
  adapters of the rows of the last step, of which there are another number: so our LoRA raises.
  Drafts are made without adapters; right or wrong, they are verified.
- ``GPUModelRunner._preprocess`` (V1; 0.23 to 0.33) embeds, with ``enable_prompt_embeds``, the rows
  of a step that are tokens and leaves out those that bring their embeddings along. Of the rows that
  are left the LoRA layer takes the first adapters of all: another request's, and our LoRA raises.
  Here all rows are embedded, and those that were asked for are taken; with CoLD also elsewhere
  than on CPU (``processor_v1``).
- ``LoraState.make_lora_inputs`` and ``GPUModelRunner.prepare_inputs`` (V2; 0.23 to 0.33) tell the
  LoRA layers one adapter for each request, but with speculative decoding a request has a row of
  logits for each draft and one more. LoRA of the output layer then takes other requests' adapters;
  our wrapper, which sees that the rows do not add up, raises. Here each request's adapter is
  repeated as often as it has rows, as V1 does it.

Can go: each when its test in ``tests/contracts/test_cpu.py`` or ``tests/unit/test_workarounds.py``
says so.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from vllm.platforms import current_platform

from vllm_cold.vllm import patching
from vllm_cold.vllm.patching import PatchPoint

# Of the engines of this process, what computes LoRA: has ``without_adapters()``.
wrappers: WeakSet[Any] = WeakSet()
_ENDS = "_vllm_cold_ends"


def _make_sample(original: Callable[..., Any]) -> Callable[..., Any]:
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


def _make_expand(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def expand_batch_to_tokens(
        x: Tensor,
        cu_num_tokens: Tensor,
        num_tokens: int,
        replace_from: int = 0,
        replace_to: int = 0,
    ) -> Tensor:
        counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
        expanded = x.repeat_interleave(counts, output_size=num_tokens)
        return expanded.masked_fill_(expanded == replace_from, replace_to)

    return expand_batch_to_tokens


def _make_device(original: Callable[..., torch.device]) -> Callable[..., torch.device]:
    def _get_lora_device(base_layer: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.device:
        if getattr(base_layer, "weight", base_layer) is None:
            return torch.device("cpu")
        return original(base_layer, *args, **kwargs)

    return _get_lora_device


def _make_drafter(original: Callable[..., Any]) -> Callable[..., Any]:
    def without_adapters(self: Any, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for wrapper in tuple(wrappers):  # engines of a process take turns
                stack.enter_context(wrapper.without_adapters())
            return original(self, *args, **kwargs)

    return without_adapters


def _make_preprocess(original: Callable[..., Any]) -> Callable[..., Any]:
    def _preprocess(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if not (self.enable_prompt_embeds and self.lora_config) or self.supports_mm_inputs:
            return original(self, scheduler_output, *args, **kwargs)
        is_token = self.is_token_ids.np[: scheduler_output.total_num_scheduled_tokens]
        rows, embed = np.nonzero(is_token)[0], self.model.embed_input_ids

        def embed_input_ids(input_ids: Tensor) -> Tensor:
            ids = input_ids.new_zeros(len(is_token))
            ids[rows] = input_ids
            found: Tensor = embed(ids)[rows]
            return found

        self.model.embed_input_ids = embed_input_ids
        try:
            return original(self, scheduler_output, *args, **kwargs)
        finally:
            del self.model.embed_input_ids  # the class's again

    return _preprocess


def _make_prepare(original: Callable[..., Any]) -> Callable[..., Any]:
    def prepare_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = original(self, *args, **kwargs)
        if self.lora_config:
            setattr(self.lora_state, _ENDS, getattr(batch, "cu_num_logits_np", None))
        return batch

    return prepare_inputs


def _make_inputs(original: Callable[..., Any]) -> Callable[..., Any]:
    def make_lora_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        adapters, *others = original(self, *args, **kwargs)
        ends = vars(self).pop(_ENDS, None)
        if ends is not None and len(adapters) == len(ends) - 1:  # one for each request
            adapters = tuple(np.repeat(adapters, np.diff(ends)))
        return adapters, *others

    return make_lora_inputs


_DRAFTER_V1 = "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer."
_DRAFTER_V2 = (
    "vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator:TargetDependentARSpeculator."
)
EMBEDS = PatchPoint(
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._preprocess",
    _make_preprocess,
    ("scheduler_output",),
)
PATCH_POINTS = (
    PatchPoint("vllm.v1.worker.cpu_model_runner:CPUModelRunner.sample_tokens", _make_sample),
    PatchPoint(
        "vllm.v1.sample.rejection_sampler:expand_batch_to_tokens",
        _make_expand,
        ("x", "cu_num_tokens", "num_tokens", "replace_from", "replace_to"),
    ),
    PatchPoint("vllm.lora.layers.base_linear:_get_lora_device", _make_device, ("base_layer",)),
    PatchPoint(_DRAFTER_V1 + "propose", _make_drafter),
    # Beside other ranks, where a text is at its end.
    PatchPoint(_DRAFTER_V1 + "dummy_run", _make_drafter),
    PatchPoint(_DRAFTER_V2 + "propose", _make_drafter),
    EMBEDS,
    PatchPoint("vllm.v1.worker.gpu.model_runner:GPUModelRunner.prepare_inputs", _make_prepare),
    PatchPoint("vllm.v1.worker.gpu.lora_utils:LoraState.make_lora_inputs", _make_inputs),
)


def patch_points() -> tuple[PatchPoint, ...]:
    """Where they are cured on this platform."""
    return PATCH_POINTS if current_platform.is_cpu() else ()


def install() -> None:
    """Wrap what there is of them."""
    patching.install_workarounds(patch_points())
