# SPDX-License-Identifier: Apache-2.0
"""The settings to try: alpha times beta, and presets. The method itself checks them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from vllm_cold.method.presets import PresetName
from vllm_cold.method.settings import (
    ADAPTIVE,
    DEFAULT_BETA_MAX,
    KNOBS,
    PREFIX,
    ColdError,
    check,
    check_together,
    preset_knobs,
    read,
)
from vllm_cold.tools.contrast import option_of
from vllm_cold.tools.errors import ToolError

# The axes of the grid, with what is tried where nothing else is said.
AXES = {"alpha": "0.05,0.1,0.3", "beta": "0.25,0.5,1"}


class Setting(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a request says of the method; None where it says nothing.

    Attributes:
        preset: Values by name.
        alpha: As in ``ColdSettings``, and so are the others.
        beta: The same; None where each amateur has a weight of its own.
        beta_max: The same.
        expert_top_k: The same.
    """

    preset: PresetName | None = None
    alpha: float | None = None
    beta: float | Literal["adaptive"] | None = None
    beta_max: float | None = None
    expert_top_k: int | None = None

    @property
    def values(self) -> dict[str, Any]:
        """What it says, for JSON: ``Setting(**values)``."""
        return msgspec.to_builtins(self)  # type: ignore[no-any-return]

    @property
    def args(self) -> dict[str, Any]:
        """It as a request's flat arguments."""
        return {PREFIX + name: value for name, value in self.values.items()}

    def __str__(self) -> str:
        return ", ".join(
            str(value) if name == "preset" else f"{name} {_text(value)}"
            for name, value in self.values.items()
        )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _values(name: str, text: str) -> list[Any]:
    """What an option says, each value once and in order, "adaptive" behind the numbers."""
    parts = text.split(",") if name in AXES else [text]
    found = {check(name, read(name, part.strip()), option_of(name)) for part in parts}
    return sorted(found, key=lambda value: (value == ADAPTIVE, value))


def make_grid(
    given: Mapping[str, str | None], presets: str | None = None, weights: Any = None
) -> list[Setting]:
    """All pairs of alpha and beta, the mildest first: by beta, then alpha from the largest; then
    the presets, as given. With presets and neither alpha nor beta it is these alone.

    Args:
        given: Texts of options, by the knob's name: those of ``AXES`` are values separated by
            commas, others, such as beta_max, hold for each point that has a use for them.
        presets: Names, separated by commas.
        weights: ``cold_weights`` of all requests, which takes the place of beta; None for none.

    Raises:
        ToolError: a value is none or out of range, or ``beta_max`` is given and not used.
    """
    try:
        return _make_grid(given, presets, weights)
    except ColdError as error:
        raise ToolError(str(error)) from None


def _make_grid(given: Mapping[str, str | None], presets: str | None, weights: Any) -> list[Setting]:
    values = {name: _values(name, text) for name in KNOBS if (text := given.get(name)) is not None}
    names = presets.split(",") if presets is not None else ()
    points = [{"preset": check("preset", name.strip(), "--preset")} for name in names]
    if not points or values.keys() & AXES:
        axes = {name: values.get(name) or _values(name, text) for name, text in AXES.items()}
        # A beta that is given all the same is refused by the method.
        betas = [{}] if weights and "beta" not in values else [{"beta": b} for b in axes["beta"]]
        grid = [{"alpha": a, **beta} for beta in betas for a in reversed(axes["alpha"])]
        points = [*grid, *points]
    (most,), (cap,) = (values.get(name, [None]) for name in ("beta_max", "expert_top_k"))
    settings = []
    for point in points:
        beta = preset_knobs(point.get("preset")).get("beta", point.get("beta"))
        strengths = weights if isinstance(weights, list) else [weights or beta]
        # Said here and now: to a request that does not, a server's own default would apply.
        up_to = (DEFAULT_BETA_MAX if most is None else most) if ADAPTIVE in strengths else None
        settings.append(Setting(**point, beta_max=up_to, expert_top_k=cap))
    if not any(setting.beta_max is not None for setting in settings):
        check_together("--beta-max", most, given.get("beta") or presets or AXES["beta"])
    return list(dict.fromkeys(settings))
