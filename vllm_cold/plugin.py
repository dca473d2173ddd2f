# SPDX-License-Identifier: Apache-2.0
"""The entry point ``vllm.general_plugins``, which vLLM calls several times in every process (front
end, engine core, workers). It puts the contrast (``vllm``) and the kernels (``cpu``, ``npu``)
together, which do not know each other.

Cheap: it wraps a few methods of modules that are loaded anyway; engines load the rest as they need
it. It never raises: vLLM calls plugins unguarded.
``COLD_ENABLED=0`` switches it off, as does leaving ``cold`` out of vLLM's own ``VLLM_PLUGINS``;
``COLD_CONTRAST=0`` leaves the kernels, and ``COLD_CPU_KERNELS=0`` the contrast.
"""

import logging
from typing import Any

from vllm_cold.compat import availability, environment, patching, places

logger = logging.getLogger("vllm." + __name__)


def register() -> None:
    """Called by vLLM; idempotent."""
    if environment.is_off(environment.ENABLED):
        return
    contrast = not environment.is_off(environment.CONTRAST)
    try:
        patching.install(places.rows(places.PLATFORM))
        if not contrast:
            patching.install(places.rows(places.MODEL_ON_CPU))
    except Exception as error:  # whatever vLLM raises when it is imported
        logger.warning("vllm-cold: LoRA is vLLM's own (%s: %s).", type(error).__name__, error)
    if contrast:
        availability.register(_unsupported_adapters)


def _unsupported_adapters(config: Any) -> str | None:
    """Why adapters cannot be contrasted on this hardware, with the remedy; None if they can."""
    from vllm_cold.cpu import cpu_platform
    from vllm_cold.npu import npu_platform

    return cpu_platform.unsupported(config) or npu_platform.unsupported(config)
