# SPDX-License-Identifier: Apache-2.0
"""Llamas and Qwen3s of any size with random weights, whose text is known beforehand: they count.

All matrices are random and of full size, so a step costs what it costs in a trained model. The
layers add little to a token's embedding, and the head's rows are the embeddings, each moved up by
one: token t + 1 follows token t, ahead of all others by more than bfloat16's rounding or an adapter
can change. So equal tokens can be asked for in bfloat16 too, whatever the batch, and a drafter can
know what comes. The head cannot be tied to the embeddings then; that costs memory, and no time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DELTA = 0.05  # what a layer adds, beside an embedding
LOGIT = 40.0  # of the token that follows
POOL = 67_108_859  # random numbers, repeated; prime, so that no two rows are equal


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama, or of a Qwen3, which normalises each head's query and key."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    qk_norm: bool = False


LLAMA_1B = Shape(2048, 16, 32, 8, 64, 8192, 128256)  # Llama 3.2 1B
QWEN3_0_6B = Shape(1024, 28, 16, 8, 128, 3072, 151936, qk_norm=True)
LAYER_7B = Shape(4096, 1, 32, 32, 128, 11008, 512)  # of Llama 2 7B; the head does not count
TINY = Shape(64, 2, 4, 2, 32, 128, 512)


def linears(shape: Shape) -> Iterator[tuple[str, int, int]]:
    """The linear layers: name, outputs, inputs."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for layer in range(shape.layers):
        for name, outputs, inputs in (
            ("self_attn.q_proj", q, shape.hidden),
            ("self_attn.k_proj", kv, shape.hidden),
            ("self_attn.v_proj", kv, shape.hidden),
            ("self_attn.o_proj", shape.hidden, q),
            ("mlp.gate_proj", shape.intermediate, shape.hidden),
            ("mlp.up_proj", shape.intermediate, shape.hidden),
            ("mlp.down_proj", shape.hidden, shape.intermediate),
        ):
            yield f"model.layers.{layer}.{name}", outputs, inputs


def norms(shape: Shape) -> Iterator[tuple[str, int]]:
    """The norms: name, size."""
    for layer in range(shape.layers):
        yield f"model.layers.{layer}.input_layernorm", shape.hidden
        yield f"model.layers.{layer}.post_attention_layernorm", shape.hidden
        if shape.qk_norm:
            yield f"model.layers.{layer}.self_attn.q_norm", shape.head_dim
            yield f"model.layers.{layer}.self_attn.k_norm", shape.head_dim
    yield "model.norm", shape.hidden


def parameters(shape: Shape) -> int:
    """Of the model, whose head is not tied."""
    linear = sum(outputs * inputs for _, outputs, inputs in linears(shape))
    return linear + sum(size for _, size in norms(shape)) + 2 * shape.vocab * shape.hidden


def configuration(shape: Shape) -> dict[str, Any]:
    """The model's ``config.json``."""
    return {
        "architectures": ["Qwen3ForCausalLM" if shape.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if shape.qk_norm else "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "bfloat16",
    }


class _Random:
    """Normal numbers in bfloat16, from a pool that starts again where it ends."""

    def __init__(self, count: int) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        self._pool = torch.randn(min(count, POOL), generator=generator).bfloat16()
        self._at = 0

    def __call__(self, rows: int, columns: int, std: float) -> Any:
        import torch

        out = torch.empty(rows * columns, dtype=torch.bfloat16)
        done = 0
        while done < len(out):
            part = self._pool[self._at : self._at + len(out) - done]
            torch.mul(part, std, out=out[done : done + len(part)])
            done += len(part)
            self._at = (self._at + len(part)) % len(self._pool)
        return out.view(rows, columns)


def write_model(shape: Shape, folder: Path) -> Path:
    """Write the model in bfloat16, without a tokenizer; return the folder."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(configuration(shape)))
    sizes = [(outputs, inputs) for _, outputs, inputs in linears(shape)]
    random = _Random(sum(a * b for a, b in sizes) + shape.vocab * shape.hidden)
    embeddings = random(shape.vocab, shape.hidden, 1.0)
    head = embeddings.roll(1, 0) * (LOGIT / shape.hidden)
    weights = {"model.embed_tokens.weight": embeddings, "lm_head.weight": head}
    for name, size in norms(shape):
        weights[f"{name}.weight"] = torch.ones(size, dtype=torch.bfloat16)
    for name, outputs, inputs in linears(shape):
        small = DELTA if name.endswith(("o_proj", "down_proj")) else 1.0
        weights[f"{name}.weight"] = random(outputs, inputs, small / math.sqrt(inputs))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_adapter(shape: Shape, folder: Path, rank: int) -> Path:
    """Write a random adapter on all linear layers; return the folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    modules = sorted({name.rpartition(".")[2] for name, _, _ in linears(shape)})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": modules,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    random = _Random(sum(rank * (a + b) for _, a, b in linears(shape)))
    weights = {}
    for name, outputs, inputs in linears(shape):
        key = f"base_model.model.{name}"
        weights[f"{key}.lora_A.weight"] = random(rank, inputs, 1 / math.sqrt(inputs))
        weights[f"{key}.lora_B.weight"] = random(outputs, rank, DELTA / math.sqrt(rank))
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder
