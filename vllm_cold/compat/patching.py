# SPDX-License-Identifier: Apache-2.0
"""Rows of the tables of vLLM's places (``places``), and the one file that wraps methods of vLLM:
looked at first, recognisably, the original still reachable. Runs coroutines as functions, too.

Imports no vLLM, and of this package ``versions`` alone.
"""

import functools
import importlib
import inspect
import logging
import re
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import ModuleType
from typing import Any, TypeVar, cast

from vllm_cold.compat import versions

logger = logging.getLogger("vllm." + __name__)

_T = TypeVar("_T")
Original = Callable[..., Any]


class DependencyMissing(Exception):
    """vLLM lacks what is to be wrapped, or has it in another form; says what."""


def named(where: str) -> Any:
    """Return the object at "module:path" or "module"."""
    module, _, path = where.partition(":")
    owner: Any = importlib.import_module(module)
    for name in path.split(".") if path else ():
        owner = getattr(owner, name)
    return owner


def lacks_methods(where: str) -> str | None:
    """Say which methods a class of ours lacks that vLLM declares for it: they fail when one is
    made. None if it lacks none; ``where`` as for ``named``.
    """
    ours = named(where)
    if not inspect.isabstract(ours):
        return None
    return f"vLLM wants {', '.join(sorted(ours.__abstractmethods__))} of {ours.__name__}, too"


class Reference:
    """A module of ours that a table names, or a function of it, not loaded yet; ``where`` as for
    ``named``.
    """

    def __init__(self, where: str) -> None:
        self.where = self.__name__ = where

    def __getattr__(self, name: str) -> "Reference":
        return Reference(f"{self.where}:{name}")


def lazy(package: str, names: str) -> list[Reference]:
    """Return modules of a package, unloaded, by their names, which are separated by spaces."""
    return [Reference(f"{package}.{name}") for name in names.split()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A module, class, function or method of vLLM. Names are separated by spaces.

    Attributes:
        where: "module:Class.method", "module:object.method" (then it is the object's class that is
            meant), "module:function", "module:Class" or "module".
        before: Its ``where`` in releases that lack the module of ``where``.
        if_loaded: Whether to leave it out in a process that has not loaded its module.
        since: The release of vLLM that it came with; "" if its row's ``since`` says it.
        until: The release of vLLM that has it no more; "" for none.
    """

    where: str = field(kw_only=False)
    before: str = ""
    if_loaded: bool = False
    since: str = ""
    until: str = ""

    @property
    def here(self) -> str:
        """``where`` or ``before``, whichever the installed vLLM has."""
        if self.before:
            try:
                spec = find_spec(self.where.partition(":")[0])
            except ModuleNotFoundError:  # a package above it
                spec = None
            return self.where if spec else self.before
        return self.where

    @property
    def is_used(self) -> bool:
        """Whether this process, with this vLLM, needs it."""
        if not versions.is_within(self.since, self.until):
            return False
        return not self.if_loaded or self.here.partition(":")[0] in sys.modules

    def problem(self) -> str | None:
        """Say what is wrong with it in this vLLM; None if nothing is, or if it is of another
        release.
        """
        if not versions.is_within(self.since, self.until):
            return None
        label = self.here.replace(":", ".")
        try:
            return next(self._problems(label), None)
        except (ImportError, AttributeError):
            return f"{label} is gone"
        except Exception as error:  # whatever vLLM raises when it is imported or looked at
            return f"{label} cannot be looked at ({type(error).__name__}: {error})"

    def _problems(self, label: str) -> Iterator[str]:
        """``label``: its name as it is shown to people."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Relies(Place):
    """What is relied on of a place and could change unnoticed.

    Attributes:
        has: Attributes, fields, an enumeration's members or what ``__init__`` sets, with
            "name(a b)" for a method that takes these first.
        others: Which further fields a dataclass or struct may have; None for any.
        uses: Names that a function uses, for the first time in this order.
    """

    has: str = ""
    others: str | None = None
    uses: str = ""

    def _problems(self, label: str) -> Iterator[str]:
        owner = named(self.here)
        names, fields = self._names(), _fields(owner)
        known = fields | _set_in_init(owner)
        if gone := [name for name in names if name not in known and not hasattr(owner, name)]:
            yield f"{label} has no {', '.join(gone)} any more"
        for name, takes in names.items():
            if takes is not None:
                yield from _unlike(f"{label}.{name}", getattr(owner, name), takes)
        if self.others is not None and (new := fields - {*names, *self.others.split()}):
            yield f"{label} has the new field {', '.join(sorted(new))}"
        if expected := self.uses.split():
            order = [n for n in inspect.unwrap(owner).__code__.co_names if n in expected]
            if order != expected:
                used, want = ", ".join(order), ", ".join(expected)
                yield f"{label} uses ({used}), not ({want}) in this order"

    def _names(self) -> dict[str, str | None]:
        """Return what it has to have, by name; of methods, what they take."""
        matches = re.findall(r"(\w+)(\([^)]*\))?", self.has)
        return {name: takes[1:-1] if takes else None for name, takes in matches}


@dataclass(frozen=True, slots=True)
class Wraps(Place):
    """A function or method of vLLM that is wrapped. A base class that a method is inherited from is
    left as it is.

    Attributes:
        hook: What is called in its place, with the original as a plain function before the
            arguments, of which ``self`` or ``cls`` is the first where there is one.
        takes: The first parameters by position, after ``self`` or ``cls``.
        kind: staticmethod or classmethod where it must be one.
    """

    hook: Callable[..., Any] | Reference
    takes: str = ""
    kind: type | None = None

    def _problems(self, label: str) -> Iterator[str]:
        method, function = self.find()[-1], named(self.here)
        kind = type(method) if isinstance(method, (staticmethod, classmethod)) else None
        if kind is not self.kind or not callable(function):
            wanted = self.kind.__name__ if self.kind else "plain method"
            yield f"{label} is no {wanted} any more"
        if getattr(function, "__isabstractmethod__", False):
            yield f"{label} is only declared"
        yield from _unlike(label, function, self.takes)

    def find(self) -> tuple[Any, str, Any]:
        """Return what has the method, the method's name, and the method as its class stores it."""
        path, _, name = self.here.rpartition("." if "." in self.here.partition(":")[2] else ":")
        owner = named(path)
        if not inspect.isclass(owner) and not inspect.ismodule(owner):
            owner = type(owner)
        return owner, name, inspect.getattr_static(owner, name)

    def wrap(self) -> None:
        """Replace it, unless ``hook`` did so before: each engine of a process asks again. Wrappers
        of other hooks are wrapped in turn.
        """
        owner, name, method = self.find()
        original = method.__func__ if self.kind else method
        hook = self.load_hook()
        if hook in (wrapper._vllm_cold_hook for wrapper in _wrappers(original)):
            return
        replacement = bind(hook, original)
        replacement._vllm_cold_hook = hook  # type: ignore[attr-defined]
        setattr(owner, name, self.kind(replacement) if self.kind else replacement)

    def load_hook(self) -> Callable[..., Any]:
        """Return ``hook`` itself, and load its module."""
        return named(self.hook.where) if isinstance(self.hook, Reference) else self.hook


def bind(hook: Callable[..., Any], original: Original) -> Callable[..., Any]:
    """Return a hook as a function that takes the original's place. A coroutine function may take
    that of a plain one, and does not wait then.
    """
    if inspect.iscoroutinefunction(hook):
        if inspect.iscoroutinefunction(inspect.unwrap(original)):

            @functools.wraps(original)
            async def replacement(*args: Any, **kwargs: Any) -> Any:
                return await hook(original, *args, **kwargs)

            return replacement
        return functools.wraps(original)(lambda *a, **kw: at_once(hook(original, *a, **kw)))
    return functools.wraps(original)(lambda *args, **kwargs: hook(original, *args, **kwargs))


def _unlike(label: str, function: Any, takes: str) -> Iterator[str]:
    """What is wrong with a function, of which these parameters are given by position."""
    wanted = takes.split()
    if wanted and (first := _positional(function)[: len(wanted)]) != wanted:
        yield f"{label} takes ({', '.join(first)}), not ({', '.join(wanted)})"


def _positional(function: Any) -> list[str]:
    """Return what a function takes by position after ``self`` or ``cls``."""
    parameters = inspect.signature(function).parameters.values()
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [p.name for p in parameters if p.kind in kinds and p.name not in ("self", "cls")]


def _fields(owner: Any) -> set[str]:
    """Return the fields of a dataclass or struct."""
    of_dataclass = getattr(owner, "__dataclass_fields__", ())
    return set(getattr(owner, "__struct_fields__", of_dataclass))


def _set_in_init(owner: Any) -> set[str]:
    """Return the attributes that a class's ``__init__`` sets, among other names that it uses."""
    inits = [c.__init__ for c in getattr(owner, "__mro__", ()) if inspect.isfunction(c.__init__)]
    return {name for init in inits for name in inspect.unwrap(init).__code__.co_names}


def _wrappers(function: Any) -> Iterator[Any]:
    """Our wrappers around vLLM's function, from the outside."""
    while hasattr(function, "_vllm_cold_hook"):
        yield function
        function = function.__wrapped__


def original_of(function: Any) -> Any:
    """The function of vLLM's, without our wrappers."""
    for wrapper in _wrappers(function):
        function = wrapper.__wrapped__
    return function


@dataclass(frozen=True, slots=True)
class Time:
    """When rows are needed: ``text`` says it; they are in the module ``table``."""

    table: str
    text: str


class Hook:
    """A row of a table: what one file hooks in vLLM for one reason.

    Args:
        module: The file.
        when: When it is needed.
        why: The reason.
        can_go: What vLLM has to have before it can go.
        link: The pull request or issue of vLLM's that would end it; "" for none known.
        places: What is wrapped, by hooks in the file, and what else is relied on.
        since: The release of vLLM from which on it is needed.
        until: The release of vLLM from which on it is not needed any more; "" for none.
        lost: What is lost without it, where vllm-cold does without.
        platform: "cpu" or "npu" where it is of that alone.
    """

    def __init__(
        self,
        module: ModuleType | Reference,
        when: Time,
        why: str,
        can_go: str,
        *places: Wraps | Relies,
        link: str = "",
        since: str = "0.23",
        until: str = "",
        lost: str = "",
        platform: str = "",
    ) -> None:
        self.file, self.link = module.__name__.removeprefix("vllm_cold."), link
        self.when, self.why, self.can_go, self.places = when, why, can_go, places
        self.since, self.until = since, until
        self.lost, self.platform = lost, platform

    @property
    def wraps(self) -> tuple[Wraps, ...]:
        return tuple(place for place in self.places if isinstance(place, Wraps))

    def problem_with(self, wrapped: Wraps) -> str | None:
        """Say what is wrong with a place that it wraps; if it can be lost, with what it relies on,
        too.
        """
        relied = [place for place in self.places if self.lost and isinstance(place, Relies)]
        return next(filter(None, (place.problem() for place in (wrapped, *relied))), None)


def problems(hooks: Iterable[Hook]) -> str | None:
    """Say what is wrong with them in this process, in one sentence without its full stop; None if
    nothing is.
    """
    messages = (p.problem() for hook in hooks for p in hook.places if p.is_used)
    return "; ".join(filter(None, messages)) or None


def install(hooks: Iterable[Hook]) -> None:
    """Wrap the methods of these rows: all that vllm-cold cannot do without, or none at all. For
    each of the others that is missing, a warning says what is lost.

    Raises:
        DependencyMissing: some cannot be wrapped; names them.
    """
    looks = [(h, place, h.problem_with(place)) for h in hooks for place in h.wraps if place.is_used]
    if missing := [problem for hook, _, problem in looks if problem and not hook.lost]:
        raise DependencyMissing("; ".join(missing))
    for _, place, problem in looks:  # none is wrapped if a file of ours cannot be loaded
        if problem is None:
            place.load_hook()
    for hook, place, problem in looks:
        if problem is None:
            place.wrap()
        else:
            logger.warning("vllm-cold: %s, as %s.", hook.lost, problem)


def at_once(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Return the result of a coroutine that does not wait."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast(_T, done.value)
    coroutine.close()
    raise RuntimeError("this coroutine waits")


async def result_of(returned: Any) -> Any:
    """Return what a method returned, awaited if need be."""
    return await returned if inspect.isawaitable(returned) else returned
