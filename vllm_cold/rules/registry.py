# SPDX-License-Identifier: Apache-2.0
"""Rules by name: the built-in ones, those of installed packages, those that an engine was started
with. A request can only name one of them.
"""

import importlib
import importlib.metadata
import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

from vllm_cold.errors import ColdError
from vllm_cold.rules.rule import Rule

logger = logging.getLogger("vllm." + __name__)

ENTRY_POINTS = "vllm_cold.rules"
# Those of ``vllm_cold.rules.built_in``, which imports torch.
BUILT_IN = ("acd", "adaptive", "arr", "bound", "cocoa", "grd", "m3id", "mti")
_MOST_STATE = 16  # each group keeps 2 KiB for each
_added: dict[str, Rule] = {}  # by --cold-rule


@cache
def _installed() -> Mapping[str, importlib.metadata.EntryPoint]:
    """Return other packages' rules, by name. A built-in name stays the built-in rule's."""
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return {point.name: point for point in points if point.name not in BUILT_IN}


def names() -> tuple[str, ...]:
    """List all that a request can name here."""
    return tuple(sorted({*BUILT_IN, *_added, *_installed()}))


def get(name: str, field: str = "rule", *, or_number: bool = False) -> Rule:
    """Return the rule of this name.

    Args:
        name: The rule's.
        field: What an error names.
        or_number: Whether a number might stand there, too, for errors.

    Raises:
        ColdError: there is none, or what a package offers by this name is none.
    """
    if name in _added:
        return _added[name]
    if name in BUILT_IN:
        return _built_in(name)
    if name not in _installed():
        what = "a number, or the name" if or_number else "the name"
        raise ColdError(field, name, f"must be {what} of a rule: {', '.join(names())}")
    rule = _from_package(name)
    if isinstance(rule, str):
        raise ColdError(field, name, rule)
    return rule


def is_of_scores(name: str | None) -> bool:
    """Whether a request with this rule, None for none, samples from what its rule computes."""
    return name is not None and get(name).is_of_scores


def load_installed() -> None:
    """Load and try the rules of installed packages now, as that takes too long when a request names
    one. What is wrong with one is in the log, and in the error of a request that names it.
    """
    for name in _installed():
        _from_package(name)


@cache
def _built_in(name: str) -> Rule:
    from vllm_cold.rules import built_in

    classes = (value for value in vars(built_in).values() if isinstance(value, type))
    return next(cls() for cls in classes if issubclass(cls, Rule) and cls.name == name)


@cache
def _from_package(name: str) -> Rule | str:
    """Load a rule, once for all requests that name it; return it, or why there is none."""
    try:
        return _try_class(_installed()[name].load(), name)
    except Exception as error:  # another package's code: whatever it is, it concerns its users
        logger.exception("vllm-cold: rule %r cannot be used", name)
        return f"the package that offers this rule is broken ({type(error).__name__}: {error})"


def add(path: str) -> Rule:
    """Add a rule by where it is, as in "package.module:Class", for this process.

    Raises:
        ColdError: it is not there, or no rule.
    """
    module, _, name = path.partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
        for known in _added.values():
            if type(known) is cls:
                return known
        rule = _try_class(cls, getattr(cls, "name", None))
    except Exception as error:
        raise ColdError(
            "rules", path, f"cannot be used as a rule ({type(error).__name__}: {error})"
        ) from error
    if rule.name in BUILT_IN or rule.name in _added:
        raise ColdError("rules", path, f"there is a rule named {rule.name!r}; name it otherwise")
    _added[rule.name] = rule
    return rule


def _try_class(cls: Any, name: Any) -> Rule:
    """Make a rule from its class, and try it out."""
    from vllm_cold.rules.trial import try_out

    if not (isinstance(cls, type) and issubclass(cls, Rule)):
        raise TypeError(f"{cls!r} is no subclass of vllm_cold.rules.Rule")
    if not isinstance(name, str) or not name.isidentifier() or cls.name != name:
        raise ValueError(f"its name must be an identifier, and {name!r} everywhere it is named")
    rule: Rule = cls()
    if not 0 <= rule.state <= _MOST_STATE:
        raise ValueError(f"its state must be at most {_MOST_STATE}")
    if rule.charges and rule.retires:
        raise ValueError("it must not both charge and retire: amateurs that ended cost nothing")
    try_out(rule)
    return rule


def parameters_of(
    rule: Rule, values: Mapping[str, Any], field: str, amateurs: int = 1
) -> dict[str, float | list[float]]:
    """Return all parameters of a rule: these values, and the others' defaults.

    Raises:
        ColdError: one is unknown, or out of range; names ``field``.
    """
    if unknown := [name for name in values if name not in rule.parameters]:
        allowed = ", ".join(rule.parameters) or "none"
        raise ColdError(
            f"{field}[{unknown[0]!r}]",
            values[unknown[0]],
            f"rule {rule.name!r} has no such parameter, allowed are: {allowed}",
        )
    parameters: dict[str, float | list[float]] = {}
    for name, declared in rule.parameters.items():
        value = values.get(name, declared.default)
        if value is None and name not in values:
            problem = f"rule {rule.name!r} needs {name}: {declared.about}"
            raise ColdError(field, dict(values), problem)
        numbers = value if isinstance(value, list) and declared.each else [value]
        problem = declared.allowed
        if declared.each:
            problem += f", or a list of {amateurs}, one for each amateur"
        wanted = amateurs if isinstance(value, list) and declared.each else 1
        if len(numbers) != wanted or not all(map(declared.allows, numbers)):
            raise ColdError(f"{field}[{name!r}]", value, problem)
        floats = [float(number) for number in numbers]
        parameters[name] = floats if isinstance(value, list) else floats[0]
    return parameters
