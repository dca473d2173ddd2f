# SPDX-License-Identifier: Apache-2.0
"""The settings to try: alpha times beta, and presets. The method itself checks how they combine."""

from collections.abc import Mapping
from typing import Any

import msgspec

from vllm_cold.rules import registry
from vllm_cold.settings.presets import PRESETS
from vllm_cold.settings.table import LIMITS, PREFIX, SETTINGS, check, read
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
    bits: float | None = None
    bits_per_token: float | None = None
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
        texts: Texts of options, by the setting's name: those of ``AXES``, rules and limits are
            values separated by commas; limits are for points with a rule that has them. Others hold
            for each point, a rule's parameters for those with a rule. For all points where none has
            such a rule, and the method then refuses them.
        presets: Names, separated by commas.
        weights: ``cold_weights`` of all requests, which takes the place of beta; None for none.

    Raises:
        ColdError: a value is none or out of range.
    """
    others = {name: text for name in SETTINGS if (text := texts.get(name)) is not None}
    axes = {name: _values(name, others.pop(name)) for name in (*AXES, "rule") if name in others}
    limits = {name: _values(name, others.pop(name)) for name in LIMITS if name in others}
    points: list[dict[str, Any]] = []
    says_alpha = "alpha" in axes
    if presets is None or axes:
        axes.setdefault("alpha", _values("alpha", AXES["alpha"]))
        if weights is None and not axes.keys() & {"beta", "rule"}:
            axes["beta"] = _values("beta", AXES["beta"])
        strengths: list[dict[str, Any]] = [
            {name: value} for name in ("beta", "rule") for value in sorted(axes.get(name, ()))
        ]
        alphas = sorted(axes["alpha"], reverse=True)
        for strength in strengths or [{}]:
            # A rule of scores has no mask.
            has_mask = says_alpha or not registry.is_of_scores(_rule_of(strength))
            points += [{"alpha": a, **strength} for a in alphas] if has_mask else [strength]
    for name in presets.split(",") if presets is not None else ():
        points.append({"preset": check("preset", name.strip(), "--preset")})
    several = weights if isinstance(weights, list) else [weights]
    ruled = [point for point in points if _rule_of(point) is not None]
    if not ruled or any(isinstance(weight, str) and weight for weight in several):
        ruled = points
    for name, text in others.items():
        value = check(name, read(name, text), option_of(name))
        for point in points if name == "expert_top_k" else ruled:
            # Parameters stay JSON text: settings are hashed.
            point[name] = text if name == "rule_parameters" else value
    for name, values in limits.items():
        takes = [point for point in points if _takes(point, name)] or points
        others_of = [point for point in points if point not in takes]
        points = [*({**point, name: value} for point in takes for value in values), *others_of]
    return list(dict.fromkeys(Setting(**point) for point in points))


def _rule_of(point: Mapping[str, Any]) -> str | None:
    """Return the rule that a point of the grid names, itself or by its preset."""
    of_preset = PRESETS[point["preset"]].settings if "preset" in point else {}
    rule: str | None = point.get("rule", of_preset.get("rule"))
    return rule


def _takes(point: Mapping[str, Any], parameter: str) -> bool:
    rule = _rule_of(point)
    return rule is not None and parameter in registry.get(rule).parameters
