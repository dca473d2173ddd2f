# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of some families with two random adapters each, and what the naive reference
makes of groups on them. A process of its own, ``python -m tests.engine.families FOLDER NAME...
[--long]``: importing vLLM changes what some models are in transformers (OLMo 2's), so it must not
be imported here.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from tests.engine.streams import LONGEST, MAX_TOKENS, make_groups, num_adapters, short_groups
from tests.naive import Group, NaiveCold
from tests.tiny import LORA_MODULES

VOCAB_SIZE, HIDDEN = 512, 128
RANK = 8
WINDOW = 32  # shorter than most of the prompts
GROUPS = short_groups(36)


@dataclass(frozen=True)
class Family:
    """How its config class is called in transformers, what it says beside ``_COMMON``, and which
    of its layers get an adapter (none: vLLM has no LoRA for it).
    """

    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    lora: list[str] = field(default_factory=lambda: LORA_MODULES)
    tied: bool = False
    last_norm: str = "norm"
    recompute: bool = False  # transformers' cache cannot be used
    dtype: str = "float32"  # of engines; if another, their own single streams are the reference


_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # vLLM's CPU attention takes multiples of 32 only
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "dtype": "float32",
}
_LOCAL = ["sliding_attention", "full_attention", "sliding_attention"]

FAMILIES = {
    "llama": Family("LlamaConfig"),
    "qwen2": Family("Qwen2Config"),
    "qwen3": Family("Qwen3Config"),
    "gemma2": Family(
        "Gemma2Config",
        {"sliding_window": WINDOW, "layer_types": _LOCAL, "query_pre_attn_scalar": 32},
        tied=True,
    ),
    "gemma3": Family(
        "Gemma3TextConfig",
        {"sliding_window": WINDOW, "layer_types": _LOCAL, "query_pre_attn_scalar": 32},
        tied=True,
    ),
    "mistral": Family("MistralConfig", {"sliding_window": WINDOW}),
    "phi3": Family(
        "Phi3Config",
        {"original_max_position_embeddings": 512},
        ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    ),
    "granite": Family(
        "GraniteConfig",
        {
            "embedding_multiplier": 2.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.7,
            "logits_scaling": 0.5,
        },
    ),
    "olmo2": Family("Olmo2Config"),
}

# With state-space layers, whose states are no larger than what a block of 32 tokens takes in an
# attention layer: or vLLM makes its blocks larger.
_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 32,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 32,
    "max_position_embeddings": LONGEST + MAX_TOKENS,
}
_MIXED = ["linear_attention", "full_attention", "linear_attention", "linear_attention"]
_IN_AND_OUT = ["q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "out_proj"]

WITH_STATES = {
    "granite-4-hybrid": Family(
        "GraniteMoeHybridConfig",
        {
            **_MAMBA,
            "num_hidden_layers": len(_MIXED),
            "layer_types": _MIXED,
            "num_local_experts": 0,
            "shared_intermediate_size": 192,
            "position_embedding_type": "rope",
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.7,
        },
        _IN_AND_OUT,
    ),
    "falcon-h1": Family(
        "FalconH1Config",
        {**_MAMBA, "mamba_d_ssm": 256, "mamba_rms_norm": True, "mamba_norm_before_gate": False},
        LORA_MODULES,
        recompute=True,
    ),
    "nemotron-h": Family(
        "NemotronHConfig",
        {
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 32,
            "ssm_state_size": 8,
            "time_step_min": 1e-9,  # no step is shorter in transformers; vLLM sets no limit
            "n_groups": 1,
            "chunk_size": 32,
            "max_position_embeddings": LONGEST + MAX_TOKENS,
        },
        ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
    ),
    # Short convolutions, whose states are inputs. vLLM ties its weights, whatever a config says.
    "lfm2": Family(
        "Lfm2Config",
        {
            "num_hidden_layers": 4,
            "layer_types": ["conv", "full_attention", "conv", "conv"],
            "conv_dim": HIDDEN,
            "block_dim": HIDDEN,
            "block_auto_adjust_ff_dim": False,
            "max_position_embeddings": LONGEST + MAX_TOKENS,
        },
        ["q_proj", "k_proj", "v_proj", "in_proj", "w1", "w2", "w3"],
        tied=True,
        last_norm="embedding_norm",
    ),
    "mamba-2": Family(
        "Mamba2Config",
        {
            "intermediate_size": 2 * HIDDEN,
            "num_heads": 8,
            "state_size": 8,
            "n_groups": 1,
            "chunk_size": 32,
            "max_position_embeddings": LONGEST + MAX_TOKENS,
        },
        [],
        recompute=True,
    ),
}
# Gated DeltaNet, which vLLM's kernels on CPU compute in bfloat16 and with heads of 128 only.
_DELTA = {
    "num_hidden_layers": len(_MIXED),
    "layer_types": _MIXED,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "max_position_embeddings": LONGEST + MAX_TOKENS,
}
WITH_STATES_IN_BFLOAT16 = {
    "qwen3.5": Family("Qwen3_5TextConfig", _DELTA, LORA_MODULES, dtype="bfloat16"),
    "qwen3-next": Family(
        "Qwen3NextConfig",
        {
            **_DELTA,
            "num_experts": 4,
            "num_experts_per_tok": 4,  # all: rounding would choose others
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
        },
        [],
        dtype="bfloat16",
    ),
}
ALL = {**FAMILIES, **WITH_STATES, **WITH_STATES_IN_BFLOAT16}


def long_groups_of(name: str) -> list[Group]:
    """What is asked of a family, with prompts of 1 to ``LONGEST`` tokens beside each other."""
    return [group for group in make_groups(100) if ALL[name].lora or not num_adapters(group)][:40]


def make_model(family: Family, folder: Path) -> Path:
    """Write a model with random weights, norms and biases; return the folder."""
    settings = {**_COMMON, "tie_word_embeddings": family.tied, **family.settings}
    config = getattr(transformers, family.config)(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.float32)
    generator = torch.Generator().manual_seed(0)

    def noise(weight: torch.Tensor, std: float) -> torch.Tensor:
        return std * torch.randn(weight.shape, generator=generator)

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("A_log"):
                weight.copy_(torch.linspace(-5.0, 0.0, len(weight)))  # most heads remember long
            elif weight.dim() > 1:
                weight.copy_(noise(weight, 2.4 / weight.shape[1] ** 0.5))
            else:
                weight.add_(noise(weight, 0.1))
        if family.tied:
            # Or each token's best successor would be itself.
            model.model.embed_tokens.weight.mul_(0.1)
            getattr(model.model, family.last_norm).weight.add_(9.0)
    model.save_pretrained(folder)
    return folder


def make_adapter(family: Family, model: Path, folder: Path, seed: int) -> None:
    """Write a random adapter; an element of a weight's change is a sixth of the weight's or so."""
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=family.lora, task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(base, config)
    assert isinstance(adapted, PeftModel)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
            if "lora_B" in name:
                weight.mul_(0.035 / (2.0 * RANK**0.5))
    adapted.save_pretrained(str(folder))


def write_traces(naive: NaiveCold, groups: Sequence[Group], folder: Path) -> None:
    """The reference's traces of the groups, and of their experts alone."""
    experts = [replace(group, amateurs=(), rule=None) for group in groups]
    traces = {
        "groups": [asdict(trace) for trace in naive.generate_many(groups)],
        "experts": [asdict(trace) for trace in naive.generate_many(experts)],
    }
    assert "vllm" not in sys.modules
    (folder / "traces.json").write_text(json.dumps(traces))


def main(folder: Path, *names: str, long: bool) -> None:
    """Write a folder for each family: model, adapters and, in float32, traces."""
    for name in names:
        family, own = ALL[name], folder / name
        model = make_model(family, own / "model")
        adapters = {adapter: own / adapter for adapter in ("one", "two") if family.lora}
        for seed, path in enumerate(adapters.values(), 1):
            make_adapter(family, model, path, seed)
        if family.dtype == "float32":
            groups = long_groups_of(name) if long else GROUPS
            naive = NaiveCold(model, adapters, recompute=family.recompute)
            write_traces(naive, groups, own)


if __name__ == "__main__":
    names = [argument for argument in sys.argv[2:] if argument != "--long"]
    main(Path(sys.argv[1]), *names, long="--long" in sys.argv)
