# SPDX-License-Identifier: Apache-2.0
"""Reads what a request and its engine say of vllm-cold: flat arguments, and the engine's defaults.

A request's settings have three sources, of which the later one wins: the engine's defaults
(``additional_config["cold"]``, ``--sampler cold --cold-alpha ...``), the request's flat ``cold_*``
arguments (``vllm_xargs`` over HTTP, ``extra_args`` offline), and ``ColdParams``. Imports no vLLM.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_cold.errors import ColdError
from vllm_cold.rules import registry
from vllm_cold.settings.presets import NO_PRESET, PRESETS, Preset
from vllm_cold.settings.source_readers import read_without
from vllm_cold.settings.table import (
    ENGINE,
    EXPLAIN,
    LIMITS,
    PREFIX,
    REQUEST_KEYS,
    ColdSettings,
    check,
    check_switch,
    combine,
    is_known,
    is_ours,
)

_ENGINE_KEYS = ("enabled", "rules", *ENGINE)


@dataclass(frozen=True, slots=True)
class ColdArgs:
    """A request's flat arguments, or an engine's defaults, read once.

    Attributes:
        enabled: Of a request: False opts out, True (or any other ``cold_*`` key) asks for
            contrastive decoding, None leaves it to the engine's default. Of an engine: whether a
            request that says nothing itself uses contrastive decoding, if it names an adapter or
            the engine says what is left out of its conversation.
        values: Checked values by name: of settings, of the amateurs, and an engine's limits.
    """

    enabled: bool | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def preset(self) -> Preset:
        """The one that the values name."""
        return PRESETS[self.values["preset"]] if "preset" in self.values else NO_PRESET

    def settings(
        self, engine: "ColdArgs | None" = None, weights: Sequence[float | str | None] = (None,)
    ) -> tuple[ColdSettings, tuple[float | None, ...]]:
        """Combine these with an engine's defaults, and with the amateurs' weights (``combine``)."""
        layers = [] if engine is None else [engine.preset.settings, engine.values]
        combined = combine(self.values, weights, PREFIX, [*layers, self.preset.settings])
        if "preset" in self.values:
            check_limited(PREFIX + "preset", self.values["preset"], self.preset, combined[0].rule)
        return combined


def check_limited(field: str, name: str, preset: Preset, rule: str | None) -> None:
    """Refuse what takes a limit away from a request that asks for one by its preset: another rule,
    or weights, in place of the preset's; ``field``: what an error names.
    """
    own = preset.settings.get("rule")
    if rule != own and registry.is_of_scores(own):
        raise ColdError(field, name, "is a rule, and beta, weights or another rule replace it")


def check_placement(fields: Mapping[str, Any] | None) -> None:
    """Refuse our keys among the fields of an HTTP request's body: vLLM ignores those that it does
    not know.
    """
    for key, value in (fields or {}).items():
        if is_known(key):
            raise ColdError(
                key,
                value,
                f'belongs into vllm_xargs, as in "vllm_xargs": {{"{key.lower()}": ...}} (with the '
                "OpenAI client in extra_body)",
            )


def parse_request_args(args: Mapping[str, Any] | None) -> ColdArgs:
    """Read our keys of one request's flat arguments.

    Args:
        args: ``vllm_xargs`` / ``extra_args``; what is not ``cold`` or ``cold_*`` is not ours.

    Raises:
        ColdError: for an unknown ``cold_*`` key, one of ours in other letters (``Cold_beta``), or a
            value outside its range.
    """
    enabled: bool | None = None
    asks = False
    values = {}
    for key, value in (args or {}).items():
        if not (is_ours(key) or is_known(key)):
            continue
        if key not in REQUEST_KEYS:
            raise ColdError(key, value, f"unknown key, allowed are {', '.join(REQUEST_KEYS)}")
        if key == "cold":
            enabled = check_switch(key, value)
            continue
        name = key.removeprefix(PREFIX)
        checked = check(name, value, key)
        asks = asks or key != EXPLAIN or checked > 0
        if checked is not None:
            values[name] = checked
    return ColdArgs(True if enabled is None and asks else enabled, values)


def parse_engine_defaults(config: object) -> ColdArgs:
    """Read ``additional_config["cold"]``: absent, a bool, or a mapping of ``enabled`` (default
    true) and settings.

    Raises:
        ColdError: for an unknown key, a wrong type or a value outside its range.
    """
    if config is None or isinstance(config, bool):
        return ColdArgs(enabled=bool(config))
    where = 'additional_config["cold"]'
    if not isinstance(config, Mapping):
        raise ColdError(where, config, f"must be a mapping of {', '.join(_ENGINE_KEYS)}")
    if unknown := [key for key in config if key not in _ENGINE_KEYS]:
        raise ColdError(
            f"{where}[{unknown[0]!r}]",
            config[unknown[0]],
            f"unknown key, allowed are {', '.join(_ENGINE_KEYS)}",
        )
    enabled = check_switch(f'{where}["enabled"]', config.get("enabled", True))
    load_rules({"cold": config})
    checked = {
        name: check(name, config[name], f'{where}["{name}"]') for name in config if name in ENGINE
    }
    args = ColdArgs(enabled, {name: x for name, x in checked.items() if x is not None})
    without, name, preset = args.values.get("without"), args.values.get("preset"), args.preset
    field, problem = "preset", ""
    if without is not None:
        read_without(f'{where}["without"]', without)
    if preset.weights:
        problem = "needs amateurs that only a request can name"
    elif enabled and preset.without is not None and without is None:
        problem = (
            'contrasts with another prompt; say with "without" what is left out of a conversation'
        )
    elif preset.images is not None and without is not None:
        field = "without"
        problem = (
            f"the preset {name} says what amateurs read, the images {preset.images}; leave one of "
            "them out"
        )
    if problem:
        raise ColdError(f'{where}["{field}"]', args.values[field], problem)
    # Its limits are for requests that name the preset, whatever the engine's own is.
    values = {key: value for key, value in args.values.items() if key not in LIMITS}
    combined, _ = combine(values, prefix=f"{where}.", layers=[preset.settings])
    if name is not None:
        check_limited(f'{where}["preset"]', name, preset, combined.rule)
    return args


def load_rules(additional_config: object) -> None:
    """Make rules known in this process: those of installed packages, and those that an engine was
    started with, which ``additional_config["cold"]["rules"]`` lists as "module:Class". Raises
    ColdError for what is no rule.
    """
    cold = additional_config.get("cold") if isinstance(additional_config, Mapping) else None
    rules = cold.get("rules", ()) if isinstance(cold, Mapping) else ()
    if not isinstance(rules, (list, tuple)) or not all(isinstance(r, str) for r in rules):
        raise ColdError(
            'additional_config["cold"]["rules"]', rules, 'must be a list of "module:Class"'
        )
    for path in rules:
        registry.add(path)
    registry.load_installed()
