# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of some families with two random adapters each, and what the naive reference
makes of ``GROUPS`` on them. A process of its own, ``python -m tests.engine.families FOLDER
NAME...``: importing vLLM changes what some models are in transformers (OLMo 2's), so it must not be
imported here.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from tests.engine.streams import short_groups
from tests.naive import Group, NaiveCold, load
from tests.tiny import LORA_MODULES, make_tokenizer

VOCAB_SIZE, HIDDEN = 512, 128
RANK = 8
WINDOW = 32  # shorter than most of the prompts
GROUPS = short_groups(36)


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        config: How its config class is called in transformers.
        settings: What that says beside ``_COMMON``.
        lora: Which of its layers get an adapter.
        tied: Whether the output layer is the embedding.
        vision: The config of what looks at images, of a model that also does.
        special: Its tokens that stand for images, and what its config calls their ids.
        processor: Makes what makes prompts of images, of the tokenizer.
    """

    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    lora: list[str] = field(default_factory=lambda: LORA_MODULES)
    tied: bool = False
    vision: dict[str, Any] = field(default_factory=dict)
    special: dict[str, tuple[str, str]] = field(default_factory=dict)
    processor: Callable[[Any], Any] | None = None


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
_GEMMA3 = {"sliding_window": WINDOW, "layer_types": _LOCAL, "query_pre_attn_scalar": 32}
# As many as the attention of images takes; 28 x 28 pixels are one patch of it, or four.
_PIXELS = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}


def _gemma3(tokenizer: Any) -> Any:
    tokenizer.add_tokens(["\n" * num for num in range(1, 5)])  # which vLLM looks up
    size = {"height": 28, "width": 28}
    images = transformers.Gemma3ImageProcessor(size=size)
    return transformers.Gemma3Processor(images, tokenizer, image_seq_length=4)


def _qwen(kind: str, videos: str) -> Callable[[Any], Any]:
    def make(tokenizer: Any) -> Any:
        images = transformers.Qwen2VLImageProcessor(size=_PIXELS, patch_size=14)
        of_videos = getattr(transformers, videos)(size=_PIXELS, patch_size=14)
        return getattr(transformers, kind)(images, tokenizer, of_videos)

    return make


_VISION = {"hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "depth": 2}
_QWEN = {
    "image_token_id": ("image_token", "<|image_pad|>"),
    "video_token_id": ("video_token", "<|video_pad|>"),
    "vision_start_token_id": ("vision_start", "<|vision_start|>"),
    "vision_end_token_id": ("vision_end", "<|vision_end|>"),
}


def _mrope(*section: int) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section)}


FAMILIES = {
    "llama": Family("LlamaConfig"),
    "qwen2": Family("Qwen2Config"),
    "qwen3": Family("Qwen3Config"),
    "gemma2": Family(
        "Gemma2Config",
        {"sliding_window": WINDOW, "layer_types": _LOCAL, "query_pre_attn_scalar": 32},
        tied=True,
    ),
    "gemma3": Family("Gemma3TextConfig", _GEMMA3, tied=True),
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
    # Whose checkpoints also see.
    "gemma3-vision": Family(
        "Gemma3Config",
        _GEMMA3,
        tied=True,
        vision={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "image_size": 28,
            "patch_size": 7,
        },
        special={
            "boi_token_index": ("boi_token", "<start_of_image>"),
            "eoi_token_index": ("eoi_token", "<end_of_image>"),
            "image_token_index": ("image_token", "<image_soft_token>"),
        },
        processor=_gemma3,
    ),
    "qwen2.5-vl": Family(
        "Qwen2_5_VLConfig",
        {"rope_parameters": _mrope(4, 6, 6)},
        vision={**_VISION, "out_hidden_size": HIDDEN, "fullatt_block_indexes": [1]},
        special=_QWEN,
        processor=_qwen("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    ),
    "qwen3-vl": Family(
        "Qwen3VLConfig",
        {"rope_parameters": _mrope(6, 5, 5)},
        vision={
            **_VISION,
            "out_hidden_size": HIDDEN,
            "patch_size": 14,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        special=_QWEN,
        processor=_qwen("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    ),
}


def make_model(family: Family, folder: Path) -> Path:
    """Write a model with random weights, norms and biases; return the folder."""
    settings = {**_COMMON, "tie_word_embeddings": family.tied, **family.settings}
    kind = transformers.AutoModelForCausalLM
    if family.vision:
        kind = transformers.AutoModelForImageTextToText
        settings = _with_vision(family, settings, folder)
    config = getattr(transformers, family.config)(**settings)
    model = kind.from_config(config).to(torch.float32)
    generator = torch.Generator().manual_seed(0)

    def noise(weight: torch.Tensor, std: float) -> torch.Tensor:
        return std * torch.randn(weight.shape, generator=generator)

    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_(noise(weight, 2.4 / weight.shape[1] ** 0.5))
            else:
                weight.add_(noise(weight, 0.1))
        if family.tied:
            # Or each token's best successor would be itself.
            decoder = getattr(model.model, "language_model", model.model)
            decoder.embed_tokens.weight.mul_(0.1)
            decoder.norm.weight.add_(9.0)
    model.save_pretrained(folder)
    if family.config == "Gemma3Config":
        # As in the checkpoints on the hub, which vLLM reads.
        path, tower = folder / "model.safetensors", "vision_tower."
        weights = {
            name.replace(tower, f"{tower}vision_model."): weight
            for name, weight in load_file(path).items()
        }
        save_file(weights, path, {"format": "pt"})
    return folder


def _with_vision(family: Family, text: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of a model that also sees; writes what makes prompts of images."""
    tokenizer = make_tokenizer(extra_special_tokens=dict(family.special.values()))
    assert family.processor is not None
    family.processor(tokenizer).save_pretrained(folder)
    ids = {
        key: tokenizer.convert_tokens_to_ids(token) for key, (_, token) in family.special.items()
    }
    # Behind those that prompts are made of.
    assert min(ids.values()) >= VOCAB_SIZE
    return {
        "text_config": {**text, "vocab_size": VOCAB_SIZE + 8},
        "vision_config": family.vision,
        "tie_word_embeddings": family.tied,
        "dtype": "float32",
        "mm_tokens_per_image": 4,
        **ids,
    }


def make_adapter(family: Family, model: Path, folder: Path, seed: int) -> None:
    """Write a random adapter; an element of a weight's change is a sixth of the weight's or so."""
    base = load(model)
    modules: Any = family.lora
    if family.vision:
        modules = rf".*language_model.*\.({'|'.join(family.lora)})"
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=modules, task_type="CAUSAL_LM")
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


def main(folder: Path, names: Sequence[str]) -> None:
    """Write a folder for each family: model, adapters and traces."""
    for name in names:
        family, own = FAMILIES[name], folder / name
        model = make_model(family, own / "model")
        adapters = {adapter: own / adapter for adapter in ("one", "two")}
        for seed, path in enumerate(adapters.values(), 1):
            make_adapter(family, model, path, seed)
        write_traces(NaiveCold(model, adapters), GROUPS, own)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
