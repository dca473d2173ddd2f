# SPDX-License-Identifier: Apache-2.0
"""What a CoLD request may ask for: names, ranges, defaults and the errors for everything else.

Plain Python without vLLM. Three sources say what a request wants, the later one wins:
the engine's defaults (``additional_config["cold"]``, ``--sampler cold --cold-alpha ...``), the
request's flat ``cold_*`` arguments (``vllm_xargs`` over HTTP, ``extra_args`` offline), and
``ColdParams``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal

DEFAULT_ALPHA = 0.1
DEFAULT_BETA = 0.5
DEFAULT_BETA_MAX = 1.0  # of beta="adaptive"
ADAPTIVE: Final = "adaptive"  # beta: chosen anew at every step
MAX_BETA = 1e6  # far beyond any use; the scores stay finite in float32
MAX_EXPERT_TOP_K = 2**31 - 1  # beyond any vocabulary; tensors hold it


class ColdError(ValueError):
    """A CoLD setting is wrong; the message names the field, the value and what is allowed."""

    def __init__(self, field: str, value: object, problem: str) -> None:
        super().__init__(f"{field}={value!r}: {problem}")
        self.field = field
        self.value = value
        self.problem = problem


@dataclass(frozen=True, slots=True)
class ColdSettings:
    """The knobs of the method (arXiv 2505.14620, section 3; see docs/method.md).

    Attributes:
        alpha: Plausibility threshold in (0, 1]. A token is a candidate if the expert gives it at
            least alpha times the probability of the expert's best token. 1 means greedy.
        beta: Contrast strength, >= 0 (at most 1e6). 0 means the expert alone. "adaptive": chosen
            at each step, from 0 to ``beta_max``, by how far expert and amateur are apart.
        expert_top_k: Optional cap on the candidates: only the expert's k most probable tokens
            (ties with the k-th included), an integer >= 1; None for no cap.
        beta_max: The most that an adaptive beta reaches, in beta's range; None for
            ``DEFAULT_BETA_MAX``. An error where beta is a number.
    """

    alpha: float = DEFAULT_ALPHA
    beta: float | Literal["adaptive"] = DEFAULT_BETA
    expert_top_k: int | None = None
    beta_max: float | None = None

    def __post_init__(self) -> None:
        check_alpha("alpha", self.alpha)
        check_beta("beta", self.beta)
        check_expert_top_k("expert_top_k", self.expert_top_k)
        check_beta_max("beta_max", self.beta_max, self.beta)

    @property
    def adaptive(self) -> bool:
        """Whether beta is chosen at each step."""
        return self.beta == ADAPTIVE

    def as_dict(self) -> dict[str, Any]:
        """What is in force, by name; without what is not."""
        named = {
            "alpha": self.alpha,
            "beta": self.beta,
            "beta_max": self.strength if self.adaptive else None,
            "expert_top_k": self.expert_top_k,
        }
        return {name: value for name, value in named.items() if value is not None}

    @property
    def strength(self) -> float:
        """beta, or the most that it reaches if it is adaptive."""
        if self.beta != ADAPTIVE:
            return self.beta
        return DEFAULT_BETA_MAX if self.beta_max is None else self.beta_max


def _is_number(value: object) -> bool:
    # bool is an int in Python, but alpha=True is a mistake, not 1.0.
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_alpha(field: str, value: object) -> float:
    """Return ``value`` as a float in (0, 1] or raise ColdError naming ``field``."""
    if not _is_number(value) or not 0.0 < value <= 1.0:  # type: ignore[operator]
        raise ColdError(field, value, "must be a number in (0, 1]")
    return float(value)  # type: ignore[arg-type]


def _is_strength(value: object) -> bool:
    # Compared, not converted: an int may be too large for a float.
    return _is_number(value) and 0.0 <= value <= MAX_BETA  # type: ignore[operator]


def check_beta(field: str, value: object) -> float | Literal["adaptive"]:
    """Return ``value`` as a float in [0, 1e6], or "adaptive", or raise ColdError naming
    ``field``.
    """
    if isinstance(value, str) and value == ADAPTIVE:
        return ADAPTIVE
    if not _is_strength(value):
        raise ColdError(field, value, "must be a number >= 0, at most 1e6, or 'adaptive'")
    return float(value)  # type: ignore[arg-type]


def number(text: str) -> float | str:
    """What stands on a command line, as argparse's ``type``: "adaptive" is none, nor is a mistake,
    which the check of the setting then names.
    """
    try:
        return float(text)
    except ValueError:
        return text


def check_beta_max(field: str, value: object, beta: object = ADAPTIVE) -> float | None:
    """Return ``value`` as a float in [0, 1e6], or None, or raise ColdError naming ``field``; also
    where there is a value and ``beta`` is a number.
    """
    if value is None:
        return None
    if not _is_strength(value):
        raise ColdError(field, value, "must be a number >= 0, at most 1e6")
    if beta != ADAPTIVE:
        raise ColdError(
            field,
            value,
            f"is for an adaptive beta, and beta is {beta}; leave it out or set beta to 'adaptive'",
        )
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
_REQUEST_KEYS: dict[str, Callable[[str, object], Any]] = {
    "cold": check_switch,
    "cold_alpha": check_alpha,
    "cold_beta": check_beta,
    "cold_beta_max": check_beta_max,
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
        beta_max: See ColdSettings.
        expert_top_k: See ColdSettings.
        amateur: Name of the adapter to contrast with, None for the base model.
    """

    enabled: bool | None = None
    alpha: float | None = None
    beta: float | Literal["adaptive"] | None = None
    beta_max: float | None = None
    expert_top_k: int | None = None
    amateur: str | None = None

    def settings(self, defaults: ColdSettings) -> ColdSettings:
        """The engine's defaults with this request's values on top.

        Raises:
            ColdError: if the request gives a ``cold_beta_max`` and beta is a number.
        """
        beta = defaults.beta if self.beta is None else self.beta
        check_beta_max("cold_beta_max", self.beta_max, beta)
        if beta != ADAPTIVE:
            defaults = replace(defaults, beta=beta, beta_max=None)  # the engine's has no use here
        given = {
            f.name: value
            for f in fields(ColdSettings)
            if (value := getattr(self, f.name)) is not None
        }
        return replace(defaults, **given)


def is_ours(key: object) -> bool:
    """Whether a key of flat arguments is ours, known or not: ``cold`` and ``cold_*``."""
    return isinstance(key, str) and (key == "cold" or key.startswith("cold_"))


def _is_known(key: object) -> bool:
    """Whether it is one of our keys, in whatever letters."""
    return isinstance(key, str) and key.lower() in _REQUEST_KEYS


def check_placement(fields: Mapping[str, Any] | None) -> None:
    """Refuse our keys among a body's own fields, where vLLM ignores what it does not know.

    Args:
        fields: What the body of an HTTP request holds beside vLLM's own fields.

    Raises:
        ColdError: names the key and where it belongs.
    """
    for key, value in (fields or {}).items():
        if _is_known(key):
            raise ColdError(
                key,
                value,
                f'belongs into vllm_xargs, as in "vllm_xargs": {{"{key.lower()}": ...}} (with the '
                "OpenAI client in extra_body)",
            )


def parse_request_args(args: Mapping[str, Any] | None) -> RequestArgs:
    """Read our keys of one request's flat arguments.

    Args:
        args: ``vllm_xargs`` / ``extra_args``; what is not ``cold`` or ``cold_*`` is not ours.

    Raises:
        ColdError: for an unknown ``cold_*`` key, one of ours in other letters (``Cold_beta``), or a
            value outside its range.
    """
    found: dict[str, Any] = {}
    for key, value in (args or {}).items():
        if not (is_ours(key) or _is_known(key)):
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
        beta_max=found.get("cold_beta_max"),
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


_ENGINE_KEYS: dict[str, Callable[[str, object], Any]] = {
    "enabled": check_switch,
    "alpha": check_alpha,
    "beta": check_beta,
    "beta_max": check_beta_max,
    "expert_top_k": check_expert_top_k,
}


def parse_engine_defaults(config: object) -> EngineDefaults:
    """Read ``additional_config["cold"]``: absent, a bool, or a mapping of ``enabled`` (default
    true), ``alpha``, ``beta``, ``beta_max`` and ``expert_top_k``.

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
    check_beta_max(
        'additional_config["cold"]["beta_max"]',
        values.get("beta_max"),
        values.get("beta", DEFAULT_BETA),
    )
    return EngineDefaults(enabled=enabled, settings=ColdSettings(**values))
