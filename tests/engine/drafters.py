# SPDX-License-Identifier: Apache-2.0
"""Drafters for speculative decoding: tiny checkpoints, and an oracle that knows the text.

Each function returns the ``speculative_config`` of ``LLM``; those of drafters with weights write a
checkpoint first. A drafter is built of the target's own weights and drafts what the base model says
next, so that an adapter's text or a contrast agrees with it in part.

EAGLE and MTP never see the prompt's first token, whoever made their weights: after short prompts
that costs some acceptance, which is welcome.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.engine.conftest import scheduler
from tests.tiny import SPECIAL_TOKENS, make_tiny_model

Weights = dict[str, Tensor]

_RMS = 0.3  # of an embedding of the tiny model, roughly
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def _read(model: Path) -> tuple[dict[str, Any], Weights]:
    """The config and the weights of a model with one file of them."""
    return json.loads((model / "config.json").read_text()), load_file(model / "model.safetensors")


def _write(folder: Path, config: dict[str, Any], weights: Weights) -> str:
    """Write a checkpoint; return its folder's name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: weight.clone().contiguous() for name, weight in weights.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def _beside(left: Tensor, right: Tensor) -> Tensor:
    """One matrix for the concatenation of two inputs."""
    return torch.cat((left, right), dim=1)


def draft_model(
    target: Path, folder: Path, tokens: int = 3, seed: int | None = None
) -> dict[str, Any]:
    """A model of its own, that of `target` or another random Llama with the same vocabulary."""
    model = target if seed is None else make_tiny_model(folder, seed)
    return {"method": "draft_model", "model": str(model), "num_speculative_tokens": tokens}


def eagle(target: Path, folder: Path, tokens: int = 3) -> dict[str, Any]:
    """EAGLE for a Llama: a layer that adds nothing, as vLLM leaves out the first one's norm, and
    the target's layers after it. The target's hidden states are not used. EAGLE has no last norm,
    which does not change the best token while the target's is one everywhere.
    """
    config, weights = _read(target)
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    eye = torch.eye(hidden)
    own: Weights = {"fc.weight": _beside(eye, 0 * eye)}
    for layer in range(layers):
        for name, weight in _layer(weights, layer).items():
            own[f"layers.{layer + 1}.{name}"] = weight
            if layer == 0 and name != "input_layernorm.weight":
                adds = name in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
                own[f"layers.0.{name}"] = weight * (0.0 if adds else 1.0)
    model = _write(folder, config | {"num_hidden_layers": layers + 1}, own)
    return {"method": "eagle", "model": model, "num_speculative_tokens": tokens}


def _layer(weights: Weights, layer: int) -> Weights:
    """The weights of a layer, by their names within it."""
    start = f"model.layers.{layer}."
    return {name.removeprefix(start): w for name, w in weights.items() if name.startswith(start)}


def eagle3(target: Path, folder: Path, tokens: int = 3) -> dict[str, Any]:
    """EAGLE-3 for a Llama: a layer whose attention copies the token's embedding, all scaled to one
    size, and the target's layers behind it. The target's hidden states are not used.
    """
    config, weights = _read(target)
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads, kv_heads, size = (
        config[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    if kv_heads * size != hidden:
        raise ValueError("the values of a token must have room for its embedding")
    eye = torch.eye(hidden)
    # Each query is best matched by the same token's key, by far.
    query = 3.0 * eye[:size].repeat(heads, 1)
    back = torch.zeros(hidden, heads * size)
    for head in range(kv_heads):
        rows = slice(head * size, (head + 1) * size)
        first = head * (heads // kv_heads) * size  # the first of this head's queries
        back[rows, first : first + size] = _RMS * torch.eye(size)
    no = torch.zeros_like
    own: Weights = {
        "fc.weight": torch.zeros(hidden, 3 * hidden),
        "norm.weight": weights["model.norm.weight"],
        "lm_head.weight": weights["lm_head.weight"],
        "layers.0.hidden_norm.weight": torch.zeros(hidden),
        "layers.0.input_layernorm.weight": torch.ones(hidden),
        "layers.0.post_attention_layernorm.weight": torch.ones(hidden),
        "layers.0.self_attn.q_proj.weight": _beside(query, no(query)),
        "layers.0.self_attn.k_proj.weight": _beside(query[: kv_heads * size], no(eye)),
        "layers.0.self_attn.v_proj.weight": _beside(eye, no(eye)),
        "layers.0.self_attn.o_proj.weight": back,
    }
    for layer in range(layers):
        for name, weight in _layer(weights, layer).items():
            own[f"layers.{layer + 1}.{name}"] = weight
            if layer == 0 and name.startswith("mlp."):
                own[f"layers.0.{name}"] = no(weight)
    config |= {
        "num_hidden_layers": layers + 1,
        "draft_vocab_size": config["vocab_size"],
        "norm_before_residual": True,  # or the hidden states would be added to the embedding
        "eagle_aux_hidden_state_layer_ids": [0, 1, 2],
    }
    model = _write(folder, config, own)
    return {"method": "eagle3", "model": model, "num_speculative_tokens": tokens}


def make_mtp_model(tiny: Path, folder: Path) -> Path:
    """Write a random model that carries its own drafter; return the folder.

    It is EXAONE-MoE without experts, which transformers and vLLM know. Its module for multi-token
    prediction is the first of its layers; the other one does little. The window is as long
    as the longest text: in transformers a layer without one has no positions. The tokenizer is the
    tiny model's.
    """
    import transformers

    llama, _ = _read(tiny)
    same = (
        "vocab_size hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim "
        "max_position_embeddings bos_token_id eos_token_id pad_token_id"
    )
    config = transformers.ExaoneMoeConfig(
        **{name: llama[name] for name in same.split()},
        num_hidden_layers=2,
        mlp_layer_types=["dense"] * 2,
        layer_types=["sliding_attention"] * 2,
        sliding_window=llama["max_position_embeddings"],
        tie_word_embeddings=False,
        dtype="float32",
    )
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, _RMS, generator=generator)
        embeddings = model.model.embed_tokens.weight
        # All of one size, as the drafter's norm makes them.
        embeddings.mul_(_RMS / embeddings.square().mean(-1, keepdim=True).sqrt())
        model.lm_head.weight[:SPECIAL_TOKENS] = 0.0
        for layer in model.model.layers[1:]:
            layer.self_attn.o_proj.weight.mul_(0.1)
            layer.mlp.down_proj.weight.mul_(0.1)
    model.save_pretrained(folder)
    settings, weights = _read(folder)
    eye = torch.eye(config.hidden_size)
    weights |= {
        "mtp.fc.weight": _beside(_RMS * eye, 0 * eye),
        "mtp.norm.weight": weights["model.norm.weight"].clone(),
        "mtp.pre_fc_norm_embedding.weight": torch.ones(config.hidden_size),
        "mtp.pre_fc_norm_hidden.weight": torch.ones(config.hidden_size),
    }
    weights |= {f"mtp.layers.0.{name}": w.clone() for name, w in _layer(weights, 0).items()}
    _write(folder, settings | {"num_nextn_predict_layers": 1}, weights)
    for name in _TOKENIZER:
        if (tiny / name).exists():
            shutil.copy(tiny / name, folder)
    return folder


def ngram(tokens: int = 3, device: bool = False) -> dict[str, Any]:
    """What followed the last two tokens before, or the last three. A random model repeats nothing;
    requests with three ``allowed_token_ids`` do, and then half of the drafts are right.
    """
    if not device:
        bear_numba()
    return {
        "method": "ngram_gpu" if device else "ngram",
        "num_speculative_tokens": tokens,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 3,
    }


def bear_numba() -> None:
    """Let engines start in this process after one has imported numba, which the look-up of n-grams
    on the CPU is compiled by: vLLM looks for its kernels in all that is loaded, and among numba's
    functions are some whose ``__dict__`` is none.
    """
    from vllm.triton_utils import dispatcher

    def names(value: object) -> dict[str, Any]:
        own = vars(value)
        return own if isinstance(own, dict) else {}

    dispatcher.vars = names


def bear_log1p(patch: pytest.MonkeyPatch) -> None:
    """Let V2 reject drafts that were sampled in Triton's interpreter, which has no function of
    libdevice.
    """
    import triton
    import triton.language as tl
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler_utils

    @triton.jit
    def log1p(x):  # type: ignore[no-untyped-def]
        return tl.log(1.0 + x)

    patch.setattr(rejection_sampler_utils, "tldevice", SimpleNamespace(log1p=log1p))


ORACLE = "TEST_ORACLE"
"""The environment variable that names the oracle's file."""


class Oracle:
    """Drafts what follows in texts that it is told, each token spoiled with some probability:
    a drafter for V1's ``custom_class``.

    Whether and how a token is spoiled depends on the text before it alone, so two streams with the
    same tokens get the same drafts.
    """

    def __init__(self, vllm_config: Any) -> None:
        told = json.loads(Path(os.environ[ORACLE]).read_text())
        self._texts: list[list[int]] = told["texts"]
        self._spoiled: float = told["spoiled"]
        self._vocab_size: int = vllm_config.model_config.get_vocab_size()
        self._tokens: int = vllm_config.speculative_config.num_speculative_tokens

    def load_model(self, *args: Any) -> None:
        """Nothing; vLLM's CPU runner calls it without looking whether it is there."""

    def propose(
        self,
        sampled_token_ids: list[list[int]],
        num_tokens_no_spec: Any,
        token_ids_cpu: Any,
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """Drafts for the requests that have sampled; as vLLM calls it."""
        return [
            self.draft(token_ids_cpu[i, : num_tokens_no_spec[i]].tolist()) if sampled else []
            for i, sampled in enumerate(sampled_token_ids)
        ]

    def draft(self, text: Sequence[int]) -> list[int]:
        """What comes after `text`; nothing if that is in none of the texts."""
        length = len(text)
        known = (t for t in self._texts if len(t) > length and t[:length] == list(text))
        draft = next(known, [])[length : length + self._tokens]
        return [self._spoil(token, length + i, text) for i, token in enumerate(draft)]

    def _spoil(self, token: int, position: int, text: Sequence[int]) -> int:
        digest = hashlib.sha256(f"{position} {text}".encode()).digest()
        if int.from_bytes(digest[:4]) >= self._spoiled * 2**32:
            return token
        others = self._vocab_size - SPECIAL_TOKENS
        shift = 1 + int.from_bytes(digest[4:8]) % (others - 1)
        return SPECIAL_TOKENS + (token - SPECIAL_TOKENS + shift) % others


def oracle(
    patch: pytest.MonkeyPatch,
    folder: Path,
    texts: Sequence[Sequence[int]],
    tokens: int = 4,
    spoiled: float = 0.3,
    runner: str = "v1",
    as_ngrams: bool = False,
) -> dict[str, Any]:
    """A drafter that knows `texts`, each a prompt with what follows, and spoils each token of its
    drafts with a probability. It writes a file into `folder`. V1 takes it as a class; in V2, which
    refuses those, and `as_ngrams`, it stands in for the one that looks up n-grams, in this process.
    """
    path = folder / "oracle.json"
    path.write_text(json.dumps({"texts": [list(text) for text in texts], "spoiled": spoiled}))
    patch.setenv(ORACLE, str(path))
    if runner == "v1" and as_ngrams:
        from vllm.v1.spec_decode import ngram_proposer

        class Ngrams(Oracle):
            def propose(  # type: ignore[override]
                self, num: int, *args: Any, **kwargs: Any
            ) -> list[list[int]]:
                return super().propose(*args, **kwargs)

        patch.setattr(ngram_proposer, "NgramProposer", Ngrams)
        return ngram(tokens)
    if runner == "v1":
        name = f"{Oracle.__module__}.{Oracle.__qualname__}"
        return {"method": "custom_class", "model": name, "num_speculative_tokens": tokens}
    from vllm.v1.worker.gpu.spec_decode.ngram.speculator import NgramGPUSpeculator

    def propose(
        self: Any, input_batch: Any, *args: Any, dummy_run: bool = False, **kwargs: Any
    ) -> Tensor:
        drafts: Tensor = self.drafts[: input_batch.num_reqs]
        if not dummy_run:
            known = self.__dict__.setdefault("_oracle", Oracle(self.vllm_config))
            slots = input_batch.idx_mapping[: input_batch.num_reqs].tolist()
            for row, slot in zip(drafts, slots, strict=True):
                length = int(self.req_states.total_len.gpu[slot])
                text = self.req_states.all_token_ids.gpu[slot, :length].tolist()
                draft = known.draft(text)
                row[:] = SPECIAL_TOKENS  # V2 always takes all of them
                row[: len(draft)] = torch.tensor(draft)
        return drafts

    patch.setattr(NgramGPUSpeculator, "propose", propose)
    return ngram(tokens, device=True)


def counted(llm: Any) -> tuple[int, int]:
    """Drafts of contrastive requests, and those of them that were right."""
    sums = scheduler(llm)._counters.sums.values()
    return sum(s.draft_tokens for s in sums), sum(s.accepted_draft_tokens for s in sums)
