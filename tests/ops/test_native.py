# SPDX-License-Identifier: Apache-2.0
"""The C++ kernels as machine code: sanitizers, symbols, other compilers and CPUs.

``VLLM_COLD_NATIVE="qemu-aarch64 ./native"`` runs the cases with a ``native_main.cpp`` that was
built by hand for another CPU, instead of the sanitized one that is built here.
"""

import fcntl
import itertools
import math
import os
import re
import shlex
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.ops import test_lora
from tests.ops.ascend_host import clean_environment
from tests.ops.conformance import DTYPES, LAYOUTS, Case, make_case
from tests.ops.lora_cases import Case as LoraCase
from tests.ops.test_backends import CpuWith
from vllm_cold.ops import cpu_library
from vllm_cold.ops.scoring_torch import replace_nonfinite

pytestmark = [pytest.mark.unit, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SOURCES = sorted(map(str, (ROOT / "csrc" / "cpu").glob("*.cpp")))
FORMS = ("dense", "in place", "lora")  # of native_main.cpp
FLAGS = ["-std=c++17", "-fno-exceptions", "-fno-rtti", "-ffp-contract=off", "-Wall", "-Wextra",
         "-Wshadow", "-Wconversion", "-Werror"]  # fmt: skip
SANITIZE = ["g++", "-O0", "-g", "-fopenmp", "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all"]  # fmt: skip


def run(*command: str, **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


@pytest.fixture
def native(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs ``native_main.cpp``, checking addresses and for undefined behaviour.
    The compiler takes long, so it is built once for all workers of a run.
    """
    elsewhere = os.environ.get("VLLM_COLD_NATIVE")
    if elsewhere:
        return shlex.split(elsewhere)
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder /= "sanitized"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "native").exists():
            build(folder)
    return [f"{folder}/native"]


def build(folder: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(folder)}

    def compiled(source: str) -> str:
        run(*SANITIZE, *FLAGS, "-c", source, "-o", f"{folder}/{Path(source).stem}.o",
            env=environment)  # fmt: skip
        return f"{folder}/{Path(source).stem}.o"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = pool.map(compiled, [*SOURCES, f"{ROOT}/tests/ops/native_main.cpp"])
    run(*SANITIZE, *objects, "-o", f"{folder}/native", env=environment)


def memory_of(tensor: Tensor) -> bytes:
    """From its first element to its last."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    span = 1 + sum((size - 1) * stride for size, stride in pairs)
    return tensor.as_strided((span,), (1,)).contiguous().view(torch.uint8).numpy().tobytes()


def packed(case: Case, form: str, isa: str, threads: int) -> bytes:
    """The case as ``native_main.cpp`` reads it. Rows run up to the last one's last element, with
    nothing after it.
    """
    logits, caps, memory = case.logits, case.expert_top_k, memory_of(case.logits)
    header = struct.pack(
        "11q", FORMS.index(form), len(memory), len(logits), logits.stride(0), logits.shape[1],
        DTYPES.index(logits.dtype), *case.rows.shape, cpu_library.ISAS.index(isa), threads,
        caps is not None,
    )  # fmt: skip
    arrays = [case.rows, case.weights, case.log_alpha, *([] if caps is None else [caps])]
    return header + memory + b"".join(array.numpy().tobytes() for array in arrays)


def here(case: Case, form: str, isa: str) -> bytes:
    """What ``native_main.cpp`` is to write, by the library in use here."""
    num_groups, vocab = len(case.rows), case.logits.shape[1]
    status = struct.pack("q", 0)
    out, counted = torch.empty(num_groups, vocab), torch.empty(num_groups, 3, dtype=torch.int64)
    CpuWith(isa).scores(case.logits, case.groups, out, counted)
    statistics = counted.numpy().tobytes()
    if form == "dense":
        return status + out.numpy().tobytes() + statistics
    memory = case.logits.clone() if case.logits.is_contiguous() else None
    assert memory is not None
    memory[case.expert_rows] = out
    replace_nonfinite(memory, case.groups)
    return status + memory.numpy().tobytes() + statistics


def cases() -> Iterator[tuple[Case, str, int]]:
    """With form and threads: ends of vectors and tiles, and NaN at every place of a tile's last
    vectors, 1024 tokens a tile, where every token is a candidate.
    """
    sizes = itertools.product((1, 3, 15, 16, 17, 63, 64, 65, 1000, 4097, 9001), (1, 2, 3))
    for seed, (vocab, num_groups) in enumerate(sizes):
        for form in FORMS[:2]:
            for dtype in DTYPES[:1] if form == "in place" else DTYPES:
                layout = "contiguous" if form == "in place" else LAYOUTS[seed % 3]
                case = make_case(seed, num_groups, vocab, dtype, layout)
                yield case, form, (1, 2, 4)[seed % 3]
    for place in (*range(1024 - 80, 1024), *range(2048 - 80, 2048)):
        for form in FORMS[:2]:
            streams = 2 + place % 2
            case = make_case(0, 1, 2048, kinds=["normal"], layout="contiguous", streams=streams)
            case.log_alpha.fill_(-1e4)
            case.expert_top_k = None
            case.logits[case.rows[0, place // 2 % streams], place] = math.nan
            yield case, form, 1 + place % 3


def packed_lora(case: LoraCase, isa: str, threads: int) -> bytes:
    """The same for ``lora_linear``; weights lie by rank since a layer was made of them."""
    b = [w.squeeze(1) for w in case.b]  # [slots, outputs, ranks]
    rank, inputs = case.a[0].shape[-2:]
    x, y = memory_of(case.x), memory_of(case.y)
    header = struct.pack(
        "15qd", FORMS.index("lora"), len(case.y), len(x), case.x.stride(0),
        DTYPES.index(case.x.dtype), len(y), case.y.stride(0), DTYPES.index(case.y.dtype),
        case.y.shape[1], DTYPES.index(b[0].dtype), inputs, rank, len(b),
        cpu_library.ISAS.index(isa), threads, case.scale,
    )  # fmt: skip
    parts, column = [header, struct.pack(f"{len(case.y)}q", *case.indices.tolist()), x, y], 0
    for wa, wb in zip(map(memory_of, case.a), b, strict=True):
        of_b = memory_of(wb)
        sizes = len(wa), len(of_b), wb.stride(0), wb.stride(2), wb.shape[1], column
        parts += [struct.pack("6q", *sizes), wa, of_b]
        column += wb.shape[1]
    return b"".join(parts)


def same(native: list[str], isa: str, cases: Iterable[tuple[bytes, bytes]]) -> None:
    """What the program writes for the first is the second."""
    stdin, want = map(b"".join, zip(*cases, strict=True))
    done = subprocess.run(
        native, input=stdin, capture_output=True, timeout=250, env=clean_environment()
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    (best,) = struct.unpack_from("q", done.stdout)
    if cpu_library.ISAS.index(isa) > best:
        pytest.skip(f"the CPU that the program runs on has no {isa}")
    assert done.stdout[8:] == want


BEST = cpu_library.best_isa() + 1


@pytest.mark.parametrize("isa", cpu_library.ISAS[: min(BEST, 3)])
def test_no_byte_beyond_and_the_same_scores(native: list[str], isa: str) -> None:
    found = ((packed(case, form, isa, n), here(case, form, isa)) for case, form, n in cases())
    same(native, isa, found)


@pytest.mark.parametrize("isa", cpu_library.ISAS[:BEST])
def test_no_byte_beyond_and_the_same_lora(native: list[str], isa: str) -> None:
    found = []
    for seed in range(60):
        dtype, threads = test_lora.DTYPES[seed % len(test_lora.DTYPES)], 1 + seed % 4
        case = test_lora.random_case(seed, dtype)
        if len(case.y):
            y = torch.nn.functional.pad(case.y, (0, seed % 3))[:, : case.y.shape[1]]
            y = test_lora.linear(case, y, isa, threads)
            found.append((packed_lora(case, isa, threads), struct.pack("q", 0) + memory_of(y)))
    same(native, isa, found)


def test_the_library_needs_an_old_glibc_and_nothing_else() -> None:
    headers = run("objdump", "-p", str(cpu_library.PATH))
    # The dynamic loader comes with glibc; thread-local memory asks for it by name.
    needed = re.findall(r"NEEDED +(\S+)", headers)
    assert [name for name in needed if not name.startswith("ld-linux")] == ["libc.so.6"]
    versions = {
        tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([\d.]+)", headers)
    }
    assert max(versions) <= (2, 17)
    defined = run("nm", "-D", "--defined-only", str(cpu_library.PATH)).split("\n")
    lora = ("expand", "linear", "plan", "plan_size", "shrink")
    operators = ("lora_expand_op", "lora_linear_op", "lora_shrink_op", "linear_op")
    names = ("best_isa", "connect", "has_threads", "interface", "linear", "score", *operators)
    names += ("linear_lora_op",)
    names += tuple(f"lora_{name}" for name in lora)
    assert {line.split()[-1] for line in defined if line} == {f"vllm_cold_{name}" for name in names}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the names are x86's")
def test_the_instruction_set_is_what_the_system_lists() -> None:
    """Whatever compiler built the library: some leave empty what their own builtin reads."""
    flags = set(re.findall(r"^flags\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)[0].split())
    needed = [{"avx512f", "avx512_bf16"}, {"avx512f"}, {"avx2", "fma", "f16c"}, set()]
    best = next(3 - rank for rank, names in enumerate(needed) if names <= flags)
    assert cpu_library.best_isa() == best


@pytest.mark.parametrize(
    "source", ["scoring_avx2", "scoring_avx512", "lora_avx2", "lora_avx512", "lora_avx512bf16"]
)
def test_an_instruction_sets_code_stays_its_own(source: str, tmp_path: Path) -> None:
    """A function that two files define is kept once by the linker: with instructions, perhaps, that
    the CPU at hand does not have. Unoptimised code shows all of them.
    """
    object_file = str(tmp_path / "x.o")
    run("g++", "-O0", *FLAGS, "-c", f"{ROOT}/csrc/cpu/{source}.cpp", "-o", object_file)
    symbols = run("nm", "-C", object_file).splitlines()
    assert any(re.search(r" [Tt] ", line) for line in symbols)
    assert [line for line in symbols if re.search(r" [WVu] ", line)] == []


@pytest.mark.parametrize("target", ["aarch64-linux-gnu", "x86_64-linux-gnu"])
def test_clang_compiles_it(target: str, tmp_path: Path) -> None:
    pytest.importorskip("ziglang", reason="the cross compiler is in the package ziglang")
    clang = [sys.executable, "-m", "ziglang", "c++", "-target", target, "-O0", *FLAGS]
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(tmp_path)}
    for source in SOURCES:
        run(*clang, "-c", source, "-o", str(tmp_path / "x.o"), env=environment)
