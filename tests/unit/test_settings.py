# SPDX-License-Identifier: Apache-2.0
"""Every wrong setting is refused with the field, the value and what is allowed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams

from vllm_cold import ColdParams
from vllm_cold.group.stream import without_cold
from vllm_cold.method.arguments import (
    ColdArgs,
    check_placement,
    parse_engine_defaults,
    parse_request_args,
)
from vllm_cold.method.presets import PRESETS
from vllm_cold.method.settings import (
    CONTRAST,
    DEFAULT_ALPHA,
    DEFAULT_BETA,
    DEFAULT_BETA_MAX,
    ENGINE,
    KNOBS,
    MAX_AMATEURS,
    REQUEST_KEYS,
    ColdError,
    ColdSettings,
    ContrastArgs,
    Weight,
    combine,
)
from vllm_cold.ops.interface import MAX_STREAMS

pytestmark = pytest.mark.unit

HUGE = 10**400  # no float holds it
NOT_NUMBERS = [None, True, False, "", "0.1", b"1", [], [0.1], {}, object(), 1j]
BAD = {
    "alpha": [-1e-9, -0.1, 1.0000001, 2, math.nan, math.inf, -math.inf, HUGE, *NOT_NUMBERS],
    "beta": [
        *(-1e-9, -1, 1000001, 1e300, math.nan, math.inf, -math.inf, HUGE, -HUGE),
        *("Adaptive", "adaptive ", b"adaptive", ["adaptive"], *NOT_NUMBERS),
    ],
    "beta_max": [-1e-9, 1000001, math.nan, math.inf, HUGE, "adaptive", *NOT_NUMBERS[1:]],
    "expert_top_k": [0, -1, 1.0, 2.5, math.nan, math.inf, HUGE, 2**31, *NOT_NUMBERS[1:]],
}
GOOD = {
    "alpha": [0, 0.0, -0.0, 5e-324, 1e-6, 0.1, 1, 1.0],
    "beta": [0, 0.0, -0.0, 0.5, 10, 1e6, "adaptive"],
    "beta_max": [0, 0.0, 0.5, 10, 1e6],
    "expert_top_k": [1, 50, 2**31 - 1],
}
ALLOWED = {
    "alpha": "must be a number in [0, 1]",
    "beta": "must be a number >= 0, at most 1e6, or 'adaptive'",
    "beta_max": "must be a number >= 0, at most 1e6",
    "expert_top_k": "must be an integer from 1 to 2147483647, or left out for no cap",
}
BAD_SETTINGS = [(name, value) for name, values in BAD.items() for value in values]
GOOD_SETTINGS = [(name, value) for name, values in GOOD.items() for value in values]


def name_of(value: Any) -> str | None:
    """A short test id for values that have none."""
    return ("-" if value < 0 else "") + "huge" if value in (HUGE, -HUGE) else None


def short(value: Any) -> str:
    return "" if value in (HUGE, -HUGE) else repr(value)


def settings(args: dict[str, Any], engine: ColdArgs | None = None) -> ColdSettings:
    """Those of a request in an engine."""
    return parse_request_args(args).settings(engine or ColdArgs())[0]


def check_error(error: ColdError, field: str, value: Any, allowed: str) -> None:
    assert isinstance(error, ValueError)
    assert error.field == field
    assert error.value is value
    message = str(error)
    assert message.startswith(f"{field}=")
    assert short(value) in message
    assert message.endswith(allowed)


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS, ids=name_of)
def test_bad_values(name: str, value: Any) -> None:
    """In Python, of a request and of an engine."""
    for field, read_it in (
        (name, lambda: ColdSettings(**{name: value})),
        (f"cold_{name}", lambda: parse_request_args({"cold": 1, f"cold_{name}": value})),
        (f'additional_config["cold"]["{name}"]', lambda: parse_engine_defaults({name: value})),
    ):
        with pytest.raises(ColdError) as raised:
            read_it()
        check_error(raised.value, field, value, ALLOWED[name])


@pytest.mark.parametrize(("name", "value"), GOOD_SETTINGS, ids=name_of)
def test_good_values(name: str, value: Any) -> None:
    beside: dict[str, Any] = {"beta": "adaptive"} if name == "beta_max" else {}
    assert getattr(ColdSettings(**{name: value}, **beside), name) == value
    args = parse_request_args({f"cold_{name}": value})
    assert args.enabled is True
    assert args.given == {name: value}
    kind = str if value == "adaptive" else int if name == "expert_top_k" else float
    assert type(args.given[name]) is kind
    defaults = parse_engine_defaults({name: value, **beside})
    assert defaults.enabled
    assert getattr(defaults.settings()[0], name) == value


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.just("adaptive"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
KNOB_KEYS = ["cold_alpha", "cold_beta", "cold_beta_max", "cold_expert_top_k"]
CONTRAST_KEYS = [
    "cold_amateur",
    "cold_amateur_prompt",
    "cold_amateur_messages",
    "cold_without",
    "cold_part",
    "cold_weights",
    "cold_preset",
]
NAMES = ["cold", *KNOB_KEYS, *CONTRAST_KEYS]
KEYS = st.sampled_from(NAMES) | st.text().map("cold_".__add__) | st.just("Cold_Beta")


def test_whose_a_key_is() -> None:
    for key in ("coldstart_id", "colds", "scold_beta", "cold-beta", "", "COLDER"):
        assert parse_request_args({key: 3}) == ColdArgs()
        assert without_cold({key: 3, "cold_beta": 1.0, "cold": 1}) == {key: 3}
        check_placement({key: 3})
    check_placement({"cold_start": 1})  # vLLM's bodies take any field, and this is none of ours
    for key in ("cold", "cold_beta", "Cold_beta", "COLD"):
        with pytest.raises(ColdError, match=rf'^{key}=3: belongs into vllm_xargs.*"{key.lower()}"'):
            check_placement({"n": 1, key: 3})
    # A request may not bring the internal description along.
    for key in ("Cold_beta", "COLD", "cold_alhpa", "cold_stream", "cold_recipe"):
        with pytest.raises(ColdError, match=f"^{key}=3: unknown key, allowed are cold, cold_alpha"):
            parse_request_args({key: 3})
    with pytest.raises(ColdError, match=r"\['betta'\]=1: unknown key, allowed are enabled, alpha"):
        parse_engine_defaults({"betta": 1})


@hypothesis_settings(deadline=None)
@given(st.dictionaries(KEYS, JUNK, max_size=4))
@example({"cold_beta": HUGE})
@example({"cold_beta": -HUGE})
@example({"cold_expert_top_k": HUGE})
@example({"cold": HUGE})
@example({"cold_stream": {"alpha": 0.1}})
@example({"cold_beta": "adaptive", "cold_beta_max": 3})
@example({"cold_beta": 1, "cold_beta_max": 3})
@example({"cold_beta_max": 3})
def test_junk_is_refused_or_in_range(args: dict[str, Any]) -> None:
    """No other exception comes out, and nothing out of range gets through."""
    try:
        parsed = parse_request_args(args)
        merged, weights = parsed.settings(ColdArgs())
    except ColdError as error:
        assert error.field in args
        assert str(error).startswith(error.field)
        return
    assert set(args) <= set(NAMES)
    assert 0 <= merged.alpha <= 1
    assert merged.adaptive or merged.beta == merged.strength
    assert weights == (Weight(-merged.strength, merged.adaptive),)
    assert 0 <= merged.strength <= 1e6
    assert merged.expert_top_k is None or 1 <= merged.expert_top_k < 2**31
    for name in CONTRAST:
        value = getattr(parsed.contrast, name)
        assert value == args.get(f"cold_{name}"), "what is allowed is not changed"


def test_whether_cold_is_asked_for() -> None:
    for args in (None, {}, {"x": 1, "scold": 2, 3: 4}):
        assert parse_request_args(args) == ColdArgs()  # type: ignore[arg-type]
    for value in (1, True, 1.0):
        assert parse_request_args({"cold": value}) == ColdArgs(enabled=True)
    for value in (0, False, 0.0):
        off = parse_request_args({"cold": value, "cold_beta": 1})
        assert off == ColdArgs(False, given={"beta": 1.0})
    for wrong in (2, -1, 0.5, math.nan, "1", "true", None, [], HUGE):
        with pytest.raises(ColdError) as raised:
            parse_request_args({"cold": wrong})
        check_error(raised.value, "cold", wrong, "must be 0 or 1 (false or true)")
        with pytest.raises(ColdError, match="0 or 1"):
            parse_engine_defaults({"enabled": wrong})
    # Any key asks for it.
    assert parse_request_args({"cold_alpha": 0.2}) == ColdArgs(True, given={"alpha": 0.2})
    asked = ColdArgs(True, contrast=ContrastArgs(amateur="b"))
    assert parse_request_args({"cold_amateur": "b"}) == asked


BAD_CONTRAST: dict[str, list[Any]] = {
    "amateur": [1, 0.5, True, [1], [None], {"a": 1}, b"a", [["a"]]],
    "amateur_prompt": [1, True, [1], {}, b"a"],
    "amateur_messages": [1, [{"role": "user"}], {}, [[]]],
    "without": [1.5, True, [1.5], [True], {}, b"system", [["system"]]],
    "part": [1, 1.5, True, [1.5], {}, [[1, 2]]],
    "weights": [
        *(math.nan, 1e9, -1e9, HUGE, "1", True, {}),
        *([math.nan], [1e9], ["1"], [None], [[1.0]]),
    ],
    "preset": ["", "CAD", "dola", 1, ["cad"], True],
}
GOOD_CONTRAST: dict[str, list[Any]] = {
    "amateur": ["b", "", ["a", "b"]],
    "amateur_prompt": ["", "text", ["one", "two", ""]],
    "amateur_messages": ["[]", ["[]", ""]],
    "without": ["system", "system,tool", "0,2", 0, 3, [0, "tool"]],
    "part": [[0, 3], "0:3", ["0:3", ""]],
    "weights": [-0.5, 1e6, 2, "adaptive", [-1, 0.5, "adaptive"]],
    "preset": list(PRESETS),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in BAD_CONTRAST.items() for value in values],
    ids=name_of,
)
def test_bad_contrast(name: str, value: Any) -> None:
    with pytest.raises(ColdError) as raised:
        parse_request_args({f"cold_{name}": value})
    check_error(raised.value, f"cold_{name}", value, CONTRAST[name].allowed)
    if name in ENGINE:
        with pytest.raises(ColdError) as raised:
            parse_engine_defaults({name: value})
        where = f'additional_config["cold"]["{name}"]'
        check_error(raised.value, where, value, CONTRAST[name].allowed)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in GOOD_CONTRAST.items() for value in values]
)
def test_good_contrast(name: str, value: Any) -> None:
    args = parse_request_args({f"cold_{name}": value})
    assert args.enabled is True and not args.given
    assert args.contrast == ContrastArgs(**{name: value})


def test_defaults() -> None:
    assert ColdSettings() == ColdSettings(DEFAULT_ALPHA, DEFAULT_BETA, expert_top_k=None)
    for said, enabled in ((None, False), (False, False), (True, True), ({}, True)):
        assert parse_engine_defaults(said) == ColdArgs(enabled)
    defaults = parse_engine_defaults({"enabled": False, "alpha": 0.3})
    assert defaults == ColdArgs(False, {"alpha": 0.3})
    assert defaults.settings()[0] == ColdSettings(alpha=0.3)
    for wrong in (1, 0.5, "cold", ["alpha"]):
        with pytest.raises(ColdError, match=r'additional_config\["cold"\]=.*must be a mapping of'):
            parse_engine_defaults(wrong)


def test_the_request_wins_over_the_engine() -> None:
    engine = parse_engine_defaults({"alpha": 0.3, "beta": 2, "expert_top_k": 9})
    assert settings({"cold": 1}, engine) == ColdSettings(0.3, 2.0, expert_top_k=9)
    # 0 is a value, not "not given".
    asked = {"cold_beta": 0, "cold_expert_top_k": 4}
    assert settings(asked, engine) == ColdSettings(0.3, 0.0, expert_top_k=4)
    assert engine.settings()[0] == ColdSettings(0.3, 2.0, expert_top_k=9)


def test_presets() -> None:
    """What a preset says wins over what comes from further away, and nothing nearer."""
    for name, preset in PRESETS.items():
        wanted = ColdSettings(**preset.knobs)
        assert settings({"cold_preset": name}) == wanted
        engine = parse_engine_defaults({"alpha": 0.3, "beta": 2, "expert_top_k": 9})
        assert settings({"cold_preset": name}, engine).alpha == wanted.alpha
        assert settings({"cold_preset": name, "cold_alpha": 0.25}, engine).alpha == 0.25
        if preset.weights:
            with pytest.raises(ColdError, match=rf"\[.preset.\]='{name}': needs amateurs that"):
                parse_engine_defaults({"preset": name})
            continue
        default: dict[str, Any] = {"preset": name}
        if preset.own_prompt:
            with pytest.raises(ColdError, match=r"\[.preset.\]='.*': contrasts with another"):
                parse_engine_defaults(default)
            assert not parse_engine_defaults({**default, "enabled": False}).enabled
            default["without"] = "system"
        engine = parse_engine_defaults(default)
        assert settings({"cold": 1}, engine) == engine.settings()[0] == wanted
        assert parse_engine_defaults({**default, "alpha": 0.5}).settings()[0].alpha == 0.5
        # A number has no use for the preset's most, neither in the engine nor in a request.
        number = parse_engine_defaults({**default, "beta": 0.25})
        assert number.settings()[0] == ColdSettings(wanted.alpha, 0.25)
        assert settings({"cold_beta": 0.25}, engine) == ColdSettings(wanted.alpha, 0.25)
    assert settings({"cold_preset": "adacad", "cold_beta_max": 2}) == ColdSettings(
        0.0, "adaptive", 2.0
    )


def test_weights() -> None:
    """beta is what an amateur without a weight has; "adaptive" takes the most that is given."""
    assert combine({"beta": 2}, [None, 0.5, -3]) == (
        ColdSettings(beta=2.0),
        (Weight(-2.0, False), Weight(0.5, False), Weight(-3.0, False)),
    )
    found, weights = combine({"beta": 2, "beta_max": 3}, [None, "adaptive"])
    assert (found.adaptive, found.strength) == (True, 3.0)
    assert weights == (Weight(-2.0, False), Weight(-3.0, True))
    assert combine({"beta": "adaptive"}, [None, 1])[1] == (Weight(-1.0, True), Weight(1.0, False))
    with pytest.raises(ColdError, match="^cold_beta_max=3: is for an adaptive beta"):
        combine({"beta": 2, "beta_max": 3}, [None, -1.0], "cold_")
    asked = parse_request_args({"cold_beta": 1.0})
    with pytest.raises(ColdError, match="^cold_beta=1.0: no amateur uses it"):
        asked.settings(ColdArgs(), [-0.5, 0.5])
    assert asked.settings(ColdArgs(), [-0.5, None])[1][1] == Weight(-1.0, False)
    # The engine's is nobody's mistake.
    engine = parse_engine_defaults({"beta": "adaptive", "beta_max": 2})
    assert ColdArgs().settings(engine, [-0.5])[1] == (Weight(-0.5, False),)
    assert ColdArgs().settings(engine, ["adaptive"])[1] == (Weight(-2.0, True),)
    # Nor is a preset's, which has no use where each has a weight of its own.
    adacad = parse_request_args({"cold_preset": "adacad"})
    assert adacad.settings(ColdArgs(), [-0.5])[0] == ColdSettings(0.0)
    assert adacad.settings(ColdArgs(), [-0.5, None])[0] == ColdSettings(0.0, "adaptive", 1.0)
    adacad = parse_request_args({"cold_preset": "adacad", "cold_beta_max": 2})
    assert adacad.settings(ColdArgs(), ["adaptive"])[0].strength == 2.0
    with pytest.raises(ColdError, match="^cold_beta_max=2.*: is for an adaptive beta"):
        adacad.settings(ColdArgs(), [-0.5])


FOR_ADAPTIVE = "is for an adaptive beta, and beta is {}; leave it out or set beta to 'adaptive'"


@pytest.mark.parametrize("beta", [{}, {"beta": 0.5}, {"beta": 0}])
def test_a_most_of_a_number_is_an_error(beta: dict[str, Any]) -> None:
    """Wherever the two meet; never left out of account in silence."""
    said = FOR_ADAPTIVE.format(beta.get("beta", DEFAULT_BETA))
    with pytest.raises(ColdError) as raised:
        ColdSettings(beta_max=2, **beta)
    check_error(raised.value, "beta_max", 2, said)
    with pytest.raises(ColdError) as raised:
        parse_engine_defaults({"beta_max": 2.0, **beta})
    where = 'additional_config["cold"]["beta_max"]'
    said = FOR_ADAPTIVE.format(float(beta.get("beta", DEFAULT_BETA)))
    assert str(raised.value) == f"{where}=2.0: {said}"
    args = parse_request_args({"cold_beta_max": 2.0, **{f"cold_{k}": v for k, v in beta.items()}})
    with pytest.raises(ColdError) as raised:
        args.settings(ColdArgs())
    assert str(raised.value) == f"cold_beta_max=2.0: {said}"


def test_the_most_of_a_request_and_of_its_engine() -> None:
    engine = parse_engine_defaults({"beta": "adaptive", "beta_max": 2})
    adaptive = ColdSettings(beta="adaptive", beta_max=2.0)
    assert engine.settings()[0] == adaptive
    assert settings({"cold": 1}, engine) == adaptive
    assert settings({"cold_beta": "adaptive"}, engine) == adaptive
    # A number has no use for the engine's; a most of the request's own needs an adaptive beta.
    assert settings({"cold_beta": 0}, engine) == ColdSettings(beta=0.0)
    larger = settings({"cold_beta_max": 3}, engine)
    assert larger == ColdSettings(beta="adaptive", beta_max=3.0)
    with pytest.raises(ColdError, match="^cold_beta_max=3.0: is for an adaptive beta, and beta is"):
        settings({"cold_beta": 1, "cold_beta_max": 3}, engine)
    number = parse_engine_defaults({"beta": 2})
    asked = settings({"cold_beta": "adaptive"}, number)
    assert asked == ColdSettings(beta="adaptive")
    asked = settings({"cold_beta": "adaptive", "cold_beta_max": 0}, number)
    assert asked == ColdSettings(beta="adaptive", beta_max=0.0)


def test_one_declaration() -> None:
    """Everything that names the knobs names these, with their defaults."""
    knobs = {"alpha": 0.1, "beta": 0.5, "beta_max": None, "expert_top_k": None}
    assert list(KNOBS) == list(knobs)  # as messages list them
    assert {name: knob.default for name, knob in KNOBS.items()} == knobs
    fields = {f.name: f.default for f in msgspec.structs.fields(ColdParams)}
    own = {n: d for n, d in fields.items() if n not in SamplingParams.__struct_fields__}
    assert own == {**knobs, "amateur": None, "amateurs": None, "method": None}
    assert list(REQUEST_KEYS) == NAMES
    assert list(ENGINE) == [*knobs, "without", "preset"]
    assert MAX_AMATEURS == MAX_STREAMS - 1
    for preset in PRESETS.values():
        assert set(preset.knobs) <= set(knobs)
    for name in knobs:
        # A sentence of its own, not another's.
        assert ALLOWED[name] == KNOBS[name].allowed and KNOBS[name].about.endswith(".")


def test_the_documented_knobs() -> None:
    """docs/reference/parameters.md has a row for each, with all its names and its default."""
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "reference" / "parameters.md").read_text()
    defaults = {"beta_max": DEFAULT_BETA_MAX, "expert_top_k": "none"}
    for name, knob in KNOBS.items():
        option = "cold-" + name.replace("_", "-")
        default = defaults.get(name, knob.default)
        [row] = [line for line in page.splitlines() if f"| `--{option}`, `{option}` |" in line]
        assert f", default {default} | `{name}` | `cold_{name}` | `{name}` | " in row
        assert f"default {default}" in knob.about
    for name, knob in CONTRAST.items():
        option = "cold-" + name.replace("_", "-")
        [row] = [line for line in page.splitlines() if f"| `cold_{name}`" in line]
        assert (f"`--{option}`" in row) == (name in ENGINE)
        assert knob.about.endswith(".")
    for name in PRESETS:
        assert f"| `{name}` |" in (docs / "parameters.md").read_text()
