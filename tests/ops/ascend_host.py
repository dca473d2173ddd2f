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
RUNNER = "host/runner.cpp"
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


def compile_host(*units: str, flags: tuple[str, ...] = STRICT, **changed: str) -> Path:
    """A program of the named files of csrc/ascend, built once per content.

    Args:
        units: Paths below csrc/ascend.
        flags: For the compiler, ``STRICT`` or ``QUICK``.
        changed: ``kernel`` and ``header``: text to use instead of contrastive_scoring.{cpp,h}.
    """
    names = {"kernel": KERNEL, "header": "contrastive_scoring.h"}
    files = {
        str(path.relative_to(ASCEND)): path.read_text()
        for path in sorted((*ASCEND.glob("contrastive_scoring.*"), *ASCEND.glob("host/*.*")))
    } | {names[key]: text for key, text in changed.items()}
    objects = [_compile(unit, files, flags) for unit in units]
    program = objects[0].with_name(_digest([path.name for path in objects]))
    with _missing(program) as missing:
        if missing:
            _run_compiler(program, *flags, *map(str, objects))
    return program


def compile_binding() -> Path:
    """torch_binding.cpp and the kernels as a library whose ops take CPU tensors, with stubs for
    torch_npu and CANN (host/stubs), built once per content and torch.
    """
    sources = [ASCEND / KERNEL, *sorted(path for path in ASCEND.rglob("*.h"))]
    binding = (ASCEND / "torch_binding.cpp").read_text().replace("PrivateUse1", "CPU")
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
            library, "-std=c++20", "-O0", "-shared", "-fPIC", *(f"-I{path}" for path in includes),
            *(f"-isystem{path}" for path in systems), str(on_cpu), str(ASCEND / KERNEL),
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
    wanted = max(1, min(cores // groups, math.ceil(vocab / 8192), 64))
    length = math.ceil(vocab / wanted / 256) * 256
    return math.ceil(vocab / length), length


class Host:
    """``interface.Backend``, with a program built by ``compile_host`` as the device."""

    def __init__(self, program: Path, cores: int = 40) -> None:
        self.cores = cores
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
            "<14q",
            k,
            in_place,
            TYPES[logits.dtype],
            *logits.shape,
            logits.stride(0),
            *rows.shape,
            self.cores,
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
        problem, *buffers, traffic = (self._read() for _ in range(7))
        if problem == b"Trap":
            raise RuntimeError("the kernel stopped at a row number out of range")
        if problem:
            raise CheckFailed(problem.decode())
        mended = self._mended(inputs) if in_place else 0
        self._check_traffic(traffic.decode(), logits, rows, floor, k, in_place, counts, mended)
        return buffers

    def _mended(self, inputs: list[Tensor | None]) -> int:
        """Logits of the amateurs' segments that are written to: those in which an amateur has NaN
        or +inf, or all of a group of which the expert's row has one.
        """
        logits, rows, *_ = inputs
        _, length = plan(len(rows), logits.shape[1], self.cores)
        found = 0
        for expert, *amateurs in rows.tolist():
            bad = not bool((logits[expert] < math.inf).all())
            for part in logits[[row for row in amateurs if row >= 0]].split(length, 1):
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

    def _check_traffic(
        self,
        report: str,
        logits: Tensor,
        rows: Tensor,
        floor: Tensor | None,
        k: int,
        in_place: bool,
        counts: bool,
        mended: int,
    ) -> None:
        """Every byte that crossed between global memory and a core is one that has to."""
        (groups, streams), vocab = rows.shape, logits.shape[1]
        amateurs = int((rows[:, 1:] >= 0).sum())
        segments, _ = plan(groups, vocab, self.cores)
        items = groups * segments
        row_bytes = vocab * logits.element_size()
        expert_bytes, amateur_bytes = groups * row_bytes, amateurs * row_bytes
        name = NAMES[TYPES[logits.dtype]]
        work = "contrastive_" + ("topk_" if k else "scores_") + name
        model = {
            (work, "logits"): (
                expert_bytes * (2 if segments == 1 else 1) + amateur_bytes + 4 * mended,
                in_place * expert_bytes + 4 * mended,
            ),
            (work, "rows"): (8 * items * (streams + in_place), 0),
            (work, "log_alpha"): (4 * items, 0),
        }
        if amateurs:
            model[work, "weights"] = (4 * segments * amateurs, 0)
        if floor is not None:
            model[work, "floor"] = (4 * items, 0)
        if not k and not in_place:
            model[work, "out"] = (0, groups * vocab * 4)
        if counts:
            last = work
            if segments > 1:
                last = "contrastive_total"
                model[work, "counts"] = (0, 32 * items)
                model[last, "counts"] = (32 * items, 0)
            model[last, "statistics"] = (0, 24 * groups)
        if segments > 1:
            maxima = "contrastive_maxima_" + name
            model[maxima, "logits"] = (expert_bytes, 0)
            model[maxima, "rows"] = (8 * items, 0)
            model[maxima, "maxima"] = (0, 32 * items)
            model[work, "maxima"] = (32 * items * segments, 0)
        if k:
            last = work
            if segments > 1:
                last = "contrastive_merge"
                model[work, "lists"] = (0, 512 * items)
                model[last, "lists"] = (512 * items, 0)
            model[last, "out_scores"] = (0, groups * k * 4)
            model[last, "out_ids"] = (0, groups * k * 8)
        moved = {}
        for line in report.splitlines():
            words = line.split()
            if words[0] == "ub":
                form = f"{'topk' if k else 'scores'} {name}"
                self.ub[form] = max(self.ub.get(form, 0), int(words[1]))
            else:
                moved[words[0], words[1]] = (int(words[2]), int(words[3]))
        if moved != model:
            extra = {key: moved.get(key) for key in moved.keys() | model.keys()}
            wrong = {key: f"{got}, not {model.get(key)}" for key, got in extra.items()
                     if got != model.get(key)}  # fmt: skip
            raise CheckFailed(f"bytes (read, written) are not those of the traffic model: {wrong}")
