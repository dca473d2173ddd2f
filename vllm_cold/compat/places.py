# SPDX-License-Identifier: Apache-2.0
"""The tables of what vllm-cold wraps or extends in vLLM, or relies on where a change would pass
unnoticed, by when it is needed. All processes have one (``start_places``), each has its own
(``frontend_places``, ``scheduler_places``, ``worker_places``), and so have the kernels for one kind
of hardware (``npu_places``, ``cpu_places``); docs/reference/places.md is made from all of them.

Each process that makes or runs an engine with contrastive decoding checks its rows first
(``availability.verify``): a vLLM that has changed one is refused in a sentence that names it, and
not in the middle of a request. Checked are names, parameters and fields, and in samplers the order
in which names come; that takes milliseconds.

A table is data alone, and loaded when rows of it are needed; a row's file, when its methods are
wrapped.
"""

import importlib
from types import ModuleType

from vllm_cold.compat.hardware import is_on
from vllm_cold.compat.patching import Hook, Reference, Relies, Time, Wraps, problems
from vllm_cold.compat.versions import is_within, numbers

_START, _FRONTEND, _SCHEDULER, _WORKER, _V1, _NPU = TABLES = (
    "vllm_cold.compat.start_places",
    "vllm_cold.frontend.frontend_places",
    "vllm_cold.scheduler.scheduler_places",
    "vllm_cold.worker.worker_places",
    "vllm_cold.worker.v1.v1_places",
    "vllm_cold.npu.npu_places",
)
CPU_TABLE = "vllm_cold.cpu.cpu_places"  # of the plugin ``cold_cpu``

# When a row is needed.
START = Time(_START, "in every process, when vLLM loads the plugin")
NO_COLD = Time(_START, "in every process where this vLLM lacks what vllm-cold needs")
FRONT_END = Time(_FRONTEND, "in a front end of an engine with contrastive decoding")
ONLINE = Time(_FRONTEND, "in an API server")
OFFLINE = Time(_FRONTEND, "in a process with `LLM`")
MEDIA = Time(_FRONTEND, "in a front end, for prompts with media")
CONFIGURED = Time(_SCHEDULER, "in every process of an engine with contrastive decoding")
CONNECTOR = Time(_SCHEDULER, "in an engine with a KV connector")
WORKER = Time(_WORKER, "in its workers")
DRAFTS = Time(_WORKER, "in its workers, with speculative decoding")
SSM = Time(_WORKER, "in its workers on CPU, for models with state-space layers")
V1_LOADED = Time(_V1, "in every process that has V1, when vLLM loads the plugin")
V1 = Time(_V1, "in its workers on V1")
V1_DRAFTS = Time(_V1, "in its workers on V1, with speculative decoding")
V1_ON_CPU = Time(_V1, "in workers on V1 on CPU, with LoRA or a contrast")
NPU = Time(_NPU, "in every process on NPUs, when vLLM loads the plugin")
NPU_LORA = Time(_NPU, "in engines with LoRA on NPUs")
CPU = Time(CPU_TABLE, "in every process on CPUs, when vLLM loads the plugin `cold_cpu`")
CPU_WORKERS = Time(CPU_TABLE, "in every process on CPUs, for its workers")
CPU_MODEL = Time(CPU_TABLE, "in workers on CPU, before the model is loaded")
CPU_LORA = Time(CPU_TABLE, "in engines with LoRA on CPUs")
CPU_WORKAROUNDS = Time(CPU_TABLE, "in workers on CPU with LoRA")
KERNELS_ON_CPU = (CPU, CPU_WORKERS, CPU_MODEL, CPU_LORA, CPU_WORKAROUNDS)
# Checked before an engine is prepared for contrastive decoding, whatever it serves.
EVERY_ENGINE = (CONFIGURED, FRONT_END)

# What docs/for-vllm.md asks for.
GROUPS = "when vLLM schedules groups of requests in lockstep."
LOGITS = "when vLLM has a hook after the logits of all rows."
DERIVED = "when vLLM renders prompts for a derived request."
CHANNEL = "when vLLM has a channel for what plugins report."


def workaround(
    module: ModuleType | Reference,
    when: Time,
    why: str,
    *places: Wraps | Relies,
    can_go: str = "when its test in `tests/contracts/test_cpu.py` says so.",
    link: str = "",
    since: str = "0.23",
    until: str = "",
    lost: str = "a bug of vLLM is not worked around here",
) -> Hook:
    """Return a row for a bug of vLLM on CPUs."""
    return Hook(
        module,
        when,
        why,
        can_go,
        *places,
        link=link,
        since=since,
        until=until,
        lost=lost,
        platform="cpu",
    )


def table(name: str) -> tuple[Hook, ...]:
    """Return all rows of a table, which is the module of this name."""
    rows: tuple[Hook, ...] = importlib.import_module(name).TABLE
    return rows


def rows(*when: Time) -> tuple[Hook, ...]:
    """Return the rows of these times, or all of the contrast, on this platform that this vLLM is
    not past.
    """
    names = dict.fromkeys(time.table for time in when) if when else TABLES
    hooks = (hook for name in names for hook in table(name) if not when or hook.when in when)
    return tuple(
        hook
        for hook in hooks
        if is_within("", hook.until) and (not hook.platform or is_on(hook.platform))
    )


def since(*when: Time) -> str:
    """Return the release of vLLM from which on these times are supported: the latest of their first
    rows.
    """
    firsts = (min((h.since for h in table(t.table) if h.when == t), key=numbers) for t in when)
    return max(firsts, key=numbers)


def problem(*when: Time) -> str | None:
    """Say what vLLM lacks of what vllm-cold cannot do without at these times, in one sentence
    without its full stop; None if nothing.
    """
    return problems(hook for hook in rows(*when) if not hook.lost)
