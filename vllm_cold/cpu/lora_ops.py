# SPDX-License-Identifier: Apache-2.0
"""Multi-LoRA in C++ (csrc/cpu/lora.h), as torch operators that compiled models can call.

In ``torch.ops.vllm_cold``: ``lora_linear(y, x, layer, scale)``, ``lora_shrink(hidden, x, layer,
scale)`` and ``lora_expand(y, hidden, layer, column, add)``. They change their first argument in
place. ``layer`` is a ``Layer.table``; which rows have which adapter is what its ``Plan`` says at
the time of the call.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from vllm_cold.cpu import memory, operators
from vllm_cold.ops import cpu_library

MAX_RANK = 512
TORCH = "set COLD_LORA=torch to go without the C++ kernels"  # a remedy


class Plan:
    """Which rows of a batch belong to which adapter; written once per step.

    Attributes:
        buffer: int64, the C++ struct of the same name. Its address stays.
        num_rows: How many rows have an adapter.
    """

    def __init__(self, max_tokens: int) -> None:
        """Room for batches of up to ``max_tokens`` rows; at first the plan is empty."""
        size = cpu_library.library().vllm_cold_lora_plan_size(max_tokens)
        self.buffer = torch.zeros(size, dtype=torch.int64)
        self.buffer[3] = max_tokens
        self.num_rows = 0

    def set(self, slots: Tensor) -> None:
        """Group the rows of a batch by adapter.

        Args:
            slots: [T] int64 on the CPU, contiguous: each row's adapter slot, negative for none.

        Raises:
            ValueError: if there are more rows than ``max_tokens``.
        """
        self.num_rows = cpu_library.library().vllm_cold_lora_plan(
            self.buffer.data_ptr(), slots.data_ptr(), len(slots)
        )
        if self.num_rows < 0:
            self.num_rows = 0
            raise ValueError(
                f"vllm-cold: a batch of {len(slots)} rows, but room for {self.buffer[3]}; "
                "please report this"
            )

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Within it batches may have any number of rows, and none has an adapter."""
        before = self.buffer[:3].clone()
        self.buffer[:3] = torch.tensor([-1, 0, 0])
        try:
            yield
        finally:
            self.buffer[:3] = before


def by_rank(b_stacked: Sequence[Tensor]) -> None:
    """Store weights B [..., N, r] as [..., r, N], which the kernels read; the tensors keep their
    shape and numbers.
    """
    for weight in b_stacked:
        if weight.stride(-2) != 1:
            memory.move_by_columns(weight)


class Layer:
    """The stacked adapter weights of one layer, for the operators.

    Attributes:
        table: int64, the C++ struct of the same name: the ``layer`` of the operators. It has the
            addresses of weights and plan, and is good as long as this object lives.
    """

    def __init__(
        self,
        plan: Plan,
        a_stacked: Sequence[Tensor],
        b_stacked: Sequence[Tensor],
        output_slices: Sequence[int],
    ) -> None:
        """Describe weights, which stay where they are and may change.

        Args:
            plan: Of the batches that this layer will see.
            a_stacked: For each slice [S, 1, r, K] or [S, r, K]; empty if only ``lora_expand`` is
                to be called.
            b_stacked: For each slice [S, 1, N, r] or [S, N, r]; see ``by_rank``.
            output_slices: Columns of the output that each slice has; N may be smaller or larger
                (padding), then the common ones count.

        Raises:
            ValueError: if the weights are of no known dtype, are not contiguous, do not fit each
                other, or have a rank above ``MAX_RANK``.
        """
        self._kept = (plan, tuple(a_stacked), tuple(b_stacked))  # the table has their addresses
        dtypes = {weight.dtype for weight in (*a_stacked, *b_stacked)}
        inputs = {a.shape[-1] for a in a_stacked} or {0}
        a_ranks = {a.shape[-2] for a in a_stacked} or {0}
        b_ranks = {b.shape[-1] for b in b_stacked}
        if (
            not dtypes <= cpu_library.DTYPES.keys()
            or any(len(values) != 1 for values in (dtypes, inputs, a_ranks, b_ranks))
            or max(*a_ranks, *b_ranks) > MAX_RANK
            or not all(a.is_contiguous() for a in a_stacked)
        ):
            shapes = [(tuple(w.shape), w.dtype) for w in (*a_stacked, *b_stacked)]
            raise ValueError(
                f"vllm-cold: LoRA weights {shapes}; the slices of a layer must be contiguous, of "
                "one dtype (float32, bfloat16 or float16), one input size and one rank up to "
                f"{MAX_RANK}; {TORCH}, and report the model"
            )
        by_rank(b_stacked)
        table = [
            operators.PROCESS,
            plan.buffer.data_ptr(),
            cpu_library.DTYPES[b_stacked[0].dtype],
            *inputs,
            *a_ranks,
            *b_ranks,
            len(b_stacked),
        ]
        column = 0
        for index, (b, size) in enumerate(zip(b_stacked, output_slices, strict=True)):
            a = a_stacked[index] if a_stacked else None
            table += [0, 0] if a is None else [a.data_ptr(), a[0].numel()]
            table += [b.data_ptr(), b.stride(0), b.stride(-1), min(b.shape[-2], size), column]
            column += size
        self.table = torch.tensor(table, dtype=torch.int64)
