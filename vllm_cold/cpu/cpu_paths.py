# SPDX-License-Identifier: Apache-2.0
"""Which kernels compute an engine's layers on CPU, and why: for the log, the doctor and metrics."""

from dataclasses import dataclass

from vllm_cold.compat import environment
from vllm_cold.cpu import cpu_platform, linear_ops, operators


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


def paths() -> tuple[KernelPath, ...]:
    """What the layers of this process got; several of a name where layers differ. Of a name without
    layers, as in the doctor's process, what an engine with LoRA is to expect here.

    Raises:
        ValueError, RuntimeError: an environment variable asks for what is not known or cannot run.
    """
    names = {noted.name for noted in _noted}
    return (*_noted, *(path for path in _expected() if path.name not in names))


def _expected() -> tuple[KernelPath, ...]:
    lora, products = cpu_platform.choice(), linear_ops.problem()
    why = {
        "stock": f"{environment.LORA}=stock, or this vLLM is not known",
        "torch": operators.missing() or f"{environment.LORA}=torch",
        "cpp": products or "one call for a layer's product and its adapters",
    }[lora]
    of_cpp = "beside" if products else "inside"
    return (
        KernelPath("products", "vllm", products)
        if products
        else KernelPath("products", "kernel", "where it is the fastest when an engine starts"),
        KernelPath("lora", {"stock": "vllm", "torch": "torch", "cpp": of_cpp}[lora], why),
        KernelPath("experts", "vllm", why)
        if lora == "stock"
        else KernelPath("experts", "torch", "vLLM's kernels for experts take no adapters"),
    )
