# SPDX-License-Identifier: Apache-2.0
"""Backend "triton": launches the kernels of ``triton_kernels`` on NVIDIA and AMD GPUs.

Two launches, and one on a handful of numbers where statistics are wanted; no host sync.
"""

# mypy: disable-error-code="import-untyped"
# Reason: Triton has no types.

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vllm_cold.ops.interface import Backend, Groups
from vllm_cold.ops.scoring_torch import expert_floors

# Eight tokens for each of 128 threads: one 16-byte load of bf16, two of fp32; the maxima, where
# there is little else in registers, take four tiles at once.
TILE, BLOCK, NUM_WARPS = 1024, 4, 4
# Enough of them to hide the latency of memory, and few enough to be resident all at once: no
# second, partial wave.
PROGRAMS_PER_MULTIPROCESSOR = 8
TALLY_BLOCK = 128


def _missing(device: torch.device) -> str | None:
    """Tell why Triton cannot run on ``device``, with the remedy; None if it can."""
    try:
        import triton.language as tl
        from triton.runtime.interpreter import InterpretedFunction
    except ImportError as error:
        return f"Triton cannot be imported ({error}): install triton, or use the backend 'torch'."
    if device.type == "cuda" or isinstance(tl.max, InterpretedFunction):
        return None
    return (
        f"The Triton kernels run on NVIDIA and AMD GPUs, not on {device.type!r}: use the backend "
        "'torch', or, to test, set TRITON_INTERPRET=1 before Triton is first imported."
    )


class Tiling(NamedTuple):
    """How the work is cut: a grid of groups times segments, each of some tiles."""

    num_tiles: int
    segment_tiles: int
    num_segments: int

    @classmethod
    def of(cls, num_groups: int, vocab: int, multiprocessors: int) -> "Tiling":
        """Cut enough segments to fill the device, and no more: each costs a look at all maxima."""
        num_tiles = -(-vocab // TILE)
        wanted = -(-multiprocessors * PROGRAMS_PER_MULTIPROCESSOR // num_groups)
        segment_tiles = -(-num_tiles // min(wanted, num_tiles))
        return cls(num_tiles, segment_tiles, -(-num_tiles // segment_tiles))


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":  # the interpreter
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _scores(logits: Tensor, groups: Groups, out: Tensor | None, statistics: Tensor | None) -> None:
    from vllm_cold.ops import triton_kernels as kernels

    num_groups, vocab, device = len(groups), logits.shape[1], logits.device
    plan = Tiling.of(num_groups, vocab, _multiprocessors(device))
    floors = expert_floors(logits, groups)
    maxima = torch.empty(num_groups, plan.num_tiles, dtype=torch.float32, device=device)
    tallies = None
    if statistics is not None:
        tallies = torch.empty(num_groups, plan.num_segments, 4, dtype=torch.int64, device=device)

    grid = (num_groups * plan.num_segments,)
    options: dict[str, Any] = {"TILE": TILE, "num_warps": NUM_WARPS}
    of_rows = logits, logits.stride(0), groups.rows, groups.num_streams
    out_stride = 0 if out is None else out.stride(0)
    # Triton launches on the current device, whatever the tensors are on.
    with torch.accelerator.device_index(device.index):
        kernels.tile_maxima[grid](*of_rows, vocab, *plan, maxima, BLOCK=BLOCK, **options)
        kernels.score_tiles[grid](
            *of_rows, groups.weights, groups.log_alpha, floors, vocab, *plan, maxima, out,
            out_stride, tallies, SEVERAL=groups.num_streams > 2, **options,
        )  # fmt: skip
        if statistics is not None:
            kernels.add_tallies[(num_groups,)](
                tallies, plan.num_segments, statistics, BLOCK=TALLY_BLOCK, num_warps=1
            )


BACKEND = Backend(_missing, _scores)
