# SPDX-License-Identifier: Apache-2.0
"""The AscendC kernels as a backend on this machine: compiled by g++ against the strict stand-in in
csrc/ascend/host, run in a process of their own, which AddressSanitizer and UBSan watch.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from vllm_cold.ops.interface import Groups
from vllm_cold.ops.scoring_ascend import _inputs

ASCEND = Path(__file__).parents[2] / "csrc" / "ascend"
KERNEL = "contrastive_scoring.cpp"
FILES = {"kernel": KERNEL, "header": "contrastive_scoring.h", "common": "kernel_common.h"}
RUNNER = "host/runner.cpp"
WARNINGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror")
ALL = "-DVLLM_COLD_ONE_LAUNCH=1"  # compiles every kernel; which are launched, a request says
STRICT = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread")
QUICK = ("-O0", "-pthread")
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
NAMES = ("float", "half", "bfloat16_t")


class CheckFailed(AssertionError):
    """What the stand-in, a sanitizer or the compiler has against a kernel."""


def clean_environment() -> dict[str, str]:
    """For a program with AddressSanitizer, which wants to be loaded before anything that vLLM, once
    imported, has the processes started from here preload.
    """
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def compile_host(*units: str, flags: tuple[str, ...] = STRICT, **changed: str) -> Path:
    """A program of the named files of csrc/ascend, built once per content.

    Args:
        units: Paths below csrc/ascend.
        flags: For the compiler, ``STRICT`` or ``QUICK``.
        changed: Keys of ``FILES``: text to use instead of those files'.
    """
    files = sources(FILES) | {FILES[key]: text for key, text in changed.items()}
    objects = [_compile(unit, files, flags) for unit in units]
    program = objects[0].with_name(_digest([path.name for path in objects]))
    with _missing(program) as missing:
        if missing:
            _run_compiler(program, *flags, *map(str, objects))
    return program


def sources(files: dict[str, str]) -> dict[str, str]:
    """What the compiler sees, by path below csrc/ascend: ``files`` and the stand-in."""
    paths = (*(ASCEND / name for name in files.values()), *sorted(ASCEND.glob("host/*.*")))
    return {str(path.relative_to(ASCEND)): path.read_text() for path in paths}


def compile_binding(source: str = "torch_binding.cpp", kernel: str = KERNEL) -> Path:
    """A binding and its kernels as a library whose ops take CPU tensors, with stubs for torch_npu
    and CANN (host/stubs), built once per content and torch.
    """
    sources = [ASCEND / kernel, *sorted(path for path in ASCEND.rglob("*.h"))]
    binding = (ASCEND / source).read_text().replace("PrivateUse1", "CPU")
    content = [binding, torch.__version__, *(path.read_text() for path in sources)]
    library = _cache() / f"{_digest(content)}.so"
    with _missing(library) as missing:
        if not missing:
            return library
        on_cpu = library.with_suffix(".cpp")
        on_cpu.write_text(binding)
        root = Path(torch.__file__).parent
        includes = (ASCEND / "host", ASCEND / "host" / "stubs", ASCEND)
        systems = (root / "include", root / "include" / "torch" / "csrc" / "api" / "include")
        _run_compiler(
            library, "-std=c++17", "-O0", "-shared", "-fPIC", *(f"-I{path}" for path in includes),
            *(f"-isystem{path}" for path in systems), str(on_cpu), str(ASCEND / kernel),
            f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10", "-pthread",
        )  # fmt: skip
    return library


def _cache() -> Path:
    folder = Path(tempfile.gettempdir()) / f"vllm-cold-ascend-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is another user's: programs in it cannot be trusted")
    return folder


@contextmanager
def _missing(built: Path) -> Iterator[bool]:
    """Whether it has to be built: by one process, the others wait for it."""
    with built.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        yield not built.exists()


def _digest(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:20]


def _compile(unit: str, files: dict[str, str], flags: tuple[str, ...]) -> Path:
    # The runner does not see the kernels' source, nor a kernel the runner's.
    seen = {name: text for name, text in files.items() if name.endswith(".h") or name == unit}
    digest = _digest((seen, unit, flags))
    built = _cache() / f"{digest}.o"
    with _missing(built) as missing:
        if not missing:
            return built
        folder = built.with_suffix("")
        for name, text in seen.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        include = (f"-I{folder}/host", f"-I{folder}")
        _run_compiler(built, ALL, *WARNINGS, *flags, *include, "-c", str(folder / unit))
        shutil.rmtree(folder)
    return built


def _run_compiler(output: Path, *arguments: str) -> None:
    # Renamed when complete: what a killed process leaves is not taken for it.
    partial = output.with_name(f"{output.name}.part")
    command = ["g++", *arguments, "-o", str(partial)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise CheckFailed(result.stderr)
    partial.rename(output)


def plan(groups: int, vocab: int, cores: int) -> tuple[int, int]:
    """Segments per row and their length, by the specification rather than the header."""
    most = max(1, min(cores // groups, 64)) if vocab > 8192 else 1
    tiles = min(math.ceil(math.ceil(vocab / count) / 4096) for count in range(1, most + 1))
    wanted = math.ceil(vocab / tiles / 4096)
    length = math.ceil(vocab / wanted / 256) * 256
    return math.ceil(vocab / length), length


Traffic = dict[tuple[str, str], tuple[int, int]]  # bytes read and written, by kernel and what of


def traffic(
    rows: Tensor,
    logits: Tensor,
    cores: int,
    *,
    k: int = 0,
    in_place: bool = False,
    counts: bool = False,
    floor: bool = False,
    mended: int = 0,
    together: bool = False,
) -> Traffic:
    """Every byte that has to cross between global memory and a core in one call.

    Args:
        rows: [G, S] row numbers; those out of range are not looked at.
        logits: [R, V]; only shape and dtype count.
        cores: Vector cores.
        k: For the best k; 0 for dense scores.
        in_place: Whether they go over the experts' rows.
        counts: Whether statistics are wanted.
        floor: Whether a group has a cap on its candidates.
        mended: Logits of amateurs that are written to.
        together: Whether blocks may wait for each other.
    """
    (groups, streams), (num_rows, vocab) = rows.shape, logits.shape
    known = (rows >= 0) & (rows < num_rows)
    experts, amateurs = int(known[:, 0].sum()), int(known[known[:, 0], 1:].sum())
    written = int((known[:, 0] & (known | (rows == -1))[:, 1:].all(1)).sum()) * in_place
    segments, length = plan(groups, vocab, cores)
    together = together and segments > 1 and length <= 8192
    once = together or segments > 1  # whether K2 reads an expert's row once
    items, scored = groups * segments, experts * segments
    row_bytes = vocab * logits.element_size()
    name = NAMES[TYPES[logits.dtype]]
    form = "topk" if k else "" if together else "scores"
    work = f"contrastive_{form}{'together' if together else ''}_{name}"
    model = {
        (work, "logits"): (
            row_bytes * (experts * (1 if once else 2) + amateurs) + 4 * mended,
            written * row_bytes + 4 * mended,
        ),
        (work, "rows"): (8 * (items + scored * (streams - 1)), 0),
        (work, "log_alpha"): (4 * scored, 0),
        (work, "weights"): (4 * segments * amateurs, 0),
        (work, "floor"): (4 * scored * floor, 0),
    }
    if not k and not in_place:
        model[work, "out"] = (0, groups * vocab * 4)
    if counts:
        last = work
        if together:
            model[work, "counts"] = (32 * items, 32 * items)
        elif segments > 1:
            last = "contrastive_total"
            model[work, "counts"] = (0, 32 * items)
            model[last, "counts"] = (32 * items, 0)
        model[last, "statistics"] = (0, 24 * groups)
    if together:
        model[work, "maxima"] = (32 * segments * scored, 32 * items)
    elif segments > 1:
        maxima = "contrastive_maxima_" + name
        model[maxima, "logits"] = (experts * row_bytes, 0)
        model[maxima, "rows"] = (8 * items, 0)
        model[maxima, "maxima"] = (0, 32 * items)
        model[work, "maxima"] = (32 * segments * scored, 0)
    if k:
        last = work
        if segments > 1:
            last = "contrastive_merge"
            model[work, "lists"] = (0, 512 * items)
            model[last, "lists"] = (512 * items, 0)
        model[last, "out_scores"] = (0, groups * k * 4)
        model[last, "out_ids"] = (0, groups * k * 8)
    return {key: moved for key, moved in model.items() if any(moved)}


class Host:
    """``interface.Backend``, with a program built by ``compile_host`` as the device."""

    def __init__(self, program: Path, cores: int = 40) -> None:
        self.cores = cores
        self.together = False
        self.ub: dict[str, int] = {}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - until close()
        self._process = subprocess.Popen(
            [program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=clean_environment(),
        )

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.stdout.close()  # type: ignore[union-attr]
        self._process.wait()
        self._errors.close()

    def missing(self, device: torch.device) -> str | None:
        """None: it runs on this machine's CPU."""
        return None

    def scores(
        self, logits: Tensor, groups: Groups, out: Tensor | None, statistics: Tensor | None
    ) -> None:
        """See ``interface.Backend``."""
        if len(groups):
            self.run_scores(logits, *_inputs(logits, groups), out, statistics)

    def topk(self, logits: Tensor, groups: Groups, out_scores: Tensor, out_ids: Tensor) -> None:
        """See ``interface.Backend``."""
        if len(groups):
            self.run_topk(logits, *_inputs(logits, groups), out_scores, out_ids)

    def run_scores(self, *arguments: Tensor | None) -> None:
        """What ``torch.ops.vllm_cold.ascend_scores`` does on an NPU."""
        *inputs, out, statistics = arguments
        base, dense, _, _, counted = self._run(inputs, 0, out, statistics is not None)
        if statistics is not None:
            statistics.copy_(torch.frombuffer(counted, dtype=torch.int64).view(-1, 3))
        if out is None:
            storage = torch.empty(0, dtype=torch.uint8).set_(inputs[0].untyped_storage())
            storage.copy_(torch.frombuffer(base, dtype=torch.uint8))
            return
        flat = torch.frombuffer(dense, dtype=torch.float32)
        out.copy_(flat.as_strided(out.shape, (out.stride(0), 1)))

    def run_topk(self, *arguments: Tensor | None) -> None:
        """What ``torch.ops.vllm_cold.ascend_topk`` does on an NPU."""
        *inputs, out_scores, out_ids = arguments
        k = out_scores.shape[1]
        _, _, scores, ids, _ = self._run(inputs, k, None, False)
        out_scores.copy_(torch.frombuffer(scores, dtype=torch.float32).view(-1, k))
        out_ids.copy_(torch.frombuffer(ids, dtype=torch.int64).view(-1, k))

    def _run(
        self, inputs: list[Tensor | None], k: int, out: Tensor | None, counts: bool
    ) -> list[bytearray]:
        logits, rows, weights, log_alpha, floor = inputs
        in_place = k == 0 and out is None
        base = torch.empty(0, dtype=torch.uint8).set_(logits.untyped_storage())
        request = struct.pack(
            "<15q",
            k,
            in_place,
            TYPES[logits.dtype],
            *logits.shape,
            logits.stride(0),
            *rows.shape,
            self.cores,
            self.together,
            floor is not None,
            counts,
            logits.storage_offset() * logits.element_size(),
            len(base),
            out.stride(0) if out is not None else 0,
        )
        self._write(request)
        for array in (base, rows, weights, log_alpha, floor):
            if array is not None:
                self._write(array.numpy().tobytes())
        self._process.stdin.flush()  # type: ignore[union-attr]
        problem, *buffers, report = (self._read() for _ in range(7))
        if problem:
            raise CheckFailed(problem.decode())
        model = traffic(
            rows,
            logits,
            self.cores,
            k=k,
            in_place=in_place,
            counts=counts,
            floor=floor is not None,
            mended=self._mended(inputs) if in_place else 0,
            together=self.together,
        )
        self._check_report(report.decode(), model, rows, len(logits))
        return buffers

    def _mended(self, inputs: list[Tensor | None]) -> int:
        """Logits of the amateurs' segments that are written to: those in which an amateur has NaN
        or +inf, or all of a group of which the expert's row has one.
        """
        logits, rows, *_ = inputs
        _, length = plan(len(rows), logits.shape[1], self.cores)
        found = 0
        known = range(len(logits))
        for expert, *amateurs in rows.tolist():
            if expert not in known:
                continue
            bad = not bool((logits[expert] < math.inf).all())
            for part in logits[[row for row in amateurs if row in known]].split(length, 1):
                if bad or not bool((part < math.inf).all()):
                    found += part.numel()
        return found

    def _write(self, part: bytes) -> None:
        try:
            self._process.stdin.write(part)  # type: ignore[union-attr]
        except BrokenPipeError:
            self._died()

    def _read(self) -> bytearray:
        size = self._process.stdout.read(8)  # type: ignore[union-attr]
        if len(size) < 8:
            self._died()
        (count,) = struct.unpack("<q", size)
        return bytearray(self._process.stdout.read(count))  # type: ignore[union-attr]

    def _died(self) -> None:
        self._process.wait()
        self._errors.seek(0)
        raise CheckFailed(self._errors.read().decode(errors="replace"))

    def _check_report(self, report: str, model: Traffic, rows: Tensor, num_rows: int) -> None:
        """Every byte that was moved is of the model; loads wait for no number that they can do
        without.
        """
        moved: Traffic = {}
        waits: list[str] = []
        known = (rows >= 0) & (rows < num_rows)
        for line in report.splitlines():
            first, *numbers = line.split()
            if first == "ub":
                for kernel in (kernel for kernel, what in model if what == "log_alpha"):
                    form = " ".join(kernel.split("_", 2)[1:])
                    self.ub[form] = max(self.ub.get(form, 0), int(numbers[0]))
            elif first == "waited":
                kernel, before_expert, before_amateur = numbers
                amateurs = known[:, 1].all() and not kernel.startswith("contrastive_maxima")
                late = known[:, 0].all() and int(before_expert) > 1
                if late or (amateurs and int(before_amateur) > 2):
                    waits.append(line)
            else:
                moved[first, numbers[0]] = (int(numbers[1]), int(numbers[2]))
        if moved != model:
            extra = {key: moved.get(key) for key in moved.keys() | model.keys()}
            wrong = {key: f"{got}, not {model.get(key)}" for key, got in extra.items()
                     if got != model.get(key)}  # fmt: skip
            raise CheckFailed(f"bytes (read, written) are not those of the traffic model: {wrong}")
        if waits:
            raise CheckFailed(f"a load waits for numbers that it can do without: {waits}")
