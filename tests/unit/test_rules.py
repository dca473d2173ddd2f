# SPDX-License-Identifier: Apache-2.0
"""Rules: the built-in ones against ``naive_rules``, and what others' may not do."""

import importlib.metadata
import math
import types
from collections.abc import Iterator
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
        logits.reshape(-1, vocabulary),
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


def draw(seed: int, groups: int = 40, streams: int = 3) -> Tensor:
    """Logits, flat and steep ones, expert and amateurs more or less alike, some of each -inf."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(groups, 1, VOCABULARY, generator=generator)
    own = torch.randn(groups, streams, VOCABULARY, generator=generator)
    scale = torch.rand(groups, 1, 1, generator=generator) * 6 + 0.2
    logits = (common + own * torch.rand(groups, 1, 1, generator=generator)) * scale
    forbidden = torch.rand(groups, streams, VOCABULARY, generator=generator) < 0.1
    return logits.masked_fill(forbidden, -math.inf)


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


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_built_in_rules_pass_their_trial(name: str) -> None:
    rule = registry.get(name)
    try_out(rule)
    assert rule.name == name
    given = {n: 5.0 for n, of in rule.parameters.items() if of.default is None}
    assert registry.parameters_of(rule, given, "p").keys() == rule.parameters.keys()


def test_a_parameter_without_a_default_must_be_given() -> None:
    with pytest.raises(ColdError, match=r"p=\{\}: rule 'judge' needs token: id of the token"):
        registry.parameters_of(registry.get("judge"), {}, "p")


def test_two_that_are_certain_are_not_mixed() -> None:
    certain = torch.tensor([[[50.0, -90.0, -90.0], [-90.0, 50.0, -90.0]]])
    assert asked(registry.get("acd"), certain, {}).weights.item() == 0


def test_what_a_grammar_forbids_decides_nothing() -> None:
    """It is the expert's alone: what an amateur would say instead is not asked."""
    expert, amateur = torch.tensor([-math.inf, 2.0, 0.0]), torch.tensor([9.0, 2.0, 0.0])
    for name in ("grd", "arr", "cocoa"):
        rule = registry.get(name)
        found = asked(rule, torch.stack([expert, amateur])[None], {})
        alike = asked(rule, torch.stack([expert, expert])[None], {})
        assert found.weights.item() == pytest.approx(alike.weights.item(), abs=1e-6)
        if found.done is not None:
            assert not found.done.any()


def test_equal_streams_need_no_contrast() -> None:
    logits = draw(3)[:, :1].expand(-1, 2, -1).contiguous()
    for name in ("adaptive", "arr", "grd"):
        assert (asked(registry.get(name), logits, {}, log_alpha=-2.0).weights == 0).all()


def test_a_decision_is_made_once() -> None:
    """The amateur is trusted at the first conflict, and stays so when it would not be any more."""
    rule = registry.get("grd")
    sure, unsure = torch.tensor([0.0, 9.0, 0.0, 0.0]), torch.tensor([0.1, 0.2, 0.0, 0.0])
    other = torch.tensor([0.3, 0.0, 0.0, 0.1])
    agree = asked(rule, torch.stack([sure, sure])[None], {})
    first = asked(rule, torch.stack([other, sure])[None], {}, step=1, state=agree.state)
    assert agree.weights.item() == 0
    assert first.weights.item() > 0.75
    later = asked(rule, torch.stack([other, unsure])[None], {}, step=2, state=first.state)
    anew = asked(rule, torch.stack([other, unsure])[None], {}, step=2)
    assert later.weights.item() > 0.75
    assert anew.weights.item() == 0
    assert anew.done is not None and anew.done.item() is True
    assert later.done is not None and later.done.item() is False


def test_what_grows_without_bound_stays_finite() -> None:
    choice = asked(registry.get("m3id"), draw(1), {"gamma": 10.0, "threshold": 1.0}, step=100_000)
    assert choice.weights.isfinite().all()


# ---- rules of others -------------------------------------------------------------------------


class Half(Rule):
    """Half of the amateur, where it is surer."""

    name = "half"
    parameters = {"most": Parameter(0.5, 0.0, 1.0)}

    def weights(self, s: Statistics, p: Any) -> Tensor:
        return p.most * (s.entropy[:, 1:] < s.entropy[:, :1])


class Raises(Half):
    name = "raises"

    def weights(self, s: Statistics, p: Any) -> Tensor:
        raise KeyError("nothing there")


class NotANumber(Half):
    name = "not_a_number"

    def weights(self, s: Statistics, p: Any) -> Tensor:
        return s.entropy[:, 1:] * math.nan


class WrongShape(Half):
    name = "wrong_shape"

    def weights(self, s: Statistics, p: Any) -> Tensor:
        return s.entropy


class Waits(Half):
    """Reads a value on the host."""

    name = "waits"

    def weights(self, s: Statistics, p: Any) -> Tensor:
        return s.entropy[:, 1:] * (0.5 if s.entropy.max() > 1 else 0.1)


class LooksAround(Half):
    """Judges groups by each other."""

    name = "looks_around"

    def weights(self, s: Statistics, p: Any) -> Tensor:
        return s.entropy[:, 1:] - s.entropy[:, 1:].mean()


class Doubles(Half):
    name = "doubles"

    def weights(self, s: Statistics, p: Any) -> Tensor:
        return s.entropy[:, 1:].double()


class DoneAsNumbers(Half):
    name = "done_as_numbers"
    retires = True

    def weights(self, s: Statistics, p: Any) -> Choice:
        return Choice(s.entropy[:, 1:], done=s.entropy[:, 1:])


class Same(Half):
    """Of the same name as another one."""


class ForgetsItsState(Half):
    name = "forgets"
    state = 1


@pytest.fixture
def own_rules() -> Iterator[None]:
    before = dict(registry._added)
    yield
    registry._added.clear()
    registry._added.update(before)


@pytest.mark.usefixtures("own_rules")
def test_a_rule_of_a_module() -> None:
    path = f"{__name__}:Half"
    rule = registry.add(path)
    assert registry.get("half") is rule is registry.add(path)
    assert "half" in registry.names()
    with pytest.raises(ColdError, match="there is a rule named 'half'"):
        registry.add(f"{__name__}:Same")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("Raises", "nothing there"),
        ("NotANumber", "not finite"),
        ("WrongShape", r"\[3, 3\] torch.float32 on .*; must be \[3, 2\]"),
        ("Doubles", "must be .* torch.float32"),
        ("DoneAsNumbers", "must be .* torch.bool"),
        ("Waits", "asks for a value of a tensor"),
        ("LooksAround", "depends on the other groups"),
        ("ForgetsItsState", "its state is 1 numbers"),
        ("Parameter", "no subclass"),
        ("Nobody", "has no attribute"),
    ],
)
@pytest.mark.usefixtures("own_rules")
def test_what_a_rule_must_not_do(kind: str, why: str) -> None:
    with pytest.raises(ColdError, match=f"(?i){why}"):
        registry.add(f"{__name__}:{kind}")
    assert registry.names() == tuple(sorted(registry.BUILT_IN)) or kind not in registry.names()


def test_a_built_in_name_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Half, "name", "arr")
    with pytest.raises(ColdError, match="there is a rule named 'arr'"):
        registry.add(f"{__name__}:Half")


def test_rules_of_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is broken concerns those who name it."""
    points = [
        importlib.metadata.EntryPoint("half", f"{__name__}:Half", registry.ENTRY_POINTS),
        importlib.metadata.EntryPoint("raises", f"{__name__}:Raises", registry.ENTRY_POINTS),
        importlib.metadata.EntryPoint("gone", "no_such_module:Rule", registry.ENTRY_POINTS),
        importlib.metadata.EntryPoint("mti", f"{__name__}:Half", registry.ENTRY_POINTS),
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    for cached in (registry._installed, registry._from_package):
        monkeypatch.setattr(registry, cached.__name__, cached.__wrapped__)
    assert isinstance(registry.get("half"), Half)
    assert not isinstance(registry.get("mti"), Half)
    assert {"half", "raises", "gone"} < set(registry.names())
    with pytest.raises(ColdError, match="beta='raises': the package that offers this rule is brok"):
        registry.get("raises")
    with pytest.raises(ColdError, match="no_such_module"):
        registry.get("gone")
    with pytest.raises(ColdError, match="cold_beta='nobody': must be a number, or the name of a r"):
        registry.get("nobody", "cold_beta")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"taw": 1.0}, r"p\['taw'\]=1.0: rule 'mti' has no such parameter, allowed are: beta, tau"),
        ({"tau": -1.0}, r"p\['tau'\]=-1.0: must be a number from 0 to 100"),
        ({"tau": math.nan}, "must be a number"),
        ({"tau": "1"}, "must be a number"),
        ({"tau": True}, "must be a number"),
    ],
)
def test_parameters_are_checked(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ColdError, match=why):
        registry.parameters_of(registry.get("mti"), given, "p")
    assert registry.parameters_of(registry.get("mti"), {"tau": 2}, "p") == {"beta": 0.5, "tau": 2.0}
