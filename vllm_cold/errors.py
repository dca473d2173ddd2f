# SPDX-License-Identifier: Apache-2.0
"""The error that names what is wrong with a setting, and where messages send their readers. Imports
no vLLM.
"""

from collections.abc import Mapping

_SHOWN = 100  # characters of a value: prompts are values too
_DEEP = 5  # lists in lists
_SITE = "https://vllm-cold.github.io/vllm-cold/"


def site(page: str) -> str:
    """The address of a page of the documentation, which users of a wheel do not have."""
    return _SITE + page


class ColdError(ValueError):
    """A contrastive decoding setting is wrong; the message names the field, the value and what is
    allowed.
    """

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
    """The beginning of a value's repr: a client decides how long and how deep that would be."""
    return _cut(_text(value, _SHOWN, _DEEP))


def _text(value: object, room: int, deep: int) -> str:
    if isinstance(value, str):
        return repr(value[: room + 1])
    if not isinstance(value, (list, tuple, Mapping)):
        return repr(value)
    if not deep:
        return "..."
    parts: list[str] = []
    for each in value:
        if room < 0:
            break
        said = _text(each, room, deep - 1)
        if isinstance(value, Mapping):
            said += f": {_text(value[each], room - len(said), deep - 1)}"
        parts.append(said)
        room -= len(said) + 2
    if isinstance(value, Mapping):
        return f"{{{', '.join(parts)}}}"
    if isinstance(value, tuple):
        return f"({', '.join(parts)}{',' * (len(value) == 1)})"
    return f"[{', '.join(parts)}]"
