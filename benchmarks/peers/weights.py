# SPDX-License-Identifier: Apache-2.0
"""A Llama model and its LoRA adapter as GGUF files, with the weights they have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]
KINDS = {"float32": "F32", "bfloat16": "BF16", "q8_0": "Q8_0"}


def permuted(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """The rows of Q or K [heads * D, ...] with each head's halves interleaved.

    transformers rotates value i of a head with i + D / 2, llama.cpp 2 i with 2 i + 1.
    """
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def gguf_tensors(weights: Weights, config: Mapping[str, Any]) -> Weights:
    """A model's or an adapter's weights with llama.cpp's names and order of rows.

    Args:
        weights: By the names of transformers, or of peft.
        config: The model's.

    Raises:
        ValueError: A name is no Llama model's.
    """
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    found: Weights = {}
    for name, weight in weights.items():
        layer, _, part = (
            name.removeprefix("base_model.model.").removesuffix(".weight").partition(".lora_")
        )
        new = names.get_name(layer)
        if new is None:
            raise ValueError(f"{name}: is no weight of a Llama model")
        # A's rows are ranks.
        if (count := heads.get(layer.rpartition(".")[2])) and part != "A":
            weight = permuted(weight, count)
        found[f"{new}.weight" + (f".lora_{part.lower()}" if part else "")] = weight
    return found


def read(path: Path) -> Weights:
    """The weights of a safetensors file, in float32."""
    from safetensors.torch import load_file

    return {name: weight.float().numpy() for name, weight in load_file(path).items()}


def write_model(folder: Path, target: Path, dtype: str) -> None:
    """Write a model of transformers to a GGUF file without tokenizer; ``dtype``: see ``KINDS``.

    Vectors, which norms have, stay in float32, as llama.cpp wants them.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = GGUFWriter(target, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    kind = GGMLQuantizationType[KINDS[dtype]]
    for name, weight in gguf_tensors(read(folder / "model.safetensors"), config).items():
        if weight.ndim == 1 or dtype == "float32":
            writer.add_tensor(name, weight)
        else:
            writer.add_tensor(name, quantize(weight, kind), raw_dtype=kind)
    write(writer)


def write_adapter(folder: Path, model: Path, target: Path) -> None:
    """Write an adapter of peft to a GGUF file in float32, as llama.cpp's own converter does."""
    from gguf import GGUFWriter

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    writer = GGUFWriter(target, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", adapter["lora_alpha"])
    for name, weight in gguf_tensors(read(folder / "adapter_model.safetensors"), config).items():
        writer.add_tensor(name, weight)
    write(writer)


def write(writer: Any) -> None:
    """Write all that a GGUF writer has."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
