# SPDX-License-Identifier: Apache-2.0
"""Every wrong setting is refused with the field, the value and what is allowed."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vllm_cold.settings import (
    DEFAULT_ALPHA,
    DEFAULT_BETA,
    ColdError,
    ColdSettings,
    EngineDefaults,
    RequestArgs,
    parse_engine_defaults,
    parse_request_args,
)

pytestmark = pytest.mark.unit

HUGE = 10**400  # no float holds it
NOT_NUMBERS = [None, True, False, "", "0.1", b"1", [], [0.1], {}, object(), 1j]
BAD = {
    "alpha": [0, 0.0, -0.0, -0.1, 1.0000001, 2, math.nan, math.inf, -math.inf, HUGE, *NOT_NUMBERS],
    "beta": [-1e-9, -1, 1000001, 1e300, math.nan, math.inf, -math.inf, HUGE, -HUGE, *NOT_NUMBERS],
    "expert_top_k": [0, -1, 1.0, 2.5, math.nan, math.inf, HUGE, 2**31, *NOT_NUMBERS[1:]],
}
GOOD = {
    "alpha": [5e-324, 1e-6, 0.1, 1, 1.0],
    "beta": [0, 0.0, -0.0, 0.5, 10, 1e6],
    "expert_top_k": [1, 50, 2**31 - 1],
}
ALLOWED = {
    "alpha": "must be a number in (0, 1]",
    "beta": "must be a number >= 0, at most 1e6",
    "expert_top_k": "must be an integer from 1 to 2147483647, or left out for no cap",
}
BAD_SETTINGS = [(name, value) for name, values in BAD.items() for value in values]
GOOD_SETTINGS = [(name, value) for name, values in GOOD.items() for value in values]


def name_of(value: Any) -> str | None:
    """A short test id for values that have none."""
    return ("-" if value < 0 else "") + "huge" if value in (HUGE, -HUGE) else None


def short(value: Any) -> str:
    return "" if value in (HUGE, -HUGE) else repr(value)


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
    with pytest.raises(ColdError) as raised:
        ColdSettings(**{name: value})
    check_error(raised.value, name, value, ALLOWED[name])


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS, ids=name_of)
def test_bad_request_values(name: str, value: Any) -> None:
    key = f"cold_{name}"
    if name == "expert_top_k" and value is None:
        pytest.skip("None is no cap")
    with pytest.raises(ColdError) as raised:
        parse_request_args({"cold": 1, key: value})
    check_error(raised.value, key, value, ALLOWED[name])


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS, ids=name_of)
def test_bad_engine_values(name: str, value: Any) -> None:
    with pytest.raises(ColdError) as raised:
        parse_engine_defaults({name: value})
    check_error(raised.value, f'additional_config["cold"]["{name}"]', value, ALLOWED[name])


@pytest.mark.parametrize(("name", "value"), GOOD_SETTINGS, ids=name_of)
def test_good_values(name: str, value: Any) -> None:
    assert getattr(ColdSettings(**{name: value}), name) == value
    args = parse_request_args({f"cold_{name}": value})
    assert args.enabled is True
    assert getattr(args, name) == value
    assert type(getattr(args, name)) is (int if name == "expert_top_k" else float)
    defaults = parse_engine_defaults({name: value})
    assert defaults.enabled
    assert getattr(defaults.settings, name) == value


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
KEYS = st.sampled_from(
    ["cold", "cold_alpha", "cold_beta", "cold_expert_top_k", "cold_amateur"]
) | st.text().map("cold".__add__)


@hypothesis_settings(deadline=None)
@given(st.dictionaries(KEYS, JUNK, max_size=4))
@example({"cold_beta": HUGE})
@example({"cold_beta": -HUGE})
@example({"cold_expert_top_k": HUGE})
@example({"cold": HUGE})
@example({"cold_stream": {"alpha": 0.1}})
def test_junk_is_refused_or_in_range(args: dict[str, Any]) -> None:
    """No other exception comes out, and nothing out of range gets through."""
    try:
        parsed = parse_request_args(args)
    except ColdError as error:
        assert error.field in args
        assert str(error).startswith(error.field)
        return
    assert set(args) <= {"cold", "cold_alpha", "cold_beta", "cold_expert_top_k", "cold_amateur"}
    merged = parsed.settings(ColdSettings())
    assert 0 < merged.alpha <= 1
    assert 0 <= merged.beta <= 1e6
    assert merged.expert_top_k is None or 1 <= merged.expert_top_k < 2**31
    assert parsed.amateur is None or parsed.amateur


@hypothesis_settings(deadline=None)
@given(JUNK)
def test_junk_engine_defaults(config: Any) -> None:
    try:
        parsed = parse_engine_defaults(config)
    except ColdError as error:
        assert "additional_config" in str(error)
        return
    assert config is None or isinstance(config, (bool, dict))
    assert isinstance(parsed, EngineDefaults)


def test_unknown_keys() -> None:
    with pytest.raises(ColdError, match=r"^cold_alhpa=0.1: unknown key, allowed are cold, cold_a"):
        parse_request_args({"cold_alhpa": 0.1})
    with pytest.raises(ColdError, match=r"\['betta'\]=1: unknown key, allowed are enabled, alpha"):
        parse_engine_defaults({"betta": 1})
    # A request may not bring the internal description along.
    with pytest.raises(ColdError, match="^cold_stream="):
        parse_request_args({"cold_stream": {}})


@pytest.mark.parametrize("args", [None, {}, {"x": 1, "scold": 2, 3: 4}])
def test_nothing_said(args: Any) -> None:
    assert parse_request_args(args) == RequestArgs()


@pytest.mark.parametrize("value", [1, True, 1.0])
def test_switched_on(value: Any) -> None:
    assert parse_request_args({"cold": value}) == RequestArgs(enabled=True)


@pytest.mark.parametrize("value", [0, False, 0.0])
def test_switched_off(value: Any) -> None:
    assert parse_request_args({"cold": value, "cold_beta": 1}) == RequestArgs(False, beta=1.0)


@pytest.mark.parametrize("value", [2, -1, 0.5, math.nan, "1", "true", None, [], HUGE], ids=name_of)
def test_not_a_switch(value: Any) -> None:
    with pytest.raises(ColdError) as raised:
        parse_request_args({"cold": value})
    check_error(raised.value, "cold", value, "must be 0 or 1 (false or true)")
    with pytest.raises(ColdError, match="0 or 1"):
        parse_engine_defaults({"enabled": value})


def test_any_key_asks_for_cold() -> None:
    assert parse_request_args({"cold_alpha": 0.2}) == RequestArgs(True, alpha=0.2)
    assert parse_request_args({"cold_amateur": "b"}) == RequestArgs(True, amateur="b")


@pytest.mark.parametrize("value", ["", None, 1, ["a"]])
def test_bad_amateur(value: Any) -> None:
    with pytest.raises(ColdError) as raised:
        parse_request_args({"cold_amateur": value})
    check_error(raised.value, "cold_amateur", value, "must be the name of a loaded adapter")


def test_defaults() -> None:
    assert ColdSettings() == ColdSettings(DEFAULT_ALPHA, DEFAULT_BETA, None)
    assert parse_engine_defaults(None) == EngineDefaults(False)
    assert parse_engine_defaults(False) == EngineDefaults(False)
    assert parse_engine_defaults(True) == EngineDefaults(True)
    assert parse_engine_defaults({}) == EngineDefaults(True)
    assert parse_engine_defaults({"enabled": False, "alpha": 0.3}) == EngineDefaults(
        False, ColdSettings(alpha=0.3)
    )


@pytest.mark.parametrize("config", [1, 0.5, "cold", ["alpha"]])
def test_engine_defaults_of_the_wrong_type(config: Any) -> None:
    with pytest.raises(ColdError, match=r'additional_config\["cold"\]=.*must be a mapping of'):
        parse_engine_defaults(config)


def test_the_request_wins_over_the_engine() -> None:
    engine = parse_engine_defaults({"alpha": 0.3, "beta": 2, "expert_top_k": 9}).settings
    assert parse_request_args({"cold": 1}).settings(engine) == ColdSettings(0.3, 2.0, 9)
    asked = parse_request_args({"cold_beta": 0, "cold_expert_top_k": 4})
    # 0 is a value, not "not given".
    assert asked.settings(engine) == ColdSettings(0.3, 0.0, 4)
    assert engine == ColdSettings(0.3, 2.0, 9)


def test_settings_are_frozen_values() -> None:
    settings = ColdSettings()
    with pytest.raises(AttributeError):
        settings.alpha = 0.2  # type: ignore[misc]
    assert hash(settings) == hash(ColdSettings())
