# SPDX-License-Identifier: Apache-2.0
"""Which kernels compute an engine's layers on CPU, and why: for the log, the doctor and metrics."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from vllm_cold.compat import environment
from vllm_cold.cpu import cpu_platform, linear_ops, operators

ONE_CALL = "one call computes a layer's product and adds its adapters"


@dataclass(frozen=True)
class KernelPath:
    """What computes some layers.

    Attributes:
        name: "products" (of linear layers), "lora", or "experts" (LoRA on them).
        path: Of products "kernel" (few rows by ours, more by oneDNN), "onednn" (all rows, in our
            operator) or "vllm"; of LoRA "inside" (products), "beside" (an operator of its own),
            "torch" or "vllm"; of experts "torch" or "vllm".
        reason: Why, in a few words or a sentence.
    """

    name: str
    path: str
    reason: str


_noted: dict[KernelPath, None] = {}  # a set in the order of entry


def note(name: str, path: str, reason: str) -> None:
    """Note what a layer of this process got."""
    _noted[KernelPath(name, path, reason)] = None


def take(names: Collection[str]) -> tuple[KernelPath, ...]:
    """Return, of these names, what the layers got that this process has loaded since the last call;
    several of a name where layers differ. Of a name without layers, as in the doctor's process,
    what an engine with LoRA is to expect here.

    Raises:
        ValueError, RuntimeError: an environment variable asks for what is not known or cannot run.
    """
    paths = [path for path in _noted if path.name in names]
    _noted.clear()
    missing = set(names) - {path.name for path in paths}
    return (*paths, *(path for path in _expected(missing) if path.name in missing))


def _expected(names: Collection[str]) -> Iterator[KernelPath]:
    problem = linear_ops.problem()
    fastest = "where it is the fastest when an engine starts"
    yield KernelPath("products", "vllm" if problem else "kernel", problem or fastest)
    if not {"lora", "experts"} & {*names}:  # an engine without LoRA need not be able to have it
        return
    lora = cpu_platform.choice()
    if lora == "cpp":
        yield KernelPath("lora", "beside" if problem else "inside", problem or ONE_CALL)
    else:
        why = cpu_platform.lacks() or operators.missing() or f"{environment.LORA}={lora}"
        yield KernelPath("lora", lora.replace("stock", "vllm"), why)
    experts = "vllm" if lora == "stock" else "torch"
    yield KernelPath("experts", experts, "vLLM's kernels for experts take no adapters")
