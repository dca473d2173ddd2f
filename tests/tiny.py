# SPDX-License-Identifier: Apache-2.0
"""The tests' tiny random Llama, its tokenizer and LoRA adapters.

The doctor's makers write them (``vllm_cold.tools.doctor.tiny``), so tests need no network and no
stored weights: the same seed gives the same files. What tests need besides them is made here.

The vocabulary is ASCII text in byte-level BPE: 4 special tokens, newline, space, the 94 printable
characters and the words " w", " w0" ... " w410". " w17" is one token; the single characters are
there so that structured output (JSON, regular expressions) can be tested. Every token id from
`SPECIAL_TOKENS` on decodes to text of its own, never to half a character.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vllm_cold.tools.doctor import tiny
from vllm_cold.tools.doctor.tiny import SPECIAL_TOKENS, VOCAB_SIZE
from vllm_cold.tools.doctor.tiny import write_adapter as make_tiny_adapter

UNK_ID, PAD_ID, BOS_ID, EOS_ID = range(SPECIAL_TOKENS)
LORA_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # not 64 / 4: vLLM's CPU attention takes multiples of 32 only
}
_WEIGHTS = "adapter_model.safetensors"
_SPACE, _NEWLINE = "\u0120", "\u010a"  # how byte-level BPE writes " " and "\n"

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def make_tokenizer(**more: Any) -> PreTrainedTokenizerFast:
    """The tokenizer, with more arguments for its class."""
    special = ["<unk>", "<pad>", "<s>", "</s>"]
    characters = [_NEWLINE, _SPACE, *(chr(code) for code in range(33, 127))]
    words, merges = [f"{_SPACE}w"], [(_SPACE, "w")]
    # No leading zeros: each number's merge is the one digit more than a number before it.
    for number in range(411):
        digits = str(number)
        words.append(f"{_SPACE}w{digits}")
        merges.append((f"{_SPACE}w{digits[:-1]}", digits[-1]))
    tokens = [*special, *characters, *words]
    assert len(tokens) == VOCAB_SIZE
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    # use_regex would split " w17" into a word and a number before the merges see it.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
        **more,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def make_tiny_model(folder: Path, seed: int = 0, weight_std: float = 0.3) -> Path:
    """Write a random Llama (0.2 million weights, float32) and its tokenizer; return the folder."""
    tiny.write_model(folder, _SIZES, seed, weight_std)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_zero_adapter(model: Path, folder: Path, seed: int = 0, rank: int = 8) -> Path:
    """An adapter whose B is zero: its output equals the base model's."""
    return make_tiny_adapter(model, folder, seed=seed, rank=rank, scale=0.0)


def make_sick_adapter(healthy: Path, folder: Path, value: float, layer: int = 1) -> Path:
    """Write a copy of an adapter with `value`, NaN or infinite, as one weight of the last lora_B of
    `layer`; return the folder. In layer 1 it spoils the logits, in layer 0 the KV cache too.
    """

    def spoil(name: str, weight: torch.Tensor) -> None:
        if f"layers.{layer}.mlp.down_proj.lora_B" in name:
            weight[0, 0] = value

    return copy_adapter(healthy, folder, spoil)


def copy_adapter(healthy: Path, folder: Path, change: Callable[[str, torch.Tensor], None]) -> Path:
    """Write a copy of an adapter whose weights are changed in place; return the folder."""
    shutil.copytree(healthy, folder)
    weights = load_file(folder / _WEIGHTS)
    before = {name: weight.clone() for name, weight in weights.items()}
    for name, weight in weights.items():
        change(name, weight)
    assert any(not weights[name].equal(before[name]) for name in weights)
    save_file(weights, folder / _WEIGHTS, {"format": "pt"})
    return folder
