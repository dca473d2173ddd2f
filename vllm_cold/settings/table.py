# SPDX-License-Identifier: Apache-2.0
"""What a contrastive request may ask for: names, ranges, defaults and the errors for everything
else.

``SETTINGS`` declares the method's settings, ``CONTRAST`` what is contrasted with. From there come
the request's flat arguments (``cold_<name>``), the engine's defaults, the options of ``vllm serve``
and its YAML keys (``--cold-<name>``), and what the tools take.

Plain Python without vLLM.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from vllm_cold.errors import ColdError
from vllm_cold.rules import registry
from vllm_cold.settings.images import ALLOWED
from vllm_cold.settings.presets import PRESETS

DEFAULT_ALPHA = 0.1
DEFAULT_BETA = 0.5
MAX_BETA = 1e6  # far beyond any use; the scores stay finite in float32
MAX_AMATEURS = 32  # of a request
DEFAULT_MEGAPIXELS = 32.0  # seconds of a core for noise
MAX_EXPERT_TOP_K = 2**31 - 1  # beyond any vocabulary; tensors hold it
MOST_ITEMS = 1000  # left out of a prompt: far beyond any use, and soon read
_MOST_JSON = 10_000  # characters: far more than the parameters of any rule

_Weight = Annotated[float, Meta(ge=-MAX_BETA, le=MAX_BETA)] | str
_WEIGHT_ALLOWED = "must be a number from -1e6 to 1e6, or the name of a rule"


_Number = Annotated[float, Meta(ge=0.0, le=1e6)]
_Bits = _Number | list[_Number] | None
_BITS_ALLOWED = "must be a number from 0 to 1e6, or a list of these, one for each amateur"


class SettingSpec(NamedTuple):
    """What a request, an engine or a command line may say.

    Attributes:
        type: With its range, for msgspec.
        about: A sentence with range and default: the help of a command line.
        allowed: What an error says of any other value.
    """

    type: Any
    about: str
    allowed: str


SETTINGS: Mapping[str, SettingSpec] = {
    "alpha": SettingSpec(
        Annotated[float, Meta(ge=0.0, le=1.0)],
        f"Plausibility threshold in [0, 1], 0 for no mask, default {DEFAULT_ALPHA}.",
        "must be a number in [0, 1]",
    ),
    "beta": SettingSpec(
        Annotated[float, Meta(ge=0.0, le=MAX_BETA)],
        f"Contrast strength, >= 0, default {DEFAULT_BETA}.",
        "must be a number >= 0, at most 1e6",
    ),
    "rule": SettingSpec(
        str | None,
        "Rule that chooses the strength at each step, in place of beta: "
        f"{', '.join(registry.BUILT_IN)}, or a further one's name; default none.",
        "must be the name of a rule",
    ),
    "rule_parameters": SettingSpec(
        dict[str, Any] | None,
        "The rule's parameters by name, as a JSON object.",
        f"must be an object of numbers by name, or its JSON text, at most {_MOST_JSON} characters",
    ),
    "expert_top_k": SettingSpec(
        Annotated[int, Meta(ge=1, le=MAX_EXPERT_TOP_K)] | None,
        "Cap on the candidates: the expert's k most probable tokens; default none.",
        f"must be an integer from 1 to {MAX_EXPERT_TOP_K}, or left out for no cap",
    ),
    "bits": SettingSpec(
        _Bits,
        "What a part may add to an answer by the rule bound, in bits; default no limit.",
        _BITS_ALLOWED,
    ),
    "bits_per_token": SettingSpec(
        _Bits,
        "What it may add besides with each token, in bits; default 0.",
        _BITS_ALLOWED,
    ),
}
CONTRAST: Mapping[str, SettingSpec] = {
    "amateur": SettingSpec(
        str | list[str] | None,
        "Adapter to contrast with, or the base model's name.",
        "must be the name of a loaded adapter, or the base model's, or a list of names",
    ),
    "amateur_prompt": SettingSpec(
        str | list[str] | None,
        "Text that the amateur reads.",
        "must be a text, or a list of texts",
    ),
    "amateur_messages": SettingSpec(
        str | list[str] | None,
        "Messages that the amateur reads.",
        "must be a JSON list of messages, as text, or a list of such texts",
    ),
    "without": SettingSpec(
        str | int | list[str | int] | None,
        "Contrast chat requests with the same conversation without these messages: roles, "
        "such as system or tool, with commas between them; or without its images, videos or "
        "audios.",
        "must be a role, such as 'system' or 'tool', the index of a message, 'images', 'videos' or "
        "'audios', or several of these: a list, or a text with commas between them",
    ),
    "without_text": SettingSpec(
        str | list[str] | None,
        "Text of the prompt, or of a chat's messages, that the amateur does not read.",
        "must be a text as it stands in the prompt, or a list of texts",
    ),
    "part": SettingSpec(
        list[str | int] | str | None,
        "Part of the prompt that the amateur does not read.",
        "must be start and end, two positions in the prompt (of several parts: [s1, e1, s2, e2]), "
        "or a text such as '0:120'",
    ),
    "images": SettingSpec(
        str | list[str] | None,
        "What the amateur sees of the images: none, noise:500 or blur:12.",
        f"{ALLOWED}, or a list of such texts",
    ),
    "weights": SettingSpec(
        _Weight | list[_Weight] | None,
        "The amateurs' weights.",
        f"{_WEIGHT_ALLOWED}, or a list of these",
    ),
    "preset": SettingSpec(
        Annotated[str, Meta(pattern=rf"^({'|'.join(PRESETS)})\Z")] | None,
        f"Values of a method, by its name: {', '.join(PRESETS)}.",
        f"must be one of {', '.join(PRESETS)}",
    ),
}
# What may stand in an engine's defaults, with what it lets its clients ask for.
ENGINE: Mapping[str, SettingSpec] = {
    **SETTINGS,
    "without": CONTRAST["without"],
    "preset": CONTRAST["preset"],
    "max_amateurs": SettingSpec(
        Annotated[int, Meta(ge=1, le=MAX_AMATEURS)] | None,
        f"The most amateurs of a request, 1 to {MAX_AMATEURS}, default a quarter of max_num_seqs, "
        "at least 2.",
        f"must be an integer from 1 to {MAX_AMATEURS}",
    ),
    "max_share": SettingSpec(
        Annotated[float, Meta(gt=0.0, le=1.0)] | None,
        "The most sequence slots (max_num_seqs) that the streams of contrastive requests have at a "
        "time, as a fraction, above 0, at most 1, default no limit.",
        "must be a number above 0, at most 1",
    ),
    "max_megapixels": SettingSpec(
        Annotated[float, Meta(gt=0.0)] | None,
        f"The largest image that is distorted for a client, in megapixels, above 0, default "
        f"{DEFAULT_MEGAPIXELS:g}.",
        "must be a number above 0",
    ),
}
MAX_EXPLAIN = 64  # the limit of ``contrastive_topk``, too
_ALL = {
    **ENGINE,
    **CONTRAST,
    "weight": SettingSpec(
        _Weight | None,
        "The weight of one amateur.",
        _WEIGHT_ALLOWED,
    ),
    "explain": SettingSpec(
        Annotated[int, Meta(ge=0, le=MAX_EXPLAIN)],
        "Of how many tokens of each step the client is told.",
        f"must be an integer from 0 to {MAX_EXPLAIN}",
    ),
}
_STRENGTH = ("beta", "rule")  # each replaces the other
LIMITS = ("bits", "bits_per_token")  # parameters of the rule bound, by names of their own
# Lists that are not of amateurs may be longer.
_MOST_ENTRIES = {"without": MOST_ITEMS, "part": 2 * MOST_ITEMS}


class ColdSettings(msgspec.Struct, frozen=True):
    """The settings of the method (arXiv 2505.14620, section 3; see docs/how-it-works.md), as
    ``SETTINGS`` says; ``combine`` makes and checks them. ``rule`` chooses weights at each step,
    None where all are fixed; ``rule_parameters`` are all of the rule's, None without one.
    """

    alpha: float = DEFAULT_ALPHA
    beta: float = DEFAULT_BETA
    rule: str | None = None
    rule_parameters: dict[str, float | list[float]] | None = None
    expert_top_k: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return what is in force, by name."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        if self.rule is not None:
            del values["beta"]
        return {name: value for name, value in values.items() if value not in (None, {})}


def check(name: str, value: object, field: str | None = None) -> Any:
    """Return the value of a setting, an int as a float where it takes floats.

    Args:
        name: The setting's, "weight" of one amateur, or "explain".
        value: Any.
        field: What an error calls it; None for ``name``.

    Raises:
        ColdError: it is of another type, or out of range.
    """
    plain = value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # msgspec takes numbers themselves, not what is derived from them, as numpy's are.
        plain = float(value) if isinstance(value, float) else int(value)
    elif name == "rule_parameters" and isinstance(value, str) and len(value) <= _MOST_JSON:
        with suppress(msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            plain = msgspec.json.decode(value)
    elif isinstance(value, list):
        check_number(field or name, value, len(value), _MOST_ENTRIES.get(name, MAX_AMATEURS))
    try:
        checked = msgspec.convert(plain, _ALL[name].type)
    # Some releases say SystemError of an integer that no float holds.
    except (msgspec.ValidationError, SystemError):
        raise ColdError(field or name, value, _ALL[name].allowed) from None
    if name in ("rule", "weight", "weights"):
        for rule in checked if isinstance(checked, list) else [checked]:
            # "" in a list is for an amateur whose weight is not set.
            if isinstance(rule, str) and (rule or rule is checked):
                registry.get(rule, field or name, or_number=name != "rule")
    return checked


def check_number(field: str, value: object, entries: int, most: int) -> None:
    """Refuse what has too many entries before they are looked at."""
    if entries > most:
        raise ColdError(field, value, f"has {entries} entries, and at most {most} are allowed")


def combine(
    values: Mapping[str, Any],
    weights: Sequence[float | str | None] = (None,),
    prefix: str = "",
    layers: Iterable[Mapping[str, Any]] = (),
) -> tuple[ColdSettings, tuple[float | None, ...]]:
    """Return a request's settings, and its amateurs' weights: None where its rule chooses them.

    Args:
        values: Those of the request by name; what is no setting is passed over.
        weights: Of the amateurs, as the request says them: None for what beta says.
        prefix: In front of the settings' names in errors.
        layers: Checked values that come before the request's; a later one replaces an earlier.

    Raises:
        ColdError: a value is wrong, or one of ``values`` has no use.
    """
    checked = {
        name: check(name, value, prefix + name)
        for name, value in values.items()
        if name in SETTINGS
    }
    defaults: Mapping[str, Any] = {}
    for layer in layers:
        defaults = merge(layer, defaults=defaults)
    merged = {"alpha": DEFAULT_ALPHA, **merge(checked, weights, prefix, defaults)}
    beta = merged.get("beta", DEFAULT_BETA)
    strength = merged.get("rule") or beta
    used = [strength if weight is None else weight for weight in weights]
    if len(rules := sorted({weight for weight in used if isinstance(weight, str)})) > 1:
        problem = f"names {' and '.join(rules)}; a request has one rule"
        raise ColdError(prefix + "weights", list(weights), problem)
    rule = rules[0] if rules else None
    _check_rule(rule, used, weights, checked, prefix)
    field, parameters = prefix + "rule_parameters", merged.get("rule_parameters")
    own = {name: checked[name] for name in LIMITS if checked.get(name) is not None}
    if rule is not None:
        known = registry.get(rule).parameters  # of another rule, an engine's limits are none
        limits = {name: merged[name] for name in LIMITS if name in merged and name in known}
        parameters = {**limits, **(parameters or {}), **own}
        parameters = registry.parameters_of(registry.get(rule), parameters, field, len(used))
    elif parameters is not None:
        problem = f"is for a rule, and beta is {beta}; leave it out or set {prefix}rule"
        raise ColdError(field, parameters, problem)
    elif own:
        name, value = next(iter(own.items()))
        raise ColdError(prefix + name, value, f"is for the preset bound; set {prefix}preset")
    alpha, cap = merged["alpha"], merged.get("expert_top_k")
    if registry.is_of_scores(rule):
        alpha, cap = 0.0, None
    settings = ColdSettings(alpha, beta, rule, parameters, cap)
    return settings, tuple(
        None if isinstance(weight, str) else float(-beta if requested is None else weight)
        for weight, requested in zip(used, weights, strict=True)
    )


def _check_rule(
    name: str | None,
    used: Sequence[object],
    weights: Sequence[object],
    values: Mapping[str, Any],
    prefix: str,
) -> None:
    """Refuse a rule with amateurs, or settings, that it does not take; ``values``: the request's
    own.
    """
    if name is None:
        return
    rule, chosen = registry.get(name), sum(isinstance(weight, str) for weight in used)
    takes = rule.amateurs or (len(used) if rule.is_of_scores else 0)
    if takes and {chosen, len(used)} != {takes}:
        raise ColdError(
            prefix + named_by(weights),
            name,
            f"this rule chooses the weights of {takes} amateurs, and no request that has it has "
            f"others; here it would choose those of {chosen} of {len(used)}",
        )
    for setting in ("alpha", "expert_top_k"):
        if rule.is_of_scores and values.get(setting):
            raise ColdError(
                prefix + setting,
                values[setting],
                f"the rule {name!r} says all of the distribution; leave it out",
            )


def named_by(weights: Sequence[object]) -> str:
    """Return the setting in which a request with these weights has named its rule."""
    return "weights" if any(isinstance(weight, str) for weight in weights) else "rule"


def merge(
    values: Mapping[str, Any],
    weights: Sequence[float | str | None] = (None,),
    prefix: str = "",
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put values on top of others. A beta also replaces a rule, and a rule a beta; a rule's
    parameters go with it, and where there are others.

    Args:
        values: Those on top.
        weights: Of the amateurs, as the request says them.
        prefix: In front of the settings' names in errors.
        defaults: The others.

    Raises:
        ColdError: both a rule and a beta are set, or one that no amateur uses.
    """
    values, before = (_without_none(layer, prefix) for layer in (values, defaults or {}))
    strength = [name for name in _STRENGTH if name in values]
    if None not in weights and strength:
        raise ColdError(
            prefix + strength[0],
            values[strength[0]],
            "no amateur uses it, as each has a weight of its own; leave it out",
        )
    replaced: set[str] = set()
    if None not in weights or strength:
        replaced.update(_STRENGTH)
    rule = values.get("rule") if replaced else before.get("rule")
    if before.get("rule") not in (rule, *weights):
        replaced.add("rule_parameters")
    return {name: value for name, value in before.items() if name not in replaced} | values


def _without_none(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the values that are set; raises ColdError for both a rule and a beta."""
    values = {name: value for name, value in values.items() if value is not None}
    if values.keys() >= set(_STRENGTH):
        problem = (
            f"chooses the strength, and {prefix}beta is {values['beta']}; leave one of them out"
        )
        raise ColdError(prefix + "rule", values["rule"], problem)
    return values


def read(name: str, text: str) -> Any:
    """Read a setting's text on a command line, for argparse; ``check`` finds mistakes."""
    for kind in (int, float):
        with suppress(ValueError, SystemError):  # one of msgspec's if it takes no such number
            return msgspec.convert(kind(text), _ALL[name].type)
    return text


def check_switch(field: str, value: object) -> bool:
    """Return ``value`` as a bool; JSON clients send 0/1 or true/false."""
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    raise ColdError(field, value, "must be 0 or 1 (false or true)")


PREFIX = "cold_"
EXPLAIN = PREFIX + "explain"
# The request's own keys, as they stand in vllm_xargs / extra_args.
REQUEST_KEYS = ("cold", *(PREFIX + name for name in (*SETTINGS, *CONTRAST)), EXPLAIN)


def is_ours(key: object) -> bool:
    """Whether a key of flat arguments is ours, known or not: ``cold`` and ``cold_*``."""
    return isinstance(key, str) and (key == "cold" or key.startswith(PREFIX))


def is_known(key: object) -> bool:
    """Whether it is one of our keys, in upper or lower case."""
    return isinstance(key, str) and key.lower() in REQUEST_KEYS
