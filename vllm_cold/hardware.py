# SPDX-License-Identifier: Apache-2.0
"""What the floors for one kind of hardware (``cpu``, ``npu``) ask: where they are, and whom they
serve. They know nothing of the contrast.
"""

from typing import Any

from vllm_cold import environment


def is_on(platform: str) -> bool:
    """Whether vLLM runs on a "cpu" or, with vllm-ascend, on an "npu"."""
    from vllm.platforms import current_platform

    if platform == "cpu":
        return bool(current_platform.is_cpu())
    return bool(current_platform.is_out_of_tree()) and current_platform.device_type == platform


def serves(config: Any) -> bool:
    """Whether an engine is one for this package: prepared for contrastive decoding (what prepares
    it sets its scheduler) or, where the contrast is switched off, with LoRA.

    Args:
        config: Its ``VllmConfig``.
    """
    if environment.is_off(environment.CONTRAST):
        return config.lora_config is not None
    return str(config.scheduler_config.scheduler_cls).startswith("vllm_cold.")
