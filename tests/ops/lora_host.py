# SPDX-License-Identifier: Apache-2.0
"""The AscendC LoRA kernels on this machine: compiled by g++ against the strict stand-in in
csrc/ascend/host and run in a process of their own, with what they should compute and move.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.ops.ascend_host import TYPES, Program

SLICES = 4


@dataclass
class Case:
    """One call. Weights are ``[adapters, 1, rank, length]`` and ``[adapters, 1, width, rank]``, as
    vLLM stacks them; ``x`` and ``y`` may be wider than long (row strides).
    """

    y: Tensor
    x: Tensor
    a: tuple[Tensor, ...]
    b: tuple[Tensor, ...]
    indices: Tensor
    scale: float = 0.75

    @property
    def widths(self) -> list[int]:
        """Outputs of each slice."""
        return [b.shape[-2] for b in self.b]

    @property
    def active(self) -> list[tuple[int, int]]:
        """Row and adapter of each row that has one."""
        adapters = len(self.a[0])
        pairs = enumerate(self.indices.tolist())
        return [(row, adapter) for row, adapter in pairs if 0 <= adapter < adapters]

    def reference(self) -> tuple[Tensor, Tensor]:
        """The result in float64, and a bound of the kernels' error before the last rounding."""
        want = self.y.double()
        bound = torch.zeros_like(want)
        for row, adapter in self.active:
            x = self.x[row].double()
            at = 0
            for a, b in zip(self.a, self.b, strict=True):
                a64, b64 = a[adapter, 0].double(), b[adapter, 0].double()
                place = slice(at, at + len(b64))
                want[row, place] += self.scale * (b64 @ (a64 @ x))
                bound[row, place] = abs(self.scale) * (b64.abs() @ (a64.abs() @ x.abs()))
                at += len(b64)
        # Sums are trees and short lists: far fewer roundings than terms.
        steps = 40 + self.a[0].shape[-2] / 8
        return want, (bound + want.abs()) * steps * 2.0**-24

    def check(self, got: Tensor) -> None:
        """``got`` is right within rounding of its dtype; rows without an adapter, to the bit."""
        want, bound = self.reference()
        info = torch.finfo(got.dtype)
        rounding = 0.0 if got.dtype == torch.float32 else info.eps / 2
        bound = bound * (1 + rounding) + want.abs() * rounding + info.tiny
        wrong = ~((got.double() - want).abs() <= bound)
        assert not wrong.any(), f"{int(wrong.sum())} wrong, first at {wrong.nonzero()[0].tolist()}"
        without = torch.ones(len(got), dtype=torch.bool)
        without[[row for row, _ in self.active]] = False
        assert torch.equal(_bits(got[without]), _bits(self.y[without]))


def make_case(
    seed: int,
    indices: list[int],
    rank: int,
    length: int,
    widths: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    adapters: int = 1,
    padded: int = 0,
) -> Case:
    """Random weights and inputs; ``padded`` more columns in x and y than are used."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    rows = len(indices)
    return Case(
        random(rows, sum(widths) + padded)[:, : sum(widths)],
        random(rows, length + padded)[:, :length],
        tuple(random(adapters, 1, rank, length, scale=length**-0.5) for _ in widths),
        tuple(random(adapters, 1, width, rank, scale=rank**-0.5) for width in widths),
        torch.tensor(indices, dtype=torch.int64),
    )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def _bytes(tensor: Tensor) -> bytes:
    """The tensor's storage from its first value on, rows with what lies between them."""
    rows = tensor.as_strided((max(0, len(tensor) - 1), tensor.stride(0)), (tensor.stride(0), 1))
    last = tensor[-1:].contiguous()
    return b"".join(part.contiguous().view(torch.uint8).numpy().tobytes() for part in (rows, last))


class LoraHost(Program):
    """The program of ``ascend_host.LORA``."""

    def run(self, case: Case) -> Tensor:
        """The result of a call.

        Raises:
            CheckFailed: What a check has against it.
        """
        tensors = (case.y, case.x, case.indices.unsqueeze(1), *case.a, *case.b)
        inputs = (_bytes(t if t.dim() == 2 else t.flatten(0, 2)) for t in tensors)
        (y,) = self.ask(self._request(case), inputs)
        flat = torch.frombuffer(y, dtype=case.y.dtype)
        return flat.as_strided(case.y.shape, (case.y.stride(0), 1)).clone()

    def _request(self, case: Case) -> bytes:
        rank, length = case.a[0].shape[-2:]
        widths = [*case.widths, *[0] * (SLICES - len(case.b))]
        return struct.pack(
            "<13qd", TYPES[case.x.dtype], len(case.x), length, rank, len(case.a[0]), len(case.b),
            *widths, case.x.stride(0), case.y.stride(0), self.cores, case.scale,
        )  # fmt: skip
