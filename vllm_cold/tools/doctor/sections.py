# SPDX-License-Identifier: Apache-2.0
"""The doctor's sections that need vLLM; ``machine`` has the others. Each function makes one and may
fail (``report.examine``).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence

from vllm_cold import environment
from vllm_cold.tools.doctor.report import Entry, Status, without_home


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
        from vllm.utils import cpu_resource_utils

        node = cpu_resource_utils.get_visible_memory_node()[0]
        found = cpu_resource_utils.get_memory_node_info(node)
        free, total = (size / 2**30 for size in (found.available_memory, found.total_memory))
        entries.append(Entry("memory", f"{free:.1f} of {total:.1f} GiB free"))
    elif torch.accelerator.is_available():
        size = current_platform.get_device_total_memory() / 2**30
        said = f"{torch.accelerator.device_count()}, the first with {size:.0f} GiB"
        entries.append(Entry("devices", said))
    return entries


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

    from vllm_cold.ops import registry

    device = torch.device(current_platform.device_type)
    chosen, best = registry.choose(device), registry.AUTOMATIC.get(device.type, "torch")
    said, status = f"{chosen}: {registry.BACKENDS[chosen]}", Status.OK
    if chosen != best and not environment.read(registry.ENV):
        reason = registry.load(best).missing(device)
        said, status = f"{said}; not {best}: {reason}", Status.WARNING
    return [_library(), _switch(registry.ENV), Entry(f"on {device}", said, status)]


def _library() -> Entry:
    from vllm_cold import cpu_library

    if (reason := cpu_library.missing()) is not None:
        return Entry("C++ library", reason, Status.WARNING)
    isa = cpu_library.ISAS[cpu_library.best_isa()]
    said = f"{without_home(str(cpu_library.PATH))}, instruction set {isa}"
    return Entry("C++ library", said, Status.OK)


def _switch(variable: str) -> Entry:
    """An environment variable that chooses a kernel."""
    asked = environment.read(variable)
    return Entry(variable, f"{asked}: asked for by hand" if asked else "not set")


def lora() -> list[Entry]:
    """The kernels that compute LoRA."""
    from vllm.platforms import current_platform

    from vllm_cold import hardware
    from vllm_cold.cpu import cpu_platform, lora_ops
    from vllm_cold.npu import npu_platform

    if hardware.is_on("npu"):
        if (named := npu_platform.named()) != npu_platform.STOCK:
            return [Entry("LoRA", f"not known to vllm-cold: {named}", Status.PROBLEM)]
        said = f"bgmv in engines with contrastive decoding, else {npu_platform.STOCK}"
        return [Entry("LoRA", said, Status.OK)]
    wrapper = current_platform.get_punica_wrapper()
    if wrapper not in cpu_platform.WRAPPERS.values():
        return [Entry("LoRA", f"the platform's own ({wrapper})")]
    match cpu_platform.choice():
        case "cpp":
            found = Entry("LoRA", "C++ kernels", Status.OK)
        case "torch":
            why = lora_ops.missing() or "asked for"
            found = Entry("LoRA", f"torch operations, slow: {why}", Status.WARNING)
        case _:
            said = "vLLM's own; contrastive requests are refused"
            found = Entry("LoRA", said, Status.PROBLEM)
    return [_switch(cpu_platform.ENV), found]


SECTIONS: Mapping[str, Callable[[], Sequence[Entry]]] = {
    "Devices": devices,
    "Plugin": plugin,
    "Scoring": scoring,
    "LoRA": lora,
    "vLLM's interfaces": interfaces,
}
