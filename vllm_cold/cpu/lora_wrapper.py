# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: the class that runs LoRA on CPU, and ``BaseLayerWithLoRA.set_mapping``, where a
LoRA layer gets it.

Why: see ``lora_fallback``; this one calls the C++ kernels (``lora_ops``). All linear
layers would share one wrapper and pass it their weights at each call. Here each layer gets an
object of its own that knows them: a call then has three tensors instead of up to nine, and a
compiled model looks up one tensor a layer instead of two a slice. Everything that a step changes
is in the plan, which the kernels read: a compiled model has no other way to see it.
Since: 0.23 to 0.33. Can go: together with ``lora_fallback``.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from vllm.lora.layers import (
    BaseLayerWithLoRA,
    LogitsProcessorWithLoRA,
    VocabParallelEmbeddingWithLoRA,
)
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA

from vllm_cold.cpu import linear_layers, lora_ops, memory
from vllm_cold.cpu.lora_fallback import ColdPunicaWrapperCPU
from vllm_cold.vllm import patching
from vllm_cold.vllm.patching import PatchPoint

_NOT_LINEAR = (
    f"vllm-cold: a LoRA layer that is not linear calls {{}}; {lora_ops.TORCH}, and report the model"
)


class BoundLinear:
    """LoRA of one linear layer: q, k, v or gate and up packed, or one alone.

    Its methods are vLLM's; the weights among their arguments are those that it knows.
    """

    def __init__(
        self,
        plan: lora_ops.Plan,
        a_stacked: Sequence[Tensor],
        b_stacked: Sequence[Tensor],
        output_slices: Sequence[int],
    ) -> None:
        self._layer = lora_ops.Layer(plan, a_stacked, b_stacked, output_slices)
        self._table = self._layer.table
        self._base_layer: Any = None
        self._product: linear_layers.Product | None = None

    def join(self, base_layer: torch.nn.Module) -> None:
        """Be added in one call with the base layer's product, if that is ours."""
        self._base_layer = base_layer
        self._product = linear_layers.add_lora(base_layer, self._table)

    @property
    def is_in_product(self) -> bool:
        """Whether the base layer's product adds this; another product may have taken its place."""
        return self._product is not None and self._base_layer.cpu_linear is self._product

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Sequence[Tensor],
        lora_b_stacked: Sequence[Tensor],
        scale: float,
        output_slices: Sequence[int],
        **kwargs: Any,
    ) -> None:
        """``y += scale * B @ A @ x`` for rows with an adapter."""
        if self.is_in_product:
            if scale != 1.0:
                raise ValueError(
                    f"vllm-cold: LoRA is scaled by {scale}; it can be by 1 only; {lora_ops.TORCH}, "
                    "and report this"
                )
            return
        x = x if x.stride(-1) == 1 else x.contiguous()
        torch.ops.vllm_cold.lora_linear(y, x, self._table, scale)

    def add_shrink(
        self, y: Tensor, x: Tensor, lora_a_stacked: Sequence[Tensor], scale: float, **kwargs: Any
    ) -> None:
        """``y = scale * A @ x``; y [slices, T, ranks] float32 is zero before."""
        x = x if x.stride(-1) == 1 else x.contiguous()
        torch.ops.vllm_cold.lora_shrink(y, x, self._table, scale)

    def add_expand(
        self,
        y: Tensor,
        x: Tensor,
        lora_b_stacked: Sequence[Tensor],
        output_slices: Sequence[int],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """``y += B @ x``, from column ``offset_start`` on; x [slices, T, ranks] float32."""
        torch.ops.vllm_cold.lora_expand(y, x.contiguous(), self._table, offset_start, add_inputs)


class BoundEmbedding:
    """LoRA of the embedding: each token's row of A is looked up by vLLM."""

    def __init__(self, plan: lora_ops.Plan, b_stacked: Tensor, embeddings_indices: Tensor) -> None:
        self._layer = lora_ops.Layer(plan, [], [b_stacked], [b_stacked.shape[-2]])
        self._table = self._layer.table
        self._embeddings_indices = embeddings_indices  # which vLLM's layer asks for

    def add_lora_embedding(
        self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        """``y += B @ x`` for rows with an adapter; x [T, ranks]."""
        hidden = x.to(torch.float32).contiguous()
        torch.ops.vllm_cold.lora_expand(y, hidden, self._table, 0, add_inputs)


class NativePunicaWrapperCPU(ColdPunicaWrapperCPU):
    """With the C++ kernels. Serves logits itself, and layers that have no object of their own."""

    def __init__(
        self, max_num_batched_tokens: int, max_batches: int, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(max_num_batched_tokens, max_batches, *args, **kwargs)
        reason = lora_ops.missing()
        if reason is not None:
            raise RuntimeError(f"vllm-cold: no C++ kernels for LoRA. {reason}")
        patching.install(PATCH_POINTS)  # the layers are made after this
        self._tokens = lora_ops.Plan(max_num_batched_tokens)
        self._sampled = lora_ops.Plan(max_num_batched_tokens)
        self._piece = lora_ops.Plan(max_num_batched_tokens)
        # By address and shape of the weights, which these keep alive.
        self._linears: dict[tuple[object, ...], BoundLinear] = {}

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Called before the forward pass whenever the rows' adapters have changed."""
        super().update_metadata(*args, **kwargs)
        self._tokens.set(self.token_lora_indices)
        self._sampled.set(self.sampler_indices)

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """See the base class."""
        with super().without_adapters(), self._tokens.without_adapters():
            yield

    def bind(self, layer: BaseLayerWithLoRA) -> None:
        """Give a layer that was just made an object of its own in place of this one."""
        if isinstance(layer, BaseLinearLayerWithLoRA):
            if _computes_lora_otherwise(type(layer)):
                return
            weights = layer.lora_a_stacked, layer.lora_b_stacked, layer.output_slices
            for weight in layer.lora_a_stacked:
                memory.move(weight)
            layer.punica_wrapper = bound = BoundLinear(self._tokens, *weights)
            config = getattr(layer, "lora_config", None)
            if config is not None and not config.fully_sharded_loras:
                bound.join(layer.base_layer)
        elif isinstance(layer, LogitsProcessorWithLoRA):
            lora_ops.by_rank((layer.lora_b_stacked,))  # here, and not at the first request
        elif isinstance(layer, VocabParallelEmbeddingWithLoRA):
            layer.punica_wrapper = BoundEmbedding(
                self._tokens, layer.lora_b_stacked, self._embeddings_indices
            )

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """See the base class."""
        weights = lora_a_stacked, lora_b_stacked, output_slices
        self._linear(self._tokens, *weights).add_lora_linear(y, x, *weights[:2], scale, weights[2])

    def add_shrink(
        self, y: Tensor, x: Tensor, lora_a_stacked: Sequence[Tensor], scale: float, **kwargs: Any
    ) -> None:
        """Never called: only linear layers do, and those have objects of their own."""
        raise NotImplementedError(_NOT_LINEAR.format("add_shrink"))

    def add_expand(self, *args: Any, **kwargs: Any) -> None:
        """See ``add_shrink``."""
        raise NotImplementedError(_NOT_LINEAR.format("add_expand"))

    def add_lora_embedding(
        self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        """See the base class."""
        bound = BoundEmbedding(self._tokens, lora_b_stacked, self._embeddings_indices)
        bound.add_lora_embedding(y, x, lora_b_stacked, add_inputs)

    def _add_logits(
        self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, slots: Tensor | None
    ) -> None:
        plan = self._sampled if slots is None else self._piece
        if slots is not None:
            plan.set(slots.contiguous())
        if plan.num_rows:
            weights = (a,), (b,), (y.shape[1],)
            self._linear(plan, *weights).add_lora_linear(y, x, (a,), (b,), scale, weights[2])

    def _linear(
        self,
        plan: lora_ops.Plan,
        a_stacked: tuple[Tensor, ...],
        b_stacked: tuple[Tensor, ...],
        output_slices: tuple[int, ...],
    ) -> BoundLinear:
        lora_ops.by_rank(b_stacked)  # before its address is looked at
        first = a_stacked[0]
        key = (id(plan), first.data_ptr(), first.shape, b_stacked[0].data_ptr(), output_slices)
        if key not in self._linears:
            self._linears[key] = BoundLinear(plan, a_stacked, b_stacked, output_slices)
        return self._linears[key]


def _computes_lora_otherwise(kind: type[BaseLinearLayerWithLoRA]) -> bool:
    """A classification head is a linear layer by class, but its LoRA is that of logits."""
    usual = BaseLinearLayerWithLoRA._apply_lora_to_output
    return kind._apply_lora_to_output is not usual


def _make(original: Callable[..., None]) -> Callable[..., None]:
    def set_mapping(
        self: BaseLayerWithLoRA, punica_wrapper: Any, *args: Any, **kwargs: Any
    ) -> None:
        original(self, punica_wrapper, *args, **kwargs)
        if isinstance(punica_wrapper, NativePunicaWrapperCPU):
            punica_wrapper.bind(self)

    return set_mapping


PATCH_POINTS = (
    PatchPoint("vllm.lora.layers:BaseLayerWithLoRA.set_mapping", _make, ("punica_wrapper",)),
)
