# SPDX-License-Identifier: Apache-2.0
"""A tiny random Llama and LoRA adapters, written as vLLM, transformers and peft load them.

The doctor's self-test decodes with them, and so do the tests. Only torch and safetensors are
needed, which every vLLM brings; there is no tokenizer: prompts are token ids. The same seeds give
the same files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

VOCAB_SIZE, SPECIAL_TOKENS = 512, 4  # <unk>, <pad>, <s>, </s>
RANK = 8
MODEL = "model"
ADAPTERS = ("one", "two")
# A head size that all attention back ends take.
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
}
# Chosen so that no token of the self-test is a close call (``cases``).
_SEED = 77


def write(folder: Path) -> None:
    """Write the self-test's ``model``, ``one`` and ``two`` below ``folder``."""
    write_model(folder / MODEL, SIZES, _SEED)
    for seed, name in enumerate(ADAPTERS, 1):
        write_adapter(folder / MODEL, folder / name, seed)


def write_model(folder: Path, sizes: Mapping[str, int], seed: int, std: float = 0.3) -> None:
    """Write a Llama of two layers in float32.

    With weights of this size the logits are spread and greedy text varies. The special tokens' rows
    of the output layer are zero: their logits are 0, far below the largest one, so end-of-sequence
    does not come up by chance. ``sizes`` is as ``SIZES``, ``std`` the weights' standard deviation.
    """
    import torch

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "num_hidden_layers": 2,
        **sizes,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "torch_dtype": "float32",
    }
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.empty(shape).normal_(0.0, std, generator=generator)

    hidden = sizes["hidden_size"]
    weights = {"model.embed_tokens.weight": draw(VOCAB_SIZE, hidden)}
    for name, shape in _linear(config):
        weights[f"{name}.weight"] = draw(*shape)
    weights["lm_head.weight"] = draw(VOCAB_SIZE, hidden)
    weights["lm_head.weight"][:SPECIAL_TOKENS] = 0.0
    norms = ("layers.{}.input_layernorm", "layers.{}.post_attention_layernorm", "norm")
    for name in {norm.format(layer) for norm in norms for layer in range(2)}:
        weights[f"model.{name}.weight"] = torch.ones(hidden)
    _save(folder, "config.json", config, "model.safetensors", weights)


def write_adapter(
    model: Path, folder: Path, seed: int, rank: int = RANK, scale: float = 0.05
) -> Path:
    """Write an adapter of every linear layer of a Llama, with ``lora_alpha`` twice the rank; return
    the folder.

    ``scale`` is the standard deviation of an element of the change of a weight, whatever the rank
    (the model's own weights have 0.3); 0 gives an adapter that changes nothing.
    """
    import torch

    model_config = json.loads((model / "config.json").read_text())
    modules = dict(_linear(model_config))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({name.rpartition(".")[2] for name in modules}),
        "bias": "none",
    }
    generator = torch.Generator().manual_seed(seed)
    std_b = scale / (2.0 * rank**0.5)  # 2 * B @ A sums as many products as the rank, hence the root
    weights: dict[str, Tensor] = {}
    for name, (size_out, size_in) in modules.items():
        prefix = f"base_model.model.{name}.lora_"
        a = torch.empty(rank, size_in).normal_(0.0, 1.0, generator=generator)
        b = torch.empty(size_out, rank).normal_(0.0, 1.0, generator=generator)
        weights |= {f"{prefix}A.weight": a, f"{prefix}B.weight": b.mul_(std_b)}
    _save(folder, "adapter_config.json", config, "adapter_model.safetensors", weights)
    return folder


def _linear(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name, and size of output and input, of each linear layer of a Llama."""
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    queries, keys = heads * head, config["num_key_value_heads"] * head
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (intermediate, hidden),
            "mlp.up_proj": (intermediate, hidden),
            "mlp.down_proj": (hidden, intermediate),
        }.items():
            yield f"model.layers.{layer}.{name}", shape


def _save(
    folder: Path, config_name: str, config: object, weights_name: str, weights: dict[str, Tensor]
) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / config_name).write_text(json.dumps(config))
    save_file(weights, folder / weights_name, metadata={"format": "pt"})
