# SPDX-License-Identifier: Apache-2.0
"""The environment variables of vllm-cold. Imports no vLLM.

Their names do not begin with ``VLLM_``: vLLM warns of variables of that kind that it does not know,
or refuses to start.
"""

import logging
import os
from functools import cache
from typing import Final

logger = logging.getLogger("vllm." + __name__)

ENABLED: Final = "COLD_ENABLED"
SCORING: Final = "COLD_SCORING"
LORA: Final = "COLD_LORA"
LINEAR: Final = "COLD_LINEAR"
# Earlier names, which still work.
_OLD = {ENABLED: "VLLM_COLD", SCORING: "VLLM_COLD_SCORING", LORA: "VLLM_COLD_LORA"}
_OFF = ("0", "false", "no", "off")


def read(name: str) -> str | None:
    """The value of one of our variables; None if it is empty or not set."""
    value = os.environ.get(name)
    if value is None and name in _OLD and (value := os.environ.get(_OLD[name])) is not None:
        _note(name)
    return value or None


def switched_off() -> bool:
    """Whether ``COLD_ENABLED`` is 0, false, no or off, in any case of letters."""
    return (read(ENABLED) or "").strip().lower() in _OFF


@cache
def _note(name: str) -> None:
    logger.warning("vllm-cold: %s is now called %s; use that name.", _OLD[name], name)
