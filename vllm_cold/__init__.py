# SPDX-License-Identifier: Apache-2.0
"""Contrastive decoding for vLLM.

``ColdParams``, ``Amateur`` for what it contrasts with, and ``Noise`` and ``Blur`` for images that
it sees instead, are the names that a caller needs; everything else registers itself through vLLM's
plugin entry points. Importing this package imports neither vLLM nor torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_cold.params import Amateur, ColdParams
    from vllm_cold.settings.images import Blur, Noise

__version__ = "0.1.0"
__all__ = ["Amateur", "Blur", "ColdParams", "Noise", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("Amateur", "ColdParams"):
        from vllm_cold import params

        return getattr(params, name)
    if name in ("Blur", "Noise"):
        from vllm_cold.settings import images

        return getattr(images, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
