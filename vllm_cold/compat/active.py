# SPDX-License-Identifier: Apache-2.0
"""Whether contrastive decoding is active in this process; ``compat.availability`` finds it out.
Imports no vLLM.
"""

import os

from vllm_cold.compat import environment

is_loaded = False  # whether vLLM has loaded the plugin
unavailable: str | None = None  # why contrastive decoding is, as far as is known


def inactive() -> str | None:
    """Why it is not active: it is unavailable, or the plugin was not loaded; None if it is."""
    if environment.is_off(environment.ENABLED):
        return f"{environment.ENABLED}=0 is set; unset it to use contrastive decoding."
    if is_loaded:
        return unavailable
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None and "cold" not in plugins.split(","):  # as vLLM reads it
        return f"VLLM_PLUGINS={plugins!r} leaves it out; add 'cold' to it."
    return (
        "vLLM did not load its entry point; install the package (from a checkout: pip install .)."
    )


def require() -> None:
    """Raise ValueError unless it is."""
    if (reason := inactive()) is not None:
        raise ValueError(f"vllm-cold: the vllm-cold plugin is not active: {reason}")
