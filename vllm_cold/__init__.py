# SPDX-License-Identifier: Apache-2.0
"""Contrastive LoRA Decoding (CoLD) for vLLM.

``ColdParams``, and ``Amateur`` for what it contrasts with, are the names that a caller needs;
everything else registers itself through vLLM's plugin entry points. Importing this package imports
neither vLLM nor torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_cold.params import Amateur, ColdParams

__version__ = "0.1.0"
__all__ = ["Amateur", "ColdParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("Amateur", "ColdParams"):
        from vllm_cold import params

        return getattr(params, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
