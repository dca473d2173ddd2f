# SPDX-License-Identifier: Apache-2.0
"""What computes in an engine on CPU, and why, for people: a line of the log when a worker has
loaded its model, and what /metrics and the doctor say.
"""

import logging
from typing import Any

import torch

from vllm_cold.compat import hardware
from vllm_cold.compat.patching import Original
from vllm_cold.cpu import cpu_paths, cpu_platform
from vllm_cold.ops import backend_registry

logger = logging.getLogger("vllm." + __name__)

LABELS = {"lora": "LoRA", "experts": "LoRA of experts"}
NOT_LOADED = "vLLM has not loaded the plugin cold_cpu"


def kernels(config: Any = None) -> list[hardware.Kernel]:
    """Return what computes products, LoRA, that of experts, and scores, where they are needed.

    Args:
        config: The ``VllmConfig`` of an engine whose model this process has loaded; None for
            whatever engine there may be.

    Raises:
        ValueError, RuntimeError: an environment variable asks for what is not known or cannot run.
    """
    names = {"products", "lora", "experts"}
    if config is not None and config.lora_config is None:
        names -= {"lora", "experts"}
    elif config is not None and not config.model_config.is_moe:
        names.remove("experts")
    if cpu_platform.is_loaded:
        rows = cpu_paths.take(names)
    else:
        rows = [(name, "vllm", NOT_LOADED) for name in ("products", "lora") if name in names]
    if config is None or hardware.is_contrastive(config):
        rows.append(("scoring", *backend_registry.path(torch.device("cpu"))))
    return rows


def wrap_initialize_from_config(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap ``WorkerWrapperBase.initialize_from_config``."""
    config = self.vllm_config
    if config.lora_config is not None or hardware.is_contrastive(config):  # others are vLLM's alone
        hardware.kernels[:] = kernels(config)
        rows = hardware.kernels
        parts = [f"{LABELS.get(name, name)}: {path} ({reason})" for name, path, reason in rows]
        logger.info("vllm-cold: kernels: %s.", "; ".join(parts))
    return original(self, *args, **kwargs)
