# SPDX-License-Identifier: Apache-2.0
"""Workarounds for bugs on CPU in models with state-space layers; the table says which. Wrapped for
good in a process that makes an engine with such a model that vllm-cold uses.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor
from vllm.config import VllmConfig

from vllm_cold.compat import patching, places
from vllm_cold.compat.engine import has_ssm
from vllm_cold.compat.patching import Original


def wrap_get_kv_cache_spec(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap ``MambaMixer2.get_kv_cache_spec``."""
    spec = original(self, *args, **kwargs)
    if not getattr(spec, "num_prefill_checkpoint_blocks", 0):  # Mamba layers' alone
        return spec
    return replace(spec, num_prefill_checkpoint_blocks=0, prefill_checkpoint_alignment=None)


def wrap_rotary_forward(
    original: Original,
    self: Any,
    positions: Tensor,
    query: Tensor,
    key: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Wrap ``RotaryEmbedding.forward_cpu``."""
    if query.dim() < 3:
        return original(self, positions, query, key, **kwargs)  # type: ignore[no-any-return]
    flat = query.flatten(-2), None if key is None else key.flatten(-2)
    turned, keys = original(self, positions, *flat, **kwargs)
    return turned.view_as(query), keys if key is None else keys.view_as(key)


def install(config: VllmConfig) -> None:
    """Work around them in this process if the engine needs it: before its model is loaded."""
    if has_ssm(config.model_config):
        patching.install(places.rows(places.SSM))
