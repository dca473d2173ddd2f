# SPDX-License-Identifier: Apache-2.0
"""The error that names what is wrong with a setting. Imports no vLLM."""

from collections.abc import Mapping
from itertools import islice

_SHOWN = 100  # characters of a value: prompts are values too


class ColdError(ValueError):
    """A CoLD setting is wrong; the message names the field, the value and what is allowed."""

    def __init__(self, field: str, value: object, problem: str) -> None:
        super().__init__(sendable(f"{_cut(field)}={_shown(value)}: {problem}"))
        self.field = field
        self.value = value
        self.problem = problem


def sendable(message: str) -> str:
    """The message as HTTP can carry it: what a client sent may be no valid Unicode."""
    return message.encode("utf-8", "backslashreplace").decode()


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _shown(value: object) -> str:
    """The beginning of a value's repr, which would cost time where the value is long."""
    return _cut(repr(_beginning(value)))


def _beginning(value: object) -> object:
    if isinstance(value, str):
        return value[: _SHOWN + 1]
    if isinstance(value, (list, tuple)):
        found = [_beginning(each) for each in value[:_SHOWN]]
        return tuple(found) if isinstance(value, tuple) else found
    if isinstance(value, Mapping):
        return {_beginning(k): _beginning(v) for k, v in islice(value.items(), _SHOWN)}
    return value
