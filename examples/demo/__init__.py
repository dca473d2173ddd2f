# SPDX-License-Identifier: Apache-2.0
"""The demo, ``python -m examples.demo`` or ``make demo``: what a newcomer sees of contrastive
decoding.

Needs no accelerator and no network: the model is SmolLM2-135M-Instruct from PyPI, converted once.
``__main__`` is the order of things; ``questions`` counts right answers, ``speed`` measures.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

ADAPTERS = Path(__file__).parents[1] / "adapters"


def quiet() -> None:
    """Leave the screen to the caller: only vLLM's errors, and the engine in this process."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
