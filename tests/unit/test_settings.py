# SPDX-License-Identifier: Apache-2.0
"""Every wrong setting is refused with the field, the value and what is allowed."""

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams

from vllm_cold import Amateur, ColdParams
from vllm_cold.errors import ColdError
from vllm_cold.ops.interface import MAX_STREAMS
from vllm_cold.rules import Parameter, Rule, registry
from vllm_cold.rules.registry import BUILT_IN, get, names
from vllm_cold.settings.arguments import (
    ColdArgs,
    check_placement,
    parse_engine_defaults,
    parse_request_args,
)
from vllm_cold.settings.presets import PRESETS
from vllm_cold.settings.table import (
    CONTRAST,
    DEFAULT_BETA,
    ENGINE,
    MAX_AMATEURS,
    REQUEST_KEYS,
    SETTINGS,
    ColdSettings,
    combine,
)
from vllm_cold.wire.stream import without_cold

pytestmark = pytest.mark.unit

HUGE = 10**400  # no float holds it
MANY = "[" * 100_000  # deeper than a parser goes
BAD: dict[str, list[Any]] = {
    "alpha": [-1e-9, 1.0000001, math.nan, -math.inf, HUGE, None, True, "0.1", [0.1], 1j],
    "beta": [-1e-9, 1000001, math.nan, math.inf, HUGE, -HUGE, None, True, "mti", b"mti", {}],
    "rule": [0.5, HUGE, True, b"mti", ["mti"], {}],
    "rule_parameters": [0.5, [["tau", 1]], b"{}", {1: 2.0}, "", "tau=1", "[1]", '"tau"', MANY],
    "expert_top_k": [0, 1.0, 2.5, math.nan, HUGE, 2**31, True, "1", [1]],
    "amateur": [1, True, [None], {"a": 1}, b"a", [["a"]]],
    "amateur_prompt": [1, [1]],
    "amateur_messages": [1, [{"role": "user"}]],
    "without": [1.5, True, [1.5], {}, [["system"]]],
    "part": [1, True, [1.5], [[1, 2]]],
    "images": [1, [1]],
    "weights": [math.nan, 1e9, HUGE, True, [1e9], [None], [[1.0]]],
    "preset": ["", "CAD", "cad\n", 1, ["cad"]],
}
GOOD: dict[str, list[Any]] = {
    "alpha": [0, -0.0, 5e-324, 0.1, 1],
    "beta": [0, 0.5, 1e6],
    "rule": [*BUILT_IN],
    "expert_top_k": [1, 2**31 - 1],
}


def settings(args: dict[str, Any], engine: ColdArgs | None = None) -> ColdSettings:
    """Those of a request in an engine."""
    return parse_request_args(args).settings(engine or ColdArgs())[0]


def said_by(**values: Any) -> dict[str, Callable[[], ColdSettings]]:
    """The settings of Python's parameters, of a request and of an engine that say the same, by what
    is in front of names in errors.
    """
    return {
        "": lambda: ColdParams(**values).combine()[0],
        "cold_": lambda: settings({f"cold_{name}": value for name, value in values.items()}),
        'additional_config["cold"].': lambda: parse_engine_defaults(values).settings()[0],
    }


def check_error(error: ColdError, field: str, value: Any, allowed: str) -> None:
    assert isinstance(error, ValueError)
    assert error.field == field and error.value is value
    assert str(error).startswith(f"{field}=") and str(error).endswith(f": {allowed}")
    assert repr(value)[:45] in str(error)


def each(values: dict[str, list[Any]]) -> Any:
    """A test of each value of each name."""
    pairs = [(name, value) for name, several in values.items() for value in several]
    ids = [f"{name}-{i}" for name, several in values.items() for i in range(len(several))]
    return pytest.mark.parametrize(("name", "value"), pairs, ids=ids)


@each(BAD)
def test_bad_values(name: str, value: Any) -> None:
    """In Python, of a request and of an engine."""
    readers = {f"cold_{name}": lambda: parse_request_args({"cold": 1, f"cold_{name}": value})}
    if name in SETTINGS:
        readers[name] = lambda: ColdParams(**{name: value})
    if name in ENGINE:
        where = f'additional_config["cold"]["{name}"]'
        readers[where] = lambda: parse_engine_defaults({name: value})
    for field, read_it in readers.items():
        with pytest.raises(ColdError) as raised:
            read_it()
        check_error(raised.value, field, value, {**SETTINGS, **CONTRAST}[name].allowed)


@each(GOOD)
def test_good_values(name: str, value: Any) -> None:
    args = parse_request_args({f"cold_{name}": value})
    assert args == ColdArgs(True, {name: value})
    kind = str if isinstance(value, str) else int if name == "expert_top_k" else float
    assert type(args.values[name]) is kind
    defaults = parse_engine_defaults({name: value})
    assert defaults.enabled and getattr(defaults.settings()[0], name) == value


NO_RULES = ["", "0.1", "Adaptive", "adaptive,mti", "\ud800", "os:system", "../acd", "acd:ACD"]


@pytest.mark.parametrize("name", NO_RULES)
def test_a_request_names_rules_and_no_code(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is imported for a name that is no rule's."""
    monkeypatch.setattr(importlib, "import_module", None)
    allowed = f"the name of a rule: {', '.join(names())}"
    assert set(BUILT_IN) <= set(names())
    for field, read_it in (
        ("rule", lambda: ColdParams(rule=name)),
        ("rule", lambda: combine({"rule": name})),
        ("cold_rule", lambda: parse_request_args({"cold_rule": name})),
        ('additional_config["cold"]["rule"]', lambda: parse_engine_defaults({"rule": name})),
        ("weight", lambda: Amateur(weight=name)),
        ("cold_weights", lambda: parse_request_args({"cold_weights": name})),
        ("cold_weights", lambda: parse_request_args({"cold_weights": ["", -0.5, name or "?"]})),
    ):
        with pytest.raises(ColdError) as raised:
            read_it()
        assert raised.value.field == field
        assert raised.value.value == name or not name
        or_number = "" if "rule" in field else "a number, or "
        assert str(raised.value).endswith(f": must be {or_number}{allowed}")


def test_only_an_engine_names_code() -> None:
    """And what is no rule stops its start."""
    with pytest.raises(ColdError, match="^cold_rules=.*: unknown key"):
        parse_request_args({"cold_rules": ["os:system"]})
    said = "^rules='os:system': cannot be used as a rule.*no subclass of vllm_cold.rules.Rule"
    with pytest.raises(ColdError, match=said):
        parse_engine_defaults({"rules": ["os:system"]})
    for wrong in ("os:system", [1], {"os": "system"}):
        with pytest.raises(ColdError, match=r'\["rules"\]=.*: must be a list of "module:Class"'):
            parse_engine_defaults({"rules": wrong})


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.sampled_from(["adaptive", "mti", '{"beta_max": 2}', '{"tau": 0.5}']),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
NAMES = ["cold", *(f"cold_{name}" for name in (*SETTINGS, *CONTRAST)), "cold_explain"]
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
    for key in ("Cold_beta", "COLD", "cold_alhpa", "cold_stream", "cold_asked"):
        with pytest.raises(ColdError, match=f"^{key}=3: unknown key, allowed are cold, cold_alpha"):
            parse_request_args({key: 3})
    with pytest.raises(
        ColdError, match=r"\['betta'\]=1: unknown key, allowed are enabled, rules, "
    ):
        parse_engine_defaults({"betta": 1})


@hypothesis_settings(deadline=None)
@given(st.dictionaries(KEYS, JUNK, max_size=4))
@example({"cold": HUGE})
@example({"cold_rule": "mti", "cold_rule_parameters": {"tau": HUGE}})
@example({"cold_rule": "mti", "cold_rule_parameters": '{"tau": NaN}'})
def test_junk_is_refused_or_in_range(args: dict[str, Any]) -> None:
    """No other exception comes out, and nothing out of range gets through."""
    try:
        parsed = parse_request_args(args)
        merged, weights = parsed.settings(ColdArgs())
    except ColdError as error:
        assert error.field in args or error.field.partition("[")[0] in args
        assert str(error).startswith(error.field)
        return
    assert set(args) <= set(NAMES)
    assert 0 <= merged.alpha <= 1
    if merged.rule is None:
        assert 0 <= merged.beta <= 1e6 and weights == (-merged.beta,)
        assert merged.rule_parameters is None
    else:
        parameters = get(merged.rule).parameters
        assert weights == (None,) and merged.rule_parameters is not None
        assert merged.rule_parameters.keys() == parameters.keys()
        for name, number in merged.rule_parameters.items():
            assert parameters[name].low <= number <= parameters[name].high
    assert merged.expert_top_k is None or 1 <= merged.expert_top_k < 2**31
    for name in CONTRAST:
        value = parsed.values.get(name)
        assert value == args.get(f"cold_{name}"), "what is allowed is not changed"


def test_whether_cold_is_asked_for() -> None:
    for args in (None, {}, {"x": 1, "scold": 2, 3: 4}):
        assert parse_request_args(args) == ColdArgs()  # type: ignore[arg-type]
    for value in (1, True, 1.0):
        assert parse_request_args({"cold": value}) == ColdArgs(enabled=True)
    for value in (0, False, 0.0):
        off = parse_request_args({"cold": value, "cold_beta": 1})
        assert off == ColdArgs(False, {"beta": 1.0})
    for wrong in (2, -1, 0.5, math.nan, "1", "true", None, [], HUGE):
        with pytest.raises(ColdError) as raised:
            parse_request_args({"cold": wrong})
        check_error(raised.value, "cold", wrong, "must be 0 or 1 (false or true)")
        if wrong == 2:
            continue
        with pytest.raises(ColdError, match="^cold_explain=.*from 0 to 64"):
            parse_request_args({"cold_explain": wrong})
        with pytest.raises(ColdError, match="^explain=.*from 0 to 64"):
            ColdParams(explain=wrong)
        with pytest.raises(ColdError, match="0 or 1"):
            parse_engine_defaults({"enabled": wrong})
    assert parse_request_args({"cold_explain": 64}) == ColdArgs(True, {"explain": 64})
    # Any key asks for it.
    assert parse_request_args({"cold_alpha": 0.2}) == ColdArgs(True, {"alpha": 0.2})
    assert parse_request_args({"cold_explain": 0}).enabled is None  # asks for nothing
    assert parse_request_args({"cold_rule": None}) == ColdArgs(True)
    assert parse_request_args({"cold_amateur": "b"}) == ColdArgs(True, {"amateur": "b"})


def test_defaults() -> None:
    for said, enabled in ((None, False), (False, False), (True, True), ({}, True)):
        assert parse_engine_defaults(said) == ColdArgs(enabled)
    defaults = parse_engine_defaults({"enabled": False, "alpha": 0.3})
    assert defaults == ColdArgs(False, {"alpha": 0.3})
    assert defaults.settings()[0] == ColdSettings(alpha=0.3)
    for wrong in (1, 0.5, "cold", ["alpha"]):
        with pytest.raises(ColdError, match=r'additional_config\["cold"\]=.*must be a mapping of'):
            parse_engine_defaults(wrong)


MTI = {"beta": 0.5, "tau": 1.0}
ADAPTIVE = {"rule": "adaptive", "rule_parameters": {"beta_max": 2}}
UP_TO_3 = {"rule_parameters": {"beta_max": 3}}
SERVER = {"alpha": 0.3, "beta": 2, "expert_top_k": 9}
TWO = {"rule": "two", "rule_parameters": '{"token": 7}'}
OF_RULE = "cold_rule_parameters"
NEEDS_TWO = "this rule chooses the weights of 2"


def ruled(rule: str, alpha: float = 0.1, **parameters: float) -> dict[str, Any]:
    return {"alpha": alpha, "rule": rule, "rule_parameters": parameters}


def fixed(alpha: float, beta: float, **more: Any) -> dict[str, Any]:
    return {"alpha": alpha, "beta": beta, **more}


# What an engine says, what a request says, the amateurs' weights, and the settings and weights of
# it, or the error.
LAYERS: list[tuple[dict[str, Any], dict[str, Any], list[Any], Any]] = [
    (SERVER, {}, [None], (fixed(0.3, 2.0, expert_top_k=9), (-2.0,))),
    # 0 is a value, not "not given".
    (SERVER, {"beta": 0}, [None], (fixed(0.3, 0.0, expert_top_k=9), (0.0,))),
    (SERVER, {"expert_top_k": 4}, [None], (fixed(0.3, 2.0, expert_top_k=4), (-2.0,))),
    # beta is what an amateur without a weight has; a rule chooses where None is left.
    ({}, {"beta": 2}, [None, 0.5, -3], (fixed(0.1, 2.0), (-2.0, 0.5, -3.0))),
    ({}, {"rule": "mti"}, [None, 1, "mti"], (ruled("mti", **MTI), (None, 1.0, None))),
    (
        {},
        {"beta": 2, **UP_TO_3},
        [None, "adaptive"],
        (ruled("adaptive", beta_max=3.0), (-2.0, None)),
    ),
    ({}, {"beta": 1.0}, [-0.5, 0.5], "cold_beta=1.0: no amateur uses it"),
    ({}, {"rule": "mti"}, ["mti"], "cold_rule='mti': no amateur uses it"),
    # The engine's is nobody's mistake, nor is a preset's.
    (ADAPTIVE, {}, [-0.5], (fixed(0.1, 0.5), (-0.5,))),
    ({}, {"preset": "adacad"}, [-0.5], (fixed(0.0, 0.5), (-0.5,))),
    # A rule's parameters go with it: to the same rule, if nothing nearer has a word for it.
    *(
        (ADAPTIVE, request, [None], (ruled("adaptive", beta_max=number), (None,)))
        for request, number in (
            ({}, 2.0),
            ({"rule": "adaptive"}, 2.0),
            (UP_TO_3, 3.0),
            ({"rule": "adaptive", **UP_TO_3}, 3.0),
        )
    ),
    (ADAPTIVE, {}, ["adaptive"], (ruled("adaptive", beta_max=2.0), (None,))),
    (ADAPTIVE, {}, ["mti", 0.5], (ruled("mti", **MTI), (None, 0.5))),
    (ADAPTIVE, {"beta": 0}, [None], (fixed(0.1, 0.0), (0.0,))),
    (ADAPTIVE, {"rule": "arr"}, [None], (ruled("arr", beta_max=1.0), (None,))),
    (ADAPTIVE, {"preset": "adacad"}, [None], (ruled("adaptive", 0.0, beta_max=1.0), (None,))),
    (ADAPTIVE, {"preset": "mti"}, [None], (ruled("mti", 0.0, **MTI), (None,))),
    *(
        (
            engine,
            request,
            weights,
            f"{OF_RULE}={{'beta_max': 3}}: is for a rule, and beta is {beta}",
        )
        for engine, request, weights, beta in (
            (ADAPTIVE, {"beta": 1, **UP_TO_3}, [None], 1),
            ({"beta": 2}, UP_TO_3, [None], 2),
            ({}, {"beta": 2, **UP_TO_3}, [None, -1], 2),
            ({}, {"preset": "adacad", **UP_TO_3}, [-0.5], 0.5),
        )
    ),
    ({"beta": 2}, ADAPTIVE, [None], (ruled("adaptive", beta_max=2.0), (None,))),
    ({"beta": 2}, {"rule": "adaptive"}, [None], (ruled("adaptive", beta_max=1.0), (None,))),
    *(
        (
            {},
            {"preset": "adacad", **UP_TO_3},
            weights,
            (ruled("adaptive", 0.0, beta_max=3.0), (None,)),
        )
        for weights in ([None], ["adaptive"])
    ),
    ({}, {"preset": "adacad", "rule": "mti"}, [None], (ruled("mti", 0.0, **MTI), (None,))),
    (
        {},
        {"preset": "mti", "rule_parameters": {"tau": 2}},
        [None],
        (ruled("mti", 0.0, beta=0.5, tau=2.0), (None,)),
    ),
    *(
        (engine, {"rule": "mti"}, [None, 2.0], (ruled("mti", **MTI), (None, 2.0)))
        for engine in ({}, {"beta": 2}, {"rule": "acd"})
    ),
    ({"rule": "acd"}, {"beta": 0.25}, [None], (fixed(0.1, 0.25), (-0.25,))),
    (
        {},
        {"rule": "mti"},
        [None, "acd"],
        "cold_weights=[None, 'acd']: names acd and mti; a request",
    ),
    ({}, {}, ["mti", -0.5, "acd"], "cold_weights=['mti', -0.5, 'acd']: names acd and mti; a reque"),
    *(
        (
            {},
            {"rule": rule, "rule_parameters": {name: number}},
            [None],
            f"{OF_RULE}[{name!r}]={number}",
        )
        for rule, name, number in (
            ("mti", "taw", 1.0),
            ("acd", "beta_max", 1.0),
            ("mti", "tau", -1),
        )
    ),
    # A rule never meets another number of amateurs than its own.
    ({}, TWO, [None] * 2, (ruled("two", token=7.0), (None,) * 2)),
    ({}, {}, ["two", "two"], f"{OF_RULE}={{}}: rule 'two' needs token"),
    *(
        ({}, TWO, weights, f"cold_rule='two': {NEEDS_TWO}")
        for weights in ([None], [None] * 3, [None, -0.5], [None, None, -0.5])
    ),
    ({}, {"rule_parameters": {"token": 7}}, ["two", None], f"cold_weights='two': {NEEDS_TWO}"),
]


class Two(Rule):
    """For two amateurs, with a parameter that has no default."""

    name = "two"
    parameters = {"token": Parameter(None, 0, 9, integer=True)}
    amateurs = 2


@pytest.mark.parametrize(("engine", "request_", "weights", "wanted"), LAYERS)
def test_an_engine_a_preset_and_a_request(
    engine: dict[str, Any],
    request_: dict[str, Any],
    weights: list[Any],
    wanted: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The nearer word counts."""
    monkeypatch.setitem(registry._added, "two", Two())
    defaults = parse_engine_defaults(engine)
    args = parse_request_args({"cold": 1} | {f"cold_{name}": v for name, v in request_.items()})
    if isinstance(wanted, str):
        with pytest.raises(ColdError) as raised:
            args.settings(defaults, weights)
        assert str(raised.value).startswith(wanted)
        return
    found, numbers = args.settings(defaults, weights)
    assert (found.as_dict(), numbers) == wanted


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_in_a_request_and_in_an_engine(name: Any) -> None:
    """What it says wins over what comes from further away, and nothing nearer."""
    preset, engine = PRESETS[name], parse_engine_defaults({"alpha": 0.31, "beta": 2})
    wanted = combine(preset.settings)[0]
    assert settings({"cold_preset": name}) == wanted
    assert settings({"cold_preset": name}, engine).alpha == wanted.alpha
    if name == "bound":
        with pytest.raises(ColdError, match="cold_alpha=0.25: the rule 'bound' says all of the"):
            settings({"cold_preset": name, "cold_alpha": 0.25}, engine)
    else:
        assert settings({"cold_preset": name, "cold_alpha": 0.25}, engine).alpha == 0.25
    default: dict[str, Any] = {"preset": name}
    if preset.weights:
        with pytest.raises(ColdError, match=rf"\[.preset.\]='{name}': needs amateurs that"):
            parse_engine_defaults(default)
        return
    if preset.images is not None:
        with pytest.raises(ColdError, match=r"\[.without.\]='user': the preset vcd says"):
            parse_engine_defaults({**default, "without": "user"})
    elif preset.own_prompt:
        with pytest.raises(ColdError, match=r"\[.preset.\]='.*': contrasts with another"):
            parse_engine_defaults(default)
        assert not parse_engine_defaults({**default, "enabled": False}).enabled
        default["without"] = "system"
    engine = parse_engine_defaults(default)
    assert settings({"cold": 1}, engine) == engine.settings()[0] == wanted
    # A number has no use for a rule's parameters, neither in the engine nor in a request.
    number = {**default, "alpha": 0.5, "beta": 0.25}
    if name == "bound":  # which is no limit then
        with pytest.raises(ColdError, match=r"\[.preset.\]='bound': is a rule, and beta, weights"):
            parse_engine_defaults(number)
    else:
        assert parse_engine_defaults(number).settings()[0] == ColdSettings(0.5, 0.25)
    assert settings({"cold_beta": 0.25}, engine) == ColdSettings(wanted.alpha, 0.25)


@pytest.mark.parametrize(
    ("values", "field", "why"),
    [
        ({"rule": "mti", "beta": 0.25}, "rule", "chooses the strength, and {}beta is 0.25; leave"),
        *(
            (
                {"rule_parameters": {"tau": 2.0}, **beta},
                "rule_parameters",
                f"is for a rule, and beta is {beta.get('beta', DEFAULT_BETA)}; leave it out or set "
                "{}rule",
            )
            for beta in ({}, {"beta": 0.25})
        ),
    ],
)
def test_what_does_not_fit_together(values: dict[str, Any], field: str, why: str) -> None:
    """Wherever the two meet; never left out of account in silence."""
    for prefix, read_it in said_by(**values).items():
        with pytest.raises(ColdError) as raised:
            read_it()
        start = f"{prefix}{field}={values[field]!r}: {why.format(prefix)}"
        assert str(raised.value).startswith(start)


def test_parameters_of_a_rule() -> None:
    """A mapping, or its JSON text; what is left out has its default."""
    for said in ({"tau": 2.0, "beta": 0}, {}):
        wanted = {**MTI, **said}
        for value in (said, f" {json.dumps(said)}\n"):
            of_weights = combine({"rule_parameters": value}, ["mti", -1.0])[0]
            found = [read_it() for read_it in said_by(rule="mti", rule_parameters=value).values()]
            for each in (*found, of_weights):
                assert each.as_dict() == {"alpha": 0.1, "rule": "mti", "rule_parameters": wanted}
    assert settings({"cold_rule": "acd"}).as_dict() == {"alpha": 0.1, "rule": "acd"}


def test_one_declaration() -> None:
    """Everything that names the settings names these, with their defaults."""
    fields = {f.name: f.default for f in msgspec.structs.fields(ColdParams)}
    own = {n: d for n, d in fields.items() if n not in SamplingParams.__struct_fields__}
    assert list(own) == [*SETTINGS, "amateur", "amateurs", "explain", "method"]
    assert {name: own[name] for name in ("alpha", "beta")} == ColdSettings().as_dict()
    assert list(REQUEST_KEYS) == NAMES
    assert MAX_AMATEURS == MAX_STREAMS - 1
    assert all(set(preset.settings) <= set(SETTINGS) for preset in PRESETS.values())


def test_the_documented_settings() -> None:
    """docs/reference/parameters.md has a row for each, with all its names and its default."""
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "reference" / "parameters.md").read_text()
    for name, setting in SETTINGS.items():
        option = "cold-" + name.replace("_", "-")
        [row] = [line for line in page.splitlines() if f"| `--{option}`, `{option}` |" in line]
        assert f" | `{name}` | `cold_{name}` | `{name}` | " in row
        if name != "rule_parameters":  # whose defaults are the rule's
            limits = {"bits": "no limit", "bits_per_token": "0"}
            default = f"default {limits.get(name) or getattr(ColdSettings(), name) or 'none'}"
            assert f", {default} | " in row and default in setting.about
    for name in CONTRAST:
        option = "cold-" + name.replace("_", "-")
        [row] = [line for line in page.splitlines() if f"| `cold_{name}`" in line]
        assert (f"`--{option}`" in row) == (name in ENGINE)
    for name in ENGINE.keys() - SETTINGS.keys() - CONTRAST.keys():
        option = "--cold-" + name.replace("_", "-")
        [row] = [line for line in page.splitlines() if f"`{option}`" in line]
        assert f"| `{name}`" in row and ENGINE[name].about.split("default ")[1].rstrip(".") in row
    for name in PRESETS:
        assert f"| `{name}` |" in (docs / "parameters.md").read_text()
