# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct, from which ``vllm-cold example`` makes a folder that vLLM loads.

``python -m examples.smollm2`` prints that folder.
"""

from __future__ import annotations

import sys

from vllm_cold.tools.example.checkpoint import converted, default_cache_dir, model_path

__all__ = ["MODEL_NAME", "converted", "default_cache_dir", "model_path"]

MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"

if __name__ == "__main__":
    try:
        print(model_path())
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}")
