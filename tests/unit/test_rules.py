# SPDX-License-Identifier: Apache-2.0
"""Rules: the built-in ones and ``naive_rules`` against numbers worked out by hand and against each
other, and what others' may not do.
"""

import importlib.metadata
import itertools
import math
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import naive_rules
from vllm_cold.errors import ColdError
from vllm_cold.ops.interface import Groups
from vllm_cold.rules import Choice, Parameter, Rule, Scores, registry
from vllm_cold.rules.check import call
from vllm_cold.rules.statistics import Statistics
from vllm_cold.rules.trial import try_out

pytestmark = pytest.mark.unit

WAITED = "it asks for a value of a tensor .* waited for"
ACD, MTI = registry.get("acd"), registry.get("mti")
VOCABULARY = 60
# By which random logits fall on both sides of a gate.
PARAMETERS: dict[str, dict[str, float]] = {
    "adaptive": {"beta_max": 2.5},
    "arr": {"beta_max": 3.0},
    "acd": {},
    "cocoa": {"gamma": 1.5},
    "grd": {"lam": 0.6},
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
    ("adaptive", LOW, HIGH, {"beta_max": 0.5}, -0.094361),
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
    ("arr", LOW, LOW, {}, 0.0),
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
    # 6/8 + 4/2 = 2.75; H_q - H_p + 1 = 1.172609
    ("cocoa", (0.8, 0.2), (0.6, 0.4), {}, -0.763616),
    # ln 4 = 1.386, ln 2 = .693
    ("mti", EVEN_4, SURE_4, {}, -0.5),
    ("mti", EVEN_2, SURE, {}, 0.0),
    ("mti", EVEN_2, SURE, {"tau": 0.69, "beta": 2.0}, -2.0),
    ("mti", EVEN_2, SURE, {"tau": 0.70, "beta": 2.0}, 0.0),
    ("m3id", EVEN_4, SURE_4, {}, -0.0202013),
    ("m3id", EVEN_4, SURE_4, {"step": 49}, -1.7182818),
    ("m3id", EVEN_2, SURE, {"step": 49}, 0.0),
    ("m3id", SURE, EVEN_2, {"step": 49, "threshold": 1.0}, 0.0),
    ("m3id", EVEN_2, SURE, {"step": 9, "threshold": 0.6, "gamma": 0.1}, -1.7182818),
    # ln 8 / (ln 8 + ln 5/3) = .802790
    ("grd", (0.5, 0.3, 0.2), (0.1, 0.8, 0.1), {}, 0.799302),
    ("grd", (0.5, 0.3, 0.2), (0.1, 0.8, 0.1), {"lam": 0.0}, 0.197210),
    ("grd", (0.5, 0.3, 0.2), (0.1, 0.8, 0.1), {"lam": 1.0}, 1.0),
    ("grd", (0.4, 0.3, 0.3), (0.1, 0.49, 0.41), {}, 0.0),  # not sure enough
    ("grd", (0.98, 0.01, 0.01), (0.2, 0.8, 0.0), {}, 0.0),  # less sure than the expert
    ("grd", (0.3, 0.6, 0.1), (0.1, 0.8, 0.1), {}, 0.0),  # agree
    ("grd", LOW, LOW, {}, 0.0),
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
    caps: Sequence[int] = (),
    step: int = 0,
    state: Tensor | None = None,
) -> Choice:
    """What a rule says of groups [G, S, V]."""
    groups, streams, vocabulary = logits.shape
    given = registry.parameters_of(rule, parameters, "parameters", streams - 1)
    p = types.SimpleNamespace(**{n: torch.full((groups, 1), v) for n, v in given.items()})
    statistics = Statistics(
        logits.reshape(-1, vocabulary).float(),
        Groups(
            torch.arange(groups * streams).view(groups, streams),
            torch.zeros(groups, streams - 1),
            torch.full((groups,), log_alpha),
            torch.tensor(caps) if caps else None,
            max(caps, default=0),
        ),
        torch.full((groups,), step),
        torch.zeros(groups, streams - 1, rule.state) if state is None else state,
    )
    choice = call(rule, statistics, p)
    assert isinstance(choice, Choice)
    return choice


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


@pytest.mark.parametrize(("alpha", "caps"), [(0.0, ()), (0.1, ()), (0.02, (0, 1, 5, 2))])
@pytest.mark.parametrize("name", sorted({*registry.BUILT_IN} - {"bound"}))
def test_weights_are_the_naive_ones(name: str, alpha: float, caps: tuple[int, ...]) -> None:
    """Of groups with different caps on their candidates, too."""
    rule, parameters = registry.get(name), PARAMETERS[name]
    log_alpha = math.log(alpha) if alpha else -math.inf
    memories: list[dict[str, Any]] = [{} for _ in range(40)]
    caps *= 10
    state, unlike = None, set()
    for step in range(4):
        logits = draw(step)
        choice = asked(
            rule, logits, parameters, log_alpha=log_alpha, caps=caps, step=step, state=state
        )
        state = choice.state
        for group, memory in enumerate(memories):
            expert = logits[group, 0].double()
            valid = (expert >= expert.max() + log_alpha) & (expert > -math.inf)
            if caps and caps[group]:
                valid &= expert >= expert.topk(caps[group]).values[-1]
            want = naive_rules.weights(
                name, parameters, logits[group].double(), valid, step, memory
            )
            assert choice.weights[group].tolist() == pytest.approx(want, rel=2e-4, abs=4e-5)
            unlike.update(round(weight, 4) for weight in want)
            if choice.done is not None:
                done = [bool(own.get("done")) for own in memory["amateurs"]]
                assert choice.done[group].tolist() == done
    assert len(unlike) > (1 if name == "mti" else 3)


def draw(seed: int, groups: int = 40, streams: int = 3) -> Tensor:
    """Logits, flat and steep ones, expert and amateurs more or less alike, some of each -inf."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(groups, 1, VOCABULARY, generator=generator)
    own = torch.randn(groups, streams, VOCABULARY, generator=generator)
    scale = torch.rand(groups, 1, 1, generator=generator) * 6 + 0.2
    logits = (common + own * torch.rand(groups, 1, 1, generator=generator)) * scale
    forbidden = torch.rand(groups, streams, VOCABULARY, generator=generator) < 0.1
    return logits.masked_fill(forbidden, -math.inf)


def test_an_amateur_as_unsure_as_the_expert_is_not_trusted() -> None:
    """By ``grd``, whose best token is another one: to the last bit the same entropy."""
    logits = torch.tensor([[[0.8, 0.2], [0.2, 0.8]]]).log()
    choice = asked(registry.get("grd"), logits, {})
    assert choice.weights.tolist() == [[0.0]]
    assert choice.done is not None and choice.done.tolist() == [[True]]


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


def amateurs(s: Statistics) -> Tensor:
    """[G, S - 1], of each amateur by itself."""
    return s.entropy[:, 1:]


UP_TO_100 = {"parameters": {"most": Parameter(1.0, 0.0, 100.0)}}
ENDLESS = {"parameters": {"most": Parameter(1.0, 0.0, math.inf)}}
NOT_FINITE = "weights that are not finite; keep them .* or allow less"
MIXES = "depends on the other groups"
calls, known = itertools.count(1), dict[Any, Tensor]()
# What a rule returns, its attributes, and why it is refused.
FAULTS: list[tuple[Callable[[Statistics, Any], Any], dict[str, Any], str]] = [
    (lambda s, p: amateurs(s), {"state": 17}, "its state must be at most 16"),
    (lambda s, p: amateurs(s), {"name": "a b"}, "must be an identifier"),
    (lambda s, p: amateurs(s), {"charges": True, "retires": True}, "must not both charge and"),
    (lambda s, p: {}["nothing there"], {}, "as a rule .KeyError: 'nothing there'"),
    (lambda s, p: amateurs(s).index_fill(1, torch.ones_like(s.step[:1]), 0.0), {}, "index"),
    # Shapes and dtypes.
    (lambda s, p: s.entropy, {}, r"weights .* torch.float32 on .*; must be .* torch.float32"),
    (lambda s, p: Choice(amateurs(s), done=amateurs(s)), {"retires": True}, "must be .*.bool"),
    (lambda s, p: Choice(amateurs(s), done=amateurs(s) > 0), {}, "retires is False"),
    (lambda s, p: amateurs(s), {"state": 1}, "its state is 1 numbers"),
    (lambda s, p: amateurs(s) * torch.ones(1, 1), {}, "same device|different devices"),
    # Values.
    (lambda s, p: amateurs(s) - (p.most * (s.step[:, None] + 1)).exp(), UP_TO_100, NOT_FINITE),
    (lambda s, p: -9 * p.most + amateurs(s), ENDLESS, NOT_FINITE),
    (lambda s, p: amateurs(s) * next(calls), {}, MIXES),
    (lambda s, p: known.setdefault((s.step.device, s.entropy.shape), amateurs(s)), {}, MIXES),
    # Other groups, or how many amateurs they have.
    (lambda s, p: amateurs(s) - amateurs(s).mean(), {}, MIXES),
    (lambda s, p: amateurs(s) * p.most[0], {}, MIXES),
    (lambda s, p: amateurs(s) * p.most.sort(0).values, {}, MIXES),
    (lambda s, p: torch.where(s.step.min() > 0, amateurs(s), -amateurs(s)), {}, MIXES),
    (lambda s, p: amateurs(s) / (s.num_streams - 1), {}, MIXES),
    (lambda s, p: Choice((s.state.sum(1, True)[..., 0] + amateurs(s)) * p.most, s.state + 1),
     {"state": 1}, MIXES),
    # An amateur that has ended.
    (lambda s, p: Choice(amateurs(s), done=amateurs(s) > -1), {"retires": True}, "was done"),
    # What a device is waited for: values, shapes, copies to the host and from it.
    *(
        (lambda s, p, wait=wait: (wait(amateurs(s)), -amateurs(s))[1], {}, WAITED)
        for wait in (
            lambda x: x.max().item(),
            lambda x: 1 if x.max() > 1 else 2,
            lambda x: x.nonzero(),
            lambda x: x.tolist(),
            lambda x: np.asarray(x),
            lambda x: f"{x.max():.1f}",
            lambda x: torch.zeros(x.shape).copy_(x),
            lambda x: torch.tensor([1.0, 2.0], device=x.device),
            lambda x: x[:, [0, 0]],
            lambda x: x.clone().__setitem__(x > 0, x.sum()),
        )
    ),
    # For groups of one size alone.
    *(
        (lambda s, p, n=n: (s.num_streams == n and s.entropy.max().item(), amateurs(s))[1], {},
         WAITED)
        for n in (2, 4)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("weights", "attributes", "why"), FAULTS)
def test_what_a_rule_must_not_do(
    weights: Any, attributes: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"name": "faulty", "weights": lambda self, s, p: weights(s, p)}
    faulty = type("Faulty", (Half,), body | attributes)
    monkeypatch.setattr(sys.modules[__name__], "Faulty", faulty, raising=False)
    with pytest.raises(ColdError, match=f"(?i){why}"):
        registry.add(f"{__name__}:Faulty")
    assert "faulty" not in registry.names()


def costs(s: Statistics, **more: Any) -> Scores:
    """Scores of the expert, and costs of each amateur's own tokens."""
    of_tokens = torch.stack([s.log_probabilities(i) for i in range(1, s.num_streams)], 1)
    left = torch.ones_like(of_tokens[..., 0])
    parts = {"costs": of_tokens, "left": left, "limited": left > 2}
    return Scores(s.logits(0), **(parts | more))


CHARGES = {"charges": True}
OF_SCORES: list[tuple[Callable[[Statistics, Any], Any], dict[str, Any], str]] = [
    (lambda s, p: Choice(amateurs(s)), {}, "it returns Choice; must be Scores"),
    (lambda s, p: s.logits(0)[:, 1:], {}, "it returns scores .*; must be .*, 40"),
    (lambda s, p: costs(s), {}, "charges is False, and of costs, left and limited it returns 3"),
    (lambda s, p: costs(s, left=None), CHARGES, "charges is True, .* returns 2; must be all or"),
    (lambda s, p: s.logits(0) * p.most.log(), {}, "returns scores that are not finite"),
    (lambda s, p: costs(s, costs=torch.stack([s.logits(i) for i in range(1, s.num_streams)], 1)),
     CHARGES, "returns costs that are not finite"),
    (lambda s, p: s.logits(0) / s.num_streams, {}, MIXES),
    (lambda s, p: costs(s, left=s.paid + s.paid.mean()), CHARGES, MIXES),
    (lambda s, p: (s.temperature.max().item(), s.logits(0))[1], {}, WAITED),
    (lambda s, p: Scores(s.logits(0) + s.log_probabilities(1),
                         done=torch.ones_like(amateurs(s)) > 0), {"retires": True}, "was done"),
]  # fmt: skip


@pytest.mark.parametrize(("scores", "attributes", "why"), OF_SCORES)
def test_what_a_rule_of_scores_must_not_do(
    scores: Any, attributes: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"name": "faulty", "scores": lambda self, s, p: scores(s, p)}
    faulty = type("Faulty", (Half,), body | attributes)
    monkeypatch.setattr(sys.modules[__name__], "Faulty", faulty, raising=False)
    with pytest.raises(ColdError, match=f"(?i){why}"):
        registry.add(f"{__name__}:Faulty")
    fine = type("Faulty", (Half,), {"name": "faulty", "scores": lambda self, s, p: costs(s)})
    try_out(type("Fine", (fine,), CHARGES)())


class Careful(Half):
    """What a rule may do."""

    name = "careful"
    parameters = {"most": Parameter(None, -2.0, 2.0), "least": Parameter(0.1, 0.1, 0.1)}
    state = 2

    def weights(self, s: Statistics, p: Any) -> Choice:
        if not hasattr(self, "even"):  # does not depend on what it is asked
            self.even = torch.arange(s.vocabulary, device=s.step.device) % 2 == 0
        own = s.logits(1)
        own[:, :5] = 0.0
        own.masked_fill_(self.even, -9.0)
        weights = torch.zeros_like(s.divergence)
        weights[:, 0] = own.amax(-1)
        weights[s.reach < 0.5] = 0.25
        weights *= torch.where(s.step.unsqueeze(1) > 2, p.most, p.least) * torch.tensor(2.0)
        for i in range(1, s.num_streams):
            weights[:, i - 1] += s.log_probabilities(i)[:, 7]
        return Choice(weights, s.state.roll(1, -1) + 1)


def test_what_a_rule_may_do() -> None:
    rule = Careful()
    try_out(rule)
    assert vars(rule) == {}
    # An engine may have to load it amid a step.
    with torch.inference_mode():
        try_out(rule)


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
    with pytest.raises(ColdError, match="rule='another': the package that offers this rule is bro"):
        registry.get("another")
    with pytest.raises(ColdError, match="no_such_module"):
        registry.get("gone")
    with pytest.raises(ColdError, match="cold_rule='nobody': must be the name of a rule: acd, "):
        registry.get("nobody", "cold_rule")


class Needs(Half):
    """A parameter without a default."""

    parameters = {"token": Parameter(None, 0, 2**24 - 1, "id of the token", integer=True)}


@pytest.mark.parametrize(
    ("rule", "values", "why"),
    [
        (MTI, {"taw": 1.0}, r"p\['taw'\]=1.0: rule 'mti' has no such parameter, allowed are: beta"),
        (ACD, {"tau": 1.0}, "rule 'acd' has no such parameter, allowed are: none"),
        *(
            (MTI, {"tau": wrong}, r"p\['tau'\]=.*: must be a number from 0 to 100$")
            for wrong in (-1.0, 100.1, math.nan, 10**400, "1", None, True, [1.0])
        ),
        (Needs(), {}, r"p=\{\}: rule 'half' needs token: id of the token"),
        *(
            (Needs(), {"token": wrong}, r"p\['token'\]=.*: must be an integer from 0 to 16777215$")
            for wrong in (5.5, -1, 2**24, math.nan, math.inf, 10**400, True, "5")
        ),
    ],
)
def test_parameters_are_checked(rule: Rule, values: dict[str, Any], why: str) -> None:
    with pytest.raises(ColdError, match=why):
        registry.parameters_of(rule, values, "p")


def test_parameters_have_defaults() -> None:
    assert registry.parameters_of(MTI, {"tau": 2}, "p") == {"beta": 0.5, "tau": 2.0}
    for token in (5, 5.0):  # as JSON has it
        assert registry.parameters_of(Needs(), {"token": token}, "p") == {"token": 5.0}


@pytest.mark.parametrize("default", [-0.5, 1.5, math.nan])
def test_a_default_that_is_not_allowed(default: float) -> None:
    with pytest.raises(ValueError, match="default of a parameter, .*, must be a number from 0 to"):
        Parameter(default, 0.0, 1.0)
    with pytest.raises(ValueError, match="must be an integer from 0 to 2"):
        Parameter(default, 0, 2, integer=True)
