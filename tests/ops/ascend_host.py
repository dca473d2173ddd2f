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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from vllm_cold.ops.interface import Groups
from vllm_cold.ops.scoring_torch import adaptive_weights, expert_floors

ASCEND = Path(__file__).parents[2] / "csrc" / "ascend"
SCORING = "contrastive_scoring.cpp", "host/runner.cpp"
LORA = "lora.cpp", "host/lora_runner.cpp"
WARNINGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror")
STRICT = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
QUICK = ("-O0",)
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
NAMES = ("float", "half", "bfloat16_t")


class CheckFailed(AssertionError):
    """What the stand-in, a sanitizer or the compiler has against a kernel."""


def clean_environment() -> dict[str, str]:
    """For a program with AddressSanitizer, which wants to be loaded before anything that vLLM, once
    imported, has the processes started from here preload.
    """
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def compile_host(
    *units: str, flags: tuple[str, ...] = STRICT, changed: dict[str, str] | None = None
) -> Path:
    """A program of the named files of csrc/ascend, built once per content.

    Args:
        units: Paths below csrc/ascend.
        flags: For the compiler, ``STRICT`` or ``QUICK``.
        changed: Text to use instead of a file's, by its path.
    """
    paths = [*(ASCEND / unit for unit in units), *ASCEND.glob("*.h"), *ASCEND.glob("host/*.h")]
    files = {str(path.relative_to(ASCEND)): path.read_text() for path in sorted(paths)}
    files |= changed or {}
    objects = [_compile(unit, files, flags) for unit in units]
    program = objects[0].with_name(_digest([path.name for path in objects]))
    with _missing(program) as missing:
        if missing:
            _run_compiler(program, *flags, *map(str, objects))
    return program


def compile_binding(source: str, kernel: str) -> Path:
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
            f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10",
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
        _run_compiler(built, *WARNINGS, *flags, *include, "-c", str(folder / unit))
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
    in_place: bool = False,
    counts: bool = False,
    floor: bool = False,
    mended: int = 0,
) -> Traffic:
    """Every byte that has to cross between global memory and a core in one call.

    Args:
        rows: [G, S] row numbers; those out of range are not looked at.
        logits: [R, V]; only shape and dtype count.
        cores: Vector cores.
        in_place: Whether scores go over the experts' rows.
        counts: Whether statistics are wanted.
        floor: Whether a group has a cap on its candidates.
        mended: Logits of amateurs that are written to.
    """
    (groups, streams), (num_rows, vocab) = rows.shape, logits.shape
    known = (rows >= 0) & (rows < num_rows)
    experts, amateurs = int(known[:, 0].sum()), int(known[known[:, 0], 1:].sum())
    written = int((known[:, 0] & (known | (rows == -1))[:, 1:].all(1)).sum()) * in_place
    segments, _ = plan(groups, vocab, cores)
    items, scored = groups * segments, experts * segments
    row_bytes = vocab * logits.element_size()
    name = NAMES[TYPES[logits.dtype]]
    work, maxima, last = f"contrastive_scores_{name}", f"contrastive_maxima_{name}", ""
    read = experts * (1 if segments > 1 else 2) + amateurs
    model = {
        (work, "logits"): (row_bytes * read + 4 * mended, written * row_bytes + 4 * mended),
        (work, "rows"): (8 * (items + scored * (streams - 1)), 0),
        (work, "log_alpha"): (4 * scored, 0),
        (work, "weights"): (4 * segments * amateurs, 0),
        (work, "floor"): (4 * scored * floor, 0),
        (work, "out"): (0, groups * vocab * 4 * (not in_place)),
    }
    if counts:
        last = work if segments == 1 else "contrastive_total"
        model[last, "statistics"] = (0, 24 * groups)
    if segments > 1:
        model[maxima, "logits"] = (experts * row_bytes, 0)
        model[maxima, "rows"] = (8 * items, 0)
        model[maxima, "maxima"] = (0, 32 * items)
        model[work, "maxima"] = (32 * segments * scored, 0)
        model[work, "counts"] = (0, 32 * items * counts)
        model[last, "counts"] = (32 * items * counts, 0)
    return {key: moved for key, moved in model.items() if any(moved)}


class Program:
    """A process of a program built by ``compile_host``, as the device."""

    def __init__(self, program: Path, cores: int = 40) -> None:
        self.cores = cores
        self.ub: dict[str, int] = {}  # the most bytes of UB that a kernel took
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

    def ask(
        self, request: bytes, inputs: Iterable[bytes] = (), model: Traffic | None = None
    ) -> list[bytearray]:
        """The outputs of a request (csrc/ascend/host/requests.h).

        Raises:
            CheckFailed: What a check has against it, or if the bytes moved are not ``model``.
        """
        with suppress(BrokenPipeError):  # reading tells why
            for part in (request, *(struct.pack("<q", len(x)) + x for x in inputs)):
                self._process.stdin.write(part)  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        problem, report = self._read(), self._read()
        outputs = [self._read() for _ in range(self._number())]
        if problem:
            raise CheckFailed(problem.decode())
        moved: Traffic = {}
        for line in report.decode().splitlines():
            first, second, *numbers = line.split()
            if first == "ub":
                self.ub[second] = max(self.ub.get(second, 0), int(numbers[0]))
            else:
                moved[first, second] = (int(numbers[0]), int(numbers[1]))
        if model is not None and moved != model:
            wrong = {key: f"{moved.get(key)}, not {model.get(key)}"
                     for key in moved.keys() | model.keys()
                     if moved.get(key) != model.get(key)}  # fmt: skip
            raise CheckFailed(f"bytes (read, written) are not those of the traffic model: {wrong}")
        return outputs

    def _number(self) -> int:
        number = self._process.stdout.read(8)  # type: ignore[union-attr]
        if len(number) < 8:
            self._process.wait()
            self._errors.seek(0)
            raise CheckFailed(self._errors.read().decode(errors="replace"))
        return int(struct.unpack("<q", number)[0])

    def _read(self) -> bytearray:
        return bytearray(self._process.stdout.read(self._number()))  # type: ignore[union-attr]


class Host(Program):
    """``interface.Backend`` by the program of ``SCORING``."""

    def missing(self, device: torch.device) -> str | None:
        """None: it runs on this machine's CPU."""
        return None

    def scores(
        self, logits: Tensor, groups: Groups, out: Tensor | None, statistics: Tensor | None
    ) -> None:
        """See ``interface.Backend``."""
        floors = expert_floors(logits, groups)
        weights = adaptive_weights(logits, groups, floors)
        self.run(logits, groups.rows, weights, groups.log_alpha, floors, out, statistics)

    def run(
        self,
        logits: Tensor,
        rows: Tensor,
        weights: Tensor,
        log_alpha: Tensor,
        floors: Tensor | None,
        out: Tensor | None,
        statistics: Tensor | None,
    ) -> None:
        """What ``torch.ops.vllm_cold.ascend_scores`` does on an NPU."""
        settings = {"counts": statistics is not None, "floor": floors is not None}
        in_place = out is None
        base = torch.empty(0, dtype=torch.uint8).set_(logits.untyped_storage())
        request = struct.pack(
            "<13q", False, in_place, TYPES[logits.dtype], *logits.shape, logits.stride(0),
            *rows.shape, self.cores, settings["floor"], settings["counts"],
            logits.storage_offset() * logits.element_size(), 0 if in_place else out.stride(0),
        )  # fmt: skip
        inputs = (base, rows, weights, log_alpha, torch.empty(0) if floors is None else floors)
        mended = self._mended(logits, rows) if in_place else 0
        model = traffic(rows, logits, self.cores, in_place=in_place, mended=mended, **settings)
        written, dense, counted = self.ask(request, (x.numpy().tobytes() for x in inputs), model)
        if statistics is not None:
            statistics.copy_(torch.frombuffer(counted, dtype=torch.int64).view(-1, 3))
        if out is None:
            base.copy_(torch.frombuffer(written, dtype=torch.uint8))
        else:
            flat = torch.frombuffer(dense, dtype=torch.float32)
            out.copy_(flat.as_strided(out.shape, (out.stride(0), 1)))

    def plan(self, groups: int, vocab: int) -> list[int]:
        """What ``MakePlan`` says."""
        request = [True, 0, 0, 0, vocab, 0, groups, 0, self.cores, 0, 0, 0, 0]
        return [int(value) for value in self.ask(struct.pack("<13q", *request))[0].split()]

    def _mended(self, logits: Tensor, rows: Tensor) -> int:
        """Logits of the amateurs' segments that are written to: those in which an amateur has NaN
        or +inf, or all of a group of which the expert's row has one.
        """
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
