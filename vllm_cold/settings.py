# SPDX-License-Identifier: Apache-2.0
"""What a CoLD request may ask for: names, ranges, defaults and the errors for everything else.

Plain Python without vLLM. Three sources say what a request wants, the later one wins:
the engine's defaults (``additional_config["cold"]``, ``--sampler cold --cold-alpha ...``), the
request's flat ``cold_*`` arguments (``vllm_xargs`` over HTTP, ``extra_args`` offline), and
``ColdParams``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

DEFAULT_ALPHA = 0.1
DEFAULT_BETA = 0.5
MAX_BETA = 1e6  # far beyond any use; the scores stay finite in float32
MAX_EXPERT_TOP_K = 2**31 - 1  # beyond any vocabulary; tensors hold it


class ColdError(ValueError):
    """A CoLD setting is wrong; the message names the field, the value and what is allowed."""

    def __init__(self, field: str, value: object, problem: str) -> None:
        super().__init__(f"{field}={value!r}: {problem}")
        self.field = field
        self.value = value


@dataclass(frozen=True, slots=True)
class ColdSettings:
    """The knobs of the method (arXiv 2505.14620, section 3; see docs/method.md).

    Attributes:
        alpha: Plausibility threshold in (0, 1]. A token is a candidate if the expert gives it at
            least alpha times the probability of the expert's best token. 1 means greedy.
        beta: Contrast strength, >= 0 (at most 1e6). 0 means the expert alone.
        expert_top_k: Optional cap on the candidates: only the expert's k most probable tokens
            (ties with the k-th included), an integer >= 1; None for no cap.
    """

    alpha: float = DEFAULT_ALPHA
    beta: float = DEFAULT_BETA
    expert_top_k: int | None = None

    def __post_init__(self) -> None:
        check_alpha("alpha", self.alpha)
        check_beta("beta", self.beta)
        check_expert_top_k("expert_top_k", self.expert_top_k)


def _is_number(value: object) -> bool:
    # bool is an int in Python, but alpha=True is a mistake, not 1.0.
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_alpha(field: str, value: object) -> float:
    """Return ``value`` as a float in (0, 1] or raise ColdError naming ``field``."""
    if not _is_number(value) or not 0.0 < value <= 1.0:  # type: ignore[operator]
        raise ColdError(field, value, "must be a number in (0, 1]")
    return float(value)  # type: ignore[arg-type]


def check_beta(field: str, value: object) -> float:
    """Return ``value`` as a float in [0, 1e6] or raise ColdError naming ``field``."""
    # Compared, not converted: an int may be too large for a float.
    if not _is_number(value) or not 0.0 <= value <= MAX_BETA:  # type: ignore[operator]
        raise ColdError(field, value, "must be a number >= 0, at most 1e6")
    return float(value)  # type: ignore[arg-type]


def check_expert_top_k(field: str, value: object) -> int | None:
    """Return ``value`` as an int from 1 to 2**31 - 1, or None, or raise ColdError naming
    ``field``.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_EXPERT_TOP_K:
        raise ColdError(
            field, value, f"must be an integer from 1 to {MAX_EXPERT_TOP_K}, or left out for no cap"
        )
    return value


def check_switch(field: str, value: object) -> bool:
    """Return ``value`` as a bool; JSON clients send 0/1 or true/false."""
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    raise ColdError(field, value, "must be 0 or 1 (false or true)")


def _check_name(field: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ColdError(field, value, "must be the name of a loaded adapter")
    return value


# The request's own keys, as they stand in vllm_xargs / extra_args.
_REQUEST_KEYS = {
    "cold": check_switch,
    "cold_alpha": check_alpha,
    "cold_beta": check_beta,
    "cold_expert_top_k": check_expert_top_k,
    "cold_amateur": _check_name,
}


@dataclass(frozen=True, slots=True)
class RequestArgs:
    """What one request's flat arguments say; None means that it does not say.

    Attributes:
        enabled: False opts out, True (or any other ``cold_*`` key) asks for CoLD, None leaves it
            to the engine's default.
        alpha: See ColdSettings.
        beta: See ColdSettings.
        expert_top_k: See ColdSettings.
        amateur: Name of the adapter to contrast with, None for the base model.
    """

    enabled: bool | None = None
    alpha: float | None = None
    beta: float | None = None
    expert_top_k: int | None = None
    amateur: str | None = None

    def settings(self, defaults: ColdSettings) -> ColdSettings:
        """The engine's defaults with this request's values on top."""
        given = {
            f.name: value
            for f in fields(ColdSettings)
            if (value := getattr(self, f.name)) is not None
        }
        return replace(defaults, **given)


def parse_request_args(args: Mapping[str, Any] | None) -> RequestArgs:
    """Read the ``cold*`` keys of one request's flat arguments.

    Args:
        args: ``vllm_xargs`` / ``extra_args``; keys that do not start with "cold" are ignored.

    Raises:
        ColdError: for an unknown ``cold*`` key or a value outside its range.
    """
    found: dict[str, Any] = {}
    for key, value in (args or {}).items():
        if not (isinstance(key, str) and key.startswith("cold")):
            continue
        check = _REQUEST_KEYS.get(key)
        if check is None:
            raise ColdError(key, value, f"unknown key, allowed are {', '.join(_REQUEST_KEYS)}")
        found[key] = check(key, value)
    if not found:
        return RequestArgs()
    return RequestArgs(
        enabled=found.get("cold", True),
        alpha=found.get("cold_alpha"),
        beta=found.get("cold_beta"),
        expert_top_k=found.get("cold_expert_top_k"),
        amateur=found.get("cold_amateur"),
    )


@dataclass(frozen=True, slots=True)
class EngineDefaults:
    """The engine's CoLD settings, read from ``additional_config["cold"]``.

    Attributes:
        enabled: Whether a request that names an adapter and says nothing else uses CoLD.
        settings: Values for requests that do not give their own.
    """

    enabled: bool = False
    settings: ColdSettings = ColdSettings()


_ENGINE_KEYS = {
    "enabled": check_switch,
    "alpha": check_alpha,
    "beta": check_beta,
    "expert_top_k": check_expert_top_k,
}


def parse_engine_defaults(config: object) -> EngineDefaults:
    """Read ``additional_config["cold"]``: absent, a bool, or a mapping of ``enabled`` (default
    true), ``alpha``, ``beta`` and ``expert_top_k``.

    Raises:
        ColdError: for an unknown key, a wrong type or a value outside its range.
    """
    if config is None or isinstance(config, bool):
        return EngineDefaults(enabled=bool(config))
    if not isinstance(config, Mapping):
        raise ColdError(
            'additional_config["cold"]', config, f"must be a mapping of {', '.join(_ENGINE_KEYS)}"
        )
    values: dict[str, Any] = {}
    for key, value in config.items():
        check = _ENGINE_KEYS.get(key)
        if check is None:
            raise ColdError(
                f'additional_config["cold"][{key!r}]',
                value,
                f"unknown key, allowed are {', '.join(_ENGINE_KEYS)}",
            )
        values[key] = check(f'additional_config["cold"]["{key}"]', value)
    enabled = values.pop("enabled", True)
    return EngineDefaults(enabled=enabled, settings=ColdSettings(**values))
