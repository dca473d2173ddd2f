# SPDX-License-Identifier: Apache-2.0
"""Rules: the built-in ones and ``naive_rules`` against numbers worked out by hand and against each
other, and what others' may not do.
"""

import importlib.metadata
import math
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import naive_rules
from vllm_cold.errors import ColdError
from vllm_cold.ops.interface import Groups
from vllm_cold.rules import Choice, Parameter, Rule, registry
from vllm_cold.rules.check import checked
from vllm_cold.rules.statistics import Statistics
from vllm_cold.rules.trial import try_out

pytestmark = pytest.mark.unit

VOCABULARY = 60
# By which random logits fall on both sides of a gate.
PARAMETERS: dict[str, dict[str, float]] = {
    "adaptive": {"beta_max": 2.5},
    "arr": {"beta_max": 3.0},
    "acd": {},
    "cocoa": {"gamma": 1.5},
    "grd": {"lam": 0.6},
    "judge": {"token": 7.0, "threshold": 0.01, "beta": 1.5},
    "m3id": {"gamma": 0.3, "threshold": 0.4},
    "mti": {"beta": 2.0, "tau": 1.5},
}

EVEN_2, EVEN_4 = (1 / 2, 1 / 2), (1 / 4,) * 4
LOW, HIGH = (3 / 4, 1 / 4), (1 / 4, 3 / 4)
SURE, OTHER = (1.0, 0.0), (0.0, 1.0)
SURE_4, HALF_4 = (1.0, 0.0, 0.0, 0.0), (1 / 2, 1 / 2, 0.0, 0.0)
PEAK_4 = (0.97, 0.01, 0.01, 0.01)
# Rule, distributions of expert and amateur, settings, weight.
HAND: list[tuple[str, tuple[float, ...], tuple[float, ...], dict[str, Any], float]] = [
    # 3/4 log2 (3/2) + 1/4 log2 (1/2), twice, halved
    ("adaptive", LOW, HIGH, {}, -0.188722),
    ("adaptive", LOW, HIGH, {"beta_max": 3.0}, -0.566166),
    ("adaptive", LOW, LOW, {}, 0.0),
    # 1/2 1/2 against 3/4 1/4 is .048795; .3 / .6 of it
    ("adaptive", (0.4, 0.4, 0.2), (0.3, 0.1, 0.6), {"alpha": 0.9}, -0.0243975),
    ("adaptive", LOW, HIGH, {"alpha": 0.9}, 0.0),
    ("adaptive", (0.4, 0.4, 0.2), (0.0, 0.0, 1.0), {"alpha": 0.9}, 0.0),
    # (1/2 log2 (2/3) + 1/2 log2 2 + log2 (4/3)) / 2
    ("arr", SURE, EVEN_2, {}, -0.311278),
    ("arr", EVEN_2, SURE, {}, 0.311278),
    ("arr", EVEN_2, SURE, {"beta_max": 2.0}, 0.622556),
    ("arr", LOW, HIGH, {}, 0.188722),  # as sure as the other
    ("arr", SURE, OTHER, {"alpha": 0.9}, 1.0),
    # 2 bits of 2 + 1; 1 of 1 + .811278
    ("acd", EVEN_4, HALF_4, {}, 2 / 3),
    ("acd", EVEN_2, LOW, {}, 0.552096),
    ("acd", EVEN_2, SURE, {}, 1.0),
    ("acd", SURE, EVEN_2, {}, 0.0),
    ("acd", SURE, OTHER, {}, 0.0),
    # 1 / (1 + e^-1); 1 / (1 + e^(ln 4 - 1)); sum q / p is 1.11, H_p .325083
    ("cocoa", EVEN_4, EVEN_4, {}, -0.731059),
    ("cocoa", EVEN_4, SURE_4, {}, -0.404610),
    ("cocoa", (0.9, 0.1), SURE, {}, -0.419437),
    ("cocoa", PEAK_4, EVEN_4, {}, -0.9),
    ("cocoa", SURE, OTHER, {"gamma": 0.5}, 0.5 - 0.622459),  # 1 / (1 + e^-.5)
    # ln 4 = 1.386, ln 2 = .693
    ("mti", EVEN_4, SURE_4, {}, -0.5),
    ("mti", EVEN_2, SURE, {}, 0.0),
    ("mti", EVEN_2, SURE, {"tau": 0.69, "beta": 2.0}, -2.0),
    ("mti", EVEN_2, SURE, {"tau": 0.70, "beta": 2.0}, 0.0),
    ("m3id", EVEN_4, SURE_4, {}, -0.0202013),
    ("m3id", EVEN_4, SURE_4, {"step": 49}, -1.7182818),
    ("m3id", EVEN_2, SURE, {"step": 49}, 0.0),
    ("m3id", EVEN_2, SURE, {"step": 9, "threshold": 0.6, "gamma": 0.1}, -1.7182818),
    # ln 8 / (ln 8 + ln 5/3) = .802790
    ("grd", (0.5, 0.3, 0.2), (0.1, 0.8, 0.1), {}, 0.799302),
    ("grd", (0.5, 0.3, 0.2), (0.1, 0.8, 0.1), {"lam": 0.0}, 0.197210),
    ("grd", (0.5, 0.3, 0.2), (0.1, 0.8, 0.1), {"lam": 1.0}, 1.0),
    ("grd", (0.4, 0.3, 0.3), (0.1, 0.49, 0.41), {}, 0.0),  # not sure enough
    ("grd", (0.98, 0.01, 0.01), (0.2, 0.8, 0.0), {}, 0.0),  # less sure than the expert
    ("grd", (0.3, 0.6, 0.1), (0.1, 0.8, 0.1), {}, 0.0),  # agree
    ("grd", (0.6, 0.0, 0.4), (0.1, 0.8, 0.1), {}, 0.9926414),  # ln 8 / (ln 8 + ln .6e30)
    ("grd", (0.5, 0.3, 0.2), (0.0, 0.8, 0.2), {}, 0.7518411),  # ln .8e30 / (ln .8e30 + ln 5/3)
    ("grd", (0.6, 0.0, 0.4), (0.0, 0.8, 0.2), {}, 0.8747383),
]


def logits_of(*distributions: tuple[float, ...]) -> Tensor:
    """[S, V]; any shift leaves a distribution as it is."""
    p = torch.tensor(distributions, dtype=torch.float64)
    # What the expert cannot say at all, amateurs are not asked about.
    return p.clamp(min=1e-30).log() + torch.arange(len(p)).unsqueeze(1)


def naive(
    name: str,
    *distributions: tuple[float, ...],
    alpha: float = 0.0,
    step: int = 0,
    memory: dict[str, Any] | None = None,
    **parameters: float,
) -> list[float]:
    p = torch.tensor(distributions[0])
    rows = list(logits_of(*distributions))
    memory = {} if memory is None else memory
    return naive_rules.weights(name, parameters, rows, p >= alpha * p.max(), step, memory)


def asked(
    rule: Rule,
    logits: Tensor,
    parameters: dict[str, float],
    *,
    log_alpha: float = -math.inf,
    cap: int = 0,
    step: int = 0,
    state: Tensor | None = None,
) -> Choice:
    """What a rule says of groups [G, S, V]."""
    groups, streams, vocabulary = logits.shape
    given = {name: of.least() for name, of in rule.parameters.items()} | parameters
    p = types.SimpleNamespace(**{n: torch.full((groups, 1), v) for n, v in given.items()})
    statistics = Statistics(
        logits.reshape(-1, vocabulary).float(),
        Groups(
            torch.arange(groups * streams).view(groups, streams),
            torch.zeros(groups, streams - 1),
            torch.full((groups,), log_alpha),
            torch.full((groups,), cap) if cap else None,
            cap,
        ),
        torch.full((groups,), step),
        torch.zeros(groups, streams - 1, rule.state) if state is None else state,
    )
    return checked(rule, rule.weights(statistics, p), groups, streams)


@pytest.mark.parametrize(("name", "p", "q", "settings", "want"), HAND)
def test_by_hand(
    name: str, p: tuple[float, ...], q: tuple[float, ...], settings: dict[str, Any], want: float
) -> None:
    assert naive(name, p, q, **settings) == [pytest.approx(want, rel=3e-6, abs=1e-12)]
    alpha, step = settings.get("alpha", 0.0), settings.get("step", 0)
    parameters = {name: v for name, v in settings.items() if name not in ("alpha", "step")}
    log_alpha = math.log(alpha) if alpha else -math.inf
    found = asked(
        registry.get(name), logits_of(p, q)[None], parameters, log_alpha=log_alpha, step=step
    )
    assert found.weights.item() == pytest.approx(want, rel=2e-4, abs=4e-5)


def test_grd_decides_once() -> None:
    """And at the first step at which the best tokens differ; each amateur by itself."""
    agreeing, conflict = (0.3, 0.6, 0.1), (0.5, 0.3, 0.2)
    sure, unsure = (0.1, 0.8, 0.1), (0.3, 0.5, 0.2)
    trusted = pytest.approx(0.799302, rel=1e-5)
    prior: dict[str, Any] = {}
    assert naive("grd", agreeing, sure, memory=prior) == [0.0]
    assert naive("grd", conflict, sure, memory=prior) == [trusted]
    assert naive("grd", agreeing, sure, memory=prior) == [0.0]
    assert naive("grd", conflict, unsure, memory=prior) == [pytest.approx(0.875)]  # tau 1/2
    assert "done" not in prior
    text: dict[str, Any] = {}
    assert naive("grd", conflict, (0.3, 0.45, 0.25), conflict, memory=text) == [0.0, 0.0]
    assert "done" not in text  # the second has not been asked yet
    assert naive("grd", conflict, sure, sure, memory=text) == [0.0, trusted]
    both: dict[str, Any] = {}
    assert naive("grd", conflict, (0.3, 0.45, 0.25), memory=both) == [0.0]
    assert both["done"]


@pytest.mark.parametrize(("alpha", "cap"), [(0.0, 0), (0.1, 0), (0.02, 5)])
@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_weights_are_the_naive_ones(name: str, alpha: float, cap: int) -> None:
    rule, parameters = registry.get(name), PARAMETERS[name]
    log_alpha = math.log(alpha) if alpha else -math.inf
    memories: list[dict[str, Any]] = [{} for _ in range(40)]
    state, unlike = None, set()
    for step in range(4):
        logits = draw(step)
        choice = asked(
            rule, logits, parameters, log_alpha=log_alpha, cap=cap, step=step, state=state
        )
        state = choice.state
        for group, memory in enumerate(memories):
            expert = logits[group, 0].double()
            valid = (expert >= expert.max() + log_alpha) & (expert > -math.inf)
            if cap:
                valid &= expert >= expert.topk(cap).values[-1]
            want = naive_rules.weights(
                name, parameters, logits[group].double(), valid, step, memory
            )
            assert choice.weights[group].tolist() == pytest.approx(want, rel=2e-4, abs=4e-5)
            unlike.update(round(weight, 4) for weight in want)
            if name == "judge":
                assert choice.done is not None
                assert choice.done[group].tolist() == [not memory["yes"], True]
            elif choice.done is not None:
                done = [bool(own.get("done")) for own in memory["amateurs"]]
                assert choice.done[group].tolist() == done
    assert len(unlike) > (1 if name in ("mti", "judge") else 3)


def draw(seed: int, groups: int = 40, streams: int = 3) -> Tensor:
    """Logits, flat and steep ones, expert and amateurs more or less alike, some of each -inf."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(groups, 1, VOCABULARY, generator=generator)
    own = torch.randn(groups, streams, VOCABULARY, generator=generator)
    scale = torch.rand(groups, 1, 1, generator=generator) * 6 + 0.2
    logits = (common + own * torch.rand(groups, 1, 1, generator=generator)) * scale
    forbidden = torch.rand(groups, streams, VOCABULARY, generator=generator) < 0.1
    return logits.masked_fill(forbidden, -math.inf)


def test_equal_streams_need_no_contrast() -> None:
    logits = draw(3)[:, :1].expand(-1, 2, -1).contiguous()
    for name in ("adaptive", "arr", "grd"):
        assert (asked(registry.get(name), logits, {}, log_alpha=-2.0).weights == 0).all()


def test_a_token_that_the_model_does_not_have_is_never_said() -> None:
    for token, weight in ((VOCABULARY - 1, -0.5), (VOCABULARY, 0.0)):
        choice = asked(registry.get("judge"), draw(1), {"token": float(token), "threshold": 0.0})
        assert (choice.weights[:, 0] == weight).all()


def test_what_grows_without_bound_stays_finite() -> None:
    choice = asked(registry.get("m3id"), draw(1), {"gamma": 10.0, "threshold": 1.0}, step=100_000)
    assert choice.weights.isfinite().all()


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_built_in_rules_pass_their_trial(name: str) -> None:
    rule = registry.get(name)
    try_out(rule)
    assert rule.name == name


# ---- rules of others -------------------------------------------------------------------------


class Half(Rule):
    """Half of the amateur, where it is surer."""

    name = "half"
    parameters = {"most": Parameter(0.5, 0.0, 1.0)}

    def weights(self, s: Statistics, p: Any) -> Tensor:
        return p.most * (s.entropy[:, 1:] < s.entropy[:, :1])


class Same(Half):
    """Of the same name as another one."""


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_added", {})


def test_a_rule_of_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{__name__}:Half"
    rule = registry.add(path)
    assert registry.get("half") is rule is registry.add(path)
    assert "half" in registry.names()
    with pytest.raises(ColdError, match="there is a rule named 'half'"):
        registry.add(f"{__name__}:Same")
    monkeypatch.setattr(Same, "name", "arr", raising=False)
    with pytest.raises(ColdError, match="there is a rule named 'arr'"):
        registry.add(f"{__name__}:Same")


@pytest.mark.parametrize(
    ("weights", "attributes", "why"),
    [
        (lambda s: {}["nothing there"], {}, "nothing there"),
        (lambda s: s.entropy[:, 1:] * math.nan, {}, "not finite"),
        (lambda s: s.entropy, {}, r"\[3, 3\] torch.float32 on .*; must be \[3, 2\]"),
        (lambda s: s.entropy[:, 1:].double(), {}, "must be .* torch.float32"),
        (
            lambda s: Choice(s.entropy[:, 1:], done=s.entropy[:, 1:]),
            {"retires": True},
            "must be .* torch.bool",
        ),
        (lambda s: Choice(s.entropy[:, 1:], done=s.entropy[:, 1:] > 0), {}, "retires is False"),
        (
            lambda s: s.entropy[:, 1:] * (0.5 if s.entropy.max() > 1 else 0.1),
            {},
            "asks for a value of a tensor",
        ),
        (lambda s: s.entropy[:, 1:] * torch.ones(3, 1), {}, "same device|different devices"),
        (
            lambda s: Choice(s.entropy[:, 1:], done=s.entropy[:, 1:] > 0),
            {"retires": True},
            "has a weight behind the step where it was done",
        ),
        (lambda s: s.entropy[:, 1:] - s.entropy[:, 1:].mean(), {}, "depends on the other groups"),
        (lambda s: s.entropy[:, 1:], {"state": 1}, "its state is 1 numbers"),
        (lambda s: s.entropy[:, 1:], {"state": 17}, "its state must be at most 16"),
        (lambda s: s.entropy[:, 1:], {"name": "a b"}, "must be an identifier"),
        (None, {}, "no subclass"),
    ],
)
def test_what_a_rule_must_not_do(
    weights: Any, attributes: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty: Any = Parameter
    if weights is not None:
        body = {"name": "faulty", "weights": lambda self, s, p: weights(s)}
        faulty = type("Faulty", (Half,), body | attributes)
    monkeypatch.setattr(sys.modules[__name__], "Faulty", faulty, raising=False)
    with pytest.raises(ColdError, match=f"(?i){why}"):
        registry.add(f"{__name__}:Faulty")
    assert "faulty" not in registry.names()


def test_rules_of_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is broken concerns those who name it."""
    points = [
        importlib.metadata.EntryPoint(name, where, registry.ENTRY_POINTS)
        for name, where in (
            ("half", f"{__name__}:Half"),
            ("another", f"{__name__}:Half"),
            ("gone", "no_such_module:Rule"),
            ("mti", f"{__name__}:Half"),
        )
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    for cached in (registry._installed, registry._from_package):
        monkeypatch.setattr(registry, cached.__name__, cached.__wrapped__)
    assert isinstance(registry.get("half"), Half)
    assert not isinstance(registry.get("mti"), Half)
    assert {"half", "another", "gone"} < set(registry.names())
    with pytest.raises(ColdError, match="beta='another': the package that offers this rule is bro"):
        registry.get("another")
    with pytest.raises(ColdError, match="no_such_module"):
        registry.get("gone")
    with pytest.raises(ColdError, match="cold_beta='nobody': must be a number, or the name of a r"):
        registry.get("nobody", "cold_beta")


@pytest.mark.parametrize(
    ("name", "given", "why"),
    [
        ("mti", {"taw": 1.0}, r"p\['taw'\]=1.0: rule 'mti' has no such parameter, allowed are: be"),
        ("mti", {"tau": -1.0}, r"p\['tau'\]=-1.0: must be a number from 0 to 100"),
        ("mti", {"tau": math.nan}, "must be a number"),
        ("mti", {"tau": "1"}, "must be a number"),
        ("mti", {"tau": True}, "must be a number"),
        ("judge", {}, r"p=\{\}: rule 'judge' needs token: id of the token"),
        *(
            ("judge", {"token": wrong}, r"p\['token'\]=.*: must be an integer from 0 to 16777215$")
            for wrong in (5.5, -1, 2**24, math.nan, math.inf, 10**400, True, "5")
        ),
    ],
)
def test_parameters_are_checked(name: str, given: dict[str, Any], why: str) -> None:
    with pytest.raises(ColdError, match=why):
        registry.parameters_of(registry.get(name), given, "p")
    assert registry.parameters_of(registry.get("mti"), {"tau": 2}, "p") == {"beta": 0.5, "tau": 2.0}
    for token in (5, 5.0):  # as JSON has it
        assert registry.parameters_of(registry.get("judge"), {"token": token}, "p")["token"] == 5.0


@pytest.mark.parametrize("default", [-0.5, 1.5, math.nan])
def test_a_default_that_is_not_allowed(default: float) -> None:
    with pytest.raises(ValueError, match="default of a parameter, .*, must be a number from 0 to"):
        Parameter(default, 0.0, 1.0)
    with pytest.raises(ValueError, match="must be an integer from 0 to 2"):
        Parameter(default, 0, 2, integer=True)
