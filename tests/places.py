# SPDX-License-Identifier: Apache-2.0
"""The table of vLLM's places, changed for a test."""

from typing import Any

import pytest

from vllm_cold.compat import places
from vllm_cold.compat.patching import Dependency, Hook


def wrapped(name: str) -> Dependency:
    """The one place whose path ends like this."""
    (found,) = [p for hook in places.TABLE for p in hook.wraps if p.here.endswith(name)]
    return found


def row(when: str, *own: Dependency, lost: str = "") -> Hook:
    """A row without a file, for makers that are functions."""
    return Hook("", when, "", "", *own, lost=lost)


def add(patch: pytest.MonkeyPatch, when: str, *own: Any, lost: str = "") -> None:
    """Give the table one more row."""
    patch.setattr(places, "TABLE", (*places.TABLE, row(when, *own, lost=lost)))
