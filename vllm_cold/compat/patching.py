# SPDX-License-Identifier: Apache-2.0
"""Rows of the table of vLLM's places (``places``); the one place where methods of vLLM are wrapped:
looked at first, recognisably, the original still reachable; and coroutines run as functions.

Imports no vLLM, and nothing else of this package.
"""

import functools
import importlib
import inspect
import logging
import re
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, TypeVar, cast

logger = logging.getLogger("vllm." + __name__)

_T = TypeVar("_T")
Make = Callable[[Callable[..., Any]], Callable[..., Any]]


class DependencyMissing(Exception):
    """vLLM lacks what is to be wrapped, or has it in another form; says what."""


def named(where: str) -> Any:
    """The object at "module:path" or "module"."""
    module, _, path = where.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split(".") if path else ():
        found = getattr(found, name)
    return found


@dataclass(frozen=True, slots=True)
class Dependency:
    """A module, class, function or method of vLLM: what is relied on of it, and what wraps it.
    Names are separated by spaces.

    Attributes:
        where: "module:Class.method", "module:object.method" (then it is the object's class that is
            changed), "module:function", "module:Class" or "module". A base class that a method is
            inherited from is left as it is.
        make: Of what is wrapped: takes the original as a plain function (with ``self`` or ``cls``
            first where it has one) and returns the replacement; or the name of one that does, in
            the row's file.
        takes: The first parameters of a function by position, after ``self`` or ``cls``.
        kind: staticmethod or classmethod where what is wrapped must be one.
        before: Its ``where`` in releases that lack the module of ``where``.
        if_loaded: Whether to leave it out in a process that has not loaded its module.
        has: Attributes, fields, an enumeration's members or what ``__init__`` sets, with
            "name(a b)" for a method that takes these first.
        others: Which further fields a dataclass or struct may have; None for any.
        uses: Names that a function uses, for the first time in this order.
        like: "module:Class" of ours that declares what it ``has``: methods with what they take by
            position, and variables.
    """

    where: str
    make: Make | str | None = None
    takes: str = ""
    kind: type | None = None
    before: str = ""
    if_loaded: bool = False
    has: str = ""
    others: str | None = None
    uses: str = ""
    like: str = ""

    @property
    def here(self) -> str:
        """``where`` or ``before``, whichever the installed vLLM has."""
        if self.before:
            try:
                found = find_spec(self.where.partition(":")[0])
            except ModuleNotFoundError:  # a package above it
                found = None
            return self.where if found else self.before
        return self.where

    @property
    def is_used(self) -> bool:
        return not self.if_loaded or self.here.partition(":")[0] in sys.modules

    def problem(self) -> str | None:
        """What is wrong with it in this vLLM; None if nothing is."""
        label = self.here.replace(":", ".")
        try:
            return next(self._problems(label), None)
        except (ImportError, AttributeError):
            return f"{label} is gone"
        except Exception as error:  # whatever vLLM raises when it is imported or looked at
            return f"{label} cannot be looked at ({type(error).__name__}: {error})"

    def _problems(self, label: str) -> Iterator[str]:
        """``label``: its name as it is shown to people."""
        found = named(self.here)
        if self.make is not None:
            method = self.find()[-1]
            kind = type(method) if isinstance(method, (staticmethod, classmethod)) else None
            if kind is not self.kind or not callable(found):
                wanted = self.kind.__name__ if self.kind else "plain method"
                yield f"{label} is no {wanted} any more"
            yield from _unlike(label, found, self.takes)
        names, fields = self._names(), _fields(found)
        there = fields | _set_in_init(found)
        if gone := [name for name in names if name not in there and not hasattr(found, name)]:
            yield f"{label} has no {', '.join(gone)} any more"
        for name, takes in names.items():
            if takes is not None:
                yield from _unlike(f"{label}.{name}", getattr(found, name), takes)
        if self.others is not None and (new := fields - {*names, *self.others.split()}):
            yield f"{label} has the new field {', '.join(sorted(new))}"
        if expected := self.uses.split():
            order = [n for n in inspect.unwrap(found).__code__.co_names if n in expected]
            if order != expected:
                used, want = ", ".join(order), ", ".join(expected)
                yield f"{label} uses ({used}), not ({want}) in this order"

    def _names(self) -> dict[str, str | None]:
        """What it has to have; of methods, what they take."""
        said = re.findall(r"(\w+)(\([^)]*\))?", self.has)
        names = {name: takes[1:-1] if takes else None for name, takes in said}
        if self.like:
            ours = vars(named(self.like))
            names |= dict.fromkeys(ours["__annotations__"])
            names |= {n: _positional(m) for n, m in ours.items() if inspect.isfunction(m)}
            names |= {n: None for n, m in ours.items() if isinstance(m, property)}
        return names

    def find(self) -> tuple[Any, str, Any]:
        """What has the method, the method's name, and the method as its class stores it."""
        path, _, name = self.here.rpartition("." if "." in self.here.partition(":")[2] else ":")
        owner = named(path)
        if not inspect.isclass(owner) and not inspect.ismodule(owner):
            owner = type(owner)
        return owner, name, inspect.getattr_static(owner, name)

    def wrap(self) -> None:
        """Replace it, unless ``make`` did so before: each engine of a process asks again. Wrappers
        of other makers are wrapped in turn.
        """
        owner, name, method = self.find()
        original = method.__func__ if self.kind else method
        make = self.made()
        if make in (wrapper._vllm_cold_make for wrapper in _wrappers(original)):
            return
        replacement = functools.wraps(original)(make(original))
        replacement._vllm_cold_make = make  # type: ignore[attr-defined]
        setattr(owner, name, self.kind(replacement) if self.kind else replacement)

    def made(self) -> Make:
        """``make`` itself."""
        return cast(Make, named(self.make) if isinstance(self.make, str) else self.make)


def _unlike(label: str, function: Any, takes: str) -> Iterator[str]:
    """What is wrong with a function, of which these parameters are given by position."""
    if getattr(function, "__isabstractmethod__", False):
        yield f"{label} is only declared"
    wanted = takes.split()
    if not wanted:
        return
    parameters = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("self", "cls") and parameter.kind is not parameter.KEYWORD_ONLY
    ]
    if (first := parameters[: len(wanted)]) != wanted:
        yield f"{label} takes ({', '.join(first)}), not ({', '.join(wanted)})"


def _positional(method: Any) -> str:
    """What a method of ours takes by position after ``self``."""
    taken = list(inspect.signature(method).parameters.values())[1:]
    return " ".join(p.name for p in taken if p.kind is p.POSITIONAL_OR_KEYWORD)


def _fields(found: Any) -> set[str]:
    """Of a dataclass or struct."""
    of_dataclass = getattr(found, "__dataclass_fields__", ())
    return set(getattr(found, "__struct_fields__", of_dataclass))


def _set_in_init(found: Any) -> set[str]:
    """Attributes that a class's ``__init__`` sets, among other names that it uses."""
    makers = [c.__init__ for c in getattr(found, "__mro__", ()) if inspect.isfunction(c.__init__)]
    return {name for init in makers for name in inspect.unwrap(init).__code__.co_names}


def _wrappers(function: Any) -> Iterator[Any]:
    """Our wrappers around vLLM's function, from the outside."""
    while hasattr(function, "_vllm_cold_make"):
        yield function
        function = function.__wrapped__


def original_of(function: Any) -> Any:
    """The function of vLLM's, without our wrappers."""
    for wrapper in _wrappers(function):
        function = wrapper.__wrapped__
    return function


class Hook:
    """A row of the table: what one file hooks in vLLM for one reason.

    Args:
        file: A module below ``vllm_cold``.
        when: When it is needed, one of the times in ``places``.
        why: The reason.
        can_go: What vLLM has to have before it can go.
        dependencies: What is wrapped, by makers in ``file``, and what else is relied on.
        since: The release of vLLM from which on it is needed.
        lost: What is lost without it, where vllm-cold does without.
        platform: "cpu" or "npu" where it is of that alone.
    """

    def __init__(
        self,
        file: str,
        when: str,
        why: str,
        can_go: str,
        *dependencies: Dependency,
        since: str = "0.23",
        lost: str = "",
        platform: str = "",
    ) -> None:
        self.file, self.when, self.why, self.can_go = file, when, why, can_go
        self.since, self.lost, self.platform = since, lost, platform
        self.dependencies = tuple(
            replace(each, make=f"vllm_cold.{file}:{each.make}")
            if isinstance(each.make, str)
            else each
            for each in dependencies
        )

    @property
    def wraps(self) -> tuple[Dependency, ...]:
        return tuple(each for each in self.dependencies if each.make is not None)

    def problem_with(self, one: Dependency) -> str | None:
        """What is wrong with one that it wraps; if it can be lost, with what it relies on, too."""
        relied = [each for each in self.dependencies if self.lost and each.make is None]
        return next(filter(None, (each.problem() for each in (one, *relied))), None)


def problems(hooks: Iterable[Hook]) -> str | None:
    """What is wrong with them in this process, in one sentence without its full stop; None if
    nothing is.
    """
    found = [each.problem() for hook in hooks for each in hook.dependencies if each.is_used]
    return "; ".join(said for said in found if said is not None) or None


def install(hooks: Iterable[Hook]) -> None:
    """Wrap the methods of these rows: all that vllm-cold cannot do without, or none at all. For
    each of the others that is missing, a warning says what is lost.

    Raises:
        DependencyMissing: some cannot be wrapped; names them.
    """
    found = [(h, each, h.problem_with(each)) for h in hooks for each in h.wraps if each.is_used]
    if missing := [said for hook, _, said in found if said is not None and not hook.lost]:
        raise DependencyMissing("; ".join(missing))
    for _, each, problem in found:  # none is wrapped if a file of ours cannot be loaded
        if problem is None:
            each.made()
    for hook, each, problem in found:
        if problem is None:
            each.wrap()
        else:
            logger.warning("vllm-cold: %s, as %s.", hook.lost, problem)


def at_once(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """The result of a coroutine that does not wait."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast(_T, done.value)
    coroutine.close()
    raise RuntimeError("this coroutine waits")


async def result_of(found: Any) -> Any:
    """What a method returned, awaited if need be."""
    return await found if inspect.isawaitable(found) else found


def in_form_of(
    original: Callable[..., Any], replacement: Callable[..., Coroutine[Any, Any, Any]]
) -> Callable[..., Any]:
    """The replacement, as a plain function unless the original is a coroutine function."""
    if inspect.iscoroutinefunction(original):
        return replacement
    return lambda *args, **kwargs: at_once(replacement(*args, **kwargs))
