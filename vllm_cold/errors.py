# SPDX-License-Identifier: Apache-2.0
"""The error that names what is wrong with a setting, and where messages send their readers. Imports
no vLLM.
"""

import reprlib
import sys
from collections.abc import Mapping
from itertools import islice
from typing import Any

_SHOWN = 100  # characters of a value: prompts are values too
_SITE = "https://vllm-cold.github.io/vllm-cold/"


def site(page: str) -> str:
    """Return the address of a page of the documentation, which users of a wheel do not have."""
    return _SITE + page


class ColdError(ValueError):
    """A contrastive decoding setting is wrong; the message names the field, the value and what is
    allowed.
    """

    def __init__(self, field: str, value: object, problem: str) -> None:
        # What an amateur must not read may be confidential.
        shown = "..." if "without_text" in field else _cut(_Beginning().repr(value))
        super().__init__(sendable(f"{_cut(field)}={shown}: {problem}"))
        self.field = field
        self.value = value
        self.problem = problem


def sendable(message: str) -> str:
    """Return the message as HTTP can carry it: what a client sent may be no valid Unicode."""
    return message.encode("utf-8", "backslashreplace").decode()


class _Beginning(reprlib.Repr):
    """The repr of a value's beginning: a client decides how long and how deep the value is."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4  # lists in lists
        self.maxlist = self.maxtuple = self.maxdict = 10
        self.maxlong = self.maxother = sys.maxsize  # else they lose their middle

    def repr_str(self, x: str, level: int) -> str:
        return repr(x[: _SHOWN + 1])

    def repr_dict(self, x: Mapping[Any, Any], level: int) -> str:
        return super().repr_dict(dict(islice(x.items(), self.maxdict + 1)), level)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
