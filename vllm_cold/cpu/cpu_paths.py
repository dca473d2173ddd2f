# SPDX-License-Identifier: Apache-2.0
"""Which kernels compute an engine's layers on CPU, and why: for the log, the doctor and metrics.

There are "products" (of linear layers), "lora", and "experts" (LoRA on them). Products have the
path "kernel" (few rows by ours, more by oneDNN), "onednn" (all rows, in our operator) or "vllm";
LoRA "inside" (products), "beside" (an operator of its own), "torch" or "vllm"; experts "torch" or
"vllm".
"""

from collections.abc import Collection, Iterator

from vllm_cold.compat import environment
from vllm_cold.compat.hardware import Kernel
from vllm_cold.cpu import cpu_platform, linear_ops, operators

ONE_CALL = "one call computes a layer's product and adds its adapters"

_noted: dict[Kernel, None] = {}  # a set in the order of entry


def note(name: str, path: str, reason: str) -> None:
    """Note what a layer of this process got."""
    _noted[name, path, reason] = None


def take(names: Collection[str]) -> list[Kernel]:
    """Return, of these names, what the layers got that this process has loaded since the last call;
    several of a name where layers differ. Of a name without layers, as in the doctor's process,
    what an engine with LoRA is to expect here.

    Raises:
        ValueError, RuntimeError: an environment variable asks for what is not known or cannot run.
    """
    kernels = [kernel for kernel in _noted if kernel[0] in names]
    _noted.clear()
    missing = set(names) - {name for name, _, _ in kernels}
    return kernels + [kernel for kernel in _expected(missing) if kernel[0] in missing]


def _expected(names: Collection[str]) -> Iterator[Kernel]:
    problem = linear_ops.problem()
    fastest = "where it is the fastest when an engine starts"
    yield "products", "vllm" if problem else "kernel", problem or fastest
    if not {"lora", "experts"} & {*names}:  # an engine without LoRA need not be able to have it
        return
    lora = cpu_platform.choice()
    if lora == "cpp":
        yield "lora", "beside" if problem else "inside", problem or ONE_CALL
    else:
        why = cpu_platform.lacks() or operators.missing() or f"{environment.LORA}={lora}"
        yield "lora", lora.replace("stock", "vllm"), why
    experts = "vllm" if lora == "stock" else "torch"
    yield "experts", experts, "vLLM's kernels for experts take no adapters"
