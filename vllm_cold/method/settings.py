# SPDX-License-Identifier: Apache-2.0
"""What a CoLD request may ask for: names, ranges, defaults and the errors for everything else.

``ColdSettings`` declares each of the method's knobs once. From there come the request's flat
arguments (``cold_<name>``), the engine's defaults, the options of ``vllm serve`` and its YAML keys
(``--cold-<name>``), what travels with a stream, and what the tools take.

Plain Python without vLLM. Three sources say what a request wants, the later one wins:
the engine's defaults (``additional_config["cold"]``, ``--sampler cold --cold-alpha ...``), the
request's flat ``cold_*`` arguments (``vllm_xargs`` over HTTP, ``extra_args`` offline), and
``ColdParams``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_type_hints

import msgspec
from msgspec import Meta

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


def _knob(about: str, allowed: str) -> Meta:
    return Meta(description=about, extra={"allowed": allowed})


class ColdSettings(msgspec.Struct, frozen=True):
    """The knobs of the method (arXiv 2505.14620, section 3; see docs/method.md).

    A field's type and range are checked; its description is the help of a command line, and
    "allowed" the end of an error.

    Attributes:
        alpha: Plausibility threshold in (0, 1]. A token is a candidate if the expert gives it at
            least alpha times the probability of the expert's best token. 1 means greedy.
        beta: Contrast strength, >= 0 (at most 1e6). 0 means the expert alone. "adaptive": chosen
            at each step, from 0 to ``beta_max``, by how far expert and amateur are apart.
        beta_max: The most that an adaptive beta reaches, in beta's range; None for
            ``DEFAULT_BETA_MAX``. An error where beta is a number.
        expert_top_k: Optional cap on the candidates: only the expert's k most probable tokens
            (ties with the k-th included), an integer >= 1; None for no cap.
    """

    alpha: Annotated[
        Annotated[float, Meta(gt=0.0, le=1.0)],
        _knob(
            f"Plausibility threshold in (0, 1], default {DEFAULT_ALPHA}.",
            "must be a number in (0, 1]",
        ),
    ] = DEFAULT_ALPHA
    beta: Annotated[
        Annotated[float, Meta(ge=0.0, le=MAX_BETA)] | Literal["adaptive"],
        _knob(
            f"Contrast strength, >= 0, default {DEFAULT_BETA}; or '{ADAPTIVE}': chosen at each "
            "step.",
            "must be a number >= 0, at most 1e6, or 'adaptive'",
        ),
    ] = DEFAULT_BETA
    beta_max: Annotated[
        Annotated[float, Meta(ge=0.0, le=MAX_BETA)] | None,
        _knob(
            f"The most that an adaptive beta reaches, >= 0, default {DEFAULT_BETA_MAX}.",
            "must be a number >= 0, at most 1e6",
        ),
    ] = None
    expert_top_k: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_EXPERT_TOP_K)] | None,
        _knob(
            "Cap on the candidates: the expert's k most probable tokens; default none.",
            f"must be an integer from 1 to {MAX_EXPERT_TOP_K}, or left out for no cap",
        ),
    ] = None

    def __post_init__(self) -> None:
        checked = {name: check(name, getattr(self, name)) for name in KNOBS}
        check_together("beta_max", self.beta_max, self.beta)
        for name, value in checked.items():
            msgspec.structs.force_setattr(self, name, value)

    @property
    def adaptive(self) -> bool:
        """Whether beta is chosen at each step."""
        return self.beta == ADAPTIVE

    def as_dict(self) -> dict[str, Any]:
        """What is in force, by name; without what is not."""
        values = {name: getattr(self, name) for name in KNOBS}
        values["beta_max"] = self.strength if self.adaptive else None
        return {name: value for name, value in values.items() if value is not None}

    @property
    def strength(self) -> float:
        """beta, or the most that it reaches if it is adaptive."""
        if self.beta != ADAPTIVE:
            return self.beta
        return DEFAULT_BETA_MAX if self.beta_max is None else self.beta_max


class Knob(NamedTuple):
    """A field of ``ColdSettings``.

    Attributes:
        type: With its range, for msgspec.
        number: int or float, which its numbers are.
        default: Of requests and engines that do not say.
        about: A sentence with range and default.
        allowed: What an error says of any other value.
    """

    type: Any
    number: type[float]
    default: Any
    about: str
    allowed: str


def _knobs() -> dict[str, Knob]:
    hints = get_type_hints(ColdSettings, include_extras=True)
    found = {}
    for one in msgspec.structs.fields(ColdSettings):
        meta: Meta = hints[one.name].__metadata__[-1]
        extra = meta.extra or {}
        found[one.name] = Knob(
            hints[one.name],
            _number_in(hints[one.name]),
            one.default,
            meta.description or "",
            extra["allowed"],
        )
    return found


def _number_in(hint: Any) -> Any:
    """Int or float, wherever it stands in a type; None if neither does."""
    if hint in (int, float):
        return hint
    return next((found for part in get_args(hint) if (found := _number_in(part))), None)


KNOBS = _knobs()


def check(name: str, value: object, field: str | None = None) -> Any:
    """The value of a knob, an int as a float where it takes floats.

    Args:
        name: The knob's.
        value: Whatever was given.
        field: What an error calls it; None for ``name``.

    Raises:
        ColdError: it is of another type, or out of range.
    """
    plain = value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # msgspec takes numbers themselves, not what is derived from them, as numpy's are.
        plain = float(value) if isinstance(value, float) else int(value)
    try:
        if plain is not None and not isinstance(plain, (str, int, float)):
            raise msgspec.ValidationError  # some that it would convert, such as decimals
        return msgspec.convert(plain, KNOBS[name].type)
    except msgspec.ValidationError:
        raise ColdError(field or name, value, KNOBS[name].allowed) from None


def check_together(field: str, beta_max: object, beta: object) -> None:
    """Raise ColdError naming ``field`` where there is a ``beta_max`` and ``beta`` is a number."""
    if beta_max is not None and beta != ADAPTIVE:
        raise ColdError(
            field,
            beta_max,
            f"is for an adaptive beta, and beta is {beta}; leave it out or set beta to 'adaptive'",
        )


def read(name: str, text: str) -> Any:
    """What stands on a command line for a knob, as argparse's ``type``: a mistake stays as it is,
    and the check of the setting then names it.
    """
    for kind in (KNOBS[name].number, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def check_switch(field: str, value: object) -> bool:
    """Return ``value`` as a bool; JSON clients send 0/1 or true/false."""
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    raise ColdError(field, value, "must be 0 or 1 (false or true)")


def _check_name(field: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ColdError(field, value, "must be the name of a loaded adapter")
    return value


PREFIX = "cold_"
# The request's own keys, as they stand in vllm_xargs / extra_args.
REQUEST_KEYS = ("cold", *(PREFIX + name for name in KNOBS), "cold_amateur")
_ENGINE_KEYS = ("enabled", *KNOBS)


@dataclass(frozen=True, slots=True)
class RequestArgs:
    """What one request's flat arguments say; None means that it does not say.

    Attributes:
        enabled: False opts out, True (or any other ``cold_*`` key) asks for CoLD, None leaves it
            to the engine's default.
        amateur: Name of the adapter to contrast with, None for the base model.
        given: Values of knobs, by name.
    """

    enabled: bool | None = None
    amateur: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, defaults: ColdSettings) -> ColdSettings:
        """The engine's defaults with this request's values on top.

        Raises:
            ColdError: if the request gives a ``cold_beta_max`` and beta is a number.
        """
        beta = self.given.get("beta", defaults.beta)
        check_together("cold_beta_max", self.given.get("beta_max"), beta)
        # The engine's has no use beside a number.
        unused = {} if beta == ADAPTIVE else {"beta_max": None}
        return msgspec.structs.replace(defaults, **{**unused, **self.given})


def is_ours(key: object) -> bool:
    """Whether a key of flat arguments is ours, known or not: ``cold`` and ``cold_*``."""
    return isinstance(key, str) and (key == "cold" or key.startswith(PREFIX))


def _is_known(key: object) -> bool:
    """Whether it is one of our keys, in whatever letters."""
    return isinstance(key, str) and key.lower() in REQUEST_KEYS


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
    enabled: bool | None = None
    amateur: str | None = None
    given: dict[str, Any] = {}
    for key, value in (args or {}).items():
        if not (is_ours(key) or _is_known(key)):
            continue
        if key not in REQUEST_KEYS:
            raise ColdError(key, value, f"unknown key, allowed are {', '.join(REQUEST_KEYS)}")
        if key == "cold":
            enabled = check_switch(key, value)
        elif key == "cold_amateur":
            amateur = _check_name(key, value)
        elif (checked := check(key.removeprefix(PREFIX), value, key)) is not None:
            given[key.removeprefix(PREFIX)] = checked
    if enabled is None and any(map(is_ours, args or ())):
        enabled = True
    return RequestArgs(enabled, amateur, given)


@dataclass(frozen=True, slots=True)
class EngineDefaults:
    """The engine's CoLD settings, read from ``additional_config["cold"]``.

    Attributes:
        enabled: Whether a request that names an adapter and says nothing else uses CoLD.
        settings: Values for requests that do not give their own.
    """

    enabled: bool = False
    settings: ColdSettings = ColdSettings()


def parse_engine_defaults(config: object) -> EngineDefaults:
    """Read ``additional_config["cold"]``: absent, a bool, or a mapping of ``enabled`` (default
    true) and knobs.

    Raises:
        ColdError: for an unknown key, a wrong type or a value outside its range.
    """
    if config is None or isinstance(config, bool):
        return EngineDefaults(enabled=bool(config))
    where = 'additional_config["cold"]'
    if not isinstance(config, Mapping):
        raise ColdError(where, config, f"must be a mapping of {', '.join(_ENGINE_KEYS)}")
    enabled = True
    given: dict[str, Any] = {}
    for key, value in config.items():
        if key == "enabled":
            enabled = check_switch(f'{where}["{key}"]', value)
        elif key in KNOBS:
            given[key] = check(key, value, f'{where}["{key}"]')
        else:
            raise ColdError(
                f"{where}[{key!r}]", value, f"unknown key, allowed are {', '.join(_ENGINE_KEYS)}"
            )
    check_together(f'{where}["beta_max"]', given.get("beta_max"), given.get("beta", DEFAULT_BETA))
    return EngineDefaults(enabled, ColdSettings(**given))
