# SPDX-License-Identifier: Apache-2.0
"""The environment variables of the plugin. Imports no vLLM.

Their names do not begin with ``VLLM_``: vLLM warns of variables of that kind that it does not know,
or refuses to start.
"""

import os
from typing import Final

ENABLED: Final = "COLD_ENABLED"  # everything
CPU_KERNELS: Final = "COLD_CPU_KERNELS"
SCORING: Final = "COLD_SCORING"
LORA: Final = "COLD_LORA"
LINEAR: Final = "COLD_LINEAR"
_OFF = ("0", "false", "no", "off")


def read(name: str) -> str | None:
    """Return the value of one of our variables; None if it is empty or not set."""
    return os.environ.get(name) or None


def is_off(name: str) -> bool:
    """Whether one of our switches is 0, false, no or off, in any case of letters."""
    return (read(name) or "").strip().lower() in _OFF
