# SPDX-License-Identifier: Apache-2.0
"""What the kernels for one kind of hardware (``cpu``, ``npu``) ask: the platform, and which engines
they serve. Of the contrast this knows our scheduler's name, no more.
"""

from typing import Any, TypeAlias

Kernel: TypeAlias = tuple[str, str, str]
"""What is computed, by which path, and why."""

kernels: list[Kernel] = []  # of the model that this process has loaded last, on a CPU


def is_on(platform: str) -> bool:
    """Whether vLLM runs on a "cpu" or, with vllm-ascend, on an "npu"."""
    from vllm.platforms import current_platform

    if platform == "cpu":
        return bool(current_platform.is_cpu())
    return bool(current_platform.is_out_of_tree()) and current_platform.device_type == platform


def is_contrastive(config: Any) -> bool:
    """Whether the engine of a ``VllmConfig`` is prepared for contrastive decoding."""
    return str(config.scheduler_config.scheduler_cls).startswith("vllm_cold.")
