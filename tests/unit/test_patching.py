# SPDX-License-Identifier: Apache-2.0
"""Methods are looked at before one is wrapped; what cannot be wrapped is named, and nothing is."""

from __future__ import annotations

import abc
import inspect
import logging
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vllm_cold.vllm import availability, patching
from vllm_cold.vllm.frontend import refusal
from vllm_cold.vllm.patching import PatchPoint, PatchPointMissing

pytestmark = pytest.mark.unit

NAME = "a_module_of_vllm"


class Base:
    def inherited(self, x: int, y: int = 0) -> str:
        return f"base {x} {y}"


class Owner(Base):
    def plain(self, x: int, y: int = 0) -> str:
        return f"plain {x} {y}"

    @staticmethod
    def static(x: int) -> str:
        return f"static {x}"

    @classmethod
    def of_class(cls, x: int) -> str:
        return f"{cls.__name__} {x}"

    @property
    def prop(self) -> str:
        return "prop"

    attribute = 3

    def named_only(self, *, x: int) -> str:
        return f"named {x}"


class Interface(abc.ABC):
    @abc.abstractmethod
    def declared(self, x: int) -> str: ...


class Child(Owner):
    pass


def function(x: int) -> str:
    return f"function {x}"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Copies of the classes above, in a module of their own."""
    made: Any = types.ModuleType(NAME)
    for cls in (Base, Owner, Interface, Child):
        bases = tuple(getattr(made, b.__name__, b) for b in cls.__bases__)
        body = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
        setattr(made, cls.__name__, type(cls)(cls.__name__, bases, body))
    made.instance = made.Owner()
    made.function = types.FunctionType(function.__code__, {}, "function")
    monkeypatch.setitem(sys.modules, NAME, made)
    return made


def loud(original: Callable[..., Any]) -> Callable[..., Any]:
    def replacement(*args: Any, **kwargs: Any) -> Any:
        return f"<{original(*args, **kwargs)}>"

    return replacement


def place(path: str, takes: tuple[str, ...] = (), kind: type | None = None) -> PatchPoint:
    return PatchPoint(f"{NAME}:{path}", loud, takes, kind)


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        (place("Owner.plain", ("x",)), None),
        (place("Owner.plain", ("x", "y")), None),
        (place("Owner.inherited", ("x",)), None),
        (place("Owner.static", ("x",), staticmethod), None),
        (place("Owner.of_class", ("x",), classmethod), None),
        (place("instance.of_class", ("x",), classmethod), None),
        (place("function", ("x",)), None),
        (place("Owner.missing"), "Owner.missing is gone"),
        (place("Missing.plain"), "Missing.plain is gone"),
        (PatchPoint("no_such_module:Owner.plain", loud), "no_such_module.Owner.plain is gone"),
        (place("Interface.declared"), "Interface.declared is gone"),
        (place("Owner.plain", ("y",)), "Owner.plain takes (x), not (y)"),
        (place("Owner.plain", ("y", "x")), "Owner.plain takes (x, y), not (y, x)"),
        (place("Owner.plain", ("x", "y", "z")), "Owner.plain takes (x, y), not (x, y, z)"),
        (place("Owner.named_only", ("x",)), "Owner.named_only takes (), not (x)"),
        (place("Owner.static", ("x",)), "Owner.static is no plain method any more"),
        (place("Owner.of_class", ("x",)), "Owner.of_class is no plain method any more"),
        (place("Owner.prop"), "Owner.prop is no plain method any more"),
        (place("Owner.attribute"), "Owner.attribute is no plain method any more"),
        (place("Owner.plain", (), staticmethod), "Owner.plain is no staticmethod any more"),
        (place("Owner.static", (), classmethod), "Owner.static is no classmethod any more"),
    ],
    ids=lambda value: value.where.partition(":")[2] if isinstance(value, PatchPoint) else "",
)
def test_problem(module: Any, wanted: PatchPoint, problem: str | None) -> None:
    found = wanted.problem()
    assert found == problem or (problem is not None and found == f"{NAME}.{problem}")


def test_each_kind_is_wrapped(module: Any) -> None:
    patching.install(
        (
            place("Owner.plain", ("x",)),
            place("Owner.static", ("x",), staticmethod),
            place("Owner.of_class", ("x",), classmethod),
            place("function", ("x",)),
        )
    )
    owner = module.Owner()
    assert owner.plain(1, y=2) == "<plain 1 2>"
    assert module.Owner.static(1) == owner.static(1) == "<static 1>"
    assert module.Owner.of_class(1) == owner.of_class(1) == "<Owner 1>"
    assert module.Child.of_class(1) == "<Child 1>"
    assert module.function(1) == "<function 1>"
    assert module.Owner.plain.__name__ == "plain"


def test_a_base_class_is_left_alone(module: Any) -> None:
    patching.install((place("Owner.inherited", ("x",)),))
    assert module.Owner().inherited(1) == module.Child().inherited(1) == "<base 1 0>"
    assert module.Base().inherited(1) == "base 1 0"


def test_a_method_is_wrapped_once(module: Any) -> None:
    for _ in range(2):
        patching.install((place("Owner.plain"), place("Owner.static", (), staticmethod)))
    assert module.Owner().plain(1) == "<plain 1 0>"
    assert module.Owner.static(1) == "<static 1>"
    # What is wrapped already is inherited like that.
    patching.install((place("Child.plain"),))
    assert module.Child().plain(1) == "<plain 1 0>"
    assert place("Owner.plain", ("x",)).problem() is None


def test_all_are_looked_at_before_one_is_wrapped(module: Any) -> None:
    with pytest.raises(PatchPointMissing) as caught:
        patching.install((place("Owner.plain"), place("Owner.gone"), place("Owner.prop")))
    assert str(caught.value) == (
        f"{NAME}.Owner.gone is gone; {NAME}.Owner.prop is no plain method any more"
    )
    assert module.Owner().plain(1) == "plain 1 0"


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is known about this vLLM yet, and nothing of it is changed."""
    monkeypatch.setattr(availability, "_reason", None)
    monkeypatch.setattr(availability, "_verified", False)
    monkeypatch.setattr(refusal, "PATCH_POINTS", ())
    yield


def test_the_first_reason_stays(
    module: Any, undecided: None, logged: list[logging.LogRecord]
) -> None:
    assert availability.install((place("Owner.static", (), staticmethod),))
    assert availability.unavailable() is None
    assert not availability.install((place("Owner.gone"),))
    reason = availability.unavailable()
    assert reason is not None and f"takes part: {NAME}.Owner.gone is gone. Install" in reason
    assert not availability.install((place("Owner.prop"),))
    assert not availability.install((place("Owner.plain"),))  # it would be of no use
    assert module.Owner().plain(1) == "plain 1 0"
    assert availability.verify() == availability.unavailable() == reason
    assert [r.getMessage() for r in logged] == [
        f"vllm-cold: CoLD is unavailable; vLLM runs as without it. Reason: {reason}"
    ]


def test_a_place_that_cannot_be_looked_at_has_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an import raises: vLLM calls plugins unguarded."""

    def fails(name: str) -> Any:
        raise RuntimeError("no such device")

    monkeypatch.setattr(patching.importlib, "import_module", fails)
    problem = place("Owner.plain").problem()
    assert problem == f"{NAME}.Owner.plain cannot be looked at (RuntimeError: no such device)"


@pytest.mark.usefixtures("undecided")
def test_a_configuration_without_what_is_looked_at_is_left_alone() -> None:
    from vllm_cold.vllm.frontend.engine_config import configure

    scheduler = types.SimpleNamespace(scheduler_cls=None)
    model = types.SimpleNamespace(logits_processors=None)  # has no runner_type
    config: Any = types.SimpleNamespace(
        additional_config={}, scheduler_config=scheduler, model_config=model
    )
    configure(config)
    assert scheduler.scheduler_cls is None and model.logits_processors is None
    assert "runner_type" in str(availability.unavailable())
    config.additional_config = {"cold": True}
    with pytest.raises(ValueError, match="default sampler, but this vLLM .*runner_type"):
        configure(config)


# They replace what vLLM does, and take what it takes today.
CLOSED = {"build_logitsprocs", "LLMEngine.get_metrics", "expand_batch_to_tokens"}


def test_vllm_may_give_more_than_it_does_today() -> None:
    """A release adds parameters; who wraps passes them on."""
    from vllm_cold.vllm import patch_points
    from vllm_cold.vllm.worker import workarounds

    own = (patch_points.at_start, patch_points.of_speculation_v1, patch_points.later)
    others = (patch_points.of_v2_runner, patch_points.of_front_ends, patch_points.dispensable)
    places = [p for asked in (*own, *others, workarounds.patch_points) for p in asked()]
    closed = set()
    for place in (*places, *refusal.PATCH_POINTS):
        made = inspect.signature(place.make(lambda *args, **kwargs: None))
        if not any(p.kind is p.VAR_KEYWORD for p in made.parameters.values()):
            closed.add(place.where.partition(":")[2])
    assert len(places) > 30
    assert closed == CLOSED
