# SPDX-License-Identifier: Apache-2.0
"""vllm-ascend's LoRA kernels in torch, under the names by which its Python code calls them.

What they do with a row follows ``csrc/kernels/{bgmv,sgmv}_{shrink,expand}.cpp`` of 0.23.0: a row
that is -1, or after the last run of rows, is left as it is.
"""

import torch
from torch import Tensor
from torch.library import custom_op


def _rows(indices: Tensor, weight: Tensor) -> list[tuple[int, Tensor]]:
    """The rows that have an adapter, with its weights [out, in]."""
    slots = weight.reshape(-1, *weight.shape[-2:]).float()
    return [(row, slots[slot]) for row, slot in enumerate(indices.tolist()) if slot >= 0]


def _of_runs(lora_indices: Tensor, seq_len: Tensor, num_rows: int) -> Tensor:
    """The adapter of each row, from those of the runs."""
    found = torch.full((num_rows,), -1)
    exploded = torch.repeat_interleave(lora_indices, seq_len)[:num_rows]
    found[: len(exploded)] = exploded
    return found


@custom_op("_C_ascend::bgmv_shrink", mutates_args=("y",))
def bgmv_shrink(x: Tensor, weight: Tensor, indices: Tensor, y: Tensor, scale: float) -> None:
    for row, matrix in _rows(indices, weight):
        y[row] = scale * (matrix @ x[row].float())


@custom_op("_C_ascend::bgmv_expand", mutates_args=("y",))
def bgmv_expand(
    x: Tensor, weight: Tensor, indices: Tensor, y: Tensor, slice_offset: int, slice_size: int
) -> None:
    for row, matrix in _rows(indices, weight):
        y[row, slice_offset : slice_offset + slice_size] += matrix @ x[row].float()


@custom_op("_C_ascend::sgmv_shrink", mutates_args=("y",))
def sgmv_shrink(
    x: Tensor, weight: Tensor, lora_indices: Tensor, seq_len: Tensor, y: Tensor, scale: float
) -> None:
    bgmv_shrink(x, weight, _of_runs(lora_indices, seq_len, len(x)), y, scale)


@custom_op("_C_ascend::sgmv_expand", mutates_args=("y",))
def sgmv_expand(
    x: Tensor,
    weight: Tensor,
    lora_indices: Tensor,
    seq_len: Tensor,
    y: Tensor,
    slice_offset: int,
    slice_size: int,
) -> None:
    indices = _of_runs(lora_indices, seq_len, len(x))
    bgmv_expand(x, weight, indices, y, slice_offset, slice_size)
