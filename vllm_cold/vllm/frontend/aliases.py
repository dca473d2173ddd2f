# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``BaseServing._check_model``.

Why: a client that can send no field of ours can still name a model. ``NAME:PRESET`` is the model or
adapter NAME with ``cold_preset``. Every endpoint asks here first whether a request's model is
served, and reads its name and its ``vllm_xargs`` afterwards. What vLLM serves by the whole name
comes first: an adapter may have a colon in its own.
Since: 0.23 to 0.33. Can go: when vLLM lets plugins resolve the names of models.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from vllm_cold.method.presets import PRESETS
from vllm_cold.vllm.patching import PatchPoint


def _make(original: Callable[..., Any]) -> Callable[..., Any]:
    async def _check_model(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        error = await original(self, request, *args, **kwargs)
        asked = request.model or ""
        name, _, preset = asked.rpartition(":")
        known = _is_served(self.models, asked) or (error is not None and error.error.code != 404)
        if not name or known or not hasattr(request, "vllm_xargs"):
            return error
        if preset in PRESETS:
            request.model = name
            # Not loaded, it may be one that vLLM loads when it is asked for.
            other = None if _is_served(self.models, name) else await original(self, request)
            if other is None:
                request.vllm_xargs = {"cold_preset": preset, **(request.vllm_xargs or {})}
                return None
            request.model = asked
            if other.error.code != 404:
                return other
        elif error is not None and error.error.code == 404 and _is_served(self.models, name):
            error.error.message = missing(asked, name)
        return error

    return _check_model


def _is_served(models: Any, name: str) -> bool:
    return name in models.lora_requests or models.is_base_model(name)


def missing(asked: str, name: str) -> str:
    """What a client is told whose model is served, and whose preset is none."""
    return (
        f"The model '{asked}' does not exist: behind '{name}:' must stand a preset, one of "
        f"{', '.join(PRESETS)}."
    )


def patch_points() -> tuple[PatchPoint, ...]:
    """For an API server process."""
    owner = "vllm.entrypoints.serve.engine.serving:BaseServing"
    if find_spec("vllm.entrypoints.serve.engine") is None:  # in 0.23
        owner = "vllm.entrypoints.openai.engine.serving:OpenAIServing"
    return (PatchPoint(f"{owner}._check_model", _make, ("request",)),)
