# SPDX-License-Identifier: Apache-2.0
"""Contrastive LoRA Decoding (CoLD) for vLLM.

``ColdParams`` is the one name that a caller needs; everything else registers itself through
vLLM's plugin entry points. Importing this package imports neither vLLM nor torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_cold.params import ColdParams

__version__ = "0.1.0"
__all__ = ["ColdParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "ColdParams":
        from vllm_cold.params import ColdParams

        return ColdParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
