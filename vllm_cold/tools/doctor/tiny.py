# SPDX-License-Identifier: Apache-2.0
"""A tiny random Llama and LoRA adapters, written as vLLM, transformers and peft load them.

The doctor's self-test decodes with them, and so do the tests. There is no tokenizer: prompts are
token ids. The same seeds give the same files.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    options: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float32",
        "vocab_size": VOCAB_SIZE,
        "num_hidden_layers": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 3,
        **sizes,
    }
    config = LlamaConfig(**options)
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        # The vectors are those of norms.
        name: torch.ones(weight.shape)
        if weight.ndim == 1
        else torch.empty(weight.shape).normal_(0.0, std, generator=generator)
        for name, weight in _without_weights(config).named_parameters()
    }
    weights["lm_head.weight"][:SPECIAL_TOKENS] = 0.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_adapter(
    model: Path, folder: Path, seed: int, rank: int = RANK, scale: float = 0.05
) -> Path:
    """Write an adapter of every linear layer of a Llama, with ``lora_alpha`` twice the rank; return
    the folder.

    ``scale`` is the standard deviation of an element of the change of a weight, whatever the rank
    (the model's own weights have 0.3); 0 gives an adapter that changes nothing.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    generator = torch.Generator().manual_seed(seed)
    std_b = scale / (2.0 * rank**0.5)  # 2 * B @ A sums as many products as the rank, hence the root
    weights: dict[str, torch.Tensor] = {}
    for name, layer in _without_weights(LlamaConfig.from_pretrained(model)).named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            prefix = f"base_model.model.{name}.lora_"
            a = torch.empty(rank, layer.in_features).normal_(0.0, 1.0, generator=generator)
            b = torch.empty(layer.out_features, rank).normal_(0.0, 1.0, generator=generator)
            weights |= {f"{prefix}A.weight": a, f"{prefix}B.weight": b.mul_(std_b)}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({name.split(".")[-3] for name in weights}),
        "bias": "none",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def _without_weights(config: Any) -> Any:
    """Return the model's modules in their order, with shapes alone."""
    import torch
    from transformers import LlamaForCausalLM

    untyped: Any = LlamaForCausalLM
    with torch.device("meta"):
        return untyped(config)
