# SPDX-License-Identifier: Apache-2.0
"""Whether vllm-cold can be had from this vLLM, and what happens if not.

A change of vLLM must not break engines that do not use contrastive decoding. So all places are
checked before the first is wrapped. Where one is missing, one warning names it, and vLLM runs as
without this package; whoever asks for contrastive decoding is told why it is not there
(``refusal``).

What an engine needs depends on the installed vLLM alone, so that its processes agree, each of which
checks for itself. What only one kind of front end needs is checked by that front end, before it
makes the engine's configuration.

The plugin, which knows all floors, says what is to be checked, and what this hardware does with
adapters. This module imports none of them, and no vLLM.
"""

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from vllm_cold import environment, patching, places
from vllm_cold.vllm import versions
from vllm_cold.vllm.frontend import refusal

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = logging.getLogger("vllm." + __name__)

_reason: str | None = None
_verified = False
# What ``verify`` and ``unsupported_adapters`` ask: the plugin's, once vLLM has loaded it.
_look: Callable[[], str | None] | None = None
_adapters: "Callable[[VllmConfig], str | None] | None" = None


def register(
    look: Callable[[], str | None], adapters: "Callable[[VllmConfig], str | None]"
) -> None:
    """What the plugin does when vLLM loads it; counts once in a process.

    Args:
        look: See ``verify``: looks at everything that is wrapped later, and says what is wrong.
        adapters: See ``unsupported_adapters``.
    """
    global _look, _adapters
    if _look is None:
        _look, _adapters = look, adapters
        install(places.START)


def unsupported_adapters(config: "VllmConfig") -> str | None:
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
        raise ValueError(f"vllm-cold: the vllm-cold plugin is not active: {reason}")


def install(*when: str) -> bool:
    """Wrap all places of these times, or none and disable contrastive decoding; whether it is
    available.
    """
    if _reason is None:
        try:
            patching.install(places.rows(*when))
        except patching.PatchPointMissing as error:
            give_up(str(error))
        except Exception as error:  # vLLM calls plugins unguarded: nobody else may suffer
            give_up(f"{type(error).__name__}: {error}")
    return _reason is None


def verify() -> str | None:
    """``unavailable()`` after a check of everything that an engine with vllm-cold needs, also later
    and in other processes. Done once in a process, before the first such engine.
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
