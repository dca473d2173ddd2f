# SPDX-License-Identifier: Apache-2.0
"""What the processor is and can do, for the doctor and beside what benchmarks measure. Imports
neither vLLM nor torch.
"""

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

# What kernels for CPUs choose by, of x86-64 and of Arm.
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")


def describe() -> dict[str, str]:
    """Return what is known of the processor, by name; outside Linux, its name and its cores alone.

    ``threads per core`` is 2 where cores are hyperthreads, as far as a virtual machine is told.
    """
    of_first = _read("/proc/cpuinfo").partition("\n\n")[0]
    fields: dict[str, str] = dict(re.findall(r"^(.*?)\s*:[ \t]*(.*)$", of_first, re.M))
    flags = fields.get("flags", fields.get("Features", "")).split()
    pages = re.search(r"\[(\w+)\]", _read("/sys/kernel/mm/transparent_hugepage/enabled"))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ""
    threads = int(fields.get("siblings", 0)) // (int(fields.get("cpu cores", 1)) or 1)
    facts = {
        "CPU": fields.get("model name") or platform.processor() or platform.machine(),
        "family": fields.get("cpu family"),
        "model": fields.get("model"),
        "flags": " ".join(flag for flag in _FLAGS if flag in flags),
        "logical cores": os.cpu_count(),
        "of these for this process": usable,
        "threads per core": threads,
        "huge pages": pages and pages[1],
    }
    return {name: str(value) for name, value in facts.items() if value}


def text(facts: Mapping[str, str]) -> str:
    """Return what ``describe`` returned in one line, the processor's name first."""
    name, *more = (f"{key} {value}" for key, value in facts.items())
    return ", ".join([name.removeprefix("CPU "), *more])


def _read(path: str) -> str:
    """Return a file of Linux's; "" where there is none."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
