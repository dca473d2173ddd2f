# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of some families with two random adapters each, and what the naive reference
makes of groups on them. A process of its own, ``python -m tests.engine.families FOLDER NAME...
[--long]``: importing vLLM changes what some models are in transformers (such as OLMo 2), so it must
not be imported here.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Cache

from tests.engine.streams import LONGEST, MAX_TOKENS, make_groups, short_groups
from tests.naive import Group, NaiveCold, load
from tests.tiny import LORA_MODULES, make_tokenizer

VOCAB_SIZE, HIDDEN = 512, 128
RANK = 8
WINDOW = 32  # shorter than most of the prompts
GROUPS = short_groups(36)
LONG_GROUPS = make_groups(40)  # with prompts of 1 to ``LONGEST`` tokens next to each other


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        config: How its config class is called in transformers.
        settings: What that says besides ``_COMMON``.
        lora: Which of its layers get an adapter; none: vLLM has no LoRA for it.
        tied: Whether the output layer is the embedding.
        fused: Whether an adapter has one matrix for the gate and up of all experts, and one for
            down; else each expert has three. Of experts, adapter "one" changes all, "two" none.
        last_norm: What the last norm is called.
        vision: The config of what looks at images or hears, of a model that also does.
        tower: What a model's config calls that one.
        whole: What else a model's config says besides that of its text and this one.
        special: Its tokens that stand for media, and what its config calls their ids.
        more_special: Other such tokens, by what the tokenizer calls them.
        processor: Makes what makes prompts of media, of the tokenizer.
    """

    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    lora: list[str] = field(default_factory=lambda: LORA_MODULES)
    tied: bool = False
    fused: bool = False
    last_norm: str = "norm"
    vision: dict[str, Any] = field(default_factory=dict)
    tower: str = "vision_config"
    whole: dict[str, Any] = field(default_factory=dict)
    special: dict[str, tuple[str, str]] = field(default_factory=dict)
    more_special: dict[str, str] = field(default_factory=dict)
    processor: Callable[[Any], Any] | None = None


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
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
    "gemma2": Family(
        "Gemma2Config",
        {"sliding_window": WINDOW, "layer_types": _LOCAL, "query_pre_attn_scalar": 32},
        tied=True,
    ),
    "phi3": Family(
        "Phi3Config",
        {"original_max_position_embeddings": 512},
        ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    ),
    "qwen3_moe": Family(
        "Qwen3MoeConfig",
        # Experts of 80, which kernels pad.
        {"moe_intermediate_size": 80, "num_experts": 8, "num_experts_per_tok": 3},
        ATTENTION,
    ),
    "gpt_oss": Family(
        "GptOssConfig",
        {
            "num_local_experts": 8,
            "num_experts_per_tok": 4,
            "sliding_window": WINDOW,
            "layer_types": _LOCAL,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 128,
            },
        },
        ATTENTION,
        fused=True,
    ),
}

_MIXED = ["linear_attention", "full_attention", "linear_attention", "linear_attention"]
# With state-space layers.
WITH_SSM = {
    # Its states are no larger than what a block of 32 tokens takes in an attention layer: or vLLM
    # makes its blocks larger.
    "granite-4-hybrid": Family(
        "GraniteMoeHybridConfig",
        {
            "mamba_n_heads": 8,
            "mamba_d_head": 32,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 32,
            "max_position_embeddings": LONGEST + MAX_TOKENS,
            "num_hidden_layers": len(_MIXED),
            "layer_types": _MIXED,
            "num_local_experts": 0,
            "shared_intermediate_size": 192,
            "position_embedding_type": "rope",
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.7,
        },
        [*ATTENTION, "in_proj", "out_proj"],
    ),
    # Short convolutions, whose states are inputs. vLLM ties its weights, whatever a config says.
    "lfm2": Family(
        "Lfm2Config",
        {
            "num_hidden_layers": len(_MIXED),
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
}


def make_config(family: Family, folder: Path) -> Any:
    """A model's config; writes what makes prompts of images, if it takes some."""
    settings = {**_COMMON, "tie_word_embeddings": family.tied, **family.settings}
    if family.vision:
        settings = _with_vision(family, settings, folder)
    return getattr(transformers, family.config)(**settings)


def make_model(family: Family, folder: Path) -> Path:
    """Write a model with random weights, norms and biases; return the folder."""
    kind = transformers.AutoModelForCausalLM
    if family.vision:
        kind = transformers.AutoModelForMultimodalLM
    model = kind.from_config(make_config(family, folder)).to(torch.float32)
    generator = torch.Generator().manual_seed(0)

    def noise(weight: torch.Tensor, std: float) -> torch.Tensor:
        return std * torch.randn(weight.shape, generator=generator)

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("A_log"):
                weight.copy_(torch.linspace(-5.0, 0.0, len(weight)))  # most heads remember long
            elif weight.dim() > 2 and "experts" in name:  # inputs and outputs in either order
                weight.copy_(noise(weight, 2.4 / HIDDEN**0.5))
            elif weight.dim() > 1:
                patches = weight.dim() > 3
                inputs = weight[0].numel() if patches else weight.shape[1]
                weight.copy_(noise(weight, 2.4 / inputs**0.5))
            else:
                weight.add_(noise(weight, 0.1))
        if family.vision:
            # What stands for images is never an answer.
            model.get_output_embeddings().weight[VOCAB_SIZE:].mul_(0.01)
        if family.tied:
            # Or each token's best successor would be itself.
            model.model.embed_tokens.weight.mul_(0.1)
            getattr(model.model, family.last_norm).weight.add_(9.0)
    model.save_pretrained(folder)
    names = {
        "LlavaConfig": ("vision_tower.", "vision_tower.vision_model."),
        "Qwen2AudioConfig": ("language_model.model.model.", "language_model.model."),
    }
    if family.config in names:
        # As in the checkpoints on the hub, which vLLM reads.
        path = folder / "model.safetensors"
        old, new = names[family.config]
        weights = {name.replace(old, new): one for name, one in load_file(path).items()}
        save_file(weights, path, {"format": "pt"})
    return folder


def _with_vision(family: Family, text: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of a vision-language or audio model; writes what makes prompts of images."""
    special = {**dict(family.special.values()), **family.more_special}
    tokenizer = make_tokenizer(extra_special_tokens=special)
    assert family.processor is not None
    family.processor(tokenizer).save_pretrained(folder)
    ids = {
        key: tokenizer.convert_tokens_to_ids(token) for key, (_, token) in family.special.items()
    }
    # After those that prompts are made of.
    all_ids = tokenizer.convert_tokens_to_ids(list(special.values()))
    assert VOCAB_SIZE <= min(all_ids) <= max(all_ids) < VOCAB_SIZE + 8
    return {
        "text_config": {**text, "vocab_size": VOCAB_SIZE + 8},
        family.tower: family.vision,
        "tie_word_embeddings": family.tied,
        "dtype": "float32",
        **family.whole,
        **ids,
    }


def make_adapter(
    family: Family, model: Path, folder: Path, seed: int, with_experts: bool = True
) -> torch.nn.Module:
    """Write a random adapter, in the files that vLLM reads, and but for experts peft; an element of
    a weight's change is a sixth of the weight's or so. The model with its changes added to the
    weights, as peft would.
    """
    generator = torch.Generator().manual_seed(seed)
    merged, scale = load(model), 2.0
    tensors: dict[str, Tensor] = {}

    def draw(name: str, a_shape: Sequence[int], b_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        a = torch.randn(*a_shape, generator=generator)
        b = torch.randn(*b_shape, generator=generator) * 0.035 / (scale * RANK**0.5)
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.reshape(-1, a.shape[-1])
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.flatten(1).contiguous()
        return a, b

    def change(name: str, weight: Tensor) -> None:
        a, b = draw(name, (RANK, weight.shape[1]), (weight.shape[0], RANK))
        weight.add_(scale * b @ a)

    def change_all(name: str, weights: Tensor) -> None:
        count, inputs, outputs = weights.shape
        a, b = draw(name, (count, RANK, inputs), (outputs, RANK, count))
        weights.add_(scale * torch.einsum("ore,eri->eio", b, a))

    with torch.no_grad():
        for name, module in merged.named_modules():
            of_text = "language_model" in name or not family.vision
            if of_text and name.rpartition(".")[2] in family.lora:
                change(name, module.weight)
            elif not (name.endswith(".experts") and with_experts):
                continue
            elif family.fused:
                change_all(f"{name}.base_layer", module.gate_up_proj)
                change_all(name, module.down_proj)
            else:
                for number, down in enumerate(module.down_proj):
                    gate, up = module.gate_up_proj[number].chunk(2)
                    for part, weight in (("gate", gate), ("up", up), ("down", down)):
                        change(f"{name}.{number}.{part}_proj", weight)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = LoraConfig(r=RANK, lora_alpha=int(scale * RANK), target_modules=family.lora)
    config.save_pretrained(str(folder))
    return merged


class NaiveMerged(NaiveCold):
    """A model for each adapter instead of adapters."""

    def __init__(self, models: Mapping[str | None, torch.nn.Module]) -> None:
        self._models = {name: model.eval() for name, model in models.items()}

    def _forward(
        self, adapter: str | None, ids: list[list[int]], cache: Cache | None
    ) -> tuple[Tensor, Cache]:
        self._model = self._models[adapter]
        return super()._forward(None, ids, cache)


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
    """Write a folder for each family: model, adapters and traces."""
    for name in names:
        family, own = {**FAMILIES, **WITH_SSM}[name], folder / name
        model = make_model(family, own / "model")
        models = {
            None: load(model),
            "one": make_adapter(family, model, own / "one", 1),
            "two": make_adapter(family, model, own / "two", 2, with_experts=False),
        }
        write_traces(NaiveMerged(models), LONG_GROUPS if long else GROUPS, own)


if __name__ == "__main__":
    names = [argument for argument in sys.argv[2:] if argument != "--long"]
    main(Path(sys.argv[1]), *names, long="--long" in sys.argv)
