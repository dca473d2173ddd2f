# SPDX-License-Identifier: Apache-2.0
"""What adapters on a mixture's experts cost in one layer on this CPU.

``python -m benchmarks.bench_lora [--dtype bf16 fp32] [--rank 8 16 64] [--adapters 1 4]
[--rows 1 8 32 128 512] [--rounds 5]``

A mixture of Granite 3.1 1B-A400M's sizes: "adapted" with adapters on the experts of all rows,
"others" with the same adapters loaded and rows that have none of them, and "kernel" without LoRA.
Each call takes the next of several copies of the weights, which together exceed the last cache, as
in a model whose weights pass by in every step. All systems run in each round, in an order shuffled
anew, and are compared within the round. Before the first of them every result is compared with
float64; with one wrong, no speed is printed.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace
from typing import Any

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

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ADAPTED, OTHERS, KERNEL = "adapted", "others", "kernel"
EXPERTS, HIDDEN, EXPERT_SIZE, CHOSEN = 32, 1024, 512, 8
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}


Call = Callable[[Tensor, int], object]  # (output, which copy of the weights)


@dataclass(frozen=True)
class Workload:
    """A batch: ``rows`` rows, in turn of each of ``adapters`` adapters."""

    dtype: str
    rank: int
    adapters: int
    rows: int


class Buffers:
    """A workload's tensors, the layers in several copies, with adapters and without."""

    def __init__(self, load: Workload, copies: int) -> None:
        from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
        from vllm.model_executor.layers.fused_moe.oracle.unquantized import (
            select_unquantized_moe_backend,
        )

        from vllm_cold.cpu import moe_lora

        dtype, generator = DTYPES[load.dtype], torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).to(dtype)

        self.load, self.copies = load, copies
        self.slots = torch.arange(load.rows) % load.adapters
        self.x = HIDDEN**0.5 * draw(load.rows, HIDDEN)
        self.y = torch.zeros_like(self.x)
        chances = torch.randn(load.rows, EXPERTS, generator=generator).softmax(-1)
        self.factors, ids = chances.topk(CHOSEN)
        self.ids = ids.to(torch.int32)
        self.w13 = draw(EXPERTS, 2 * EXPERT_SIZE, HIDDEN)
        self.w2 = draw(EXPERTS, HIDDEN, EXPERT_SIZE)
        each = (load.adapters, EXPERTS)
        self.a = [draw(*each, load.rank, size) for size in (HIDDEN, HIDDEN, EXPERT_SIZE)]
        self.b = [draw(*each, size, load.rank) for size in (EXPERT_SIZE, EXPERT_SIZE, HIDDEN)]
        config = _experts_config(dtype)
        kernel = select_unquantized_moe_backend(config)[1] or CPUUnquantizedExperts
        self._kernels = [self._layer(kernel, config) for _ in range(copies)]
        ours = moe_lora.with_lora(kernel)
        self._ours = [self._layer(ours, config) for _ in range(copies)]
        self._wrapper = SimpleNamespace(token_lora_indices=self.slots)
        for experts, _ in self._ours:
            experts.set_lora_context(self._context())

    def systems(self) -> dict[str, Call]:
        """With adapters, with none of the rows', and without LoRA."""
        nobodys = torch.full_like(self.slots, -1)
        return {
            ADAPTED: self._call(self._ours, self.slots),
            OTHERS: self._call(self._ours, nobodys),
            KERNEL: self._call(self._kernels, nobodys),
        }

    def _layer(self, kind: Any, config: Any) -> tuple[Any, torch.nn.Module]:
        from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig

        layer = torch.nn.Module()
        for name, weight in (("w13_weight", self.w13), ("w2_weight", self.w2)):
            setattr(layer, name, torch.nn.Parameter(weight.clone(), requires_grad=False))
        experts = kind(config, FusedMoEQuantConfig.make())
        experts.process_weights_after_loading(layer)
        return experts, layer

    def _call(self, layers: list[tuple[Any, torch.nn.Module]], slots: Tensor) -> Call:
        def run(y: Tensor, copy: int) -> None:
            experts, layer = layers[copy]
            self._wrapper.token_lora_indices = slots
            experts.apply(
                output=y, hidden_states=self.x, w1=layer.w13_weight, w2=layer.w2_weight,
                topk_weights=self.factors, topk_ids=self.ids,
                activation=experts.moe_config.activation, global_num_experts=EXPERTS,
                expert_map=None, a1q_scale=None, a2_scale=None, workspace13=None,
                workspace2=None, expert_tokens_meta=None, apply_router_weight_on_input=False,
            )  # fmt: skip

        return run

    def _context(self) -> SimpleNamespace:
        """What vLLM tells experts of their adapters."""
        *a13, a2 = self.a
        *b13, b2 = self.b
        return SimpleNamespace(
            w13_lora_a_stacked=a13, w13_lora_b_stacked=b13, w2_lora_a_stacked=[a2],
            w2_lora_b_stacked=[b2], local_num_experts=EXPERTS, fully_sharded=False, tp_size=1,
            adapter_enabled=torch.tensor([1] * self.load.adapters + [0], dtype=torch.int32),
            punica_wrapper=self._wrapper,
        )  # fmt: skip

    def want(self) -> Tensor:
        """The result with adapters in float64."""
        y = torch.zeros(self.y.shape, dtype=torch.float64)
        for slot, expert in product(range(self.load.adapters), range(EXPERTS)):
            rows, choice = ((self.ids == expert) & (self.slots == slot)[:, None]).nonzero().T
            if not len(rows):
                continue
            gate, up, down = (
                weight[expert].double() + b[slot, expert].double() @ a[slot, expert].double()
                for weight, a, b in zip(
                    (*self.w13.chunk(2, 1), self.w2), self.a, self.b, strict=True
                )
            )
            x = self.x[rows].double()
            hidden = torch.nn.functional.silu(x @ gate.T) * (x @ up.T)
            y.index_add_(0, rows, hidden @ down.T * self.factors[rows, choice, None])
        return y


def _experts_config(dtype: torch.dtype) -> Any:
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.config import (
        FusedMoEConfig,
        FusedMoEParallelConfig,
        RoutingMethodType,
    )

    return FusedMoEConfig(
        num_experts=EXPERTS, experts_per_token=CHOSEN, hidden_dim=HIDDEN,
        intermediate_size=EXPERT_SIZE, num_local_experts=EXPERTS, num_logical_experts=EXPERTS,
        activation=MoEActivation.SILU, device="cpu", routing_method=RoutingMethodType.Default,
        moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(), in_dtype=dtype,
    )  # fmt: skip


def check(load: Workload) -> list[str]:
    """What is wrong with the result."""
    buffers = Buffers(load, 1)
    y, tolerance = buffers.y.clone(), TOLERANCE[buffers.y.dtype]
    buffers.systems()[ADAPTED](y, 0)
    right = torch.allclose(y.double(), buffers.want(), rtol=tolerance, atol=tolerance)
    return [] if right else [f"{load}: wrong result of {ADAPTED}"]


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
    calls = buffers.systems()
    y = buffers.y.clone()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        seconds(call, y, copies, 0.0)
    for _, name in in_rounds(calls, rounds, rng):
        y.copy_(buffers.y)
        times[name].append(seconds(calls[name], y, copies))
    return times


def row(load: Workload, times: dict[str, list[float]]) -> list[str]:
    """A line of the table."""
    return [
        *(load.dtype, str(load.rank), str(load.adapters), str(load.rows)),
        *(spread_text(times[name], "{:.1f}".format, 1e6) for name in (ADAPTED, KERNEL)),
        *(spread_text(ratios(times[name], times[KERNEL])) for name in (ADAPTED, OTHERS)),
    ]


HEAD = ("dtype", "rank", "adapters", "rows", "adapted us", "kernel us", "adapted/kernel",
        "others/kernel")  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 if a result was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--rank", type=positive, nargs="+", default=[8, 16, 64])
    parser.add_argument("--adapters", type=positive, nargs="+", default=[1, 4])
    parser.add_argument("--rows", type=positive, nargs="+", default=[1, 8, 32, 128, 512])
    parser.add_argument("--rounds", type=positive, default=5)
    options = parser.parse_args(arguments)
    print(f"{cpu_model()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    asked = product(options.dtype, options.rank, options.adapters, options.rows)
    loads = [load for load in (Workload(*each) for each in asked) if load.adapters <= load.rows]

    def show() -> None:
        rng, cache, rows = random.Random(0), cpu_cache(), []
        for load in loads:
            weights = 3 * EXPERTS * HIDDEN * EXPERT_SIZE * DTYPES[load.dtype].itemsize
            copies = max(2, min(64, 2 * cache // weights + 1))  # more than the cache holds
            rows.append(row(load, measure(load, copies, options.rounds, rng)))
        print(table(HEAD, rows))
        print("microseconds: median (20th-80th percentile); ratios within rounds")

    return show_if_right((problem for load in loads for problem in check(load)), show)


if __name__ == "__main__":
    sys.exit(main())
