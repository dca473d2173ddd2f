# SPDX-License-Identifier: Apache-2.0
"""The AscendC kernels as a backend on this machine: compiled by g++ against the strict stand-in in
csrc/ascend/host, run in a process of their own, which AddressSanitizer and UBSan watch.
"""

import fcntl
import hashlib
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
from vllm_cold.ops.scoring_torch import expert_floors

ASCEND = Path(__file__).parents[2] / "csrc" / "ascend"
SCORING = "contrastive_scoring.cpp", "host/runner.cpp"
WARNINGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror")
STRICT = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class CheckFailed(AssertionError):
    """What the stand-in, a sanitizer or the compiler has against a kernel."""


def clean_environment() -> dict[str, str]:
    """For a program with AddressSanitizer, which wants to be loaded before anything that vLLM, once
    imported, has the processes started from here preload.
    """
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def compile_host(*units: str) -> Path:
    """A program of the named files of csrc/ascend, built once per content."""
    paths = [*(ASCEND / unit for unit in units), *ASCEND.glob("*.h"), *ASCEND.glob("host/*.h")]
    files = {str(path.relative_to(ASCEND)): path.read_text() for path in sorted(paths)}
    objects = [_compile(unit, files) for unit in units]
    program = objects[0].with_name(_digest([path.name for path in objects]))
    with _missing(program) as missing:
        if missing:
            _run_compiler(program, *STRICT, *map(str, objects))
    return program


def compile_binding() -> Path:
    """The binding and its kernels as a library whose op takes CPU tensors, with stubs for torch_npu
    and CANN (host/stubs), built once per content and torch.
    """
    kernels = ASCEND / SCORING[0]
    sources = [kernels, *sorted(path for path in ASCEND.rglob("*.h"))]
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
            library, "-std=c++17", "-O0", "-shared", "-fPIC", *(f"-I{path}" for path in includes),
            *(f"-isystem{path}" for path in systems), str(on_cpu), str(kernels),
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


def _compile(unit: str, files: dict[str, str]) -> Path:
    # The runner does not see the kernels' source, nor a kernel the runner's.
    seen = {name: text for name, text in files.items() if name.endswith(".h") or name == unit}
    digest = _digest((seen, unit, STRICT))
    built = _cache() / f"{digest}.o"
    with _missing(built) as missing:
        if not missing:
            return built
        folder = built.with_suffix("")
        for name, text in seen.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        include = (f"-I{folder}/host", f"-I{folder}")
        _run_compiler(built, *WARNINGS, *STRICT, *include, "-c", str(folder / unit))
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


class Host:
    """``interface.Backend`` by a process of the program of ``SCORING``, as the device."""

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

    def ask(self, request: bytes, inputs: Iterable[bytes]) -> list[bytearray]:
        """The outputs of a request (csrc/ascend/host/runner.cpp).

        Raises:
            CheckFailed: What a check has against it.
        """
        with suppress(BrokenPipeError):  # reading tells why
            for part in (request, *(struct.pack("<q", len(x)) + x for x in inputs)):
                self._process.stdin.write(part)  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        problem, report = self._read(), self._read()
        outputs = [self._read() for _ in range(self._number())]
        if problem:
            raise CheckFailed(problem.decode())
        for kernel, peak in (line.split() for line in report.decode().splitlines()):
            self.ub[kernel] = max(self.ub.get(kernel, 0), int(peak))
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

    def missing(self, device: torch.device) -> str | None:
        """None: it runs on this machine's CPU."""
        return None

    def scores(
        self, logits: Tensor, groups: Groups, out: Tensor | None, statistics: Tensor | None
    ) -> None:
        """See ``interface.Backend``."""
        floors = expert_floors(logits, groups)
        self.run(logits, groups.rows, groups.weights, groups.log_alpha, floors, out, statistics)

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
        in_place = out is None
        base = torch.empty(0, dtype=torch.uint8).set_(logits.untyped_storage())
        request = struct.pack(
            "<12q", in_place, TYPES[logits.dtype], *logits.shape, logits.stride(0),
            *rows.shape, self.cores, floors is not None, statistics is not None,
            logits.storage_offset() * logits.element_size(), 0 if in_place else out.stride(0),
        )  # fmt: skip
        inputs = (base, rows, weights, log_alpha, torch.empty(0) if floors is None else floors)
        written, dense, counted = self.ask(request, (x.numpy().tobytes() for x in inputs))
        if statistics is not None:
            statistics.copy_(torch.frombuffer(counted, dtype=torch.int64).view(-1, 3))
        if out is None:
            base.copy_(torch.frombuffer(written, dtype=torch.uint8))
        else:
            flat = torch.frombuffer(dense, dtype=torch.float32)
            out.copy_(flat.as_strided(out.shape, (out.stride(0), 1)))
