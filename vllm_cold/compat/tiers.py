# SPDX-License-Identifier: Apache-2.0
"""Which parts of vllm-cold are experimental: no hardware has run them, or few people need them.
docs/hardware.md has the column; whoever uses such a part is told once in a process.
"""

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from vllm_cold.compat.hardware import is_on
from vllm_cold.compat.runner import Runner, runner_of
from vllm_cold.errors import site

logger = logging.getLogger("vllm." + __name__)

GPUS: Final = "GPUs"
NPUS: Final = "Ascend NPUs"
CONNECTORS: Final = "KV connectors"
DRAFTS_V2: Final = "speculative decoding on the V2 model runner"


@cache
def warn(part: str) -> None:
    """Log, once in a process, that an experimental part is used."""
    logger.warning(
        "vllm-cold: contrastive decoding with %s is experimental: emulated or tested on CPUs "
        "alone, and hardly used yet. `vllm-cold doctor` checks its tokens on this machine (%s).",
        part,
        site("hardware.html#features"),
    )


def warn_of_engine(config: Any) -> None:
    """Warn of the experimental parts that the engine of a ``VllmConfig`` uses."""
    for part in _used_by(config):
        warn(part)


def _used_by(config: Any) -> Iterator[str]:
    from vllm.platforms import current_platform

    if current_platform.is_cuda_alike():
        yield GPUS
    if is_on("npu"):
        yield NPUS
    if config.kv_transfer_config is not None:
        yield CONNECTORS
    if config.speculative_config is not None and runner_of(config) is Runner.V2:
        yield DRAFTS_V2
