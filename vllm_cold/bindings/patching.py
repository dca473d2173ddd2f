# SPDX-License-Identifier: Apache-2.0
"""How a method of vLLM is wrapped: once, recognisably, with the original still reachable."""

import functools
from collections.abc import Callable
from typing import Any


def wrap(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace ``owner.name`` by ``make(original)``; does nothing if that was done before.

    Args:
        owner: A class (or module) of vLLM.
        name: A function, static method or class method of it.
        make: Takes the original as a plain function (with ``self`` or ``cls`` first where it has
            one) and returns the replacement.

    Raises:
        RuntimeError: if vLLM has no such method; names it.
    """
    descriptor = vars(owner).get(name)
    if descriptor is None:
        raise RuntimeError(
            f"vllm-cold needs {owner.__module__}.{owner.__qualname__}.{name}, which this vLLM does "
            "not have. Install a supported version (0.23 to 0.33), or set VLLM_COLD=0."
        )
    kind = type(descriptor) if isinstance(descriptor, (staticmethod, classmethod)) else None
    original = descriptor.__func__ if kind else descriptor
    if getattr(original, "_vllm_cold_original", None) is not None:
        return
    replacement = functools.wraps(original)(make(original))
    replacement._vllm_cold_original = original  # type: ignore[attr-defined]
    setattr(owner, name, kind(replacement) if kind else replacement)
