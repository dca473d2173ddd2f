# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: the entry point ``vllm.general_plugins``, which vLLM calls in every process
(front end, engine core, workers), several times.

Why: it makes installing the package enough. Cheap: it wraps a few methods of modules that are
loaded anyway; everything else is loaded by the engines that need it. It never raises: vLLM calls
plugins unguarded.
``COLD_ENABLED=0`` switches it off, as does leaving ``cold`` out of vLLM's own ``VLLM_PLUGINS``.
"""

import os
from collections.abc import Iterator

from vllm_cold import environment
from vllm_cold.bindings import availability
from vllm_cold.bindings.patching import Place

_registered = False


def register() -> None:
    """Called by vLLM; idempotent."""
    global _registered
    if _registered or environment.switched_off():
        return
    _registered = True
    availability.install(_places())


def _places() -> Iterator[Place]:
    from vllm_cold.bindings import admission, cli, engine_config, platform_cpu

    yield from (*engine_config.PLACES, *cli.PLACES, *admission.PLACES, *platform_cpu.places())


def unavailable() -> str | None:
    """Why CoLD cannot be had in this process; None if nothing stands in its way."""
    if environment.switched_off():
        return "COLD_ENABLED=0 is set; unset it to use CoLD."
    if _registered:
        return availability.unavailable()
    if os.environ.get("VLLM_PLUGINS") is None:
        return (
            "vLLM did not load its entry point; install the package "
            "(from a checkout: pip install .)."
        )
    return f"VLLM_PLUGINS={os.environ.get('VLLM_PLUGINS')!r} leaves it out; add 'cold' to it."


def require_active() -> None:
    """Raise ValueError unless the plugin is active in this process."""
    if (reason := unavailable()) is not None:
        raise ValueError(f"CoLD: the vllm-cold plugin is not active: {reason}")
