# SPDX-License-Identifier: Apache-2.0
"""The tiny random model and adapters of the doctor's self-test, written as vLLM loads them.

Only torch and safetensors are needed, which every vLLM brings: no tokenizer (prompts are token
ids), no peft. The same seeds give the same files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

VOCAB_SIZE = 512
LAYERS = 2
HIDDEN, INTERMEDIATE = 128, 256
HEADS, KV_HEADS, HEAD_SIZE = 2, 1, 64  # a head size that all attention back ends take
RANK, LORA_ALPHA = 8, 16

MODEL = "model"
ADAPTERS = ("one", "two")

# Chosen so that no token of the self-test is a close call (``reference.Decoded.margin``).
_MODEL_SEED = 48
_ADAPTER_SEEDS = {"one": 1, "two": 2}
_WEIGHT_STD = 0.3
_DELTA_STD = 0.05

# Output and input size of each linear layer.
_LINEAR = {
    "self_attn.q_proj": (HEADS * HEAD_SIZE, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD_SIZE, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD_SIZE, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD_SIZE),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}


def write(folder: Path) -> None:
    """Write ``model``, ``one`` and ``two`` below ``folder``."""
    _save(folder / MODEL, "config.json", _config(), "model.safetensors", model_weights())
    for name in ADAPTERS:
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": RANK,
            "lora_alpha": LORA_ALPHA,
            "target_modules": [module.rpartition(".")[2] for module in _LINEAR],
            "bias": "none",
        }
        weights = {
            f"base_model.model.{key.removesuffix('.weight')}.lora_{half}.weight": weight
            for key, halves in adapter_weights(name).items()
            for half, weight in zip("AB", halves, strict=True)
        }
        path = folder / name
        _save(path, "adapter_config.json", config, "adapter_model.safetensors", weights)


def model_weights() -> dict[str, Tensor]:
    """Float32 weights by the names that Llama's modules have in transformers."""
    import torch

    generator = torch.Generator().manual_seed(_MODEL_SEED)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * _WEIGHT_STD

    weights = {
        "model.embed_tokens.weight": draw(VOCAB_SIZE, HIDDEN),
        "model.norm.weight": torch.ones(HIDDEN),
        "lm_head.weight": draw(VOCAB_SIZE, HIDDEN),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}.{norm}.weight"] = torch.ones(HIDDEN)
        for module, shape in _LINEAR.items():
            weights[f"{prefix}.{module}.weight"] = draw(*shape)
    return weights


def adapter_weights(name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """A [rank, in] and B [out, rank], float32, by the name of the weight that they change."""
    import torch

    generator = torch.Generator().manual_seed(_ADAPTER_SEEDS[name])
    std_b = _DELTA_STD * RANK**0.5 / LORA_ALPHA  # of B; an element of the change has _DELTA_STD
    return {
        f"model.layers.{layer}.{module}.weight": (
            torch.randn(RANK, size_in, generator=generator),
            torch.randn(size_out, RANK, generator=generator) * std_b,
        )
        for layer in range(LAYERS)
        for module, (size_out, size_in) in _LINEAR.items()
    }


def _config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_SIZE,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


def _save(
    folder: Path, config_name: str, config: object, weights_name: str, weights: dict[str, Tensor]
) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / config_name).write_text(json.dumps(config))
    save_file(weights, folder / weights_name, metadata={"format": "pt"})
