# SPDX-License-Identifier: Apache-2.0
"""The settings to try: alpha times beta, and presets. The method itself checks them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from vllm_cold.errors import ColdError
from vllm_cold.rules import registry
from vllm_cold.settings.presets import PresetName
from vllm_cold.settings.table import PREFIX, SETTINGS, check, combine, preset_settings, read
from vllm_cold.tools.contrast import option_of

# The axes of the grid, with what is tried where nothing else is said.
AXES = {"alpha": "0.05,0.1,0.3", "beta": "0.25,0.5,1"}


class Setting(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a request says of the method; None where it says nothing."""

    preset: PresetName | None = None
    alpha: float | None = None
    beta: float | None = None  # None, as is the rule, where each amateur has a weight of its own
    rule: str | None = None
    rule_parameters: str | None = None  # JSON text; of requests with a rule, all of them
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
        said = ", ".join(
            value if name == "preset" else f"{name} {value}".removesuffix(".0")
            for name, value in self.values.items()
            # Of presets they are the same in a whole run.
            if name != "baseline" and not (name == "rule_parameters" and self.preset)
        )
        return " with ".join(filter(None, (said, self.baseline)))


def _values(name: str, text: str) -> list[Any]:
    """The values of an option, each once."""
    parts = text.split(",") if name in (*AXES, "rule") else [text]
    found = [check(name, read(name, part.strip()), option_of(name)) for part in parts]
    return list(dict.fromkeys(found)) if len(parts) > 1 else found


def _strengths(values: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """The betas to try from the mildest, then the rules; takes them out of ``values``.
    A beta may name a rule, as in a request.
    """
    betas, rules = values.pop("beta", []), values.pop("rule", [])
    numbers = sorted(one for one in betas if not isinstance(one, str))
    named = sorted({*rules, *(one for one in betas if isinstance(one, str))})
    return [*({"beta": one} for one in numbers), *({"rule": one} for one in named)]


def make_grid(
    given: Mapping[str, str | None], presets: str | None = None, weights: Any = None
) -> list[Setting]:
    """All pairs of alpha and a beta or rule, the mildest first: by beta, then alpha from the
    largest; then the presets, as given. With presets and none of these it is presets alone.

    Args:
        given: Texts of options, by the setting's name: those of ``AXES`` and rules are values
            separated by commas, others hold for each point, a rule's parameters where the rule has
            them.
        presets: Names, separated by commas.
        weights: ``cold_weights`` of all requests, which takes the place of beta; None for none.

    Raises:
        ColdError: a value is none or out of range, or no rule has a parameter that is given.
    """
    values = {
        name: _values(name, text) for name in SETTINGS if (text := given.get(name)) is not None
    }
    names = presets.split(",") if presets is not None else ()
    points = [{"preset": check("preset", name.strip(), "--preset")} for name in names]
    strengths = _strengths(values)
    if not points or strengths or "alpha" in values:
        axes = {name: values.get(name) or _values(name, text) for name, text in AXES.items()}
        # The method refuses one that is given together with weights.
        if not strengths:
            strengths = [{}] if weights is not None else _strengths({"beta": axes["beta"]})
        alphas = sorted(axes["alpha"], reverse=True)
        points = [*({"alpha": a, **one} for one in strengths for a in alphas), *points]
    whole = {name: found[0] for name, found in values.items() if name not in AXES}
    wanted = {"beta_max": whole["beta_max"]} if "beta_max" in whole else {}
    wanted |= whole.get("rule_parameters") or {}
    settings, used = [], set[str]()
    for point in points:
        preset = preset_settings(point.get("preset"))
        several = weights if isinstance(weights, list) else [weights]
        of_each = [None if one == "" else one for one in several]
        named = {**preset, **point}.get("rule") if None in of_each else None
        in_use = [named, *of_each]
        rule = next((registry.get(one) for one in in_use if isinstance(one, str)), None)
        if rule is not None and weights is None:
            of_each *= rule.amateurs or 1  # how many there are is not known here
        own = {name: value for name, value in wanted.items() if rule and name in rule.parameters}
        used.update(own)
        said = {**point, "rule_parameters": own} if own else point
        parameters = combine(said, of_each, PREFIX, preset)[0].rule_parameters
        # Said here and now: to a request that does not, a server's own default would apply.
        text = json.dumps(parameters) if parameters else None
        settings.append(
            Setting(**point, rule_parameters=text, expert_top_k=whole.get("expert_top_k"))
        )
    for name in wanted:
        if name not in used:
            field = option_of(name) if name in whole else f"--rule-parameters[{name!r}]"
            raise ColdError(field, wanted[name], "no rule that is tried has such a parameter")
    return list(dict.fromkeys(settings))
