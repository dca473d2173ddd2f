# SPDX-License-Identifier: Apache-2.0
"""``NAME:PRESET``, for clients that can send no field of ours: the model or adapter NAME with
``cold_preset``. A model or adapter with the whole name comes first: names may have colons.
"""

from typing import Any

from vllm_cold.compat.patching import Original


async def wrap_check_model(
    original: Original, self: Any, request: Any, *args: Any, **kwargs: Any
) -> Any:
    """Wrap ``BaseServing._check_model``."""
    error = await original(self, request, *args, **kwargs)
    model = request.model or ""
    name, _, preset = model.rpartition(":")
    known = _is_served(self.models, model) or (error is not None and error.error.code != 404)
    if not name or known or not hasattr(request, "vllm_xargs"):
        return error
    from vllm_cold.settings.presets import PRESETS

    if preset in PRESETS:
        request.model = name
        # Not loaded, it may be one that vLLM loads when it is asked for.
        other = None if _is_served(self.models, name) else await original(self, request)
        if other is None:
            request.vllm_xargs = {"cold_preset": preset, **(request.vllm_xargs or {})}
            return None
        request.model = model
        if other.error.code != 404:
            return other
    return error


def _is_served(models: Any, name: str) -> bool:
    return name in models.lora_requests or models.is_base_model(name)
