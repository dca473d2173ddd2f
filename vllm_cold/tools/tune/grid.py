# SPDX-License-Identifier: Apache-2.0
"""The settings to try: alpha times beta, and presets. The method itself checks how they combine."""

from collections.abc import Mapping
from typing import Any

import msgspec

from vllm_cold.settings.presets import PRESETS
from vllm_cold.settings.table import PREFIX, SETTINGS, check, read
from vllm_cold.tools.contrast_args import option_of

# The axes of the grid, with what is tried where nothing else is said.
AXES = {"alpha": "0.05,0.1,0.3", "beta": "0.25,0.5,1"}


class Setting(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a request says of the method; None where it says nothing."""

    preset: str | None = None
    alpha: float | None = None
    beta: float | None = None  # None, as is the rule, where each amateur has a weight of its own
    rule: str | None = None
    rule_parameters: str | None = None  # JSON text
    expert_top_k: int | None = None
    baseline: str | None = None  # a baseline's name; alone, it is decoded without a contrast

    @property
    def values(self) -> dict[str, Any]:
        """What it says, for JSON: ``Setting(**values)``."""
        return msgspec.to_builtins(self)  # type: ignore[no-any-return]

    @property
    def args(self) -> dict[str, Any]:
        """What it says of a contrast, as a request's flat arguments."""
        return {PREFIX + name: value for name, value in self.values.items() if name != "baseline"}

    def __str__(self) -> str:
        text = ", ".join(
            value if name == "preset" else f"{name} {value}".removesuffix(".0")
            for name, value in self.values.items()
            if name != "baseline"
        )
        return " with ".join(filter(None, (text, self.baseline))) or "greedy"


GREEDY = Setting()


def _values(name: str, text: str) -> list[Any]:
    """Read the values of an option with commas between them, each once."""
    values = [check(name, read(name, part.strip()), option_of(name)) for part in text.split(",")]
    return list(dict.fromkeys(values))


def make_grid(
    texts: Mapping[str, str | None], presets: str | None = None, weights: Any = None
) -> list[Setting]:
    """List all pairs of alpha and a beta or rule, the mildest first: by beta, then alpha from the
    largest; then the presets in their order. With presets and none of these, only presets.

    Args:
        texts: Texts of options, by the setting's name: those of ``AXES`` and rules are values
            separated by commas. Others hold for each point, a rule's parameters for those with a
            rule; for all where none has one, and the method then refuses them.
        presets: Names, separated by commas.
        weights: ``cold_weights`` of all requests, which takes the place of beta; None for none.

    Raises:
        ColdError: a value is none or out of range.
    """
    others = {name: text for name in SETTINGS if (text := texts.get(name)) is not None}
    axes = {name: _values(name, others.pop(name)) for name in (*AXES, "rule") if name in others}
    points: list[dict[str, Any]] = []
    if presets is None or axes:
        axes.setdefault("alpha", _values("alpha", AXES["alpha"]))
        if weights is None and not axes.keys() & {"beta", "rule"}:
            axes["beta"] = _values("beta", AXES["beta"])
        strengths: list[dict[str, Any]] = [
            {name: value} for name in ("beta", "rule") for value in sorted(axes.get(name, ()))
        ]
        alphas = sorted(axes["alpha"], reverse=True)
        points = [
            {"alpha": alpha, **strength} for strength in strengths or [{}] for alpha in alphas
        ]
    for name in presets.split(",") if presets is not None else ():
        points.append({"preset": check("preset", name.strip(), "--preset")})
    several = weights if isinstance(weights, list) else [weights]
    presets_of_rules = {name for name, preset in PRESETS.items() if "rule" in preset.settings}
    ruled = [
        point for point in points if "rule" in point or point.get("preset") in presets_of_rules
    ]
    if not ruled or any(isinstance(weight, str) and weight for weight in several):
        ruled = points
    for name, text in others.items():
        value = check(name, read(name, text), option_of(name))
        for point in points if name == "expert_top_k" else ruled:
            # Parameters stay JSON text: settings are hashed.
            point[name] = text if name == "rule_parameters" else value
    return list(dict.fromkeys(Setting(**point) for point in points))
