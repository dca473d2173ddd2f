# SPDX-License-Identifier: Apache-2.0
"""What is said of the machine: by Linux's files, without them, and beside what is measured."""

import os
from typing import Any

import pytest

from benchmarks import machine as beside
from vllm_cold.tools import machine

pytestmark = pytest.mark.unit

XEON = """\
processor\t: 0
cpu family\t: 6
model\t\t: 207
model name\t: INTEL(R) XEON(R) PLATINUM
siblings\t: 2
cpu cores\t: 1
flags\t\t: fpu avx avx2 avx512f avx512_bf16 amx_bf16 amx_tile avx2x
power management:

processor\t: 1
model name\t: another
"""
ARM = """\
processor\t: 0
Features\t: fp asimd bf16
CPU part\t: 0xd4f
"""
PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"


def told(monkeypatch: pytest.MonkeyPatch, cpuinfo: str, pages: str = "") -> dict[str, str]:
    """What is described where Linux's files say this."""
    files = {"/proc/cpuinfo": cpuinfo, PAGES: pages}
    monkeypatch.setattr(machine, "_read", files.get)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    return machine.describe()


def test_a_processor_with_hyperthreads(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = told(monkeypatch, XEON, "always [madvise] never\n")
    assert machine.text(facts) == (
        "INTEL(R) XEON(R) PLATINUM, family 6, model 207, flags avx2 avx512f avx512_bf16 amx_bf16, "
        "logical cores 4, of these for this process 2, threads per core 2, huge pages madvise"
    )


def test_one_that_has_no_such_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, ARM) == {
        "CPU": "aarch64", "flags": "asimd bf16", "logical cores": "4",
        "of these for this process": "2",
    }  # fmt: skip


def test_a_system_without_those_files(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, "")
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.describe() == {"CPU": "aarch64", "logical cores": "4"}
    monkeypatch.undo()
    assert machine._read("/proc/there is none") == ""


def test_the_machine_beside_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter((20.04, 30.0))
    monkeypatch.setattr(beside, "read_speed", lambda: next(speeds))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.25, 1.0, 2.0))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    facts = beside.look()
    beside.look_again(facts)
    assert facts["processor"] == machine.describe() and "torch" in facts["versions"]
    shown = beside.text(facts)
    assert "memory read, GB/s: 20.0 before, 30.0 after" in shown
    assert "load average: 0.2 before, 0.2 after" in shown
    assert "OMP_NUM_THREADS 2" in shown and f"torch {facts['versions']['torch']}" in shown
    assert beside.limit(facts, 60e9) == 2.0  # seconds, at the faster one
    # Of an earlier program's file.
    known: dict[str, Any] = {"processor": {"CPU": "AMD EPYC"}, "versions": {"vllm": "0.32.0"}}
    assert beside.text(known) == "- CPU: AMD EPYC\n- vllm 0.32.0"
    assert beside.limit(known, 1.0) is None


def test_reading_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a disk reads, and less than a cache."""
    monkeypatch.setattr(beside, "SECONDS", 0.1)
    assert 0.5 < beside.read_speed() < 10_000
