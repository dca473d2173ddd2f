# SPDX-License-Identifier: Apache-2.0
"""Whether CoLD can be had from this vLLM, and what happens if not.

Nobody who did not ask for CoLD may suffer because vLLM has changed. So all places are looked at
before the first is wrapped; where one is missing, one warning names it, and from then on vLLM runs
as without this package. Who asks for CoLD is told why it is not there (``refusal``).

What an engine needs depends on the installed vLLM alone, so that its processes, each of which finds
it out for itself, agree. What only one kind of front end needs, that one looks at, before it makes
the engine's configuration.

What there is to be looked at, ``plugin`` says, which knows all places: everybody else imports this
module, so it imports none of them. It imports no vLLM.
"""

import logging
import os
from collections.abc import Callable, Iterable

from vllm_cold import environment
from vllm_cold.vllm import patching, versions
from vllm_cold.vllm.frontend import refusal
from vllm_cold.vllm.patching import PatchPoint

logger = logging.getLogger("vllm." + __name__)

_reason: str | None = None
_verified = False
# What engines with speculative decoding rely on and this vLLM has not, where CoLD can be had.
without_speculation: str | None = None
# What ``verify`` asks: the plugin's, once vLLM has loaded it.
_look: Callable[[], str | None] | None = None


def register(places: Iterable[PatchPoint], look: Callable[[], str | None]) -> None:
    """What the plugin does when vLLM loads it; counts once in a process.

    Args:
        places: What is wrapped at once.
        look: See ``verify``: looks at everything that is wrapped later, and says what is wrong.
    """
    global _look
    if _look is None:
        _look = look
        install(places)


def unavailable() -> str | None:
    """Why CoLD cannot be had in this process, as far as it is known; None if it can."""
    return _reason


def inactive() -> str | None:
    """Why CoLD is not at work in this process: unavailable, or the plugin was not loaded."""
    if environment.switched_off():
        return "COLD_ENABLED=0 is set; unset it to use CoLD."
    if _look is not None:
        return _reason
    if os.environ.get("VLLM_PLUGINS") is None:
        return (
            "vLLM did not load its entry point; install the package "
            "(from a checkout: pip install .)."
        )
    return f"VLLM_PLUGINS={os.environ.get('VLLM_PLUGINS')!r} leaves it out; add 'cold' to it."


def require_active() -> None:
    """Raise ValueError unless the plugin is active in this process."""
    if (reason := inactive()) is not None:
        raise ValueError(f"CoLD: the vllm-cold plugin is not active: {reason}")


def install(places: Iterable[PatchPoint]) -> bool:
    """Wrap all of them, or none and give up; whether CoLD is available. ``places`` may import vLLM
    when they are asked for.
    """
    if _reason is None:
        try:
            patching.install(places)
        except patching.PatchPointMissing as error:
            give_up(str(error))
        except Exception as error:  # vLLM calls plugins unguarded: nobody else may suffer
            give_up(f"{type(error).__name__}: {error}")
    return _reason is None


def verify() -> str | None:
    """``unavailable()`` after a look at everything that an engine with CoLD needs.

    These are the places that are wrapped later, and in other processes, and the contracts. Done
    once in a process, for engines that CoLD is about to use.
    """
    global _verified
    if _verified or _reason is not None or _look is None:
        return _reason
    _verified = True
    try:
        problem = _look()
    except Exception as error:  # as above
        problem = f"{type(error).__name__}: {error}"
    if problem is not None:
        give_up(problem)
    return _reason


def give_up(what: str) -> None:
    """CoLD cannot be had in this process, because of ``what``; the first call counts."""
    global _reason
    if _reason is not None:
        return
    _reason = (
        f"this vLLM ({versions.vllm_version()}) has changed where vllm-cold takes part: {what}. "
        f"Install vLLM {versions.RANGE}, or a newer vllm-cold."
    )
    logger.warning("vllm-cold: CoLD is unavailable; vLLM runs as without it. Reason: %s", _reason)
    refusal.install(_reason)
