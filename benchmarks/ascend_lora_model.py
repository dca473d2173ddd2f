# SPDX-License-Identifier: Apache-2.0
"""What LoRA moves in a decoding step on an Ascend NPU, on paper: our kernels beside vllm-ascend's.

    python -m benchmarks.ascend_lora_model

Nothing is measured: no NPU was there. Ours are counted by the traffic model that the tests compare
every byte with, so this runs from a checkout; vllm-ascend's as its sources of 0.23 read
(csrc/kernels/bgmv_{shrink,expand}.cpp, lora/punica_npu.py): a launch for zeros, one for A and one
for B for each slice, a row on one core.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tests.ops.lora_host import GROUP, Plan, groups_of, traffic

CORES = 40
LAYERS = 32
SIZE = 2  # bytes of bfloat16
# A 7B model's: length of the input and outputs of each slice.
MODULES = {
    "q, k, v": (4096, [4096] * 3),
    "o": (4096, [4096]),
    "gate, up": (4096, [11008] * 2),
    "down": (11008, [4096]),
}


@dataclass
class Cost:
    """Of a step's LoRA. Bytes are those between memory (or its cache) and the cores."""

    launches: int = 0
    moved: int = 0
    longest: int = 0  # on the core with most of them, summed over the launches
    busy: int = 0  # cores that move anything but indices, likewise

    def add(self, launches: int, moved: int, cores: Counter[int]) -> None:
        """One kernel, with the bytes of each core."""
        self.launches += launches
        self.moved += moved
        self.longest += max(cores.values(), default=0)
        self.busy += len(cores)


def ours(indices: list[int], rank: int) -> Cost:
    """One layer by ``csrc/ascend/lora.cpp``."""
    cost = Cost()
    for length, widths in MODULES.values():
        plan = Plan.make(len(indices), rank, length, widths, CORES)
        model = traffic(indices, rank, length, widths, torch.bfloat16, CORES)
        pieces = (
            _shrink(indices, rank, length, widths, plan),
            _expand(indices, rank, widths, plan),
        )
        blocks = (plan.shrink_blocks, plan.expand_blocks)
        for kernel, sizes, count in zip(("shrink", "expand"), pieces, blocks, strict=True):
            cores: Counter[int] = Counter()
            for piece, size in enumerate(sizes):
                cores[piece % count] += size
            moved = sum(sum(both) for (name, _), both in model.items() if kernel in name)
            assert moved == sum(cores.values()) + count * len(indices) * 8
            cost.add(1, moved, cores)
    return cost


def _shrink(
    indices: list[int], rank: int, length: int, widths: list[int], plan: Plan
) -> Iterator[int]:
    """Bytes of each piece of the work, in the order in which they are dealt."""
    for rows in groups_of(indices):
        for _ in widths:
            for first in range(0, rank, plan.rank_chunk):
                ranks = min(plan.rank_chunk, rank - first)
                for start in range(0, length, plan.part_length):
                    part = min(plan.part_length, length - start)
                    yield (ranks + rows) * part * SIZE + rows * ranks * 4


def _expand(indices: list[int], rank: int, widths: list[int], plan: Plan) -> Iterator[int]:
    for rows in groups_of(indices):
        for width in widths:
            for first in range(0, width, plan.outputs):
                outputs = min(plan.outputs, width - first)
                sums = plan.parts * plan.rank_pitch * 4
                yield outputs * rank * SIZE + rows * (sums + 2 * outputs * SIZE)


def vllm_ascends(indices: list[int], rank: int) -> Cost:
    """One layer by vllm-ascend's BGMV kernels."""
    cost = Cost()
    rows_of_a_core = math.ceil(len(indices) / CORES)
    active = [row for row, index in enumerate(indices) if index >= 0]
    for length, widths in MODULES.values():
        for width in widths:
            zeros = len(indices) * rank * 4
            shrink = (rank + 1) * length * SIZE + rank * 4 + 8
            expand = width * rank * SIZE + rank * 4 + 2 * width * SIZE + 8
            cost.add(1, zeros, Counter())
            for size in (shrink, expand):
                cores = Counter(row // rows_of_a_core for row in active)
                idle = (len(indices) - len(active)) * 8
                moved = len(active) * size + idle
                cost.add(1, moved, Counter({core: n * size for core, n in cores.items()}))
    return cost


def table() -> str:
    """A Markdown table for pairs of an expert without and an amateur with the one adapter."""
    lines = [
        "| pairs | rank | kernels | launches | MB moved | MB on the longest core | cores at work |",
        "|---|---|---|---|---|---|---|",
    ]
    for pairs in (1, 8, 64):
        for rank in (16, 64):
            for name, model in (("vllm-ascend's", vllm_ascends), ("ours", ours)):
                cost = model([-1, 0] * pairs, rank)
                kernels = 2 * len(MODULES) if model is ours else cost.launches * 2 // 3
                numbers = (LAYERS * cost.moved / 1e6, LAYERS * cost.longest / 1e6)
                lines.append(
                    f"| {pairs} | {rank} | {name} | {LAYERS * cost.launches} | {numbers[0]:,.0f} | "
                    f"{numbers[1]:,.1f} | {cost.busy / kernels:.0f} of {CORES} |"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    assert GROUP == 8
    print(table())
