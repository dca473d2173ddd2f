# SPDX-License-Identifier: Apache-2.0
"""A base model with int8 weights and inputs: the engine's tokens equal those of the same checkpoint
in transformers and peft. (vLLM's kernels for 4 bits have no float32, in which rounding is small
enough for this.)
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.engine.streams import decode, short_groups
from tests.naive import NaiveCold, assert_same_tokens

pytestmark = pytest.mark.engine

GROUPS = short_groups(36)
# Inputs that are rounded to int8 jump by a step where the float before differs in its last bits.
TOLERANCE = 1e-3
# Inputs have zero points: without them, CPUs with AMX have another kernel, which has no float32.
W8A8 = {
    "targets": ["Linear"],
    "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
    "input_activations": {
        "num_bits": 8, "type": "int", "symmetric": False, "strategy": "token", "dynamic": True,
    },
}  # fmt: skip


def write(model: Path, folder: Path) -> dict[str, Tensor]:
    """Write a copy of a model as compressed-tensors stores W8A8; its layers' weights [N, K], as
    they are stored, in float32.
    """
    shutil.copytree(model, folder)
    stored, weights = {}, {}
    for name, weight in load_file(model / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            stored[name] = weight
            continue
        scale = weight.abs().amax(1, keepdim=True) / 127
        stored[name] = (weight / scale).round().to(torch.int8)
        stored[f"{name}_scale"] = scale
        weights[name.removesuffix(".weight")] = stored[name].float() * scale
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": W8A8},
        "ignore": ["lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return weights


def dress(model: Any, weights: dict[str, Tensor]) -> None:
    """Give a model with adapters of peft these weights, and inputs that are rounded likewise."""
    missing = dict(weights)
    for full, layer in model.named_modules():
        name = full.removeprefix("base_model.model.").removesuffix(".base_layer")
        if isinstance(layer, torch.nn.Linear) and name in missing:
            layer.weight = torch.nn.Parameter(missing.pop(name), requires_grad=False)
            layer.register_forward_pre_hook(_rounded)
    assert not missing


def _rounded(layer: Any, arguments: tuple[Tensor]) -> Tensor:
    """Inputs [..., K] rounded to int8 and back, with a scale and a zero point for each token."""
    least, most = arguments[0].amin(-1, keepdim=True), arguments[0].amax(-1, keepdim=True)
    scale = ((most - least) / 255).clamp(min=1e-10)
    zero = (-128 - least / scale).round()
    return ((arguments[0] / scale + zero).round().clamp(-128, 127) - zero) * scale


def test_tokens_equal_the_reference(tiny: Path, make_llm: Any, tmp_path: Path) -> None:
    """Base, adapters and groups of streams in one batch, with two steps under way."""
    weights = write(tiny / "model", tmp_path / "model")
    naive = NaiveCold(tiny / "model", {name: tiny / name for name in ("one", "two")})
    plain = naive.generate_many(GROUPS)
    dress(naive._model, weights)
    traces = naive.generate_many(GROUPS)
    unlike = [a.tokens != b.tokens for a, b in zip(plain, traces, strict=True)]
    assert sum(unlike) > len(unlike) / 2, "the quantisation makes no difference"
    llm = make_llm(
        model=str(tmp_path / "model"), max_loras=2, max_num_batched_tokens=64, async_scheduling=True
    )
    assert_same_tokens(decode(llm, tiny, GROUPS), traces, TOLERANCE)
