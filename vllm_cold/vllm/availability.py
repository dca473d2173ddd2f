# SPDX-License-Identifier: Apache-2.0
"""Whether vllm-cold can be had from this vLLM, and what happens if not.

A change of vLLM must not break engines that do not use contrastive decoding. So all places are
checked before the first is wrapped. Where one is missing, one warning names it, and vLLM runs as
without this package; whoever asks for contrastive decoding is told why it is not there
(``refusal``).

What an engine needs depends on the installed vLLM alone, so that its processes agree, each of which
checks for itself. What only one kind of front end needs is checked by that front end, before it
makes the engine's configuration.

What this hardware does with adapters, the plugin says, which knows all floors. This module imports
none of the kernels, and vLLM only when it looks at it.
"""

import contextlib
import inspect
import logging
import os
from collections.abc import Callable
from typing import Any

from vllm_cold import environment, patching, places
from vllm_cold.vllm import versions
from vllm_cold.vllm.frontend import refusal

logger = logging.getLogger("vllm." + __name__)

_reason: str | None = None
_verified = False
# See ``unsupported_adapters``; None until vLLM has loaded the plugin.
_adapters: Callable[[Any], str | None] | None = None


def register(adapters: Callable[[Any], str | None]) -> None:
    """What the plugin does when vLLM loads it; counts once in a process.

    Args:
        adapters: See ``unsupported_adapters``.
    """
    global _adapters
    if _adapters is not None:
        return
    _adapters = adapters
    install(places.START)
    if _reason is None:
        with contextlib.suppress(Exception):  # engines with speculation are refused then
            patching.install(places.rows(places.DRAFTS))


def unsupported_adapters(config: Any) -> str | None:
    """Why an engine's adapters cannot be contrasted on this hardware, with the remedy; None if they
    can, or if it has none.
    """
    return None if _adapters is None else _adapters(config)


def unavailable() -> str | None:
    """Why contrastive decoding is unavailable in this process, as far as is known; else None."""
    return _reason


def inactive() -> str | None:
    """Why contrastive decoding is not active in this process: it is unavailable, or the plugin was
    not loaded.
    """
    for name in (environment.ENABLED, environment.CONTRAST):
        if environment.is_off(name):
            return f"{name}=0 is set; unset it to use contrastive decoding."
    if _adapters is not None:
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
        raise ValueError(f"vllm-cold: the vllm-cold plugin is not active: {reason}")


def install(*when: str) -> None:
    """Wrap all places of these times, or none and disable contrastive decoding."""
    _attempt(lambda: patching.install(places.rows(*when)))


def verify() -> str | None:
    """``unavailable()`` after a check of everything that an engine with vllm-cold needs, also later
    and in other processes. Done once in a process, before the first such engine.
    """
    global _verified
    if not _verified and _adapters is not None:
        _verified = True
        _attempt(_check)
    return _reason


def _attempt(act: Callable[[], None]) -> None:
    """Do it if contrastive decoding is available so far; disable that if it fails."""
    if _reason is not None:
        return
    try:
        act()
    except patching.DependencyMissing as error:
        give_up(str(error))
    except Exception as error:  # vLLM calls plugins unguarded: nobody else may suffer
        give_up(f"{type(error).__name__}: {error}")


def _check() -> None:
    """Raise DependencyMissing if vLLM lacks what an engine with contrastive decoding needs."""
    kernels = places.rows(places.PLATFORM, places.LORA)
    if said := places.problem(*places.EVERY_ENGINE) or patching.problems(kernels):
        raise patching.DependencyMissing(said)
    from vllm_cold.vllm.scheduler.scheduler import ColdScheduler
    from vllm_cold.vllm.worker.processor_v1 import ColdLogitsProcessorV1

    classes: tuple[Any, ...] = (ColdScheduler, ColdLogitsProcessorV1)
    for ours in classes:
        if inspect.isabstract(ours):
            wanted = ", ".join(sorted(ours.__abstractmethods__))
            raise patching.DependencyMissing(f"vLLM wants {wanted} of {ours.__name__}, too")
    if (unknown := versions.unvalidated()) is not None:
        logger.warning(
            "vllm-cold: %s. It has all that vllm-cold is known to need; `vllm-cold doctor` decodes "
            "with it and checks the tokens.",
            unknown,
        )


def give_up(what: str) -> None:
    """Disable contrastive decoding in this process, because of ``what``; the first call counts."""
    global _reason
    if _reason is not None:
        return
    _reason = (
        f"this vLLM ({versions.vllm_version()}) has changed where vllm-cold takes part: {what}. "
        f"Install vLLM {versions.RANGE}, or a newer vllm-cold."
    )
    logger.warning(
        "vllm-cold: contrastive decoding is unavailable; vLLM runs as without it. Reason: %s",
        _reason,
    )
    refusal.install(_reason)
