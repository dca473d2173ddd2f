# SPDX-License-Identifier: Apache-2.0
"""What vllm-cold wraps or relies on in vLLM is checked first; what is missing is named, and vLLM
stays as it is.
"""

import abc
import asyncio
import dataclasses
import enum
import inspect
import logging
import sys
import types
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.places import NOWHERE, add, hooks, row
from vllm_cold import plugin
from vllm_cold.compat import active, availability, patching, places, versions
from vllm_cold.compat.patching import (
    DependencyMissing,
    Hook,
    Place,
    Reference,
    Relies,
    Time,
    Wraps,
    bind,
)

pytestmark = pytest.mark.unit

NAME = "a_module_of_vllm"


class Base:
    def __init__(self) -> None:
        self.running: list[int] = []
        self.waiting = 1

    def inherited(self, x: int, y: int = 0) -> str:
        return f"base {x} {y}"


class Owner(Base):
    attribute = 3

    def plain(self, x: int, y: int = 0, *, z: int = 0) -> str:
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

    def score(self, logits: Any) -> Any:
        renamed = self.mask(logits)  # type: ignore[attr-defined]
        return self.penalties(renamed)  # type: ignore[attr-defined]


class Interface(abc.ABC):
    @abc.abstractmethod
    def declared(self, x: int) -> str: ...


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Row:
    ids: list[int]
    spare: int = 0


class Struct(msgspec.Struct):
    ids: int


def function(x: int) -> str:
    return f"function {x}"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The classes above in a module, of which those that are wrapped are copies."""
    made: Any = types.ModuleType(NAME)
    for cls in (Base, Interface, Colour, Row, Struct):
        setattr(made, cls.__name__, cls)
    made.Owner = type("Owner", (Base,), {k: v for k, v in vars(Owner).items() if k[:2] != "__"})
    made.Child = type("Child", (made.Owner,), {})
    made.instance = made.Owner()
    made.function = types.FunctionType(function.__code__, {}, "function")
    monkeypatch.setitem(sys.modules, NAME, made)
    return made


def loud(original: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    return f"<{original(*args, **kwargs)}>"


def place(path: str, takes: str = "", kind: type | None = None) -> Wraps:
    return Wraps(f"{NAME}:{path}", loud, takes, kind)


def relied_on(path: str, **what: Any) -> Relies:
    return Relies(f"{NAME}:{path}" if path else NAME, **what)


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        (place("Owner.plain", "x y"), None),
        (place("Owner.inherited", "x"), None),
        (place("Owner.static", "x", staticmethod), None),
        (place("instance.of_class", "x", classmethod), None),
        (place("function", "x"), None),
        (place("Owner.missing"), ".Owner.missing is gone"),
        (place("Missing.plain"), ".Missing.plain is gone"),
        (place("Interface.declared"), ".Interface.declared is only declared"),
        (place("Owner.plain", "y x"), ".Owner.plain takes (x, y), not (y, x)"),
        (place("Owner.plain", "x y z"), ".Owner.plain takes (x, y), not (x, y, z)"),
        (place("Owner.static", "x"), ".Owner.static is no plain method any more"),
        (place("Owner.prop"), ".Owner.prop is no plain method any more"),
        (place("Owner.attribute"), ".Owner.attribute is no plain method any more"),
        (place("Owner.plain", "", staticmethod), ".Owner.plain is no staticmethod any more"),
        (place("Owner.static", "", classmethod), ".Owner.static is no classmethod any more"),
        (relied_on("", has="Owner Row"), None),
        (relied_on("", has="Owner Gone"), " has no Gone any more"),
        (relied_on("Gone", has="x"), ".Gone is gone"),
        (relied_on("Colour", has="RED BLUE"), ".Colour has no BLUE any more"),
        (relied_on("Owner", has="plain(x y) attribute of_class(x)"), None),
        (relied_on("Owner", has="plain(x z)"), ".Owner.plain takes (x, y), not (x, z)"),
        (relied_on("Interface", has="declared"), None),
        (relied_on("Interface", has="declared(y)"), ".Interface.declared takes (x), not (y)"),
        (relied_on("Row", has="ids", others="spare gone"), None),
        (relied_on("Row", has="ids", others=""), ".Row has the new field spare"),
        (relied_on("Struct", has="ids", others=""), None),
        (relied_on("Owner", has="running gone waiting"), ".Owner has no gone any more"),
        (relied_on("Owner.score", uses="mask penalties"), None),
        (relied_on("Owner.score", uses="penalties mask"),
         ".Owner.score uses (mask, penalties), not (penalties, mask) in this order"),
        (relied_on("Owner.score", uses="mask gone"),
         ".Owner.score uses (mask), not (mask, gone) in this order"),
    ],
    ids=lambda value: value.where.partition(":")[2] if hasattr(value, "where") else "",
)  # fmt: skip
def test_problem(module: Any, wanted: Any, problem: str | None) -> None:
    assert wanted.problem() == (problem and NAME + problem)


def test_a_place_that_cannot_be_looked_at_has_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an import raises: vLLM calls plugins unguarded."""

    def fails(name: str) -> Any:
        raise RuntimeError("no such device")

    wanted = place("Owner.plain")
    assert str(wanted.problem()).endswith("is gone")  # there is no such module
    monkeypatch.setattr("importlib.import_module", fails)
    assert str(wanted.problem()).endswith("cannot be looked at (RuntimeError: no such device)")


def test_each_kind_is_wrapped_once(module: Any) -> None:
    """Each engine of a process asks again."""
    wanted = (
        place("Owner.plain", "x"),
        place("Owner.static", "x", staticmethod),
        place("Owner.of_class", "x", classmethod),
        place("Owner.inherited", "x"),
        place("function", "x"),
        place("Child.plain"),  # inherits the wrapped method
    )
    for _ in range(2):
        patching.install([row(NOWHERE, *wanted)])
    owner = module.Owner()
    assert owner.plain(1, y=2) == module.Child().plain(1, y=2) == "<plain 1 2>"
    assert module.Owner.static(1) == owner.static(1) == "<static 1>"
    assert module.Owner.of_class(1) == owner.of_class(1) == "<Owner 1>"
    assert module.Child.of_class(1) == "<Child 1>"
    assert module.function(1) == "<function 1>"
    assert module.Owner.plain.__name__ == "plain"
    # A base class is left alone.
    assert owner.inherited(1) == "<base 1 0>" and module.Base().inherited(1) == "base 1 0"


@pytest.mark.parametrize("waits", [False, True])
def test_a_coroutine_function_takes_either_place(waits: bool) -> None:
    """Of a plain function too: then it does not wait."""

    async def hook(original: Callable[..., Any], x: int) -> str:
        return f"<{await patching.result_of(original(x))}>"

    async def slow(x: int) -> str:
        await asyncio.sleep(0)
        return function(x)

    replaced = bind(hook, slow if waits else function)(1)
    assert (asyncio.run(replaced) if waits else replaced) == "<function 1>"


def test_two_reasons_to_wrap_a_method_stack(module: Any) -> None:
    """In any order, and however often each is asked for."""

    def louder(original: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
        return f"{original(*args, **kwargs)}!"

    inner, outer = place("Owner.plain"), Wraps(f"{NAME}:Owner.plain", louder)
    for one in (inner, outer, inner, outer):
        patching.install([row(NOWHERE, one)])
    assert module.Owner().plain(1) == "<plain 1 0>!"
    assert patching.original_of(module.Owner.plain) is Owner.plain


def test_all_are_looked_at_before_one_is_wrapped(module: Any) -> None:
    with pytest.raises(DependencyMissing) as caught:
        wanted = place("Owner.plain"), place("Owner.gone"), place("Owner.prop")
        patching.install([row(NOWHERE, *wanted)])
    assert str(caught.value) == (
        f"{NAME}.Owner.gone is gone; {NAME}.Owner.prop is no plain method any more"
    )
    assert module.Owner().plain(1) == "plain 1 0"


def test_what_can_be_lost_is_warned_of_where_it_is_used(
    module: Any, logged: list[logging.LogRecord]
) -> None:
    points = [
        Wraps(where, loud, if_loaded=True)
        for where in (
            f"{NAME}:Owner.plain",
            f"{NAME}:Owner.gone",
            "a_module_not_loaded:Owner.plain",
        )
    ]
    patching.install([row(NOWHERE, *points, lost="LoRA is slow")])
    assert module.Owner().plain(1) == "<plain 1 0>"
    (said,) = [record.getMessage() for record in logged]
    assert said == f"vllm-cold: LoRA is slow, as {NAME}.Owner.gone is gone."


def test_what_can_be_lost_is_lost_with_what_it_relies_on(
    module: Any, logged: list[logging.LogRecord]
) -> None:
    """The file with its maker may import that."""
    unlike = Wraps(f"{NAME}:Owner.plain", Reference("no_such_file:wrap_plain"))
    kept = Wraps(f"{NAME}:Owner.static", loud, kind=staticmethod)
    relied = Relies(f"{NAME}:Owner", has="gone")
    patching.install([row(NOWHERE, unlike, relied, lost="LoRA is slow"), row(NOWHERE, kept)])
    assert module.Owner().plain(1) == "plain 1 0" and "<" in module.Owner.static(1)
    assert f"as {NAME}.Owner has no gone any more" in logged[0].getMessage()


def test_a_time_is_supported_since_its_first_rows() -> None:
    assert places.since(places.FRONT_END) == "0.23"  # some of its rows came later
    assert places.since(places.FRONT_END, places.SSM) == "0.32"


def test_files_of_ours_are_loaded_before_one_is_wrapped(module: Any) -> None:
    lost = Wraps(f"{NAME}:Owner.static", Reference("no_such_file:wrap"), kind=staticmethod)
    with pytest.raises((ImportError, AttributeError)):
        patching.install([row(NOWHERE, place("Owner.plain")), row(NOWHERE, lost)])
    assert module.Owner().plain(1) == "plain 1 0"


def test_a_place_that_has_moved_is_found_where_it_was(module: Any) -> None:
    for where in ("a_module_of_no_vllm:Owner.plain", "a_module.below:Owner.plain"):
        moved = Wraps(where, loud, "x", before=f"{NAME}:Owner.plain")
        assert moved.problem() is None and moved.find()[0] is module.Owner


HERE = (*places.rows(), *places.rows(*places.KERNELS_ON_CPU))  # on this platform

# ---- the table -----------------------------------------------------------------------------------

# These replace what vLLM does, and take what it takes today.
CLOSED = {"build_logitsprocs", "expand_batch_to_tokens"}


def test_vllm_may_give_more_than_it_does_today() -> None:
    """A release adds parameters; who wraps passes them on. Each row's hook is there."""
    closed = set()
    for point in (point for hook in hooks() for point in hook.wraps):
        parameters = inspect.signature(point.load_hook()).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            closed.add(point.where.partition(":")[2])
    assert closed == CLOSED


@pytest.mark.parametrize(
    ("hook", "wanted"),
    [(h, wanted) for h in hooks() if h in HERE for wanted in h.places],
    ids=lambda value: getattr(value, "where", ""),
)
def test_the_installed_vllm_has_all_of_it(hook: Hook, wanted: Place) -> None:
    if versions.is_before(hook.since):
        pytest.skip("came with a later vLLM")
    assert wanted.problem() is None


# ---- whether contrastive decoding is available ---------------------------------------------------


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin is loaded, and has neither checked nor wrapped anything of this vLLM."""
    monkeypatch.setattr(availability, "_adapters", plugin._unsupported_adapters)
    monkeypatch.setattr(active, "is_loaded", True)
    monkeypatch.setattr(active, "unavailable", None)
    monkeypatch.setattr(availability, "_verified", False)
    monkeypatch.setattr(places, "NO_COLD", places.Time(places.TABLES[0], "never"))


def test_the_first_reason_stays(
    module: Any,
    undecided: None,
    monkeypatch: pytest.MonkeyPatch,
    logged: list[logging.LogRecord],
) -> None:
    first, second, third, fourth = (Time(places.TABLES[0], text) for text in "1234")
    for when, wanted in (
        (first, place("Owner.static", "", staticmethod)),
        (second, place("Owner.gone")),
        (third, place("Owner.prop")),
        (fourth, place("Owner.plain")),  # it would be of no use
    ):
        add(monkeypatch, when, wanted)
    availability.install(first)
    assert active.unavailable is None
    for when in (second, third, fourth):
        availability.install(when)
    reason = active.unavailable
    assert reason is not None and f"takes part: {NAME}.Owner.gone is gone. Install" in reason
    assert module.Owner().plain(1) == "plain 1 0"
    assert availability.verify() == active.unavailable == reason
    assert [r.getMessage() for r in logged] == [
        f"vllm-cold: contrastive decoding is unavailable; vLLM runs as without it. Reason: {reason}"
    ]


@pytest.mark.usefixtures("undecided")
def test_a_configuration_without_what_is_looked_at_is_left_alone() -> None:
    from vllm_cold.frontend.engine_config import configure

    scheduler = types.SimpleNamespace(scheduler_cls=None)
    model = types.SimpleNamespace(logits_processors=None)  # has no runner_type
    config: Any = types.SimpleNamespace(
        additional_config={}, scheduler_config=scheduler, model_config=model
    )
    configure(config)
    assert scheduler.scheduler_cls is None and model.logits_processors is None
    assert "runner_type" in str(active.unavailable)
    config.additional_config = {"cold": True}
    with pytest.raises(ValueError, match="default sampler, but this vLLM .*runner_type"):
        configure(config)


@pytest.mark.usefixtures("undecided")
def test_what_an_engine_relies_on_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what vLLM wants of our classes."""
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    from vllm_cold.scheduler.queue_view import View

    with monkeypatch.context() as patch:
        patch.setattr(View, "__abstractmethods__", frozenset({"reset"}))
        with pytest.raises(DependencyMissing, match="^vLLM wants reset of View, too$"):
            availability._check()
    monkeypatch.delattr(KVCacheManager, "evict_blocks")
    said = "vllm.v1.core.kv_cache_manager.KVCacheManager has no evict_blocks any more. Install vLLM"
    assert said in str(availability.verify())


@pytest.mark.usefixtures("undecided")
def test_a_new_method_of_queues_makes_it_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM declares it, and the queues' stand-ins lack it: an engine would fail in a pass."""
    from vllm.v1.core.sched.request_queue import RequestQueue

    from vllm_cold.scheduler import queue_view

    class NewQueue(RequestQueue):  # type: ignore[misc]
        @abc.abstractmethod
        def reorder(self) -> None: ...

    bases = (NewQueue,)
    names = {k: v for k, v in vars(queue_view.View).items() if k not in ("__dict__", "__weakref__")}
    monkeypatch.setattr(queue_view, "View", type(RequestQueue)("View", bases, names))
    assert "vLLM wants reorder of View, too. Install vLLM" in str(availability.verify())


@pytest.mark.usefixtures("undecided")
def test_what_speculation_relies_on_is_checked_with_speculation_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add(monkeypatch, places.DRAFTS, Relies("vllm:LLM", has="mood"))
    assert availability.verify() is None
    assert "vllm.LLM has no mood any more" in str(places.problem(places.DRAFTS))


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize("is_validated", [True, False])
def test_a_vllm_that_is_not_validated_is_warned_of(
    is_validated: bool, monkeypatch: pytest.MonkeyPatch, logged: list[logging.LogRecord]
) -> None:
    version = versions.vllm_version()
    monkeypatch.setattr(versions, "VALIDATED", (versions.minor(version),) * is_validated)
    assert availability.verify() is None
    messages = [r.getMessage() for r in logged if r.getMessage().startswith("vllm-cold: ")]
    assert len(messages) == (not is_validated)
    assert all(f"vLLM {version} is not among" in m and "vllm-cold doctor" in m for m in messages)
