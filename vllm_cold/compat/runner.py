# SPDX-License-Identifier: Apache-2.0
"""Which model runner an engine has. Nothing else in the package asks vLLM for it."""

from enum import Enum
from typing import Any


class Runner(Enum):
    """A model runner of vLLM."""

    V1 = "V1"
    V2 = "V2"
    # On CPUs that are not x86 and lack Triton, since 0.34. It takes no logits processors.
    STANDALONE = "standalone"


def runner_of(config: Any) -> Runner:
    """Return the model runner that the engine of a ``VllmConfig`` has."""
    uses_v2 = getattr(config, "use_v2_model_runner", None)  # until 0.34, which has no V1
    if uses_v2 is not None:
        return Runner.V2 if uses_v2 else Runner.V1
    from vllm.platforms import current_platform

    if current_platform.uses_standalone_cpu_model_runner():
        return Runner.STANDALONE
    return Runner.V2
