# SPDX-License-Identifier: Apache-2.0
"""The machine beside its figures: what it is, how fast it read its memory before and after them,
and what was installed. Needs torch, no vLLM.
"""

from __future__ import annotations

import importlib.metadata
import mmap
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vllm_cold.compat.versions import vllm_version
from vllm_cold.tools import machine

SECONDS = 1.0  # of reading
_BUFFER = 2**28  # bytes, or more where a cache holds so much
_PACKAGES = ("vllm-cold", "torch", "transformers", "peft")
READ, LOAD = "memory read, GB/s", "load average"

Facts = dict[str, Any]


def look() -> Facts:
    """What the machine is, for a file of measurements; to be called before them.

    Returns:
        ``processor``: see ``vllm_cold.tools.machine.describe``; ``versions`` by name; ``threads``
        of torch; ``OMP_NUM_THREADS``, None if it is not set; ``READ`` and ``LOAD`` (of the last
        minute): a list each, to which ``look_again`` adds.
    """
    import torch

    versions = {"Python": platform.python_version(), "vllm": vllm_version()}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    facts: Facts = {
        "processor": machine.describe(),
        "threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "versions": versions,
        READ: [],
        LOAD: [],
    }
    look_again(facts)
    return facts


def look_again(facts: Facts) -> None:
    """Add how fast the machine reads now, and how busy it is: what else ran may have changed."""
    facts[LOAD].append(round(os.getloadavg()[0], 1))
    facts[READ].append(round(read_speed(), 1))


def read_speed() -> float:
    """How fast all of torch's threads read memory, GB/s: the best of one second's sums of a buffer
    that no cache holds, on huge pages where there are some.
    """
    import torch

    size = max(_BUFFER, 4 * cpu_cache())
    memory = mmap.mmap(-1, size)
    with suppress(AttributeError, OSError):  # a system without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    buffer = torch.frombuffer(memory, dtype=torch.float32).fill_(1.0)
    least, end = float("inf"), time.perf_counter() + SECONDS
    while (start := time.perf_counter()) < end:
        buffer.sum()
        least = min(least, time.perf_counter() - start)
    return size / least / 1e9


def limit(facts: Mapping[str, Any], size: float) -> float | None:
    """Seconds that reading ``size`` bytes takes at the fastest reading; None without one."""
    speeds = facts.get(READ)
    return size / max(speeds) / 1e9 if speeds else None


def text(facts: Mapping[str, Any]) -> str:
    """The same for the head of tables, as far as a file has it."""
    lines = [f"CPU: {machine.text(facts['processor'])}"]
    for name in (READ, LOAD):
        if values := facts.get(name):
            told = zip(values, ("before", "after"), strict=False)
            lines.append(f"{name}: {', '.join(f'{value} {when}' for value, when in told)}")
    if threads := facts.get("threads"):
        omp = facts["OMP_NUM_THREADS"] or "not set"
        lines.append(f"torch's threads: {threads}, OMP_NUM_THREADS {omp}")
    lines.append(", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    return "\n".join(f"- {line}" for line in lines)


def cpu_cache() -> int:
    """Bytes of the CPU's last cache before memory."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    caches = Path("/sys/devices/system/cpu/cpu0/cache")
    sizes = [path.read_text().strip() for path in caches.glob("index*/size")]
    return max((int(size[:-1]) * units[size[-1]] for size in sizes), default=2**25)
