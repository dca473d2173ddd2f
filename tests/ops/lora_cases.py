# SPDX-License-Identifier: Apache-2.0
"""What every multi-LoRA kernel is held to: one call, and what it should give, in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.ops.conformance import bits


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

    def check(self, got: Tensor, steps: float) -> None:
        """``got`` is right within rounding of its dtype; rows without an adapter, bit for bit.

        Args:
            got: As ``y``.
            steps: How often a term of a product's sums is rounded.
        """
        want, terms = self.y.double(), torch.zeros(self.y.shape, dtype=torch.float64)
        for row, adapter in self.active:
            x = self.x[row].double()
            at = 0
            for a, b in zip(self.a, self.b, strict=True):
                a64, b64 = a[adapter, 0].double(), b[adapter, 0].double()
                place = slice(at, at + len(b64))
                want[row, place] += self.scale * (b64 @ (a64 @ x))
                terms[row, place] = abs(self.scale) * (b64.abs() @ (a64.abs() @ x.abs()))
                at += len(b64)
        info = torch.finfo(got.dtype)
        rounding = 0.0 if got.dtype == torch.float32 else info.eps / 2
        bound = 2.0**-24 * (steps * terms + 2 * want.abs()) * (1 + rounding)
        bound += want.abs() * rounding + info.tiny * info.eps
        wrong = ~((got.double() - want).abs() <= bound)
        assert not wrong.any(), f"{int(wrong.sum())} wrong, first at {wrong.nonzero()[0].tolist()}"
        without = torch.ones(len(got), dtype=torch.bool)
        without[[row for row, _ in self.active]] = False
        kept = got[without].contiguous(), self.y[without].contiguous()
        assert torch.equal(*map(bits, kept)), "a row of the base model was changed"


def make_case(
    seed: int,
    indices: list[int],
    rank: int,
    length: int,
    widths: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    adapters: int = 1,
    padded: int = 0,
    weights: torch.dtype | None = None,
) -> Case:
    """Random weights, of another dtype if ``weights`` says so, and inputs; ``padded`` more columns
    in x and y than are used.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    rows, of_weights = len(indices), weights or dtype
    return Case(
        random(rows, sum(widths) + padded).to(dtype)[:, : sum(widths)],
        random(rows, length + padded).to(dtype)[:, :length],
        tuple(random(adapters, 1, rank, length, scale=length**-0.5).to(of_weights) for _ in widths),
        tuple(
            random(adapters, 1, width, rank, scale=rank**-0.5).to(of_weights) for width in widths
        ),
        torch.tensor(indices, dtype=torch.int64),
    )
