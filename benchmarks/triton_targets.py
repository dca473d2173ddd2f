# SPDX-License-Identifier: Apache-2.0
"""What the Triton kernels need of a GPU, without a GPU: registers, shared memory, spills.

``python -m benchmarks.triton_targets [--markdown]`` runs the backend on tensors without memory
and compiles each kernel that it would launch, down to the binary, for every target. So the
variants (alignment, divisibility, constants) are those that Triton's JIT would make.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from vllm_cold.ops import Groups, scoring_triton

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Rows start at multiples of 16 elements and end at one; rows that start anywhere; one token.
ROWS = {"aligned": 152064, "odd": 32001, "V = 1": 1}
OUTPUTS = ("dense", "in place", "counted", "top-32", "top-64")


@dataclass(frozen=True)
class Variant:
    """A launch of the backend."""

    dtype: str = "fp32"
    rows: str = "aligned"
    outputs: str = "dense"
    capped: bool = False
    groups: int = 7
    adaptive: bool = False
    streams: int = 2

    def __str__(self) -> str:
        capped, adaptive = ", capped" * self.capped, ", adaptive" * self.adaptive
        streams = f", {self.streams} streams" * (self.streams > 2)
        return self.outputs + capped + adaptive + streams

    def launch(self) -> None:
        """Call the backend on tensors of device "meta", which have shapes and alignment alone."""
        vocab, num, streams = ROWS[self.rows], self.groups, self.streams

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        logits = empty(streams * num, vocab, dtype=DTYPES[self.dtype])
        rows = empty(num, streams, dtype=torch.int64)
        caps = (empty(num, dtype=torch.int64), 1) if self.capped else (None, 0)
        adaptive = empty(num, streams - 1, dtype=torch.bool) if self.adaptive else None
        those = Groups(rows, empty(num, streams - 1), empty(num), *caps, adaptive)
        backend = scoring_triton.BACKEND
        if self.outputs == "dense":
            backend.scores(logits, those, empty(num, vocab), None)
        elif self.outputs == "in place":
            backend.scores(logits, those, None, None)
        elif self.outputs == "counted":  # in place too: the sampler's form
            backend.scores(logits, those, None, empty(num, 3, dtype=torch.int64))
        else:
            k = int(self.outputs.removeprefix("top-"))
            backend.topk(logits, those, empty(num, k), empty(num, k, dtype=torch.int64))


def all_variants() -> Iterator[Variant]:
    """Every variant that there is."""
    for rows in ROWS:
        for dtype in DTYPES:
            for outputs in OUTPUTS:
                if outputs not in ("in place", "counted") or dtype == "fp32":
                    for streams in (2, 3):  # 3 stands for all that are more than 2
                        yield Variant(dtype, rows, outputs, streams=streams)
                        yield Variant(dtype, rows, outputs, capped=True, streams=streams)
            # What it adds does not depend on the outputs.
            yield Variant(dtype, rows, adaptive=True)
            yield Variant(dtype, rows, capped=True, adaptive=True)


@dataclass(frozen=True)
class Compiled:
    """A kernel for a target.

    Attributes:
        kernel: Its function's name.
        variant: The first launch that needed it.
        target: As in ``TARGETS``.
        registers: Per thread (on AMD GPUs, vector registers).
        shared: Bytes of shared memory per program.
        spills: Bytes of stack per thread on NVIDIA GPUs, where only spills use it; registers
            spilled on AMD GPUs.
        assembly: PTX or GCN assembly.
    """

    kernel: str
    variant: Variant
    target: str
    registers: int
    shared: int
    spills: int
    assembly: str


class _Driver:
    """Stands in for a GPU's driver: all that compiling asks of one is the target."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_device(self) -> str:
        return str(self.target)

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


def compile_variants(target: str, variants: Sequence[Variant]) -> list[Compiled]:
    """Each kernel that ``variants`` launch, once, compiled for ``target``."""
    kernels: dict[str, tuple[Any, Variant]] = {}
    current = variants[0]

    def compile_only(kernel: Any, grid: Any) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            compiled = kernel.run(*args, grid=grid, warmup=True, **options)
            kernels.setdefault(compiled.hash, (compiled, current))

        return launch

    before, get_item = driver._active, JITFunction.__getitem__
    driver.set_active(_Driver(TARGETS[target]))
    JITFunction.__getitem__ = compile_only
    try:
        for current in variants:
            current.launch()
    finally:
        JITFunction.__getitem__ = get_item
        driver.set_active(before)
    usage = _nvidia_usage if TARGETS[target].backend == "cuda" else _amd_usage
    return [
        Compiled(k.metadata.name, variant, target, *usage(k)) for k, variant in kernels.values()
    ]


def _nvidia_usage(kernel: Any) -> tuple[int, int, int, str]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", report)}
    spills = found["STACK"] + found["LOCAL"]
    return found["REG"], kernel.metadata.shared, spills, kernel.asm["ptx"]


def _amd_usage(kernel: Any) -> tuple[int, int, int, str]:
    assembly = kernel.asm["amdgcn"]
    if not kernel.asm["hsaco"]:
        raise RuntimeError("no binary came of the assembly")

    def count(name: str) -> int:
        match = re.search(rf"\.{name}:\s+(\d+)", assembly)
        if match is None:
            raise RuntimeError(f"the assembly's metadata lack {name}")
        return int(match.group(1))

    spills = count("vgpr_spill_count") + count("sgpr_spill_count")
    return count("vgpr_count"), kernel.metadata.shared, spills, assembly


def table(compiled: Sequence[Compiled], markdown: bool = False) -> str:
    """A line for each kernel; in markdown, the most of each kernel and output over the rest."""
    if not markdown:
        lines = ["kernel             target  dtype rows     outputs            regs shared spills"]
        lines += [
            f"{c.kernel:18} {c.target:7} {c.variant.dtype:5} {c.variant.rows:8} "
            f"{c.variant!s:18} {c.registers:4} {c.shared:6} {c.spills:6}"
            for c in compiled
        ]
        return "\n".join(lines)
    most: dict[tuple[str, str, str], list[int]] = {}
    for c in compiled:
        outputs = "all" if c.kernel in ("tile_maxima", "adaptive_weights") else c.variant.outputs
        outputs += ", more than 2 streams" * (c.kernel == "score_tiles" and c.variant.streams > 2)
        row = most.setdefault((c.kernel, outputs, c.target), [0, 0, 0, 0])
        row[0] += 1
        row[1:] = (max(row[1], c.registers), max(row[2], c.shared), max(row[3], c.spills))
    lines = [
        "| kernel | outputs | target | variants | registers | shared memory | spills |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for key, row in most.items():
        lines.append("| " + " | ".join(map(str, (*key, *row))) + " |")
    return "\n".join(lines)


def main() -> None:
    """Compile all and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--markdown", action="store_true", help="a short table, for documents")
    arguments = parser.parse_args()
    compiled = [c for t in TARGETS for c in compile_variants(t, list(all_variants()))]
    print(f"triton {triton.__version__}, torch {torch.__version__}\n")
    print(table(compiled, arguments.markdown))
    print(f"\n{len(compiled)} kernels, {sum(c.spills > 0 for c in compiled)} with spills")


if __name__ == "__main__":
    main()
