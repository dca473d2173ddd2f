# SPDX-License-Identifier: Apache-2.0
"""LoRA on CPU by the C++ kernels (``lora_ops``). Each layer gets an object that knows its weights.
Everything that a step changes is in the plan, which the kernels read: a compiled model has no other
way to see it.
"""

from collections.abc import Iterator, Sequence
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

from vllm_cold.compat import patching, places
from vllm_cold.compat.patching import Original
from vllm_cold.cpu import cpu_paths, linear_layers, lora_ops, memory, operators
from vllm_cold.cpu.lora_fallback import GroupedPunicaWrapperCPU


class Bound(lora_ops.Layer):
    """LoRA of one layer: linear (q, k, v or gate and up packed, or one alone) or an embedding.

    Its methods have vLLM's signatures; it already knows the weights among their arguments.
    """

    _base_layer: Any = None
    _product: linear_layers.Product | None = None
    _embeddings_indices: Tensor | None = None  # vLLM's embedding reads it

    @property
    def is_in_product(self) -> bool:
        """Whether the base layer's product adds this; another product may have taken its place."""
        return self._product is not None and self._base_layer.cpu_linear is self._product

    def add_lora_linear(
        self, y: Tensor, x: Tensor, a: object, b: object, scale: float, *args: Any, **kwargs: Any
    ) -> None:
        """``y += scale * B @ A @ x`` for rows with an adapter."""
        if not self.is_in_product:
            x = x if x.stride(-1) == 1 else x.contiguous()
            torch.ops.vllm_cold.lora_linear(y, x, self.table, scale)
        elif scale != 1.0:
            raise ValueError(
                f"vllm-cold: LoRA is scaled by {scale}; it can be by 1 only; {lora_ops.TORCH}, "
                "and report this"
            )

    def add_shrink(self, y: Tensor, x: Tensor, a: object, scale: float, **kwargs: Any) -> None:
        """``y = scale * A @ x``; y [slices, T, ranks] float32 is zero before."""
        x = x if x.stride(-1) == 1 else x.contiguous()
        torch.ops.vllm_cold.lora_shrink(y, x, self.table, scale)

    def add_expand(
        self,
        y: Tensor,
        x: Tensor,
        b: object,
        output_slices: Sequence[int],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """``y += B @ x``, from column ``offset_start`` on; x [slices, T, ranks] float32."""
        torch.ops.vllm_cold.lora_expand(y, x.contiguous(), self.table, offset_start, add_inputs)

    def add_lora_embedding(
        self, y: Tensor, x: Tensor, b: object, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        """``y += B @ x`` for rows with an adapter; x [T, ranks] is looked up by vLLM in A."""
        hidden = x.to(torch.float32).contiguous()
        torch.ops.vllm_cold.lora_expand(y, hidden, self.table, 0, add_inputs)


class NativePunicaWrapperCPU(GroupedPunicaWrapperCPU):
    """Serves logits itself; all other layers have objects of their own."""

    def __init__(
        self, max_num_batched_tokens: int, max_batches: int, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(max_num_batched_tokens, max_batches, *args, **kwargs)
        if (reason := operators.missing()) is not None:
            raise RuntimeError(f"vllm-cold: no C++ kernels for LoRA. {reason}")
        patching.install(places.rows(places.CPU_LORA))  # the layers are made after this
        self._tokens = lora_ops.Plan(max_num_batched_tokens)
        self._of_logits = lora_ops.Plan(max_num_batched_tokens)
        # By the address of B and the columns of logits; they keep the weights alive.
        self._logits: dict[tuple[int, int], Bound] = {}

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Called before the forward pass whenever the rows' adapters have changed."""
        super().update_metadata(*args, **kwargs)
        self._tokens.set(self.token_lora_indices)

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        with super().without_adapters(), self._tokens.without_adapters():
            yield

    def bind(self, layer: BaseLayerWithLoRA) -> None:
        """Give a layer that was just made its own object in place of this one."""
        if isinstance(layer, BaseLinearLayerWithLoRA):
            # A classification head is linear by class, but its LoRA is that of logits.
            usual = BaseLinearLayerWithLoRA._apply_lora_to_output
            if type(layer)._apply_lora_to_output is not usual:
                return
            weights = layer.lora_a_stacked, layer.lora_b_stacked, layer.output_slices
            for weight in layer.lora_a_stacked:
                memory.move(weight)
            layer.punica_wrapper = bound = Bound(self._tokens, *weights)
            config = getattr(layer, "lora_config", None)
            if config is not None and not config.fully_sharded_loras:
                bound._base_layer = layer.base_layer
                bound._product = linear_layers.add_lora(layer.base_layer, bound.table)
            else:
                cpu_paths.note("lora", "beside", "adapters are split over processes")
        elif isinstance(layer, LogitsProcessorWithLoRA):
            lora_ops.by_rank((layer.lora_b_stacked,))  # here, and not at the first request
        elif isinstance(layer, VocabParallelEmbeddingWithLoRA):
            b = layer.lora_b_stacked
            layer.punica_wrapper = bound = Bound(self._tokens, [], [b], [b.shape[-2]])
            bound._embeddings_indices = self._embeddings_indices

    def add_lora_linear(self, *args: Any, **kwargs: Any) -> None:
        """Never called, as known layers have their own objects. With the base class's method, a
        compiled model would keep the adapters of the rows that it was traced with.
        """
        raise NotImplementedError(
            f"vllm-cold: a LoRA layer of an unknown kind; {lora_ops.TORCH}, and report the model"
        )

    add_shrink = add_expand = add_lora_embedding = add_lora_linear

    def _add_logits(
        self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, slots: Tensor
    ) -> None:
        self._of_logits.set(slots.contiguous())
        if self._of_logits.num_rows:
            lora_ops.by_rank((b,))  # before its address is looked at
            key = b.data_ptr(), y.shape[1]
            if key not in self._logits:
                self._logits[key] = Bound(self._of_logits, (a,), (b,), (y.shape[1],))
            self._logits[key].add_lora_linear(y, x, a, b, scale)


def wrap_set_mapping(
    original: Original, self: BaseLayerWithLoRA, punica_wrapper: Any, *args: Any, **kwargs: Any
) -> None:
    """Wrap ``BaseLayerWithLoRA.set_mapping``."""
    original(self, punica_wrapper, *args, **kwargs)
    if isinstance(punica_wrapper, NativePunicaWrapperCPU):
        punica_wrapper.bind(self)
