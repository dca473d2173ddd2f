# SPDX-License-Identifier: Apache-2.0
"""The methods that stand side by side: greedy decoding, and presets with values of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_cold.method.presets import PRESET_NAMES
from vllm_cold.method.settings import KNOBS, PREFIX, read
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain.trace import COLD, GREEDY, Column

MOST = 3  # that a page has room for
NAMES = (GREEDY, *PRESET_NAMES)


@dataclass(frozen=True, slots=True)
class Method:
    """A preset with its own values.

    Attributes:
        name: What it is called on a page: "cad", or "cold, beta 2".
        args: Flat arguments, which win over a command's options.
    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Methods:
    """Those that are compared.

    Attributes:
        contrasting: All but greedy decoding, each once; at least one.
        columns: Where their answers, and the greedy one, stand.
    """

    contrasting: tuple[Method, ...]
    columns: tuple[Column, ...]


def read_methods(texts: Sequence[str]) -> Methods:
    """Read what ``--method`` gives.

    Args:
        texts: Each "greedy" or a preset's name, and after a colon values of its knobs with commas
            between them: "cold:alpha=0.02,beta=1".

    Raises:
        ToolError: one is unknown, there twice or out of range; too many; or nothing but greedy.
    """
    if len(texts) > MOST:
        raise ToolError(f"--method: a page has room for {MOST}, and there are {len(texts)}")
    found = [_read(text) for text in texts]
    names = [one.name for one in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ToolError(f"--method={twice}: is there twice; give it other values, or leave one out")
    contrasting = tuple(one for one in found if one.name != GREEDY)
    if not contrasting:
        raise ToolError(
            f"--method={GREEDY}: has nothing to compare with; add one of {', '.join(PRESET_NAMES)}"
        )
    columns = tuple(
        Column(0, GREEDY) if one.name == GREEDY else Column(contrasting.index(one), COLD)
        for one in found
    )
    return Methods(contrasting, columns)


def parts_of(text: str) -> tuple[str, list[tuple[str, str]]]:
    """A method's name, and its values with theirs, as ``--method`` has them; not checked."""
    name, _, rest = text.partition(":")
    pairs = (part.partition("=")[::2] for part in (rest.split(",") if rest else ()))
    return name, [(key.strip(), value.strip()) for key, value in pairs]


def _read(text: str) -> Method:
    name, given = parts_of(text)
    if name not in NAMES:
        raise ToolError(f"--method={name!r}: must be one of {', '.join(NAMES)}")
    values, shown = dict[str, Any](), [name]
    for key, value in given:
        knob = key.replace("-", "_")
        if knob not in KNOBS or knob in values or name == GREEDY:
            allowed = "none" if name == GREEDY else ", ".join(KNOBS) + ", each once"
            raise ToolError(f"--method={text!r}: {key!r} is no value of {name}'s; it has {allowed}")
        values[knob] = read(knob, value)  # its range is checked with all others
        shown.append(f"{knob} {value}")
    args = {PREFIX + knob: value for knob, value in values.items()}
    return Method(", ".join(shown), {} if name == GREEDY else {PREFIX + "preset": name, **args})
