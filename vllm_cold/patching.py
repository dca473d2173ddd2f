# SPDX-License-Identifier: Apache-2.0
"""What a row of the table of vLLM's places (``places``) is made of, and the one place where methods
of vLLM are wrapped: looked at first, recognisably, with the original still reachable.

Imports no vLLM, and nothing else of this package.
"""

import functools
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, TypeVar, cast

logger = logging.getLogger("vllm." + __name__)

_T = TypeVar("_T")
Make = Callable[[Callable[..., Any]], Callable[..., Any]]


class PatchPointMissing(Exception):
    """vLLM lacks what is to be wrapped, or has it in another form; says what."""


def _named(where: str) -> Any:
    """The object at "module:path" or "module"."""
    module, _, path = where.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split(".") if path else ():
        found = getattr(found, name)
    return found


def _problem_of(where: str, look: Callable[[str], str | None]) -> str | None:
    """What ``look`` finds wrong with "module:path", or that it raises; None if nothing is wrong.

    ``look`` takes the place's name as it is shown to people.
    """
    label = where.replace(":", ".")
    try:
        return look(label)
    except (ImportError, AttributeError):
        return f"{label} is gone"
    except Exception as error:  # whatever vLLM raises when it is imported or looked at
        return f"{label} cannot be looked at ({type(error).__name__}: {error})"


@dataclass(frozen=True, slots=True)
class PatchPoint:
    """A method of vLLM that is to be wrapped. Names are separated by spaces.

    Attributes:
        where: "module:Class.method", "module:object.method" (then it is the object's class that is
            changed) or "module:function". A base class that the method is inherited from is left
            as it is.
        make: Takes the original as a plain function (with ``self`` or ``cls`` first where it has
            one) and returns the replacement; or "module:name" of one that does.
        takes: The first parameters that the original must take by position, after ``self`` or
            ``cls``.
        kind: staticmethod or classmethod where it must be one.
        before: Its ``where`` in releases that lack the module of ``where``.
        if_loaded: Whether to leave it out in a process that has not loaded its module.
    """

    where: str
    make: Make | str
    takes: str = ""
    kind: type | None = None
    before: str = ""
    if_loaded: bool = False

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

    def find(self) -> tuple[Any, str, Any]:
        """What has the method, the method's name, and the method as its class stores it."""
        path, _, name = self.here.rpartition("." if "." in self.here.partition(":")[2] else ":")
        owner = _named(path)
        if not inspect.isclass(owner) and not inspect.ismodule(owner):
            owner = type(owner)
        return owner, name, inspect.getattr_static(owner, name)

    def problem(self) -> str | None:
        """What is wrong with it in this vLLM; None if it can be wrapped."""
        return _problem_of(self.here, self._look)

    def _look(self, label: str) -> str | None:
        _, _, method = self.find()
        if getattr(method, "__isabstractmethod__", False):
            return f"{label} is gone"  # only declared
        kind = type(method) if isinstance(method, (staticmethod, classmethod)) else None
        function = method.__func__ if kind else method
        if kind is not self.kind or not callable(function):
            return f"{label} is no {self.kind.__name__ if self.kind else 'plain method'} any more"
        wanted = self.takes.split()
        if not wanted:
            return None
        parameters = [
            name
            for name, parameter in inspect.signature(function).parameters.items()
            if name not in ("self", "cls") and parameter.kind is not parameter.KEYWORD_ONLY
        ]
        if (found := parameters[: len(wanted)]) != wanted:
            return f"{label} takes ({', '.join(found)}), not ({', '.join(wanted)})"
        return None

    def made(self) -> Make:
        return cast(Make, _named(self.make)) if isinstance(self.make, str) else self.make

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
        replacement._vllm_cold_original = original  # type: ignore[attr-defined]
        replacement._vllm_cold_make = make  # type: ignore[attr-defined]
        setattr(owner, name, self.kind(replacement) if self.kind else replacement)


def _wrappers(function: Any) -> Iterator[Any]:
    """Our wrappers around vLLM's function, from the outside."""
    while hasattr(function, "_vllm_cold_original"):
        yield function
        function = function._vllm_cold_original


def original_of(function: Any) -> Any:
    """The function of vLLM's, without our wrappers."""
    for wrapper in _wrappers(function):
        function = wrapper._vllm_cold_original
    return function


@dataclass(frozen=True, slots=True)
class Contract:
    """What is relied on of one class, function or module of vLLM. Names are separated by spaces.

    Attributes:
        where: "module:Class", "module:Class.method" or "module".
        has: Attributes, or an enumeration's members.
        takes: By a method's name, the first parameters after ``self``.
        fields: Of a dataclass or struct.
        others: Which further fields it may have; None for any.
        sets: Attributes that ``__init__`` sets.
        uses: Names that a function uses, for the first time in this order.
        like: "module:Class" of ours that declares it: a method for each that it must have with
            these parameters, a variable for each attribute that it has or sets.
    """

    where: str
    has: str = ""
    takes: Mapping[str, str] = field(default_factory=dict)
    fields: str = ""
    others: str | None = None
    sets: str = ""
    uses: str = ""
    like: str = ""

    def problem(self) -> str | None:
        """What is wrong with it in this vLLM; None if it holds."""
        return _problem_of(self.where, lambda label: next(self._problems(label), None))

    def _problems(self, label: str) -> Iterator[str]:
        found: Any = _named(self.where)
        takes, names = dict(self.takes), self.sets.split()
        if self.like:
            ours = vars(_named(self.like))
            names += [name for name in ours["__annotations__"] if not hasattr(found, name)]
            takes |= {n: _positional(m) for n, m in ours.items() if inspect.isfunction(m)}
        if missing := [n for n in (*self.has.split(), *takes) if not hasattr(found, n)]:
            yield f"{label} has no {', '.join(missing)} any more"
        for name, parameters in takes.items():
            method = inspect.unwrap(getattr(found, name))
            if getattr(method, "__isabstractmethod__", False):
                yield f"{label} only declares {name}"
            given = [p for p in inspect.signature(method).parameters if p not in ("self", "cls")]
            if (first := given[: len(parameters.split())]) != parameters.split():
                yield f"{label} has a {name} that takes ({', '.join(first)})"
        if self.fields:
            of_dataclass = getattr(found, "__dataclass_fields__", ())
            known = set(getattr(found, "__struct_fields__", of_dataclass))
            if gone := set(self.fields.split()) - known:
                yield f"{label} has no field {', '.join(sorted(gone))} any more"
            may = f"{self.fields} {self.others or ''}".split()
            if self.others is not None and (new := known.difference(may)):
                yield f"{label} has the new field {', '.join(sorted(new))}"
        if names:
            makers = [c.__init__ for c in found.__mro__ if inspect.isfunction(c.__init__)]
            found_there = {n for init in makers for n in inspect.unwrap(init).__code__.co_names}
            if unset := set(names) - found_there:
                yield f"{label} sets no {', '.join(sorted(unset))} any more"
        if expected := self.uses.split():
            order = [n for n in inspect.unwrap(found).__code__.co_names if n in expected]
            if order != expected:
                used, want = ", ".join(order), ", ".join(expected)
                yield f"{label} uses ({used}), not ({want}) in this order"


def _positional(method: Any) -> str:
    """What a method of ours takes by position after ``self``."""
    taken = list(inspect.signature(method).parameters.values())[1:]
    return " ".join(p.name for p in taken if p.kind is p.POSITIONAL_OR_KEYWORD)


class Hook:
    """A row of the table: what one file hooks in vLLM for one reason.

    Args:
        file: A module below ``vllm_cold``.
        when: When it is needed, one of the times in ``places``.
        why: The reason.
        can_go: What vLLM has to have before it can go.
        places: Methods that are wrapped, by makers in ``file``, and what else is relied on.
        since: The release of vLLM from which on it is needed.
        extends: A class of vLLM that one of ours extends, for people.
        lost: What is lost without it, where vllm-cold does without.
        platform: "cpu" or "npu" where it is of that alone.
    """

    def __init__(
        self,
        file: str,
        when: str,
        why: str,
        can_go: str,
        *places: PatchPoint | Contract,
        since: str = "0.23",
        extends: str = "",
        lost: str = "",
        platform: str = "",
    ) -> None:
        self.file, self.when, self.why, self.can_go = file, when, why, can_go
        self.since, self.extends, self.lost, self.platform = since, extends, lost, platform
        self.relies = tuple(place for place in places if isinstance(place, Contract))
        self.wraps = tuple(
            replace(place, make=f"vllm_cold.{file}:{place.make}")
            if isinstance(place.make, str)
            else place
            for place in places
            if isinstance(place, PatchPoint)
        )
        self.places: tuple[PatchPoint | Contract, ...] = (*self.wraps, *self.relies)


def problems(hooks: Iterable[Hook]) -> str | None:
    """What is wrong with them in this process, in one sentence without its full stop; None if
    nothing is.
    """
    found = []
    for hook in hooks:
        found += [place.problem() for place in hook.wraps if place.is_used]
        found += [contract.problem() for contract in hook.relies]
    return "; ".join(said for said in found if said is not None) or None


def install(hooks: Iterable[Hook]) -> None:
    """Wrap the methods of these rows: all that vllm-cold cannot do without, or none at all. For
    each of the others that is missing, a warning says what is lost.

    Raises:
        PatchPointMissing: some cannot be wrapped; names them.
    """
    found = [
        (hook, place, place.problem()) for hook in hooks for place in hook.wraps if place.is_used
    ]
    if missing := [said for hook, _, said in found if said is not None and not hook.lost]:
        raise PatchPointMissing("; ".join(missing))
    for hook, place, problem in found:
        if problem is None:
            place.wrap()
        else:
            logger.warning("vllm-cold: %s, as %s.", hook.lost, problem)


def install_quietly(hooks: Iterable[Hook]) -> None:
    """Wrap what there is of them; who needs one looks at it again, and says so."""
    for place in (place for hook in hooks for place in hook.wraps if place.is_used):
        if place.problem() is None:
            place.wrap()


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
