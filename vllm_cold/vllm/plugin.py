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
import inspect
import logging
from collections.abc import Iterator

from vllm_cold import environment
from vllm_cold.vllm import availability, versions
from vllm_cold.vllm.patching import PatchPoint

logger = logging.getLogger("vllm." + __name__)

# What the processes of an engine that CoLD uses make.
_CLASSES = ("scheduler.scheduler:ColdScheduler", "worker.processor_v1:ColdLogitsProcessorV1")


def register() -> None:
    """Called by vLLM; idempotent."""
    if environment.switched_off():
        return
    availability.register(_at_start(), _look)
    if availability.unavailable() is None:
        from vllm_cold.vllm.worker import drafts_v1

        for place in drafts_v1.builders():  # without them, engines with speculation have no CoLD
            if place.problem() is None:
                place.wrap()


def _at_start() -> Iterator[PatchPoint]:
    from vllm_cold.vllm import patch_points  # which imports vLLM

    yield from patch_points.at_start()


def _look() -> str | None:
    """What is wrong with what an engine with CoLD needs beside that; None if nothing is."""
    from vllm_cold.vllm import contracts, patch_points

    availability.without_speculation = contracts.problems(contracts.OF_SPECULATION)
    if (said := contracts.problems((*patch_points.later(), *contracts.needed()))) is not None:
        return said
    for path in _CLASSES:
        module, _, name = path.partition(":")
        made = getattr(importlib.import_module(f"vllm_cold.vllm.{module}"), name)
        if inspect.isabstract(made):
            return f"vLLM wants {', '.join(sorted(made.__abstractmethods__))} of {name}, too"
    if (unknown := versions.unvalidated()) is not None:
        logger.warning(
            "vllm-cold: %s. It has all that CoLD is known to need; `vllm-cold doctor` decodes with "
            "it and says whether the tokens are right.",
            unknown,
        )
    return None
