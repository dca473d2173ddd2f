# SPDX-License-Identifier: Apache-2.0
"""The one place where methods of vLLM are wrapped: looked at first, once, recognisably, with
the original still reachable.
"""

import functools
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

logger = logging.getLogger("vllm." + __name__)

_T = TypeVar("_T")


class PatchPointMissing(Exception):
    """vLLM has not what is to be wrapped, or has it in another form; says what."""


def problem_of(where: str, look: Callable[[str], str | None]) -> str | None:
    """What is wrong with a place of vLLM; None if nothing is.

    Args:
        where: "module:path".
        look: Takes the place's name for people, and says so. If it raises, that is wrong.
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
    """A method of vLLM that is to be wrapped.

    Attributes:
        where: "module:Class.method", "module:object.method" (then it is the object's class that is
            changed) or "module:function". A class may have the method from a base class, which is
            left as it is.
        make: Takes the original as a plain function (with ``self`` or ``cls`` first where it has
            one) and returns the replacement.
        takes: The first parameters that the original must take by position, behind ``self`` or
            ``cls``.
        kind: staticmethod or classmethod where it must be one.
    """

    where: str
    make: Callable[[Callable[..., Any]], Callable[..., Any]]
    takes: tuple[str, ...] = ()
    kind: type | None = None

    def _find(self) -> tuple[Any, str, Any]:
        """What has the method, the method's name, and the method as it stands in a class."""
        module, _, path = self.where.partition(":")
        *parents, name = path.split(".")
        owner: Any = importlib.import_module(module)
        for parent in parents:
            owner = getattr(owner, parent)
        if not inspect.isclass(owner) and not inspect.ismodule(owner):
            owner = type(owner)
        return owner, name, inspect.getattr_static(owner, name)

    def problem(self) -> str | None:
        """What is wrong with it in this vLLM; None if it can be wrapped."""
        return problem_of(self.where, self._look)

    def _look(self, label: str) -> str | None:
        _, _, method = self._find()
        if getattr(method, "__isabstractmethod__", False):
            return f"{label} is gone"  # only declared
        kind = type(method) if isinstance(method, (staticmethod, classmethod)) else None
        function = method.__func__ if kind else method
        if kind is not self.kind or not callable(function):
            return f"{label} is no {self.kind.__name__ if self.kind else 'plain method'} any more"
        if not self.takes:
            return None
        parameters = [
            name
            for name, parameter in inspect.signature(function).parameters.items()
            if name not in ("self", "cls") and parameter.kind is not parameter.KEYWORD_ONLY
        ]
        found = parameters[: len(self.takes)]
        if found != list(self.takes):
            return f"{label} takes ({', '.join(found)}), not ({', '.join(self.takes)})"
        return None

    def wrap(self) -> None:
        """Replace it; does nothing if that was done before."""
        owner, name, method = self._find()
        original = method.__func__ if self.kind else method
        if getattr(original, "_vllm_cold_original", None) is not None:
            return
        replacement = functools.wraps(original)(self.make(original))
        replacement._vllm_cold_original = original  # type: ignore[attr-defined]
        setattr(owner, name, self.kind(replacement) if self.kind else replacement)


def at_once(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """The result of one that does not wait."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast(_T, done.value)
    coroutine.close()
    raise RuntimeError("this coroutine waits")


async def result_of(found: Any) -> Any:
    """What a method returned, or what it will, if it is one to be awaited."""
    return await found if inspect.isawaitable(found) else found


def in_form_of(
    original: Callable[..., Any], replacement: Callable[..., Coroutine[Any, Any, Any]]
) -> Callable[..., Any]:
    """A replacement that is awaited if the original is, for what vLLM has in both forms."""
    if inspect.iscoroutinefunction(original):
        return replacement
    return lambda *args, **kwargs: at_once(replacement(*args, **kwargs))


def install(places: Iterable[PatchPoint]) -> None:
    """Wrap all of them, or none.

    Raises:
        PatchPointMissing: some cannot be wrapped; names them.
    """
    places = tuple(places)
    if problems := [p for place in places if (p := place.problem()) is not None]:
        raise PatchPointMissing("; ".join(problems))
    for place in places:
        place.wrap()


def install_workarounds(places: Iterable[PatchPoint]) -> None:
    """Wrap those that this process can use: places of bugs of vLLM that CoLD can do without.

    A place whose module is not loaded is nobody's here.
    """
    loaded = [place for place in places if place.where.partition(":")[0] in sys.modules]
    wrap_if_there(loaded, "a bug of vLLM is not cured here")


def wrap_if_there(places: Iterable[PatchPoint], lost: str) -> None:
    """Wrap places that CoLD can do without; of one that is missing, a warning says what is lost."""
    for place in places:
        if (problem := place.problem()) is None:
            place.wrap()
        else:
            logger.warning("vllm-cold: %s, as %s.", lost, problem)
