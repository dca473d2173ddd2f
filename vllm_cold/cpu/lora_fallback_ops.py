# SPDX-License-Identifier: Apache-2.0
"""Multi-LoRA for a batch whose rows belong to different adapters or to none, in torch.

Rows are grouped by adapter once per step; each group is two dense products. A row of no adapter
belongs to no group, so it is never touched and the adapter weights are never copied per row.
"""

from collections.abc import Sequence

from torch import Tensor

# (adapter slot, rows): rows is a slice where they are contiguous (no copy), else an index tensor.
RowGroup = tuple[int, slice | Tensor]


def group_rows(slots: Tensor) -> list[RowGroup]:
    """Group the rows of a batch by adapter.

    Args:
        slots: [T] int64 on the CPU, the adapter slot of each row, -1 for the base model.

    Returns:
        One (slot, rows) per adapter present, in slot order; rows of the base model are in none.
    """
    groups: list[RowGroup] = []
    for slot in sorted(set(slots.tolist())):
        if slot < 0:
            continue
        rows = (slots == slot).nonzero().squeeze(1)
        first, last = int(rows[0]), int(rows[-1])
        contiguous = last - first + 1 == rows.numel()
        groups.append((slot, slice(first, last + 1) if contiguous else rows))
    return groups


def _matrix(stacked: Tensor, slot: int) -> Tensor:
    """Adapter ``slot`` of a stacked weight, [S, 1, N, K] or [S, N, K], as [N, K]."""
    weight = stacked[slot]
    return weight.squeeze(0) if weight.dim() == 3 else weight


def shrink(
    x: Tensor, a_stacked: Tensor, groups: Sequence[RowGroup], scale: float, out: Tensor
) -> None:
    """``out[rows] = scale * x[rows] @ A[slot].T`` for each group; other rows of ``out`` become 0.

    Args:
        x: [T, K] inputs.
        a_stacked: [S, 1, r, K] weights.
        groups: From ``group_rows``.
        scale: Factor.
        out: [T, >= r] float32.
    """
    out.zero_()
    for slot, rows in groups:
        a = _matrix(a_stacked, slot).to(out.dtype)
        out[rows, : a.shape[0]] = scale * (x[rows].to(out.dtype) @ a.t())


def expand_add(
    hidden: Tensor,
    b_stacked: Tensor,
    groups: Sequence[RowGroup],
    y: Tensor,
    offset: int,
    size: int,
    add: bool = True,
) -> None:
    """``y[rows, offset:offset+size] += hidden[rows] @ B[slot].T`` for each group.

    Args:
        hidden: [T, r] float32, from ``shrink`` (or an embedding lookup).
        b_stacked: [S, 1, N, r] weights.
        groups: From ``group_rows``.
        y: [T, M] outputs, changed in place; rows of no group are not touched.
        offset: First output column.
        size: Number of output columns of this slice; N may be smaller or larger (padding).
        add: False to overwrite instead of add.
    """
    for slot, rows in groups:
        b = _matrix(b_stacked, slot).to(y.dtype)
        n = min(b.shape[0], size, y.shape[1] - offset)
        delta = hidden[rows, : b.shape[1]].to(y.dtype) @ b[:n].t()
        if add:
            y[rows, offset : offset + n] += delta
        else:
            y[rows, offset : offset + n] = delta


__all__ = ["RowGroup", "expand_add", "group_rows", "shrink"]
