# SPDX-License-Identifier: Apache-2.0
"""LoRA on CPU with torch operations, for machines without the C++ library: rows are grouped by
adapter once per step, and each group is two dense products. ``lora_wrapper`` is built on it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from vllm_cold.compat import patching, places
from vllm_cold.cpu import workarounds

# (adapter slot, rows): rows is a slice where they are contiguous (no copy), else an index tensor.
RowGroup = tuple[int, slice | Tensor]


def group_rows(slots: Tensor) -> list[RowGroup]:
    """Each adapter's rows of a batch.

    Args:
        slots: [T] int64 on the CPU, the adapter slot of each row, -1 for the base model.

    Returns:
        (slot, rows) of each adapter, in slot order; rows of the base model are in none.
    """
    groups: list[RowGroup] = []
    for slot in sorted(set(slots.tolist())):
        rows = (slots == slot).nonzero().squeeze(1)
        first, last = int(rows[0]), int(rows[-1])
        contiguous = last - first + 1 == rows.numel()
        if slot >= 0:
            groups.append((slot, slice(first, last + 1) if contiguous else rows))
    return groups


def shrink(
    x: Tensor, a_stacked: Tensor, groups: Sequence[RowGroup], scale: float, out: Tensor
) -> None:
    """``out[rows] = scale * x[rows] @ A[slot].T`` for each group; other rows of ``out`` become 0.

    ``x`` is [T, K], ``a_stacked`` [S, 1, r, K] or [S, r, K], and ``out`` [T, >= r] float32.
    """
    out.zero_()
    for slot, rows in groups:
        a = a_stacked[slot].view(a_stacked.shape[-2:]).to(out.dtype)
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

    ``hidden`` is [T, r] float32, ``b_stacked`` [S, 1, N, r] or [S, N, r], of which N may be smaller
    or larger than ``size`` (padding). Of ``y`` [T, M], rows of no group stay as they are. Without
    ``add`` the columns are overwritten.
    """
    for slot, rows in groups:
        b = b_stacked[slot].view(b_stacked.shape[-2:]).to(y.dtype)
        n = min(b.shape[0], size, y.shape[1] - offset)
        columns = slice(offset, offset + n)
        delta = hidden[rows, : b.shape[1]].to(y.dtype) @ b[:n].t()
        y[rows, columns] = y[rows, columns] + delta if add else delta


def add_lora(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, groups: Sequence[RowGroup], scale: float = 1.0
) -> None:
    """``y[rows] += scale * B[slot] @ A[slot] @ x[rows]`` for each group; see the two above."""
    hidden = torch.empty(len(x), a.shape[-2], dtype=torch.float32)
    shrink(x, a, groups, scale, hidden)
    expand_add(hidden, b, groups, y, 0, y.shape[1])


class GroupedPunicaWrapperCPU(PunicaWrapperCPU):  # type: ignore[misc]
    """With torch operations."""

    _of_tokens: Sequence[RowGroup] | None = ()  # None: not found out since the last step

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Every engine with LoRA on CPU comes here, with contrastive decoding or without it.
        patching.install(places.rows(places.CPU_WORKAROUNDS))
        workarounds.wrappers.add(self)
        self._drafting = False

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Within it batches may have any number of rows, and none has an adapter."""
        self._drafting = True
        try:
            yield
        finally:
            self._drafting = False

    def add_lora_logits(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Tensor,
        lora_b_stacked: Tensor,
        scale: float,
        **kwargs: Any,
    ) -> None:
        """See the base class; rows are the sampled positions, or a piece of a prompt."""
        if not self._drafting:
            y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
            self._add_logits(y, x, lora_a_stacked, lora_b_stacked, scale, self._logits_slots(x))

    def _add_logits(
        self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, slots: Tensor
    ) -> None:
        """``y += scale * B @ A @ x`` with each row's adapter."""
        add_lora(y, x, a, b, group_rows(slots), scale)

    def _logits_slots(self, x: Tensor) -> Tensor:
        """The adapter slot of each row of logits.

        Logits are computed for the sampled rows, which the model runner copies, and for prompt
        logprobs: a slice of all tokens' hidden states, of which it does not say which. Stock vLLM
        treats the latter as sampled rows: an error, or another request's adapter.
        """
        sampled: Tensor = self.sampler_indices
        copied = x.untyped_storage().nbytes() == x.nbytes
        if copied and len(x) == len(sampled):
            return sampled
        first = x.storage_offset() // x.shape[1]
        slots: Tensor = self.token_lora_indices[first : first + len(x)]
        if len(slots) != len(x) or (copied and len(slots) != len(self.token_lora_indices)):
            raise RuntimeError(
                f"vllm-cold cannot tell which adapters {len(x)} rows of logits belong to: "
                f"this step has {len(sampled)} sampled rows and "
                f"{len(self.token_lora_indices)} tokens; please report this"
            )
        return slots

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Called before the forward pass whenever the rows' adapters have changed."""
        super().update_metadata(*args, **kwargs)
        self._of_tokens = None

    @property
    def _groups(self) -> Sequence[RowGroup]:
        if self._drafting:
            return ()
        if self._of_tokens is None:
            self._of_tokens = group_rows(self.token_lora_indices)
        return self._of_tokens

    def add_lora_linear(self, *args: Any, **kwargs: Any) -> None:
        """See the base class; a batch without adapter rows costs nothing."""
        if self._groups:
            super().add_lora_linear(*args, **kwargs)

    def _apply_shrink(self, y: Tensor, x: Tensor, w_t_all: Tensor, scale: float) -> None:
        shrink(x, w_t_all, self._groups, scale, y.view(-1, y.shape[-1]))

    def _apply_expand(
        self,
        y: Tensor,
        x: Tensor,
        w_t_all: Tensor,
        y_offset: int,
        y_slice_size: int,
        add_inputs: bool = True,
    ) -> None:
        expand_add(x, w_t_all, self._groups, y, y_offset, y_slice_size, add_inputs)

    def add_lora_embedding(
        self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        """See the base class; ``x`` is the looked-up A row of each token."""
        expand_add(x, lora_b_stacked, self._groups, y, 0, y.shape[-1], add_inputs)
