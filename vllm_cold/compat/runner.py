# SPDX-License-Identifier: Apache-2.0
"""Which model runner an engine has, and what vllm-cold has for it. Nothing else in the package
asks vLLM for it.
"""

from enum import Enum
from typing import Any, Final

from vllm_cold.compat import places
from vllm_cold.compat.patching import Time


class Runner(Enum):
    """A model runner of vLLM."""

    V1 = "V1"
    V2 = "V2"
    # On CPUs that are not x86 and lack Triton, since 0.34. It takes no logits processors.
    STANDALONE = "standalone"

    @property
    def processor(self) -> str:
        """vllm-cold's logits processor for it, as vLLM's option names classes.

        Raises:
            KeyError: it takes none.
        """
        return _PROCESSORS[self]

    def times(self, has_drafts: bool) -> tuple[Time, ...]:
        """Return when the rows are needed that workers with it have; ``has_drafts``: with
        speculative decoding.
        """
        if self is Runner.V1:
            drafts = (places.V1_LOADED, places.V1_DRAFTS)
            return (places.V1, places.V1_ON_CPU, *(drafts if has_drafts else ()))
        return (places.WORKER, *((places.DRAFTS,) if has_drafts else ()))


# The classes are named as text: they are loaded where they are used, not in every process.
_PROCESSORS: Final = {
    Runner.V1: "vllm_cold.worker.v1.processor_v1:ColdLogitsProcessorV1",
    Runner.V2: "vllm_cold.worker.processor:ColdLogitsProcessor",
}
PROCESSORS: Final = tuple(_PROCESSORS.values())


def runner_of(config: Any) -> Runner:
    """Return the model runner that the engine of a ``VllmConfig`` has."""
    uses_v2 = getattr(config, "use_v2_model_runner", None)  # until 0.34, which has no V1
    if uses_v2 is not None:
        return Runner.V2 if uses_v2 else Runner.V1
    from vllm.platforms import current_platform

    if current_platform.uses_standalone_cpu_model_runner():
        return Runner.STANDALONE
    return Runner.V2
