# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: the entry point ``vllm.general_plugins``, which vLLM calls in every process
(front end, engine core, workers), several times.

Why: it makes installing the package enough. Cheap: it wraps a few methods of modules that are
loaded anyway; everything else is loaded by the engines that need it. It never raises: vLLM calls
plugins unguarded.
Since: 0.23 to 0.33. Can go: never.
``COLD_ENABLED=0`` switches it off, as does leaving ``cold`` out of vLLM's own ``VLLM_PLUGINS``.
"""

import importlib
import logging
from collections.abc import Iterator

from vllm_cold import environment
from vllm_cold.vllm import availability, versions
from vllm_cold.vllm.patching import Place

logger = logging.getLogger("vllm." + __name__)

# Loaded in the processes of an engine that CoLD uses.
_MODULES = ("scheduler.scheduler", "worker.processor_v1")


def register() -> None:
    """Called by vLLM; idempotent."""
    if environment.switched_off():
        return
    availability.register(_at_start(), _look)
    if availability.unavailable() is None:
        from vllm_cold.vllm import places

        for place in places.of_speculation_v1():
            if place.problem() is None:
                place.wrap()


def _at_start() -> Iterator[Place]:
    from vllm_cold.vllm import places  # which imports vLLM

    yield from places.at_start()


def _look() -> str | None:
    """What is wrong with what an engine with CoLD needs beside that; None if nothing is."""
    from vllm_cold.vllm import places

    if problems := [p for place in places.later() if (p := place.problem()) is not None]:
        return "; ".join(problems)
    return None if versions.unvalidated() is None else _broken_contracts()


def _broken_contracts() -> str | None:
    from vllm_cold.vllm import contracts

    def said(broken: list[contracts.Broken]) -> str | None:
        return "; ".join(f"{b.reason.removesuffix('.')} ({b.contract.why})" for b in broken) or None

    broken = [b for b in contracts.check_all() if not b.contract.note]
    availability.without_speculation = said([b for b in broken if b.contract.speculation])
    if (problem := said([b for b in broken if not b.contract.speculation])) is not None:
        return problem
    for module in _MODULES:
        importlib.import_module(f"vllm_cold.vllm.{module}")
    logger.info("vllm-cold: %s, but has all that CoLD needs.", versions.unvalidated())
    return None
