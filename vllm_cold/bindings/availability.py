# SPDX-License-Identifier: Apache-2.0
"""Whether CoLD can be had from this vLLM, and what happens if not.

Nobody who did not ask for CoLD may suffer because vLLM has changed. So all places are looked at
before the first is wrapped; where one is missing, one warning names it, and from then on vLLM runs
as without this package. Who asks for CoLD is told why it is not there (``refusal``).

What an engine needs depends on the installed vLLM alone, so that its processes, each of which finds
it out for itself, agree. What only one kind of front end needs, that one looks at, before it makes
the engine's configuration.
"""

import importlib
import logging
from collections.abc import Iterable

from vllm_cold.bindings import patching, versions
from vllm_cold.bindings.patching import Place

logger = logging.getLogger("vllm." + __name__)

# Loaded in the processes of an engine that CoLD uses.
_MODULES = ("scheduler", "processor_v1")

_reason: str | None = None
_verified = False


def unavailable() -> str | None:
    """Why CoLD cannot be had in this process, as far as it is known; None if it can."""
    return _reason


def install(places: Iterable[Place]) -> bool:
    """Wrap all of them, or none and give up; whether CoLD is available. ``places`` may import vLLM
    when they are asked for.
    """
    if _reason is None:
        try:
            patching.install(places)
        except patching.PlaceMissing as error:
            give_up(str(error))
        except Exception as error:  # vLLM calls plugins unguarded: nobody else may suffer
            give_up(f"{type(error).__name__}: {error}")
    return _reason is None


def verify() -> str | None:
    """``unavailable()`` after a look at everything that an engine with CoLD needs.

    These are the places that are wrapped later, and in other processes; and on a version of vLLM
    that was not validated, all contracts. Done once in a process, for engines that CoLD is about to
    use.
    """
    global _verified
    if _verified or _reason is not None:
        return _reason
    _verified = True
    try:
        _look()
    except Exception as error:  # as above
        give_up(f"{type(error).__name__}: {error}")
    return _reason


def _look() -> None:
    from vllm_cold.bindings import admission, metrics, platform_cpu

    places = (*metrics.WORKER, *metrics.FRONT_END, *admission.ASYNC, *platform_cpu.later())
    if problems := [p for place in places if (p := place.problem()) is not None]:
        give_up("; ".join(problems))
    elif not versions.is_validated():
        _give_up_if_a_contract_is_broken()


def _give_up_if_a_contract_is_broken() -> None:
    from vllm_cold.bindings import contracts

    broken = [b for b in contracts.check_all() if not b.contract.note]
    if broken:
        give_up("; ".join(f"{b.reason.removesuffix('.')} ({b.contract.why})" for b in broken))
        return
    for module in _MODULES:
        importlib.import_module(f"vllm_cold.bindings.{module}")
    logger.info(
        "vllm-cold: vLLM %s is not among the validated versions (%s), but has all that CoLD needs.",
        versions.vllm_version(),
        ", ".join(versions.VALIDATED),
    )


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
    from vllm_cold.bindings import refusal

    refusal.install()
