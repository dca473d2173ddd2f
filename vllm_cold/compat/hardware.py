# SPDX-License-Identifier: Apache-2.0
"""What the kernels for one kind of hardware (``cpu``, ``npu``) ask: the platform, and which engines
they serve. Of the contrast this knows ``COLD_CONTRAST`` and our scheduler's name, no more.
"""

from typing import Any

from vllm_cold.compat import environment


def is_on(platform: str) -> bool:
    """Whether vLLM runs on a "cpu" or, with vllm-ascend, on an "npu"."""
    from vllm.platforms import current_platform

    if platform == "cpu":
        return bool(current_platform.is_cpu())
    return bool(current_platform.is_out_of_tree()) and current_platform.device_type == platform


def serves(config: Any) -> bool:
    """Whether the engine of a ``VllmConfig`` gets our kernels: one that is prepared for contrastive
    decoding (then it has our scheduler) or, where the contrast is switched off, one with LoRA.
    """
    if environment.is_off(environment.CONTRAST):
        return config.lora_config is not None
    return str(config.scheduler_config.scheduler_cls).startswith("vllm_cold.")
