# SPDX-License-Identifier: Apache-2.0
"""V2's order of logits processors: vllm-cold's after bad words and before penalties, as on V1."""

from typing import Any

from vllm_cold.compat.patching import Original


def wrap_sampler_init(original: Original, self: Any, *args: Any, **kwargs: Any) -> None:
    """Wrap ``Sampler.__init__``."""
    original(self, *args, **kwargs)
    self.logits_processors = in_order(self.logits_processors)


def in_order(processors: list[Any]) -> list[Any]:
    """Order vLLM's processors and custom ones: vllm-cold's after bad words and before penalties.

    Raises:
        RuntimeError: vLLM's are not those that are known, so that vllm-cold would score penalised
            rows.
    """
    ours = [p for p in processors if hasattr(p, "tell_amateurs")]
    if not ours:
        return processors
    named = {type(p).__name__: p for p in processors}
    late, early = named.get("PenaltiesState"), named.get("BadWordsState")
    if late is None or early is None:
        raise RuntimeError(
            "vllm-cold: this vLLM's V2 sampler has no PenaltiesState or no BadWordsState among its "
            "logits processors, so penalties would be scored; set VLLM_USE_V2_MODEL_RUNNER=0, or "
            "install a vLLM that vllm-cold supports."
        )
    rest = [p for p in processors if p not in (early, *ours)]
    at = rest.index(late)
    return [*rest[:at], early, *ours, *rest[at:]]
