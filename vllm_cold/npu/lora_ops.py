# SPDX-License-Identifier: Apache-2.0
"""LoRA of whole batches by the AscendC kernels of csrc/ascend/lora.cpp. Imports no vLLM.

Two launches for all slices of a layer. Rows without an adapter cost the reading of their number.
The kernels have never run on an NPU (docs/ascend.md).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vllm_cold.ops import scoring_ascend

MAX_RANK = 256
MAX_ADAPTERS = 2048
MAX_LENGTH = 2**27
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def missing(device: torch.device) -> str | None:
    """Why the kernels cannot run on ``device``; None if they can. Loads their library."""
    if device.type != "npu":
        return f"The LoRA kernels run on Ascend NPUs, not on {device.type!r}: unset COLD_LORA."
    reason = scoring_ascend.BACKEND.missing(device)
    if reason is None and not hasattr(torch.ops.vllm_cold, "ascend_lora"):
        return "Its library is of an earlier vllm-cold: reinstall vllm-cold as docs/ascend.md says."
    return reason


def takes(
    y: Tensor,
    x: Tensor,
    a_stacked: Sequence[Tensor],
    b_stacked: Sequence[Tensor],
    output_slices: Sequence[int],
) -> bool:
    """Whether ``shrink_expand`` takes a layer's tensors. Asks for nothing that differs from batch
    to batch: not for the number of rows. Shapes as there.
    """
    if x.dtype not in DTYPES or not a_stacked or len(a_stacked) != len(b_stacked):
        return False
    tensors = (y, x, *a_stacked, *b_stacked)
    if any(tensor.dtype != x.dtype or tensor.device != x.device for tensor in tensors):
        return False
    if any(tensor.stride(-1) != 1 and tensor.shape[-1] > 1 for tensor in (y, x)):
        return False
    adapters, rank, length = a_stacked[0].shape[0], a_stacked[0].shape[-2], x.shape[1]
    width = sum(output_slices)
    return (
        all(_is_stack(a, adapters, rank, length) for a in a_stacked)
        and len(output_slices) == len(b_stacked)
        and all(
            _is_stack(b, adapters, outputs, rank)
            for b, outputs in zip(b_stacked, output_slices, strict=True)
        )
        and width <= y.shape[1]
        and width <= y.stride(0)
        and 1 <= length <= MAX_LENGTH
        and y.shape[1] <= MAX_LENGTH
        and rank <= MAX_RANK
        and adapters <= MAX_ADAPTERS
    )


def _is_stack(weights: Tensor, adapters: int, rows: int, columns: int) -> bool:
    # [adapters, 1, rows, columns], or without the 1.
    shape = weights.shape[:1] + weights.shape[-2:]
    return (
        weights.is_contiguous()
        and (weights.dim() == 3 or (weights.dim() == 4 and weights.shape[1] == 1))
        and tuple(shape) == (adapters, rows, columns)
        and min(shape) >= 1
    )


def shrink_expand(
    y: Tensor,
    x: Tensor,
    a_stacked: Sequence[Tensor],
    b_stacked: Sequence[Tensor],
    indices: Tensor,
    scale: float,
) -> None:
    """Add each row's adapter to the slices of ``y``: ``y += scale * (x @ A^T) @ B^T``.

    Args:
        y: [rows, all slices' outputs or more].
        x: [rows, K].
        a_stacked: Of each slice, [adapters, 1, r, K].
        b_stacked: Of each slice, [adapters, 1, outputs, r].
        indices: [rows] int64, each row's adapter; -1 for none.
        scale: Factor.

    Raises:
        RuntimeError: if the tensors do not fit each other, or are not what the kernels take.
    """
    torch.ops.vllm_cold.ascend_lora(y, x, list(a_stacked), list(b_stacked), indices, scale)
