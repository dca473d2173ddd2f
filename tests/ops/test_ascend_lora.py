# SPDX-License-Identifier: Apache-2.0
"""The AscendC LoRA kernels, compiled by g++ against the strict stand-in for CANN: that they are
right, move what they have to and no more, and are cut and called as they should be. That mistakes
would be found: test_ascend_checks.py.
"""

import dataclasses
import math
import re
import shutil
import subprocess
import sys
from random import Random

import pytest
import torch

from tests.ops import ascend_host
from tests.ops.ascend_host import ASCEND, LORA, LoraHost, compile_host
from tests.ops.lora_cases import Case, make_case
from vllm_cold.npu import lora_ops

pytestmark = [
    pytest.mark.unit,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]

F32, F16, BF16 = DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def host():
    host = LoraHost(compile_host(*LORA))
    yield host
    host.close()


def check(host: LoraHost, case: Case) -> torch.Tensor:
    got = host.run(case)
    case.check(got)
    return got


# --- The kernels ----------------------------------------------------------------------------------

# vLLM's max_lora_rank, what is left of it on several devices, and any other.
RANKS = (1, 7, 8, 9, 16, 33, 64, 129, 255, 256)
ROWS = {
    "none": [-1] * 5,
    "first": [0, -1, -1, -1],
    "last": [-1, -1, -1, 0],
    "pairs": [-1, 0] * 5,
    "two of a pair": [0, 1] * 6,
    "one row": [1],
    "all of one": [1] * 19,  # three groups
    "each its own": [3, 0, 4, 2, 1],
    "mixed": [2, -1, 0, 2, 2, -1, 2, 0, 2, 2, 2, 2, 2, 2, 0, -1],
    "too high counts as none": [5, 0, 2**40, -7],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rank", RANKS)
def test_ranks(host, rank, dtype):
    host.cores = 20
    check(host, make_case(rank, [-1, 0, 1, 0], rank, 1100, (130, 33), dtype, adapters=2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_rows(host, rows, dtype):
    host.cores = 20
    check(host, make_case(1, ROWS[rows], 16, 300, (100,), dtype, adapters=5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", (1, 15, 1023, 1024, 1025, 8193, 17000))
def test_lengths(host, length, dtype):
    for cores in (1, 48):
        host.cores = cores
        check(host, make_case(length, [0, -1, 0], 9, length, (40,), dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rank", (3, 16, 256))
@pytest.mark.parametrize("widths", ((1,), (65, 63, 64), (1100,), (512, 128, 128), (7, 9, 600, 64)))
def test_widths(host, widths, rank, dtype):
    """Slices of different sizes, among them those of grouped-query attention."""
    for cores in (1, 40):
        host.cores = cores
        check(host, make_case(2, [0, -1, 1, 1], rank, 70, widths, dtype, adapters=2))


def test_more_rows_than_a_window(host):
    """Rows of one adapter do not form groups across windows."""
    host.cores = 7
    random = Random(0)
    indices = [random.choice((-1, 0, 0, 0, 1, 2)) for _ in range(600)]
    check(host, make_case(0, indices, 4, 20, (30,), adapters=3))
    check(host, make_case(0, [-1] * 300 + [0], 4, 20, (30,), BF16))


def test_many_adapters(host):
    host.cores = 40
    case = make_case(0, [2047, 5, -1, 2047, 1024], 2, 12, (10,), adapters=2048)
    check(host, case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_is_the_same_in_every_batch(host, dtype):
    """To the bit, on any number of cores, beside any other rows, with shared reads and without."""
    whole = make_case(3, [0] * 9 + [1, -1, 0], 24, 9000, (700, 130), dtype, adapters=2)
    host.cores = 40
    want = check(host, whole)
    for cores in (1, 13, 48):
        host.cores = cores
        assert torch.equal(host.run(whole), want)
    for rows in ([0], [9], [11, 3], [10, 8, 9, 9]):
        part = dataclasses.replace(
            whole, y=whole.y[rows], x=whole.x[rows], indices=whole.indices[rows]
        )
        assert torch.equal(check(host, part), want[rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_stays_so(host, dtype):
    """In its own row: conversions of 16 bits do not saturate, and zeros of tails hide nothing."""
    host.cores = 20
    case = make_case(4, [0, -1, 0, 0, 0], 5, 1100, (70,), dtype)
    case.x[2, 1099] = math.nan
    case.x[3, 3] = math.inf
    case.y[0, 3], case.y[0, 4], case.y[1, 5], case.y[4, 69] = math.inf, -math.inf, math.nan, 1.0
    got = host.run(case)
    assert got[0, 3] == math.inf and got[0, 4] == -math.inf
    assert got[1, 5].isnan() and torch.equal(got[1].nan_to_num(), case.y[1].nan_to_num())
    assert got[2].isnan().all()
    assert not got[3].isfinite().any()
    assert got[4].isfinite().all() and got[0, 5:].isfinite().all()


def test_rounding_is_to_the_nearest_even(host):
    """Of y plus the adapter's part, once."""
    host.cores = 1
    for dtype in (F16, BF16):
        step = torch.finfo(dtype).eps
        case = make_case(6, [0], 8, 8, (6,), dtype)
        case.x.zero_()[0, 0] = 1.0
        case.a[0].zero_()[0, 0, 0, 0] = 1.0
        case.b[0].zero_()[0, 0, :, 0] = torch.tensor([0.5, 1.5, 0.25, 0.75, -0.25, 1.0]) * step
        case.y.fill_(1.0)
        case.scale = 1.0
        want = torch.tensor([0, 2, 0, 1, 0, 1]).double() * step + 1
        assert torch.equal(host.run(case)[0].double(), want)


def test_unified_buffer_is_as_documented(host):
    """With one adapter, at the highest rank and as many parts as there may be."""
    host.ub.clear()  # the most that any test's case took
    for dtype in DTYPES:
        host.cores = 40
        check(host, make_case(9, [0], 256, 8192, (5,), dtype))
    documented = (ASCEND / "README.md").read_text()
    assert len(host.ub) == 6
    for kernel, size in host.ub.items():
        assert size + 2048 * 4 <= 184 * 1024
        _, name, dtype = kernel.split("_", 2)
        row = rf"\| {name} \| [^|]*\b{dtype}\b[^|]* \|.*\| {size:,} \|"
        assert re.search(row, documented), (kernel, size)


# --- Through torch --------------------------------------------------------------------------------


def _run_with_binding(program: str) -> subprocess.CompletedProcess[str]:
    library = ascend_host.compile_binding("lora_binding.cpp", "lora.cpp")
    start = f"""
import torch
from tests.ops.lora_cases import make_case
from vllm_cold.npu import lora_ops
torch.ops.load_library({str(library)!r})
def call(case, **changed):
    it = dict(y=case.y.clone(), x=case.x, a=case.a, b=case.b, indices=case.indices) | changed
    lora_ops.shrink_expand(it["y"], it["x"], it["a"], it["b"], it["indices"], case.scale)
    return it["y"]
"""
    return subprocess.run([sys.executable, "-c", start + program], capture_output=True, text=True)


def test_binding():
    """From the package through lora_binding.cpp to the kernels, on CPU tensors and with stubs for
    torch_npu; more slices and rows than a launch takes, too.
    """
    result = _run_with_binding("""
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    case = make_case(0, [-1, 1, 0, 1], 16, 500, (70, 30, 30), dtype, adapters=2, padded=3)
    case.check(call(case))
    case = make_case(1, [0, -1, 1], 8, 100, (9, 80, 1, 65, 64, 33), dtype, adapters=2)
    case.check(call(case))
case = make_case(2, [0, 1, -1] * 1000, 2, 8, (3,), adapters=2)
case.check(call(case))
case = make_case(3, [0, 1], 4, 8, (3,), adapters=2)
wide = torch.nn.functional.pad(case.y, (0, 7), value=5.0)
got = call(case, y=wide, a=[a.squeeze(1) for a in case.a])
case.check(got[:, :3])
assert (got[:, 3:] == 5).all()
call(make_case(4, [], 4, 8, (3,)))
""")
    assert result.returncode == 0, result.stderr


def test_compiled_with_any_number_of_rows():
    """As vLLM compiles: without guards, once, with a number of rows that changes."""
    result = _run_with_binding("""
def step(y, x, a, b, indices):
    lora_ops.shrink_expand(y, x, a, b, torch.narrow(indices, 0, 0, x.size(0)), 0.75)
compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
all_indices = torch.full((64,), -1)
for rows in (6, 3, 11):
    case = make_case(rows, [0, -1, 1, 1, 0, -1, -1, 1, 0, 0, 0][:rows], 8, 64, (40, 9), adapters=2)
    all_indices[:rows] = case.indices
    y = case.y.clone()
    for tensor in (y, case.x):
        torch._dynamo.mark_dynamic(tensor, 0)
    compiled(y, case.x, case.a, case.b, all_indices)
    case.check(y)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
""")
    assert result.returncode == 0, result.stderr


REFUSED = {
    "x=case.x.double()": "LoRA is float32, bfloat16 or float16",
    "x=case.x[:3]": "has a row for each row of x",
    "x=case.x.t().contiguous().t()": "x's last dimension is not contiguous",
    "y=case.y.half()": "y and x differ in dtype",
    "y=case.y[:, :60].clone()": "more outputs than y",
    "indices=case.indices.int()": "the number of its adapter, int64",
    "indices=case.indices[:2]": "the number of its adapter, int64",
    "y=case.y.as_strided((4, 80), (79, 1))": "y's rows lie over each other",
    "y=case.y.to('meta')": "on another device than x, cpu",
    "indices=case.indices.to('meta')": "on another device than x, cpu",
    "a=[case.a[0], case.a[1].to('meta')]": "on another device than x, cpu",
    "b=[case.b[0].to('meta'), case.b[1]]": "on another device than x, cpu",
    "a=case.a[:1]": "each slice has its A and its B",
    "a=[a[:, :, :, :90].contiguous() for a in case.a]": "A's shape does not fit",
    "a=[a[:, :, :, :90] for a in case.a]": "A is not contiguous",
    "b=[b[:, :, :, :7].contiguous() for b in case.b]": "B's shape does not fit",
    "b=[b[:, :, :0] for b in case.b]": "B's shape does not fit",
    "a=[a[:, :, :0] for a in case.a], b=[b[..., :0] for b in case.b]": "ranks of 1 to 256",
    "a=[a[:0] for a in case.a], b=[b[:0] for b in case.b]": "1 to 2048 adapters",
    "x=case.x[:, :0], a=[a[..., :0] for a in case.a]": "rows of 1 to 2\\*\\*27 values",
    "x=torch.empty(2**27 + 1).expand(4, -1)": "rows of 1 to 2\\*\\*27 values",
    "a=[a.half() for a in case.a]": "A and x differ in dtype",
    "b=[b[:1] for b in case.b]": "B's shape does not fit",
    "b=[b.squeeze(1).squeeze(0)[0] for b in case.b]": "B has three dimensions",
    "a=[case.a[0], case.a[1][:, :, :7].contiguous()]": "ranks differ",
    "a=[torch.zeros(2, 1, 257, 100)] * 2, b=[torch.zeros(2, 1, 40, 257)] * 2": "ranks of 1 to 256",
    "a=[torch.zeros(2049, 1, 8, 100)] * 2, b=[torch.zeros(2049, 1, 40, 8)] * 2": "1 to 2048 adapt",
}  # fmt: skip


REFUSED_OF = "make_case(0, [-1, 1, 0, 1], 8, 100, (40, 40), adapters=2)"
# What differs from batch to batch.
OF_ROWS = ("indices=", "x=case.x[:3]")


def test_binding_refuses_what_the_kernels_do_not_take():
    lines = "".join(
        f"""
try:
    call(case, {change})
except RuntimeError as error:
    print({change!r}, '->', str(error).splitlines()[0])
"""
        for change in REFUSED
    )
    result = _run_with_binding(f"case = {REFUSED_OF}{lines}")
    assert result.returncode == 0, result.stderr
    said = dict(line.split(" -> ") for line in result.stdout.splitlines())
    assert said.keys() == REFUSED.keys(), result.stdout
    for change, message in REFUSED.items():
        assert re.search(message, said[change]), (change, said[change])


def test_takes_is_what_the_binding_takes():
    case = make_case(0, [0, -1], 8, 16, (5, 6))

    def takes(**changed):
        it = dataclasses.replace(case, **changed)
        widths = [b.shape[-2] if b.dim() > 1 else 0 for b in it.b]
        return lora_ops.takes(it.y, it.x, it.a, it.b, widths)

    assert takes()
    assert lora_ops.takes(case.y, case.x, case.a[:1], case.b[:1], (5,))
    assert not lora_ops.takes(case.y, case.x, case.a, case.b, (6, 5))
    assert takes(a=tuple(a.squeeze(1) for a in case.a), b=tuple(b.squeeze(1) for b in case.b))
    case = eval(REFUSED_OF)
    assert takes()
    for change in REFUSED:
        assert takes(**eval(f"dict({change})")) == change.startswith(OF_ROWS), change
    header = (ASCEND / "lora.h").read_text()
    assert f"kLoraMaxRank = {lora_ops.MAX_RANK};" in header
    assert f"kLoraMaxAdapters = {lora_ops.MAX_ADAPTERS};" in header
    assert "kLoraMaxLength = 1u << 27;" in header and lora_ops.MAX_LENGTH == 1 << 27
