# SPDX-License-Identifier: Apache-2.0
"""The doctor's sections that need vLLM; ``machine`` has the others. Each function makes one and may
fail (``report.examine``).
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vllm_cold.tools.doctor.report import Entry, Status, failure, without_home


def devices() -> list[Entry]:
    """The platform that vLLM detects, and its devices."""
    import torch
    from vllm.platforms import current_platform

    if not type(current_platform).device_type:
        said = "vLLM found none; reinstall vLLM for this machine"
        return [Entry("vLLM's platform", said, Status.PROBLEM)]
    here = current_platform.device_type
    entries = [
        Entry("vLLM's platform", type(current_platform).__name__),
        Entry("device", f"{here} ({current_platform.get_device_name()})"),
        Entry("torch threads", str(torch.get_num_threads())),
    ]
    if current_platform.is_cpu():
        entries.append(_memory())
    elif torch.accelerator.is_available():
        size = current_platform.get_device_total_memory() / 2**30
        said = f"{torch.accelerator.device_count()}, the first with {size:.0f} GiB"
        entries.append(Entry("devices", said))
    return entries


def _memory() -> Entry:
    """Whether an engine on CPU would start now with vLLM's default share of memory."""
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


def plugin() -> list[Entry]:
    """Whether vLLM knows the plugin's entry point, and whether it is active after loading."""
    from vllm.plugins import load_general_plugins

    from vllm_cold.vllm import availability

    entries = []
    for point in importlib.metadata.entry_points(group="vllm.general_plugins"):
        if point.value.startswith("vllm_cold."):
            point.load()  # vLLM would log what it raises, and go on
            entries.append(Entry("entry point", f"{point.name} = {point.value}", Status.OK))
    if not entries:
        entries = [Entry("entry point", "not registered; install the package", Status.PROBLEM)]
    load_general_plugins()
    reason = availability.inactive()
    said, status = "available in this process", Status.OK
    if reason is not None:
        said, status = f"unavailable: {reason}", Status.PROBLEM
    return [*entries, Entry("contrastive decoding", said, status)]


def engine() -> list[Entry]:
    """The configuration that a LoRA engine would have here."""
    from vllm.engine.arg_utils import EngineArgs

    from vllm_cold.tools.doctor import self_test, tiny
    from vllm_cold.vllm.frontend.config import is_configured, model_runner, unsupported

    with tempfile.TemporaryDirectory(prefix="vllm-cold-doctor-") as folder:
        tiny.write(Path(folder))
        options = {**self_test.engine_options(Path(folder)), "enforce_eager": False}
        config = EngineArgs(**options).create_engine_config()
    scheduler = config.scheduler_config
    entries = [
        Entry("model runner", model_runner(config)),
        Entry("scheduling", "asynchronous" if scheduler.async_scheduling else "synchronous"),
        Entry("scheduler", str(scheduler.scheduler_cls or "vLLM's own")),
        Entry("logits processors", str(config.model_config.logits_processors or "none")),
    ]
    said, status = "can be used in it", Status.OK
    if not is_configured(config):
        reason = unsupported(config) or "the plugin did not configure it."
        said, status = f"cannot be used in it: {reason}", Status.PROBLEM
    return [*entries, Entry("contrastive decoding", said, status)]


def interfaces() -> list[Entry]:
    """Whether the installed vLLM has what the package relies on."""
    from vllm_cold import places
    from vllm_cold.vllm import versions

    always = (places.START, places.LORA, places.ONLINE, places.OFFLINE, *places.EVERY_ENGINE)
    entries, count = [], 0
    for hook in places.rows():
        if versions.is_before(*map(int, hook.since.split("."))):
            continue
        status = Status.WARNING if hook.lost or hook.when not in always else Status.PROBLEM
        for touch in hook.touches:
            count += 1
            if (problem := touch.problem()) is not None:
                entries.append(Entry("changed", problem, status))
    worst = max((entry.status for entry in entries), key=list(Status).index, default=Status.OK)
    return [Entry("hold", f"{count - len(entries)} of {count}", worst), *entries]


def scoring() -> list[Entry]:
    """The scoring backend for the device here, and why a better one is missing."""
    import torch
    from vllm.platforms import current_platform

    from vllm_cold import cpu_library
    from vllm_cold.ops import registry, scoring_cpu

    entries = [_switch(registry.ENV)]
    reason = cpu_library.missing()
    if reason is None:
        what = f"{without_home(str(cpu_library.PATH))}, instruction set {scoring_cpu.best_isa()}"
        entries.append(Entry("C++ library", what, Status.OK))
    else:
        entries.append(Entry("C++ library", reason, Status.WARNING))
    device, asked = current_platform.device_type, os.environ.get(registry.ENV)
    reasons: list[str] = []
    best = registry.AUTOMATIC.get(device, "torch")
    for name in (asked,) if asked else (best, "torch"):
        try:
            reason = registry.load(name).missing(torch.device(device))
        except Exception as error:  # reported: the next one may do
            reason = failure(error)
        if reason is None:
            text = "; ".join([f"{name}: {registry.BACKENDS[name]}", *reasons])
            status = Status.WARNING if reasons else Status.OK
            return [*entries, Entry(f"on {device}", text, status)]
        reasons.append(f"not {name}: {reason}")
    return [*entries, Entry(f"on {device}", "; ".join(reasons), Status.PROBLEM)]


def _switch(variable: str) -> Entry:
    """An environment variable that chooses a kernel."""
    asked = os.environ.get(variable)
    return Entry(variable, f"{asked}: asked for by hand" if asked else "not set")


def lora() -> list[Entry]:
    """The kernels that compute LoRA."""
    from vllm.platforms import current_platform

    from vllm_cold import cpu_library, hardware
    from vllm_cold.cpu import cpu_platform, lora_ops
    from vllm_cold.npu import npu_platform

    if hardware.is_on("npu"):
        if (named := npu_platform.named()) != npu_platform.STOCK:
            return [Entry("LoRA", f"not known to vllm-cold: {named}", Status.PROBLEM)]
        what = f"bgmv in engines with contrastive decoding, else {npu_platform.STOCK}"
        return [Entry("LoRA", what, Status.OK)]
    wrapper = current_platform.get_punica_wrapper()
    if wrapper not in cpu_platform.WRAPPERS.values():
        return [Entry("LoRA", f"the platform's own ({wrapper})")]
    asked, chosen = os.environ.get(cpu_platform.ENV), cpu_platform.choice()
    entries = [_switch(cpu_platform.ENV)]
    if chosen == "cpp":
        isa = cpu_library.ISAS[cpu_library.best_isa()]
        return [*entries, Entry("LoRA", f"C++ kernels, instruction set {isa}", Status.OK)]
    if chosen == "torch":
        why = "asked for" if asked else lora_ops.missing() or ""
        return [*entries, Entry("LoRA", f"torch operations, slow: {why}", Status.WARNING)]
    return [*entries, Entry("LoRA", "vLLM's own; contrastive requests are refused", Status.PROBLEM)]


SECTIONS: Mapping[str, Callable[[], Sequence[Entry]]] = {
    "Devices": devices,
    "Plugin": plugin,
    "A LoRA engine here": engine,
    "Scoring": scoring,
    "LoRA": lora,
    "vLLM's interfaces": interfaces,
}
