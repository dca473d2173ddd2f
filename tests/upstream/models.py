# SPDX-License-Identifier: Apache-2.0
"""Folders that stand for the hub models which vLLM's scheduler tests name.

A scheduler needs no weights: the folders hold a config, a tokenizer and, where the model takes
images, a processor's settings. Sizes that the scheduler sees are the real models' (context length,
placeholder tokens per image); the tokenizers know single characters and the special tokens only.
``VLLM_MODEL_REDIRECT_PATH``, vLLM's own switch, leads from the names to the folders.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_QWEN_PIXELS = {"min_pixels": 3136, "max_pixels": 12845056}


# name -> file -> content, where it is not transformers' default; `make_models` adds the tokenizer.
_MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "facebook/opt-125m": {
        "config.json": {
            "model_type": "opt",
            "architectures": ["OPTForCausalLM"],
            "dtype": "float16",
        }
    },
    "facebook/opt-350m": {
        "config.json": {
            "model_type": "opt",
            "architectures": ["OPTForCausalLM"],
            "hidden_size": 1024,
            "ffn_dim": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "dtype": "float16",
        }
    },
    "llava-hf/llava-1.5-7b-hf": {
        "config.json": {
            "model_type": "llava",
            "architectures": ["LlavaForConditionalGeneration"],
            "dtype": "float16",
            "text_config": {
                "model_type": "llama",
                "architectures": ["LlamaForCausalLM"],
                "max_position_embeddings": 4096,
                "vocab_size": 32064,
                "dtype": "float16",
            },
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 336},
            "crop_size": {"height": 336, "width": 336},
        },
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "image_token": "<image>",
            "patch_size": 14,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default",
        },
    },
    "Qwen/Qwen3-Next-80B-A3B-Instruct": {
        "config.json": {
            "model_type": "qwen3_next",
            "architectures": ["Qwen3NextForCausalLM"],
            "num_nextn_predict_layers": 1,
            "dtype": "bfloat16",
        }
    },
    "Qwen/Qwen2.5-VL-3B-Instruct": {
        "config.json": {
            "model_type": "qwen2_5_vl",
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "dtype": "bfloat16",
            "text_config": {
                "model_type": "qwen2_5_vl_text",
                "hidden_size": 2048,
                "intermediate_size": 11008,
                "num_attention_heads": 16,
                "num_hidden_layers": 36,
                "num_key_value_heads": 2,
                "max_position_embeddings": 128000,
                "vocab_size": 151936,
                "dtype": "bfloat16",
                "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            },
            "vision_config": {"hidden_size": 1280, "out_hidden_size": 2048},
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
            **_QWEN_PIXELS,
        },
        "video_preprocessor_config.json": {
            "video_processor_type": "Qwen2VLVideoProcessor",
            **_QWEN_PIXELS,
        },
    },
}
# Special tokens at the ids that the configs name; the ids between stay unused.
_SPECIAL: dict[str, dict[str, int]] = {
    "llava-hf/llava-1.5-7b-hf": {"<image>": 32000},
    "Qwen/Qwen2.5-VL-3B-Instruct": {
        "<|vision_start|>": 151652,
        "<|vision_end|>": 151653,
        "<|image_pad|>": 151655,
        "<|video_pad|>": 151656,
    },
}


def _tokenizer(special: dict[str, int]) -> PreTrainedTokenizerFast:
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *characters])}
    backend = Tokenizer(models.BPE(vocab=vocab | special, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(special),
    )


def make_models(folder: Path) -> Path:
    """Write all of them; return the file for ``VLLM_MODEL_REDIRECT_PATH``."""
    redirects = {}
    for name, files in _MODELS.items():
        model = folder / name.replace("/", "--")
        model.mkdir(parents=True, exist_ok=True)
        _tokenizer(_SPECIAL.get(name, {})).save_pretrained(model)
        for file, content in files.items():
            (model / file).write_text(json.dumps(content, indent=2))
        redirects[name] = str(model.resolve())
    redirect_file = folder / "redirects.json"
    redirect_file.write_text(json.dumps(redirects, indent=2))
    return redirect_file
