# SPDX-License-Identifier: Apache-2.0
"""The error that names what is wrong with a setting, and where messages send their readers. Imports
no vLLM.
"""

import reprlib

_SHOWN = 100  # characters of a value: prompts are values too
# Of a value that a client decides how long and how deep it is.
_REPR = reprlib.Repr()
_REPR.maxlevel = 4  # lists in lists
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 10
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = _SHOWN
_SITE = "https://vllm-cold.github.io/vllm-cold/"


def site(page: str) -> str:
    """The address of a page of the documentation, which users of a wheel do not have."""
    return _SITE + page


class ColdError(ValueError):
    """A contrastive decoding setting is wrong; the message names the field, the value and what is
    allowed.
    """

    def __init__(self, field: str, value: object, problem: str) -> None:
        super().__init__(sendable(f"{_cut(field)}={_cut(_REPR.repr(value))}: {problem}"))
        self.field = field
        self.value = value
        self.problem = problem


def sendable(message: str) -> str:
    """The message as HTTP can carry it: what a client sent may be no valid Unicode."""
    return message.encode("utf-8", "backslashreplace").decode()


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
