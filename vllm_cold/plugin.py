# SPDX-License-Identifier: Apache-2.0
"""The plugin ``cold`` of vLLM's entry point ``vllm.general_plugins``, which vLLM calls several
times in every process (front end, engine core, workers): the contrast, and on NPUs its LoRA. The
kernels for CPUs are a plugin of their own, ``cold_cpu`` (``cpu.cpu_platform``).

Cheap: it wraps a few methods of modules that are loaded anyway; engines load the rest as they need
it. It never raises: vLLM calls plugins unguarded. ``COLD_ENABLED=0`` switches it off, as does
leaving ``cold`` out of vLLM's own ``VLLM_PLUGINS``.
"""

import logging
from typing import Any

from vllm_cold.compat import availability, environment, hardware, patching, places

logger = logging.getLogger("vllm." + __name__)


def register() -> None:
    """Be called by vLLM; idempotent."""
    if environment.is_off(environment.ENABLED):
        return
    try:
        if hardware.is_on("npu"):
            patching.install(places.rows(places.NPU))
    except Exception as error:  # whatever vLLM raises when it is imported
        logger.warning("vllm-cold: LoRA is vLLM's own (%s: %s).", type(error).__name__, error)
    availability.register(_unsupported_adapters)


def _unsupported_adapters(config: Any) -> str | None:
    """Say why adapters cannot be contrasted on this hardware, with the remedy; None if they can."""
    from vllm_cold.cpu import cpu_platform
    from vllm_cold.npu import npu_platform

    return cpu_platform.unsupported(config) or npu_platform.unsupported(config)
