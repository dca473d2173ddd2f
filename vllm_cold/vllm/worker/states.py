# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: what has a bug on CPU in models with state-space layers.

Wrapped for good in a process that makes an engine with such a model that CoLD uses.

Why:

- ``MambaMixer2.get_kv_cache_spec`` (0.32, 0.33): with prefix caching, a Mamba 2 layer declares that
  a prompt's last step also exports the state at the last block boundary before its end, so that the
  scheduler need not end a step there. The scan on CPU returns the states at the prompts' ends only:
  stock vLLM stops with an ``IndexError`` at the first prompt that is longer than a block. Here the
  layer does not declare it, and the scheduler ends a step at the boundary, as for layers of other
  kinds.
- ``RotaryEmbedding.forward_cpu`` (0.32, 0.33): the kernel takes queries [T, heads * size] and, as
  LFM2 gives them, [T, heads, size]; of the latter it turns one head in place of all. Here it gets
  the former.

Since: 0.32, which is where CoLD takes models with states. Can go: each when its test in
``tests/contracts/test_cpu.py`` says so.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vllm_cold.vllm import patching, versions
from vllm_cold.vllm.patching import PatchPoint

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig


def has_states(model: "ModelConfig") -> bool:
    """Whether some layers of a model keep a state of fixed size instead of keys and values."""
    return bool(model.is_hybrid or getattr(model, "is_attention_free", False))


def _make_spec(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_kv_cache_spec(self: Any, *args: Any, **kwargs: Any) -> Any:
        spec = original(self, *args, **kwargs)
        if not getattr(spec, "num_prefill_checkpoint_blocks", 0):
            return spec
        return replace(spec, num_prefill_checkpoint_blocks=0, prefill_checkpoint_alignment=None)

    return get_kv_cache_spec


def _make_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward_cpu(
        self: Any, positions: Tensor, query: Tensor, key: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        if query.dim() < 3:
            return original(self, positions, query, key, **kwargs)  # type: ignore[no-any-return]
        flat = query.flatten(-2), None if key is None else key.flatten(-2)
        turned, keys = original(self, positions, *flat, **kwargs)
        return turned.view_as(query), keys if key is None else keys.view_as(key)

    return forward_cpu


_SPEC = "vllm.model_executor.layers.mamba.mamba_mixer2:MambaMixer2.get_kv_cache_spec"
_ROTARY = "vllm.model_executor.layers.rotary_embedding.base:RotaryEmbedding.forward_cpu"
PATCH_POINTS = (
    PatchPoint(_SPEC, _make_spec),
    PatchPoint(_ROTARY, _make_forward, ("positions", "query", "key")),
)


def patch_points() -> tuple[PatchPoint, ...]:
    """Where they are cured on this platform, in this release."""
    from vllm.platforms import current_platform

    return () if not current_platform.is_cpu() or versions.is_before(0, 32) else PATCH_POINTS


def install(config: "VllmConfig") -> None:
    """Cure them in this process if the engine needs it: before its model is loaded."""
    if has_states(config.model_config):
        patching.wrap_if_there(patch_points(), "a bug of vLLM is not cured here")
