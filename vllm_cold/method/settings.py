# SPDX-License-Identifier: Apache-2.0
"""What a CoLD request may ask for: names, ranges, defaults and the errors for everything else.

``KNOBS`` declares the method's knobs, ``CONTRAST`` what is contrasted with. From there come the
request's flat arguments (``cold_<name>``), the engine's defaults, the options of ``vllm serve`` and
its YAML keys (``--cold-<name>``), and what the tools take.

Plain Python without vLLM.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple, cast

import msgspec
from msgspec import Meta

from vllm_cold.method.presets import PRESET_NAMES, PRESETS, Preset, PresetName

DEFAULT_ALPHA = 0.1
DEFAULT_BETA = 0.5
DEFAULT_BETA_MAX = 1.0  # of beta="adaptive"
ADAPTIVE: Final = "adaptive"  # beta: chosen anew at every step
MAX_BETA = 1e6  # far beyond any use; the scores stay finite in float32
MAX_AMATEURS = 32  # of a request
_SHOWN = 100  # characters of a value in an error: prompts are values too
MAX_EXPERT_TOP_K = 2**31 - 1  # beyond any vocabulary; tensors hold it


class ColdError(ValueError):
    """A CoLD setting is wrong; the message names the field, the value and what is allowed."""

    def __init__(self, field: str, value: object, problem: str) -> None:
        shown = repr(value)
        if len(shown) > _SHOWN:
            shown = shown[:_SHOWN] + "..."
        super().__init__(f"{field}={shown}: {problem}")
        self.field = field
        self.value = value
        self.problem = problem


_Strength = Annotated[float, Meta(ge=0.0, le=MAX_BETA)]
_Weight = Annotated[float, Meta(ge=-MAX_BETA, le=MAX_BETA)] | Literal["adaptive"]
WEIGHT_ALLOWED = "must be a number from -1e6 to 1e6, or 'adaptive'"


class Knob(NamedTuple):
    """A field of ``ColdSettings`` or ``ContrastArgs``.

    Attributes:
        type: With its range, for msgspec.
        about: A sentence with range and default: the help of a command line.
        allowed: What an error says of any other value.
        number: int or float, which its numbers are; None if it takes none.
        engine: Whether an engine may have a default of its own.
        default: Of requests and engines that do not say.
    """

    type: Any
    about: str
    allowed: str
    number: type[float] | None = None
    engine: bool = True
    default: Any = None


KNOBS: Mapping[str, Knob] = {
    "alpha": Knob(
        Annotated[float, Meta(ge=0.0, le=1.0)],
        f"Plausibility threshold in [0, 1], 0 for no mask, default {DEFAULT_ALPHA}.",
        "must be a number in [0, 1]",
        float,
        default=DEFAULT_ALPHA,
    ),
    "beta": Knob(
        _Strength | Literal["adaptive"],
        f"Contrast strength, >= 0, default {DEFAULT_BETA}; or '{ADAPTIVE}': chosen at each step.",
        "must be a number >= 0, at most 1e6, or 'adaptive'",
        float,
        default=DEFAULT_BETA,
    ),
    "beta_max": Knob(
        _Strength | None,
        f"The most that an adaptive beta reaches, >= 0, default {DEFAULT_BETA_MAX}.",
        "must be a number >= 0, at most 1e6",
        float,
    ),
    "expert_top_k": Knob(
        Annotated[int, Meta(ge=1, le=MAX_EXPERT_TOP_K)] | None,
        "Cap on the candidates: the expert's k most probable tokens; default none.",
        f"must be an integer from 1 to {MAX_EXPERT_TOP_K}, or left out for no cap",
        int,
    ),
}
CONTRAST: Mapping[str, Knob] = {
    "amateur": Knob(
        str | list[str] | None,
        "Adapter to contrast with, or the base model's name.",
        "must be the name of a loaded adapter, or the base model's, or a list of names",
        engine=False,
    ),
    "amateur_prompt": Knob(
        str | list[str] | None,
        "Text that the amateur reads.",
        "must be a text, or a list of texts",
        engine=False,
    ),
    "amateur_messages": Knob(
        str | list[str] | None,
        "Messages that the amateur reads.",
        "must be a JSON list of messages, as text, or a list of such texts",
        engine=False,
    ),
    "without": Knob(
        str | int | list[str | int] | None,
        "Contrast chat requests with the same conversation without these messages: roles, "
        "such as system or tool, with commas between them.",
        "must be a role, such as 'system' or 'tool', the index of a message, or several of "
        "these: a list, or a text with commas between them",
        int,
    ),
    "part": Knob(
        list[str | int] | str | None,
        "Part of the prompt that the amateur does not read.",
        "must be [start, end), two positions in the prompt, further pairs behind them, or a "
        "text such as '0:120'",
        int,
        engine=False,
    ),
    "weights": Knob(
        _Weight | list[_Weight] | None,
        "The amateurs' weights.",
        f"{WEIGHT_ALLOWED}, or a list of these",
        float,
        engine=False,
    ),
    "preset": Knob(
        PresetName | None,
        f"Values of a method, by its name: {', '.join(PRESET_NAMES)}.",
        f"must be one of {', '.join(PRESET_NAMES)}",
    ),
}
# What may stand in an engine's defaults.
ENGINE = {name: knob for name, knob in {**KNOBS, **CONTRAST}.items() if knob.engine}


class ColdSettings(msgspec.Struct, frozen=True):
    """The knobs of the method (arXiv 2505.14620, section 3; see docs/method.md), checked.

    ``KNOBS`` has the range and default of each, ``ColdParams`` says what they do. A ``beta_max`` of
    None is ``DEFAULT_BETA_MAX``, and an error where beta is a number.
    """

    alpha: float = DEFAULT_ALPHA
    beta: float | Literal["adaptive"] = DEFAULT_BETA
    beta_max: float | None = None
    expert_top_k: int | None = None

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


class ContrastArgs(msgspec.Struct, frozen=True):
    """What a request's flat arguments say of its amateurs; None where they say nothing.

    ``CONTRAST`` says what each is. With several amateurs, a list has an entry for each, "" where an
    amateur has none; what is no list holds for all of them.
    """

    amateur: str | list[str] | None = None
    amateur_prompt: str | list[str] | None = None
    amateur_messages: str | list[str] | None = None
    without: str | int | list[str | int] | None = None
    part: list[str | int] | str | None = None
    weights: float | Literal["adaptive"] | list[float | Literal["adaptive"]] | None = None
    preset: PresetName | None = None


def check(name: str, value: object, field: str | None = None) -> Any:
    """The value of a knob, an int as a float where it takes floats.

    Args:
        name: The knob's.
        value: Whatever was given.
        field: What an error calls it; None for ``name``.

    Raises:
        ColdError: it is of another type, or out of range.
    """
    knob = KNOBS.get(name) or CONTRAST[name]
    plain = value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # msgspec takes numbers themselves, not what is derived from them, as numpy's are.
        plain = float(value) if isinstance(value, float) else int(value)
    lists = (list, tuple) if name in CONTRAST else ()
    try:
        if plain is not None and not isinstance(plain, (str, int, float, *lists)):
            raise msgspec.ValidationError  # some that it would convert, such as decimals
        return msgspec.convert(plain, knob.type)
    # Some releases say SystemError of an integer that no float holds.
    except (msgspec.ValidationError, SystemError):
        raise ColdError(field or name, value, knob.allowed) from None


def check_weight(field: str, value: object) -> float | Literal["adaptive"] | None:
    """The weight of one amateur, as ``check``; None stays None."""
    try:
        if not isinstance(value, (list, tuple)):
            return cast(float | Literal["adaptive"] | None, check("weights", value))
    except ColdError:
        pass
    raise ColdError(field, value, WEIGHT_ALLOWED)


def check_together(field: str, beta_max: object, beta: object) -> None:
    """Raise ColdError naming ``field`` where there is a ``beta_max`` and ``beta`` is a number."""
    if beta_max is not None and beta != ADAPTIVE:
        raise ColdError(
            field,
            beta_max,
            f"is for an adaptive beta, and beta is {beta}; leave it out or set beta to 'adaptive'",
        )


class Weight(NamedTuple):
    """An amateur's weight.

    Attributes:
        weight: If it is adaptive, its farthest from 0.
        adaptive: Whether it is scaled at every step.
    """

    weight: float
    adaptive: bool


def combine(
    own: Mapping[str, Any],
    weights: Sequence[float | str | None] = (None,),
    prefix: str = "",
    defaults: Mapping[str, Any] | None = None,
) -> tuple[ColdSettings, tuple[Weight, ...]]:
    """The settings of a request, and its amateurs' weights.

    Args:
        own: Of knobs, by name, as whoever asks has said them.
        weights: Of the amateurs, as given: None for what beta says.
        prefix: In front of the knobs' names in errors.
        defaults: Of knobs that ``own`` does not have: an engine's, a preset's. Where the request
            leaves nothing to do for one of them, it is left out.

    Raises:
        ColdError: a value is wrong, or one of ``own`` has no use.
    """
    values = merge(own, weights, prefix, defaults)
    said, most = values.get("beta", DEFAULT_BETA), values.get("beta_max")
    beta = check("beta", said, prefix + "beta")
    check("beta_max", most, prefix + "beta_max")
    found = ADAPTIVE if ADAPTIVE in weights else said
    check_together(prefix + "beta_max", most, found)
    settings = ColdSettings(**{**values, "beta": found})
    adaptive = Weight(-settings.strength, True)

    def weight(given: float | str | None) -> Weight:
        if given == ADAPTIVE or (given is None and beta == ADAPTIVE):
            return adaptive
        return Weight(float(-beta if given is None else given), False)

    return settings, tuple(map(weight, weights))


def merge(
    own: Mapping[str, Any],
    weights: Sequence[float | str | None] = (None,),
    prefix: str = "",
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The values of knobs that ``combine`` goes by; raises ColdError for a beta without a use."""
    values = {**(defaults or {}), **own}
    if None not in weights:
        if "beta" in own:
            raise ColdError(
                prefix + "beta",
                own["beta"],
                "no amateur uses it, as each has a weight of its own; leave it out",
            )
        values.pop("beta", None)
    if "beta_max" not in own and ADAPTIVE not in (values.get("beta"), *weights):
        values.pop("beta_max", None)
    return values


def read(name: str, text: str) -> Any:
    """What a command line says of a knob, for argparse; ``check`` names what is a mistake."""
    number = {**KNOBS, **CONTRAST}[name].number
    for kind in (number, float) if number else ():
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


PREFIX = "cold_"
# The request's own keys, as they stand in vllm_xargs / extra_args.
REQUEST_KEYS = ("cold", *(PREFIX + name for name in (*KNOBS, *CONTRAST)))


def is_ours(key: object) -> bool:
    """Whether a key of flat arguments is ours, known or not: ``cold`` and ``cold_*``."""
    return isinstance(key, str) and (key == "cold" or key.startswith(PREFIX))


def is_known(key: object) -> bool:
    """Whether it is one of our keys, in whatever letters."""
    return isinstance(key, str) and key.lower() in REQUEST_KEYS


def preset_of(contrast: ContrastArgs) -> Preset | None:
    """The preset that is named."""
    return None if contrast.preset is None else PRESETS[contrast.preset]


def preset_knobs(name: PresetName | None) -> Mapping[str, Any]:
    """The values of a preset, none without one."""
    return {} if name is None else PRESETS[name].knobs
