# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``SpecDecodeBaseProposer.propose`` and ``dummy_run`` (V1 runner), and
``TargetDependentARSpeculator.propose`` (V2 runner), on CPU.

Why: drafters such as EAGLE and MTP compute with the target's embedding, which is a LoRA layer, for
rows of their own. It would take the adapters of the rows of the last step, of which there are
another number: so our LoRA raises. Drafts are made without adapters; right or wrong, they are
verified.
Wrapped for good in a process that makes an engine with LoRA on CPU; CoLD does not need it.
Since: 0.32. Can go: when vLLM gives drafters layers without LoRA.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from weakref import WeakSet

from vllm_cold.vllm.patching import PatchPoint

# Of the engines of this process, what computes LoRA: has ``without_adapters()``.
wrappers: WeakSet[Any] = WeakSet()


def _make(original: Callable[..., Any]) -> Callable[..., Any]:
    def without_adapters(self: Any, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for wrapper in tuple(wrappers):  # engines of a process take turns
                stack.enter_context(wrapper.without_adapters())
            return original(self, *args, **kwargs)

    return without_adapters


_V1 = "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer"
_V2 = "vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator:TargetDependentARSpeculator"
PATCH_POINTS = (
    PatchPoint(f"{_V1}.propose", _make),
    PatchPoint(f"{_V1}.dummy_run", _make),  # beside other ranks, where a text is at its end
    PatchPoint(f"{_V2}.propose", _make),
)
