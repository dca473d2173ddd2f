# SPDX-License-Identifier: Apache-2.0
"""The multi-LoRA operators in C++ against float64, on every instruction set of this CPU."""

import ctypes
import itertools
import random
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops import lora_cases
from tests.ops.lora_cases import Case
from vllm_cold.cpu import lora_ops, operators
from vllm_cold.ops import cpu_library

pytestmark = pytest.mark.unit

assert operators.missing() is None  # registers the operators
ISAS = cpu_library.ISAS[: cpu_library.best_isa() + 1]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
make_case = partial(lora_cases.make_case, adapters=4)


def scattered(n: int) -> list[int]:
    return [(7 * t * t + t) % 5 - 1 for t in range(n)]


def layer_of(case: Case) -> lora_ops.Layer:
    plan = lora_ops.Plan(max(len(case.indices), 1))
    plan.set(case.indices)
    assert plan.num_rows == len(case.active)
    return lora_ops.Layer(plan, case.a, case.b, case.widths)


def check(case: Case, got: Tensor) -> None:
    """Sums are in the order of their terms."""
    case.check(got, case.a[0].shape[-1] + case.a[0].shape[-2] + 4)


class Matrix(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "stride", "dtype")),
    ]

    @staticmethod
    def of(tensor: Tensor) -> "Matrix":
        return Matrix(
            tensor.data_ptr(), *tensor.shape, tensor.stride(0), cpu_library.DTYPES[tensor.dtype]
        )


def linear(case: Case, y: Tensor, isa: str | None = None, threads: int = 2) -> Tensor:
    """``lora_linear`` on ``y``, with one instruction set and number of threads."""
    layer = layer_of(case)
    status = cpu_library.library().vllm_cold_lora_linear(
        ctypes.c_void_p(layer.table.data_ptr()),
        ctypes.byref(Matrix.of(y)),
        ctypes.byref(Matrix.of(case.x)),
        ctypes.c_float(case.scale),
        cpu_library.best_isa() if isa is None else ISAS.index(isa),
        threads,
    )
    assert status == 0
    return y


def run(case: Case) -> Tensor:
    y, layer = case.y.clone(), layer_of(case)
    torch.ops.vllm_cold.lora_linear(y, case.x, layer.table, case.scale)
    return y


def random_case(seed: int, dtype: torch.dtype) -> Case:
    """Of any shape; rows and outputs may be wider than what is used."""
    rng = random.Random(seed)
    adapters, count = rng.choice((1, 4, 9)), rng.choice((0, 1, 2, 5, 9, 64, 65, 300))
    slots = rng.choice(([-1], [adapters - 1], [-1, 0], range(-1, adapters)))
    rows = [rng.choice(slots) for _ in range(count)]
    widths = rng.choice(((96, 32, 32), (1,), (1003,), [rng.randrange(1, 150) for _ in range(5)]))
    rank = rng.choice((1, 3, 5, 8, 15, 16, 17, 64, 512, rng.randrange(1, 80)))
    case = make_case(
        seed,
        rows,
        rank,
        rng.randrange(1, 200),
        tuple(widths),
        dtype,
        adapters=adapters,
        padded=seed % 4,
        weights=rng.choice((dtype, *DTYPES)),
    )
    case.y = torch.nn.functional.pad(case.y.to(rng.choice((dtype, *DTYPES))), (0, seed % 3))
    case.y = case.y[:, : sum(widths)]
    return case


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear(dtype: torch.dtype, isa: str) -> None:
    for seed in range(40):
        case = random_case(seed, dtype)
        wide = torch.nn.functional.pad(case.y, (0, seed % 3))
        y = wide[:, : case.y.shape[1]]
        check(case, linear(case, y, isa, threads=1 + seed % 8))
        assert (wide[:, case.y.shape[1] :] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    """Bit for bit: whatever else is in the batch, and however many threads there are."""
    for num_rows in (2, 7, 33, 200):
        slots = scattered(num_rows)
        case = make_case(num_rows, slots, 16, 96, (96, 32), dtype)
        together = linear(case, case.y.clone(), threads=1)
        for threads in (2, 3, 8):
            assert torch.equal(linear(case, case.y.clone(), threads=threads), together)
        for t in range(0, num_rows, max(1, num_rows // 7)):
            row = slice(t, t + 1)
            alone = replace(case, x=case.x[row], y=case.y[row], indices=case.indices[row])
            assert torch.equal(linear(alone, alone.y.clone()), together[t : t + 1])


def test_the_halves_give_the_whole() -> None:
    """Fully sharded adapters begin at another column, and write over what is there."""
    for slots in ([0, -1, 3, 3, 1], [2], [-1, -1], [3] * 90):
        case = make_case(5, slots, 12, 40, (32, 16), torch.bfloat16)
        layer = layer_of(case)
        hidden = torch.zeros(2, len(slots), 12)
        torch.ops.vllm_cold.lora_shrink(hidden, case.x, layer.table, case.scale)
        y = case.y.clone()
        torch.ops.vllm_cold.lora_expand(y, hidden, layer.table, 0, True)
        assert torch.equal(y, run(case))
        wide = torch.full((len(slots), 90), 7.0)
        torch.ops.vllm_cold.lora_expand(wide, hidden, layer.table, 30, False)
        case.y = torch.full(y.shape, 7.0)
        for row in (row for row, slot in enumerate(slots) if slot >= 0):
            case.y[row] = 0.0
        check(case, wide[:, 30:78])
        assert (wide[:, :30] == 7).all() and (wide[:, 78:] == 7).all()


def test_what_an_adapter_leaves_alone_is_not_read() -> None:
    """vLLM zeroes the weights of layers that an adapter lacks, and pads ranks with zeros."""
    case = make_case(7, [0, 1, 0], 16, 40, (40, 24), torch.bfloat16)
    case.a[0].zero_()
    case.b[0].fill_(torch.nan)  # would show if it were read
    case.a[1][:, :, 6:] = 0
    case.b[1][:, :, :, 6:] = torch.nan
    y = run(case)
    assert torch.equal(y[:, :40], case.y[:, :40])
    case.b[0].zero_()
    case.b[1][:, :, :, 6:] = 0
    check(case, y)


def test_what_rounds_to_16_bits() -> None:
    """Ties to even, subnormals, overflow and infinity, on every instruction set."""
    values = [1.0, 1 + 2**-8, 1 + 3 * 2**-8, 2**-15, 3 * 2**-25, 2**-26, 65504.0, 65519.9, 65520.0,
              1e30, 3.4e38, -2**-24, -65520.0, 0.1, 123.456, torch.inf]  # fmt: skip
    for dtype, isa in itertools.product(DTYPES[1:], ISAS):
        case = Case(torch.zeros(1, len(values), dtype=dtype), torch.ones(1, 1),
                    (torch.ones(1, 1, 1, 1),), (torch.tensor(values).view(1, 1, -1, 1),),
                    torch.tensor([0]), 1.0)  # fmt: skip
        got = linear(case, case.y.clone(), isa)
        assert got.tolist() == torch.tensor([values]).to(dtype).tolist()


def test_a_compiled_model_sees_each_steps_batch() -> None:
    """One graph for all numbers of rows; what changes between calls is in the plan."""
    case = make_case(10, [0, -1, 1], 8, 24, (16,), torch.float32)
    layer = layer_of(case)
    weight = torch.randn(16, 24)

    def forward(x: Tensor, table: Tensor) -> Tensor:
        y = torch.nn.functional.linear(x, weight)
        torch.ops.vllm_cold.lora_linear(y, x, table, 1.0)
        return torch.nn.functional.silu(y)

    compiled = torch.compile(forward, fullgraph=True, dynamic=True, backend="aot_eager")
    plan = layer._kept[0]
    for slots in ([0, -1, 1], [2, 2], [-1, -1, -1]):
        plan.set(torch.tensor(slots))
        x = case.x[: len(slots)]
        torch.testing.assert_close(compiled(x, layer.table), forward(x, layer.table))
        assert any(slot >= 0 for slot in slots) != torch.equal(
            compiled(x, layer.table), torch.nn.functional.silu(x @ weight.T)
        )


# ---- what cannot be computed ---------------------------------------------------------------------


def call(y: Tensor, x: Tensor, layer: lora_ops.Layer) -> None:
    torch.ops.vllm_cold.lora_linear(y, x, layer.table, 1.0)


def test_tensors_that_do_not_fit_are_errors() -> None:
    case = make_case(11, [0, 0, 0], 4, 24, (16,), torch.float32)
    layer = layer_of(case)
    for y, x, says in (
        (case.y, case.x[:, :20], "does not fit the layer"),
        (case.y[:, :10], case.x, "does not fit the layer"),
        (case.y, case.x[:2], "another number of rows"),
        (case.y[:2], case.x, "another number of rows"),
        (torch.cat([case.y, case.y]), torch.cat([case.x, case.x]), "another number of rows"),
        (case.y.double(), case.x, "float32, bfloat16 or float16"),
        (case.y, torch.randn(24, 3).T, "contiguous rows"),
        (case.y, case.x[None], "not a matrix of float32"),
    ):
        before = y.clone()
        with pytest.raises(RuntimeError, match=says):
            call(y, x, layer)
        assert torch.equal(y, before)
    call(case.y, case.x, layer)  # and it goes on


def test_addresses_of_another_process_are_not_used() -> None:
    case = make_case(13, [0], 4, 24, (16,), torch.float32)
    layer = layer_of(case)
    layer.table[0] += 1
    hidden = torch.zeros(1, 1, 4)
    for run_it in (
        lambda: call(case.y, case.x, layer),
        lambda: torch.ops.vllm_cold.lora_shrink(hidden, case.x, layer.table, 1.0),
        lambda: torch.ops.vllm_cold.lora_expand(case.y, hidden, layer.table, 0, True),
    ):
        with pytest.raises(RuntimeError, match="addresses of another process"):
            run_it()


@pytest.mark.parametrize(
    "change",
    [
        lambda a, b: ([a.double()], [b.double()]),
        lambda a, b: ([a], [b.bfloat16()]),
        lambda a, b: ([a.transpose(-1, -2)], [b]),
        lambda a, b: ([torch.zeros(1, 1, 600, 2)], [torch.zeros(1, 1, 3, 600)]),
        lambda a, b: ([a, torch.zeros(4, 1, 5, 24)], [b, b]),
    ],
)
def test_weights_that_it_does_not_take(change: Any) -> None:
    case = make_case(12, [0], 4, 24, (16,), torch.float32)
    a, b = change(case.a[0], case.b[0])
    with pytest.raises(ValueError, match="one rank up to 512; set COLD_LORA=torch"):
        lora_ops.Layer(lora_ops.Plan(1), a, b, [16] * len(b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_lie_by_rank_and_may_change(dtype: torch.dtype) -> None:
    """An adapter is copied into a slot when it is loaded, by whoever holds the tensor."""
    case = make_case(13, [0, 1, 2, 3, 1], 24, 40, (48, 33), dtype)
    before = [b.clone() for b in case.b]
    layer = layer_of(case)
    for b, as_it_was in zip(case.b, before, strict=True):
        assert b.stride(-2) == 1 and torch.equal(b, as_it_was)
    for b in case.b:
        b[1].copy_(2 * b[1])
        b[3] = 0
    y = case.y.clone()
    torch.ops.vllm_cold.lora_linear(y, case.x, layer.table, case.scale)
    check(case, y)
    again, addresses = layer_of(case), [b.data_ptr() for b in case.b]
    assert torch.equal(again.table[2:], layer.table[2:])
    assert addresses == [b.data_ptr() for b in case.b]


def test_a_batch_larger_than_the_plan() -> None:
    plan = lora_ops.Plan(3)
    plan.set(torch.tensor([0, 0, 0]))
    with pytest.raises(ValueError, match="4 rows, but room for 3"):
        plan.set(torch.tensor([0, 0, 0, 0]))
    assert plan.num_rows == 0


# ---- without it ----------------------------------------------------------------------------------


def test_a_missing_library_or_another_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "_TORCH_FUNCTIONS", ("no_such_function",) * 9)
    monkeypatch.setattr(operators, "_register", operators._register.__wrapped__)
    reason = operators.missing.__wrapped__()
    assert reason is not None and "use 2.10 or later" in reason and "no_such" in reason
    monkeypatch.setattr(cpu_library, "missing", lambda: "It is not built: build it.")
    assert operators.missing.__wrapped__() == "It is not built: build it."
