# SPDX-License-Identifier: Apache-2.0
"""The Triton backend without a GPU: its kernels in Triton's interpreter, held to the reference,
and compiled ahead of time for GPUs.

The interpreter is chosen when Triton is first imported, so both run in processes of their own:
``interpreter`` and ``compiler`` call a function of this module there.
"""

import math
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

from tests.ops.conformance import (
    NOT_FINITE_CASES,
    check_backend,
    check_not_finite,
    check_streams,
    make_case,
)

pytestmark = [pytest.mark.unit, pytest.mark.slow]

Call = Callable[..., Any]
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def _worker(interpret: bool) -> Iterator[Call]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, torch.set_num_threads, (1,)) as pool:
        with mock.patch.dict(os.environ, environment, clear=True):
            pool.submit(os.getpid).result()  # the process starts with the first task
        yield lambda function, *args: pool.submit(function, *args).result()


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Call]:
    yield from _worker(interpret=True)


@pytest.fixture(scope="module")
def compiler() -> Iterator[Call]:
    yield from _worker(interpret=False)


# --- Scores against the reference


def conform(
    seed: int, groups: int, vocab: int, dtype: torch.dtype, layout: str, cores: int
) -> None:
    """With ``cores``, the device seems to have so many: the more, the shorter the segments."""
    case = make_case(seed, groups, vocab, dtype, layout)
    if dtype == BF16:  # the interpreter converts subnormal ones to other numbers
        case.logits[case.logits.abs() < torch.finfo(BF16).tiny] = 0.0
    with strict(cores):
        check_backend("triton", case)


@contextmanager
def strict(cores: int) -> Iterator[None]:
    """Let show what a GPU may do: workspaces start as NaN or zero, nothing past their ends is
    written to, and (of more than one core) the programs run in another order.
    """
    from triton.runtime.interpreter import interpreter_builder

    from vllm_cold.ops import scoring_triton

    beyond: list[torch.Tensor] = []
    set_grid_idx = interpreter_builder.set_grid_idx

    def empty(*shape: Any, dtype: torch.dtype = F32, device: Any = None) -> torch.Tensor:
        shape = shape[0] if shape and not isinstance(shape[0], int) else shape
        size = math.prod(shape)
        memory = torch.full((size + 4096,), math.nan if dtype.is_floating_point else 0, dtype=dtype)
        beyond.append(memory[size:])
        return memory[:size].view(shape)

    def backwards(x: int, y: int, z: int) -> None:
        set_grid_idx(interpreter_builder.grid_dim[0] - 1 - x if cores > 1 else x, y, z)

    with (
        mock.patch.object(torch, "empty", empty),
        mock.patch.object(interpreter_builder, "set_grid_idx", backwards),
        mock.patch.object(scoring_triton, "_multiprocessors", lambda device: cores),
    ):
        yield
    assert beyond and all((memory.isnan() | (memory == 0)).all() for memory in beyond)


def in_full(*cases: Any) -> list[Any]:
    """Larger than the interpreter has time for in every run."""
    return [pytest.param(case, marks=pytest.mark.full) for case in cases]


@pytest.mark.parametrize(
    "case",
    [
        # Short rows: every kind, setting and cap.
        (0, 15, 1, F32, "padded", 1),
        (0, 30, 31, F32, "padded", 1),
        (5, 15, 31, F16, "every other row", 132),
        # Around a tile's and a segment's end; one program a group, or one a tile.
        (0, 4, 1023, F32, "every other row", 1),
        (1, 4, 1025, F32, "padded", 132),
        (2, 3, 4096, BF16, "contiguous", 1),
        (11, 4, 4097, F32, "contiguous", 132),
        # Segments of several tiles.
        (24, 1, 20000, F32, "contiguous", 6),
        *in_full(
            (0, 60, 64, F32, "contiguous", 132),
            (9, 24, 64, BF16, "padded", 1),
            (9, 2, 4097, F16, "every other row", 1),
            # Vocabularies of models.
            (0, 1, 32001, BF16, "padded", 1),
            (11, 2, 32001, F32, "padded", 132),
            (6, 1, 49152, F16, "contiguous", 1),
            (12, 1, 128256, BF16, "every other row", 1),
            (24, 1, 152064, F32, "contiguous", 6),
            (4, 1, 256000, F16, "padded", 1),
            # More tiles than their maxima are read at once, and the group's maximum in the last.
            (9, 1, 270000, F32, "contiguous", 1),
        ),
    ],
    ids=lambda case: f"{case[1]}x{case[2]}-{case[3]}",
)
def test_conforms(interpreter: Call, case: tuple[Any, ...]) -> None:
    interpreter(conform, *case)


def streams(cores: int) -> None:
    with strict(cores):
        check_streams("triton", 1100)


@pytest.mark.parametrize("cores", [1, 132])
def test_as_many_streams_as_there_can_be(interpreter: Call, cores: int) -> None:
    interpreter(streams, cores)


# --- What is not finite


def not_finite(case: tuple[int, int, int], dtype: torch.dtype, cores: int) -> None:
    with strict(cores):
        check_not_finite("triton", *case, dtype)


# Seed, groups and vocabulary; those of the other backends take the interpreter too long.
@pytest.mark.parametrize(
    "case",
    [(2, 8, 1), (5, 12, 61), (12, 4, 2049), (7, 2, 4097), *in_full(*NOT_FINITE_CASES[:-1])],
    ids=str,
)
def test_what_is_not_finite_stays_in_its_group(
    interpreter: Call, case: tuple[int, int, int]
) -> None:
    dtype = (F32, BF16, F32, F16)[case[0] % 4]
    interpreter(not_finite, case, dtype, (1, 132)[case[0] // 2 % 2])


# --- Where it runs


def reasons() -> tuple[Any, ...]:
    from vllm_cold.ops import scoring_triton

    here = [scoring_triton.BACKEND.missing(torch.device(name)) for name in ("cpu", "cuda", "xpu")]
    with mock.patch.dict(sys.modules, {"triton.language": None}):
        return *here, scoring_triton.BACKEND.missing(torch.device("cuda"))


def test_missing(interpreter: Call, compiler: Call) -> None:
    cpu, cuda, xpu, absent = compiler(reasons)
    assert "not on 'cpu'" in cpu and "TRITON_INTERPRET=1" in cpu
    assert "not on 'xpu'" in xpu and "backend 'torch'" in xpu
    assert cuda is None and "cannot be imported" in absent and "install triton" in absent
    assert interpreter(reasons)[:3] == (None, None, None)


# --- Compiled for GPUs


def compile_for(target: str) -> list[Any]:
    from tests.ops.triton_targets import Variant, compile_variants

    variants = [
        Variant("fp32", "aligned", "in place"),
        Variant("fp32", "aligned", "counted"),
        Variant("fp32", "aligned", capped=True),
        Variant("fp32", "aligned", "counted", streams=3),
    ]
    if target == "sm_90":
        variants += [Variant("bf16"), Variant(rows="V = 1")]
        variants += [Variant("bf16", streams=3), Variant("fp16", "odd", streams=3)]
    return compile_variants(target, variants)


@pytest.mark.parametrize(
    ("target", "load"),
    [
        pytest.param("sm_80", r"ld.global[\w.:]*.v4.b32", marks=pytest.mark.full),
        ("sm_90", r"ld.global[\w.:]*.v4.b32"),
        ("gfx942", "buffer_load_dwordx4"),
    ],
)
def test_compiles(compiler: Call, target: str, load: str) -> None:
    compiled = compiler(compile_for, target)
    kernels = {"tile_maxima", "score_tiles", "add_tallies"}
    assert {c.kernel for c in compiled} == kernels
    assert not any(c.spills for c in compiled)
    for c in compiled:
        if c.variant.rows == "aligned" and c.kernel != "add_tallies":
            # All rows' logits, 16 bytes at a time.
            assert len(re.findall(load, c.assembly)) >= 2, (c.kernel, str(c.variant))


def compile_for_batches() -> list[Any]:
    from tests.ops.triton_targets import Variant, compile_variants

    batches = [1, 16, 300]  # one segment a group, or many; multiples of 16 or not
    forms = [Variant(groups=n) for n in batches]
    forms += [Variant(outputs="counted", groups=n) for n in batches]
    several = [replace(form, streams=n) for form in forms for n in (3, 16, 33)]
    return compile_variants("sm_90", forms + several)


def test_no_batch_compiles_anything_anew(compiler: Call) -> None:
    compiled = sorted(c.kernel for c in compiler(compile_for_batches))
    # Scores and counted ones, of groups of two and of more.
    assert compiled == ["add_tallies", *["score_tiles"] * 4, "tile_maxima"]


@pytest.mark.parametrize("num_groups", [1, 7, 64, 5000])
@pytest.mark.parametrize("vocab", [1, 1025, 152064])
@pytest.mark.parametrize("cores", [1, 132])
def test_plan(num_groups: int, vocab: int, cores: int) -> None:
    from vllm_cold.ops import scoring_triton as backend

    plan = backend.Tiling.of(num_groups, vocab, cores)
    assert (plan.num_tiles - 1) * backend.TILE < vocab <= plan.num_tiles * backend.TILE
    assert (plan.num_segments - 1) * plan.segment_tiles < plan.num_tiles
    assert plan.num_tiles <= plan.num_segments * plan.segment_tiles
    programs, resident = num_groups * plan.num_segments, cores * backend.PROGRAMS_PER_MULTIPROCESSOR
    assert programs < resident + num_groups
    # Half of what fits, at least, unless there is not so much to do.
    assert programs * 2 >= min(resident, num_groups * plan.num_tiles)
