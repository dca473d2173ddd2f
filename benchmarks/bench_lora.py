# SPDX-License-Identifier: Apache-2.0
"""What LoRA costs in one layer on this CPU: this package's kernels, vLLM's, and the layer itself.

``python -m benchmarks.bench_lora [--layer qkv gate_up down] [--dtype bf16 fp32] [--rank 8 16 64]
[--adapters 1 4] [--rows 1 8 32 128 512] [--rounds 5]``

Systems: "cpp", the C++ kernels; "torch", this package's torch operations; "stock", vLLM's own
operations (``PunicaWrapperCPU``, decode or prefill form by the number of rows); and "base", the
product of the layer that the adapter belongs to, as vLLM computes it (oneDNN with packed weights
where vLLM has it). Layers have SmolLM2-135M's sizes. Each call takes the next of several copies of
the weights, which together exceed the last cache, as in a model whose weights pass by in every
step. All systems run in each round, in an order shuffled anew, and are compared within the round.
Before the first of them every result is compared with float64; with one wrong, no speed is printed.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from benchmarks.rounds import (
    cpu_cache,
    cpu_model,
    in_rounds,
    positive,
    ratios,
    show_if_right,
    spread_text,
    table,
)
from vllm_cold.cpu import lora_ops
from vllm_cold.cpu.lora_fallback import expand_add, group_rows, shrink

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# (inputs, output slices)
LAYERS = {
    "qkv": (576, (576, 192, 192)),
    "o": (576, (576,)),
    "gate_up": (576, (1536, 1536)),
    "down": (1536, (576,)),
}
CPP, TORCH, STOCK, BASE = "cpp", "torch", "stock", "base"
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class Workload:
    """One layer's LoRA for a batch: ``rows`` rows, in turn of each of ``adapters`` adapters."""

    layer: str
    dtype: str
    rank: int
    adapters: int
    rows: int


class Buffers:
    """A workload's tensors, the weights in several copies."""

    def __init__(self, load: Workload, copies: int) -> None:
        inputs, self.sizes = LAYERS[load.layer]
        dtype, slots = DTYPES[load.dtype], load.adapters
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.load, self.copies = load, copies
        self.slots = torch.arange(load.rows) % slots
        self.x = draw(load.rows, inputs).to(dtype)
        self.y = draw(load.rows, sum(self.sizes)).to(dtype)
        a = [draw(slots, 1, load.rank, inputs) / inputs**0.5 for _ in self.sizes]
        b = [draw(slots, 1, n, load.rank) / load.rank**0.5 for n in self.sizes]
        self.a = [tuple(w.to(dtype, copy=True) for w in a) for _ in range(copies)]
        self.b = [tuple(w.to(dtype, copy=True) for w in b) for _ in range(copies)]

    def want(self) -> Tensor:
        """The result in float64."""
        y, column = self.y.double(), 0
        for index, size in enumerate(self.sizes):
            for slot in range(self.load.adapters):
                rows = self.slots == slot
                hidden = self.x[rows].double() @ self.a[0][index][slot, 0].double().T
                y[rows, column : column + size] += hidden @ self.b[0][index][slot, 0].double().T
            column += size
        return y


Call = Callable[[Tensor, int], object]  # (output, which copy of the weights)


def cpp(buffers: Buffers) -> Call:
    """The C++ kernels, through torch's operators, as a model calls them."""
    plan = lora_ops.Plan(len(buffers.slots))
    plan.set(buffers.slots)
    layers = [
        lora_ops.Layer(plan, a, b, buffers.sizes) for a, b in zip(buffers.a, buffers.b, strict=True)
    ]
    operator = torch.ops.vllm_cold.lora_linear.default
    return lambda y, copy: operator(y, buffers.x, layers[copy].table, 1.0)


def grouped(buffers: Buffers) -> Call:
    """Torch operations on groups of rows."""
    groups = group_rows(buffers.slots)

    def run(y: Tensor, copy: int) -> None:
        column = 0
        for a, b, size in zip(buffers.a[copy], buffers.b[copy], buffers.sizes, strict=True):
            hidden = torch.empty(len(y), a.shape[-2], dtype=torch.float32)
            shrink(buffers.x, a, groups, 1.0, hidden)
            expand_add(hidden, b, groups, y, column, size)
            column += size

    return run


def stock(buffers: Buffers) -> Call:
    """vLLM's wrapper, told of the batch as vLLM tells it. Several rows of one adapter in a row are
    a prefill.
    """
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    load = buffers.load
    wrapper = PunicaWrapperCPU(load.rows, load.rows, torch.device("cpu"))
    ids = tuple(int(slot) + 1 for slot in buffers.slots)
    is_prefill = load.adapters == 1 and load.rows > 64
    mapping = LoRAMapping(ids, ids, is_prefill)
    wrapper.update_metadata(mapping, list(range(1, load.adapters + 1)), load.adapters + 1, 512)
    return lambda y, copy: wrapper.add_lora_linear(
        y, buffers.x, buffers.a[copy], buffers.b[copy], 1.0, buffers.sizes
    )


def base(buffers: Buffers) -> Call:
    """The layer without LoRA."""
    inputs, sizes = LAYERS[buffers.load.layer]
    weights = [torch.randn(sum(sizes), inputs).to(buffers.x.dtype) for _ in range(buffers.copies)]
    from vllm import _custom_ops

    if _custom_ops._supports_onednn:
        handlers = [_custom_ops.create_onednn_mm(weight.t(), 32) for weight in weights]
        return lambda y, copy: _custom_ops.onednn_mm(handlers[copy], buffers.x, None)
    return lambda y, copy: torch.nn.functional.linear(buffers.x, weights[copy])


def systems(buffers: Buffers) -> dict[str, Call]:
    """All of them."""
    return {
        CPP: cpp(buffers), TORCH: grouped(buffers), STOCK: stock(buffers), BASE: base(buffers),
    }  # fmt: skip


def check(load: Workload) -> list[str]:
    """Which systems give wrong results."""
    buffers = Buffers(load, 1)
    want, wrong = buffers.want(), []
    tolerance = TOLERANCE[buffers.y.dtype]
    for name, call in systems(buffers).items():
        if name != BASE:
            y = buffers.y.clone()
            call(y, 0)
            if not torch.allclose(y.double(), want, rtol=tolerance, atol=tolerance):
                wrong.append(f"{load}: wrong result of {name}")
    return wrong


def seconds(call: Call, y: Tensor, copies: int, at_least: float = 0.01) -> float:
    """Mean time of a call over one turn of all copies, or more until ``at_least`` seconds."""
    count, started = 0, time.perf_counter()
    while True:
        for copy in range(copies):
            call(y, copy)
        count += copies
        elapsed = time.perf_counter() - started
        if elapsed >= at_least:
            return elapsed / count


def measure(load: Workload, copies: int, rounds: int, rng: random.Random) -> dict[str, list[float]]:
    """Seconds a call by system, in order of the rounds."""
    buffers = Buffers(load, copies)
    calls = systems(buffers)
    y = buffers.y.clone()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        seconds(call, y, copies, 0.0)
    for _, name in in_rounds(calls, rounds, rng):
        y.copy_(buffers.y)
        times[name].append(seconds(calls[name], y, copies))
    return times


def copies_for(load: Workload, cache: int) -> int:
    """Copies of the weights that exceed the last cache, and how many a layer stack would have."""
    inputs, sizes = LAYERS[load.layer]
    per_copy = load.rank * (inputs * len(sizes) + sum(sizes)) * load.adapters
    return max(2, min(64, 2 * cache // (per_copy * DTYPES[load.dtype].itemsize) + 1))


def row(load: Workload, times: dict[str, list[float]]) -> list[str]:
    """A line of the table."""
    return [
        *(load.layer, load.dtype, str(load.rank), str(load.adapters), str(load.rows)),
        *(spread_text(times[name], "{:.1f}".format, 1e6) for name in (CPP, BASE)),
        *(spread_text(ratios(times[name], times[CPP])) for name in (STOCK, TORCH)),
        spread_text(ratios(times[CPP], times[BASE])),
    ]


HEAD = ["layer", "dtype", "rank", "adapters", "rows", "cpp us", "base us",
        "stock/cpp", "torch/cpp", "cpp/base"]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 if a result was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layer", choices=LAYERS, nargs="+", default=list(LAYERS))
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--rank", type=positive, nargs="+", default=[8, 16, 64])
    parser.add_argument("--adapters", type=positive, nargs="+", default=[1, 4])
    parser.add_argument("--rows", type=positive, nargs="+", default=[1, 8, 32, 128, 512])
    parser.add_argument("--rounds", type=positive, default=5)
    options = parser.parse_args(arguments)
    reason = lora_ops.missing()
    if reason is not None:
        print(f"The C++ kernels cannot run here. {reason}")
        return 1
    print(f"{cpu_model()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    asked = product(options.layer, options.dtype, options.rank, options.adapters, options.rows)
    loads = [load for load in (Workload(*each) for each in asked) if load.adapters <= load.rows]

    def show() -> None:
        rng, cache = random.Random(0), cpu_cache()
        rows = (
            row(load, measure(load, copies_for(load, cache), options.rounds, rng)) for load in loads
        )
        print(table(HEAD, rows, 2))
        print("microseconds: median (20th-80th percentile); ratios within rounds")

    return show_if_right((problem for load in loads for problem in check(load)), show)


if __name__ == "__main__":
    sys.exit(main())
