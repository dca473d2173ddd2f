# SPDX-License-Identifier: Apache-2.0
"""LoRA on Ascend NPUs by vllm-ascend's BGMV kernels alone; ``places`` says why."""

from dataclasses import replace
from typing import Any

import torch
from vllm.lora.ops import torch_ops
from vllm_ascend.lora.punica_npu import PunicaWrapperNPU


class BgmvPunicaWrapperNPU(PunicaWrapperNPU):  # type: ignore[misc]
    """Has vllm-ascend take its BGMV kernels in every step."""

    bgmv_shrink: Any
    bgmv_expand: Any
    bgmv_expand_slice: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.bgmv_shrink is torch_ops.bgmv_shrink:
            self.bgmv_shrink, self.bgmv_expand = bgmv_shrink, bgmv_expand
            self.bgmv_expand_slice = bgmv_expand_slice

    def update_metadata(self, mapping: Any, *args: Any, **kwargs: Any) -> None:
        """``mapping`` is vLLM's ``LoRAMapping``, of a step."""
        super().update_metadata(replace(mapping, is_prefill=False), *args, **kwargs)


def bgmv_shrink(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    adapters: torch.Tensor,
    scaling: float = 1.0,
) -> None:
    """Do as vLLM's of the same name, with 0 for rows of the base model.

    Args:
        inputs: [rows, in].
        weights: [slots, out, in], or [slots, 1, out, in].
        output: [rows, out or more], overwritten.
        adapters: [rows] slot of each row, -1 for the base model.
        scaling: Factor.
    """
    found = _product(inputs, weights, output, adapters)
    output[:, : found.shape[1]] = scaling * found


def bgmv_expand(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    adapters: torch.Tensor,
    add_inputs: bool = True,
) -> None:
    """Do as vLLM's of the same name, with 0 for rows of the base model; see ``bgmv_shrink``."""
    # Weights and output may be padded differently.
    size = min(weights.shape[-2], output.shape[1])
    bgmv_expand_slice(inputs, weights[..., :size, :], output, adapters, 0, size, add_inputs)


def bgmv_expand_slice(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    adapters: torch.Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """Do the same for a slice of the columns of ``output``."""
    found = _product(inputs, weights, output, adapters)
    columns = output[:, slice_offset : slice_offset + slice_size]
    if add_inputs:
        columns += found
    else:
        columns.copy_(found)


def _product(
    inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, adapters: torch.Tensor
) -> torch.Tensor:
    """[rows, out] of each row with its adapter's weights, in ``output``'s dtype.

    Further memory: the weights of all rows or, with fewer slots than rows, those of one slot.
    """
    if weights.dim() == 4:
        weights = weights.squeeze(1)
    inputs, adapters = inputs.to(output.dtype), adapters.unsqueeze(1)
    # Chosen and not multiplied by 0 or 1: no row gets another adapter's NaN.
    rows, slots = inputs.shape[0], weights.shape[0]
    if slots < rows:
        found = output.new_zeros(rows, weights.shape[1])
        for slot, matrix in enumerate(weights):
            found = torch.where(adapters == slot, inputs @ matrix.to(output.dtype).T, found)
        return found
    chosen = weights[adapters[:, 0].clamp(min=0)].to(output.dtype)
    return torch.where(adapters >= 0, torch.einsum("bi,boi->bo", inputs, chosen), 0)
