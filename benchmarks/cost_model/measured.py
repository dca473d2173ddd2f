# SPDX-License-Identifier: Apache-2.0
"""What the formulas are held against: our own measurements on a CPU, and others' on accelerators.

Each run of benchmarks/measured has constants of its own, as the machine
was another one each day: it read 38 to 83 GB/s when asked. They are fitted to the cells marked so;
all other cells are predicted.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.cost_model.machines import A100, ASCEND, H100, PAIR, SHAPES
from benchmarks.cost_model.model import Load, Machine, Shape, seconds

# Of benchmarks/measured: vLLM's Python around the forward pass, and a call of the LoRA operator
# within a step, of which a layer has four.
STEP, LORA = 2e-3, 4 * 10e-6
CACHE = 0.6  # of the bandwidth: gives attention the fifth of a pass that the profile there found


@dataclass(frozen=True)
class Cell:
    """A measured figure.

    Attributes:
        milliseconds: For a token of each request.
        tokens: Per step and request: more than 1 with drafts.
        fitted: The constants were chosen with it in view.
    """

    name: str
    dtype: str
    load: Load
    milliseconds: float
    tokens: float = 1.0
    fitted: bool = False


@dataclass(frozen=True)
class Run:
    """Cells of one run, on one machine in one state."""

    name: str
    shape: Shape
    cells: tuple[Cell, ...]


def _smollm2() -> Run:
    """benchmarks/measured, "End to end": TPOT. Prompts of about 100 tokens, 48 generated."""
    context = 125.0
    table = {
        "float32": {
            "stock base": {1: 17.9, 2: 19.1, 8: 22.1, 16: 28.8, 32: 42.4},
            "plugin base": {1: 18.1, 8: 21.3, 32: 42.1},
            "plugin adapter": {1: 19.2, 8: 23.4, 32: 45.8},
            "plugin CoLD": {1: 20.4, 8: 30.4, 32: 103.0},
        },
        "bfloat16": {
            "stock base": {1: 9.37, 2: 9.87, 8: 14.0, 16: 18.7, 32: 27.1},
            "plugin base": {1: 11.0, 8: 14.2, 32: 27.6},
            "plugin adapter": {1: 10.3, 8: 15.2, 32: 29.1},
            "plugin CoLD": {1: 12.0, 8: 19.7, 32: 60.8},
        },
    }
    cells = [
        Cell(
            system,
            dtype,
            Load(batch, context, 2 if "CoLD" in system else 1, int("base" not in system)),
            milliseconds,
            fitted=system == "plugin base" and batch != 8,
        )
        for dtype, systems in table.items()
        for system, batches in systems.items()
        for batch, milliseconds in batches.items()
    ]
    return Run("SmolLM2-135M, end to end", SHAPES["SmolLM2-135M"], tuple(cells))


def _groups() -> Run:
    """benchmarks/measured, "Groups": TPOT. Prompts of 256 tokens or an own one, rank 8."""

    def cell(name: str, batch: int, context: float, streams: int, adapters: int, ms: float) -> Cell:
        load = Load(batch, context + 24, streams, adapters, rank=8)
        return Cell(name, "bfloat16", load, ms, fitted=name == "CoLD")

    cells = (
        cell("CoLD", 1, 256, 2, 1, 15.0),
        cell("CoLD, amateur's prompt 64", 1, 160, 2, 1, 14.5),
        cell("CoLD, amateur's prompt 512", 1, 384, 2, 1, 15.6),
        cell("CoLD, 3 streams", 1, 256, 3, 1, 16.2),
        cell("base, 3 streams", 1, 256, 3, 0, 15.3),
        cell("CoLD", 8, 256, 2, 1, 24.8),
        cell("CoLD, amateur's prompt 64", 8, 160, 2, 1, 22.3),
    )
    return Run("SmolLM2-135M, groups", SHAPES["SmolLM2-135M"], cells)


def _shape() -> Run:
    """Speculation in benchmarks/measured: the shape of Llama 3.2 1B, an adapter of rank 16.

    Rows 5 and more a request are k = 4 drafts. CoLD's steps with drafts at batch 8 and 32, but for
    the one where 90 % are right, are left out: many of them verify none.
    """

    def cell(
        name: str, batch: int, streams: int, drafts: int, ms: float, tokens: float = 1.0
    ) -> Cell:
        load = Load(batch, 40, streams, drafts=drafts)
        fitted = name == "rows" and batch in (1, 64)
        return Cell(name, "bfloat16", load, ms, tokens, fitted)

    cells = (
        cell("rows", 1, 1, 0, 120),
        cell("rows", 8, 1, 0, 117),
        cell("rows", 64, 1, 0, 449),
        cell("greedy", 1, 1, 0, 123),
        cell("greedy", 8, 1, 0, 125),
        cell("greedy", 32, 1, 0, 254),
        cell("CoLD", 1, 2, 0, 126),
        cell("CoLD", 8, 2, 0, 161),
        cell("CoLD", 32, 2, 0, 462),
        cell("greedy, drafts", 1, 1, 4, 53.8, 2.00),
        cell("greedy, drafts", 1, 1, 4, 29.1, 3.84),
        cell("greedy, drafts", 8, 1, 4, 66.7, 4.60),
        cell("greedy, drafts", 8, 1, 4, 126, 2.10),
        cell("greedy, drafts", 32, 1, 4, 420, 2.14),
        cell("CoLD, drafts", 1, 2, 4, 64.7, 2.00),
        cell("CoLD, drafts", 1, 2, 4, 31.8, 3.84),
        cell("CoLD, drafts", 8, 2, 4, 132, 4.60),
    )
    return Run("Llama 3.2 1B's shape", SHAPES["Llama-3.2-1B, untied"], cells)


def runs() -> tuple[Run, ...]:
    return _smollm2(), _groups(), _shape()


def predicted(run: Run, cell: Cell, machine: Machine, tp: int = 1) -> float:
    """Milliseconds for a token."""
    return 1e3 * seconds(run.shape, machine, cell.load, cell.dtype, tp) / cell.tokens


def fit(run: Run) -> Machine:
    """The CPU as it was in a run: its bandwidth, and its rate in each dtype."""
    from scipy.optimize import least_squares

    cells = [cell for cell in run.cells if cell.fitted]
    dtypes = sorted({cell.dtype for cell in cells})

    def machine(logs: Sequence[float]) -> Machine:
        bandwidth, *rates = map(math.exp, logs)
        return Machine(
            "CPU, 2 cores",
            bandwidth,
            dict(zip(dtypes, rates, strict=True)),
            lora=LORA,
            step=STEP,
            pair=PAIR,
            cache=CACHE,
        )

    def errors(logs: Sequence[float]) -> list[float]:
        guess = machine(logs)
        return [math.log(predicted(run, cell, guess) / cell.milliseconds) for cell in cells]

    start = [math.log(4e10), *(math.log(3e11) for _ in dtypes)]
    return machine(least_squares(errors, start).x)


def off(run: Run, machine: Machine) -> list[float]:
    """The error of each cell that was not fitted, as a share of what was measured."""
    return [
        predicted(run, cell, machine) / cell.milliseconds - 1
        for cell in run.cells
        if not cell.fitted
    ]


@dataclass(frozen=True)
class Published:
    """A figure that others have published: milliseconds for a token of each request."""

    source: str
    machine: Machine
    shape: str
    load: Load
    milliseconds: float
    tp: int = 1
    fitted: bool = False

    @property
    def predicted(self) -> float:
        shape = SHAPES[self.shape]
        return 1e3 * seconds(shape, self.machine, self.load, "bfloat16", self.tp)


def _base(batch: int, context: float) -> Load:
    return Load(batch, context, adapters=0)


_FAST = "gpt-fast's README"
_SGLANG = "sglang's issue 1008"
_ASCEND = "vllm-ascend's issue 3930"
PUBLISHED = (
    Published(_FAST, A100, "Llama-2-7B", _base(1, 100), 1e3 / 104.9, fitted=True),
    Published(_FAST, A100, "Llama-2-70B", _base(1, 100), 1e3 / 21.32, 2, fitted=True),
    Published(_FAST, A100, "Llama-2-70B", _base(1, 100), 1e3 / 38.01, 4),
    Published(_FAST, A100, "Llama-2-70B", _base(1, 100), 1e3 / 62.50, 8),
    Published(_FAST, A100, "Llama-2-7B", _base(1, 100), 1e3 / 168.84, 2),
    Published(_FAST, A100, "Llama-2-7B", _base(1, 100), 1e3 / 254.02, 4),
    Published(_FAST, A100, "Llama-2-7B", _base(1, 100), 1e3 / 328.43, 8),
    Published(
        "vLLM's pull request 11000", H100, "Llama-3-8B", _base(1, 96), 944.7 / 128, fitted=True
    ),
    Published(_SGLANG, H100, "Llama-3-8B", _base(1, 132), 7.37),
    Published(_SGLANG, H100, "Llama-3-8B", _base(128, 132), 11.84),
    Published(_SGLANG, H100, "Llama-3-8B", _base(1, 132), 3.35, 8),
    Published(_ASCEND, ASCEND, "Qwen2.5-7B", _base(1, 300), 1e3 / 52.5, fitted=True),
    Published(
        _ASCEND,
        ASCEND,
        "Qwen2.5-7B",
        replace(_base(1, 300), adapters=1, rank=64),
        1e3 / 29.4,
        fitted=True,
    ),
    Published("vllm-ascend's issue 4656", ASCEND, "Qwen3-32B", _base(1, 15500), 38.0, 4),
)


def median_off(errors: Sequence[float]) -> float:
    """The median of errors without their signs."""
    return statistics.median(map(abs, errors))
