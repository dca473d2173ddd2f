# SPDX-License-Identifier: Apache-2.0
"""What LoRA costs in one layer on this CPU: this package's kernels, vLLM's, and the layer itself.

``python -m benchmarks.bench_lora [--layer qkv gate_up down experts] [--dtype bf16 fp32]
[--rank 8 16 64] [--adapters 1 4] [--rows 1 8 32 128 512] [--rounds 5]``

Systems: "cpp", the C++ kernels; "torch", this package's torch operations; "stock", vLLM's own
operations (``PunicaWrapperCPU``, decode or prefill form by the number of rows); and "base", the
product of the layer that the adapter belongs to, as vLLM computes it (oneDNN with packed weights
where vLLM has it). Layers have SmolLM2-135M's sizes. Each call takes the next of several copies of
the weights, which together exceed the last cache, as in a model whose weights pass by in every
step. All systems run in each round, in an order shuffled anew, and are compared within the round.
Before the first of them every result is compared with float64; with one wrong, no speed is printed.

``--layer experts`` (not among the default ones) is a mixture of Granite 3.1 1B-A400M's sizes:
"adapted" with adapters on the experts of all rows, "others" with the same adapters loaded and rows
that have none of them, and "kernel" without LoRA.
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
MIXTURE, ADAPTED, OTHERS, KERNEL = "experts", "adapted", "others", "kernel"
WITHOUT_LORA = (BASE, OTHERS, KERNEL)
EXPERTS, HIDDEN, EXPERT_SIZE, CHOSEN = 32, 1024, 512, 8
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}


Call = Callable[[Tensor, int], object]  # (output, which copy of the weights)


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

    def systems(self) -> dict[str, Call]:
        """All of them."""
        return {CPP: cpp(self), TORCH: grouped(self), STOCK: stock(self), BASE: base(self)}

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


class ExpertBuffers:
    """The same of a mixture of experts; the layers in several copies, with adapters and without."""

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


def buffers_of(load: Workload, copies: int) -> Buffers | ExpertBuffers:
    """The tensors of its layer."""
    return (ExpertBuffers if load.layer == MIXTURE else Buffers)(load, copies)


def check(load: Workload) -> list[str]:
    """Which systems give wrong results."""
    buffers = buffers_of(load, 1)
    want, wrong = buffers.want(), []
    tolerance = TOLERANCE[buffers.y.dtype]
    for name, call in buffers.systems().items():
        if name not in WITHOUT_LORA:
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
    buffers = buffers_of(load, copies)
    calls = buffers.systems()
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
    if load.layer == MIXTURE:
        per_copy = 3 * EXPERTS * HIDDEN * EXPERT_SIZE  # its own, as LoRA is beside them
    else:
        inputs, sizes = LAYERS[load.layer]
        per_copy = load.rank * (inputs * len(sizes) + sum(sizes)) * load.adapters
    return max(2, min(64, 2 * cache // (per_copy * DTYPES[load.dtype].itemsize) + 1))


def row(load: Workload, times: dict[str, list[float]]) -> list[str]:
    """A line of the table."""
    named = (load.layer, load.dtype, str(load.rank), str(load.adapters), str(load.rows))
    if load.layer == MIXTURE:
        return [
            *named,
            *(spread_text(times[name], "{:.1f}".format, 1e6) for name in (ADAPTED, KERNEL)),
            *(spread_text(ratios(times[name], times[KERNEL])) for name in (ADAPTED, OTHERS)),
        ]
    return [
        *named,
        *(spread_text(times[name], "{:.1f}".format, 1e6) for name in (CPP, BASE)),
        *(spread_text(ratios(times[name], times[CPP])) for name in (STOCK, TORCH)),
        spread_text(ratios(times[CPP], times[BASE])),
    ]


HEAD = ["layer", "dtype", "rank", "adapters", "rows", "cpp us", "base us",
        "stock/cpp", "torch/cpp", "cpp/base"]  # fmt: skip
MIXTURE_HEAD = [*HEAD[:5], "adapted us", "kernel us", "adapted/kernel", "others/kernel"]


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 if a result was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layer", choices=[*LAYERS, MIXTURE], nargs="+", default=[*LAYERS])
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
        for head, is_mixture in ((HEAD, False), (MIXTURE_HEAD, True)):
            rows = [
                row(load, measure(load, copies_for(load, cache), options.rounds, rng))
                for load in loads
                if (load.layer == MIXTURE) == is_mixture
            ]
            if rows:
                print(table(head, rows, 2))
        print("microseconds: median (20th-80th percentile); ratios within rounds")

    return show_if_right((problem for load in loads for problem in check(load)), show)


if __name__ == "__main__":
    sys.exit(main())
