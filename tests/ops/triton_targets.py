# SPDX-License-Identifier: Apache-2.0
"""What the Triton kernels are compiled to, without a GPU: assembly and spills.

The backend runs on tensors without memory, and each kernel that it would launch is compiled, down
to the binary. So the variants (alignment, divisibility, constants) are those that Triton's JIT
would make.
"""

import re
import subprocess
import tempfile
from collections.abc import Sequence
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


@dataclass(frozen=True)
class Variant:
    """A launch of the backend."""

    dtype: str = "fp32"
    rows: str = "aligned"
    outputs: str = "dense"
    capped: bool = False
    groups: int = 7
    streams: int = 2

    def launch(self) -> None:
        """Call the backend on tensors of device "meta", which have shapes and alignment alone."""
        vocab, num, streams = ROWS[self.rows], self.groups, self.streams

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        logits = empty(streams * num, vocab, dtype=DTYPES[self.dtype])
        rows = empty(num, streams, dtype=torch.int64)
        caps = (empty(num, dtype=torch.int64), 1) if self.capped else (None, 0)
        those = Groups(rows, empty(num, streams - 1), empty(num), *caps)
        backend = scoring_triton.BACKEND
        if self.outputs == "dense":
            backend.scores(logits, those, empty(num, vocab), None)
        elif self.outputs == "in place":
            backend.scores(logits, those, None, None)
        elif self.outputs == "counted":  # in place too: the sampler's form
            backend.scores(logits, those, None, empty(num, 3, dtype=torch.int64))


@dataclass(frozen=True)
class Compiled:
    """A kernel for a target.

    Attributes:
        kernel: Its function's name.
        variant: The first launch that needed it.
        spills: Bytes of stack per thread on NVIDIA GPUs, where only spills use it; registers
            spilled on AMD GPUs.
        assembly: PTX or GCN assembly.
    """

    kernel: str
    variant: Variant
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
    spills, text = (
        (_nvidia_spills, "ptx") if TARGETS[target].backend == "cuda" else (_amd_spills, "amdgcn")
    )
    return [
        Compiled(k.metadata.name, variant, spills(k), k.asm[text])
        for k, variant in kernels.values()
    ]


def _nvidia_spills(kernel: Any) -> int:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(n) for name, n in re.findall(r"\b(STACK|LOCAL):(\d+)", report)}
    return found["STACK"] + found["LOCAL"]


def _amd_spills(kernel: Any) -> int:
    if not kernel.asm["hsaco"]:
        raise RuntimeError("no binary came of the assembly")
    found = re.findall(r"\.(vgpr|sgpr)_spill_count:\s+(\d+)", kernel.asm["amdgcn"])
    if {name for name, _ in found} != {"vgpr", "sgpr"}:
        raise RuntimeError("the assembly's metadata lack its spills")
    return sum(int(count) for _, count in found)
