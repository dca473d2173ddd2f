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
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def missing(device: torch.device) -> str | None:
    """Why the kernels cannot run on ``device``; None if they can. Loads their library."""
    if device.type != "npu":
        return f"The LoRA kernels run on Ascend NPUs, not on {device.type!r}."
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
    to batch. Shapes as there.
    """
    tensors = (*a_stacked, *b_stacked)
    adapters, rank = a_stacked[0].shape[0], a_stacked[0].shape[-2]
    return (
        x.dtype in DTYPES
        and all(tensor.dtype == x.dtype for tensor in (y, *tensors))
        and all(tensor.is_contiguous() for tensor in tensors)
        and all(len(a) == adapters and a.shape[-2] == rank for a in a_stacked)
        and [b.shape[-2] for b in b_stacked] == list(output_slices)
        and sum(output_slices) <= y.shape[1]
        and rank <= MAX_RANK
        and adapters <= MAX_ADAPTERS
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
