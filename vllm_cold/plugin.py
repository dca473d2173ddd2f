# SPDX-License-Identifier: Apache-2.0
"""The entry point ``vllm.general_plugins``, which vLLM calls several times in every process (front
end, engine core, workers). It puts the contrast (``vllm``) and the kernels (``cpu``, ``npu``)
together, which do not know each other.

Cheap: it wraps a few methods of modules that are loaded anyway; engines load the rest as they need
it. It never raises: vLLM calls plugins unguarded.
``COLD_ENABLED=0`` switches it off, as does leaving ``cold`` out of vLLM's own ``VLLM_PLUGINS``;
``COLD_CONTRAST=0`` leaves the kernels, and ``COLD_CPU_KERNELS=0`` the contrast.
"""

import inspect
import logging
from typing import TYPE_CHECKING, Any

from vllm_cold import environment, patching, places
from vllm_cold.vllm import availability, versions

if TYPE_CHECKING:
    from vllm.config import VllmConfig

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
        availability.register(_look, _unsupported_adapters)
        if availability.unavailable() is None:
            # Without them, there is no contrastive decoding with speculation.
            patching.install_quietly(places.rows(places.DRAFTS))


def _look() -> str | None:
    """What vLLM lacks of what an engine with contrastive decoding needs; None if nothing."""
    kernels = places.rows(places.PLATFORM, places.LORA)
    if said := places.problem(*places.EVERY_ENGINE) or patching.problems(kernels):
        return said
    from vllm_cold.vllm.scheduler.scheduler import ColdScheduler
    from vllm_cold.vllm.worker.processor_v1 import ColdLogitsProcessorV1

    classes: tuple[Any, ...] = (ColdScheduler, ColdLogitsProcessorV1)
    for ours in classes:
        if inspect.isabstract(ours):
            wanted = ", ".join(sorted(ours.__abstractmethods__))
            return f"vLLM wants {wanted} of {ours.__name__}, too"
    if (unknown := versions.unvalidated()) is not None:
        logger.warning(
            "vllm-cold: %s. It has all that vllm-cold is known to need; `vllm-cold doctor` decodes "
            "with it and checks the tokens.",
            unknown,
        )
    return None


def _unsupported_adapters(config: "VllmConfig") -> str | None:
    """Why adapters cannot be contrasted on this hardware, with the remedy; None if they can."""
    from vllm_cold.cpu import cpu_platform
    from vllm_cold.npu import npu_platform

    return cpu_platform.unsupported(config) or npu_platform.unsupported(config)
