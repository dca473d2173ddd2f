# SPDX-License-Identifier: Apache-2.0
"""Whether vllm-cold can be had from this vLLM, and what happens if not.

A change of vLLM must not break engines that do not use contrastive decoding. So all places are
checked before the first is wrapped. Where one is missing, one warning names it, and vLLM runs as
without this package; whoever asks for contrastive decoding is told why it is not there
(``unavailable``).

What an engine needs depends on the installed vLLM alone, so that its processes agree, each of which
checks for itself. What only one kind of front end needs is checked by that front end, before it
makes the engine's configuration.

What this hardware does with adapters, the plugin says, which knows all floors. This module imports
none of the kernels, and vLLM only when it looks at it.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from vllm_cold.compat import active, engine, patching, places, versions

logger = logging.getLogger("vllm." + __name__)

_verified = False
# See ``unsupported_adapters``; None until vLLM has loaded the plugin.
_adapters: Callable[[Any], str | None] | None = None


def register(adapters: Callable[[Any], str | None]) -> None:
    """What the plugin does when vLLM loads it; counts once in a process.

    Args:
        adapters: See ``unsupported_adapters``.
    """
    global _adapters
    if active.is_loaded:
        return
    active.is_loaded, _adapters = True, adapters
    install(places.START)
    if active.unavailable is None:
        with contextlib.suppress(Exception):  # engines with speculation are refused then
            patching.install(places.rows(places.V1_LOADED))


def unsupported_adapters(config: Any) -> str | None:
    """Why an engine's adapters cannot be contrasted on this hardware, with the remedy; None if they
    can, or if it has none.
    """
    return None if _adapters is None else _adapters(config)


def install(*when: patching.Time) -> None:
    """Wrap all places of these times, or none and disable contrastive decoding."""
    _attempt(lambda: patching.install(places.rows(*when)))


def verify() -> str | None:
    """Why contrastive decoding is unavailable, after a check of everything that an engine with
    vllm-cold needs, also later and in other processes; None if it is not. Done once in a process,
    before the first such engine.
    """
    global _verified
    if not _verified and active.is_loaded:
        _verified = True
        _attempt(_check)
    return active.unavailable


def _attempt(act: Callable[[], None]) -> None:
    """Do it if contrastive decoding is available so far; disable that if it fails."""
    if active.unavailable is not None:
        return
    try:
        act()
    except patching.DependencyMissing as error:
        give_up(str(error))
    except Exception as error:  # vLLM calls plugins unguarded: nobody else may suffer
        give_up(f"{type(error).__name__}: {error}")


def _check() -> None:
    """Raise DependencyMissing if vLLM lacks what an engine with contrastive decoding needs."""
    if (problem := places.problem(*places.EVERY_ENGINE)) is not None:
        raise patching.DependencyMissing(problem)
    for hook in places.rows(places.FRONT_END):  # its files load, or nothing is prepared
        for place in hook.wraps:
            place.load_hook()
    if (
        wanted := next(filter(None, map(patching.lacks_methods, engine.CLASSES)), None)
    ) is not None:
        raise patching.DependencyMissing(wanted)
    if (unknown := versions.unvalidated()) is not None:
        logger.warning(
            "vllm-cold: %s. It has all that vllm-cold is known to need; `vllm-cold doctor` decodes "
            "with it and checks the tokens.",
            unknown,
        )


def give_up(what: str) -> None:
    """Disable contrastive decoding in this process, because of ``what``; the first call counts."""
    if active.unavailable is not None:
        return
    active.unavailable = (
        f"this vLLM ({versions.vllm_version()}) has changed where vllm-cold takes part: {what}. "
        f"Install vLLM {versions.RANGE}, or a newer vllm-cold."
    )
    logger.warning(
        "vllm-cold: contrastive decoding is unavailable; vLLM runs as without it. Reason: %s",
        active.unavailable,
    )
    patching.install(places.rows(places.NO_COLD))  # whoever asks for it is told why
