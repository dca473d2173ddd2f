# SPDX-License-Identifier: Apache-2.0
"""Quantised copies of SmolLM2-135M-Instruct: ``python -m benchmarks.quantised.make [NAME ...]``.

Writes those that are missing to the cache of the examples and prints their folders. Weights are
rounded to nearest, which needs no data: what is checked and timed here is how a checkpoint is
computed, and that is the same however well its numbers were chosen. Checkpoints of
compressed-tensors are written by that package, as llm-compressor does it; those of AWQ and GPTQ are
packed here. The output layer stays as it is.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GROUP = 64  # inputs that share a scale; divides SmolLM2's 576 and 1536
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of eight columns in an int32, from the lowest bits


@dataclass(frozen=True)
class Scheme:
    """How a model is quantised.

    Attributes:
        name: Of its folder.
        about: In some words.
        method: ``quant_method`` of the checkpoint.
        weights: ``QuantizationArgs`` of compressed-tensors for the weights; AWQ and GPTQ have
            groups of 4 bits.
        inputs: The same for the layers' inputs; None if they are not quantised.
    """

    name: str
    about: str
    method: str = "compressed-tensors"
    weights: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] | None = None


_GROUPS = {"strategy": "group", "group_size": GROUP}
_INT4 = {"num_bits": 4, **_GROUPS}
_INT8 = {"num_bits": 8, "strategy": "channel"}
_FP8 = {"num_bits": 8, "type": "float"}
_TOKEN = {"num_bits": 8, "strategy": "token", "dynamic": True}
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("w8a8", "int8, inputs int8 per token", weights=_INT8, inputs=_TOKEN),
        Scheme(
            "w8a8-asym",
            "int8, inputs int8 per token with zero points",
            weights=_INT8,
            inputs={**_TOKEN, "symmetric": False},
        ),
        Scheme(
            "w8a8-static",
            "int8, inputs int8 by a stored scale",
            weights=_INT8,
            inputs={"num_bits": 8, "strategy": "tensor"},
        ),
        Scheme("w4a16", f"int4 in groups of {GROUP}", weights=_INT4),
        Scheme(
            "w4a16-asym",
            f"int4 in groups of {GROUP} with zero points",
            weights={**_INT4, "symmetric": False},
        ),
        Scheme("awq", f"AWQ's format, 4 bits in groups of {GROUP} with zero points", "awq"),
        Scheme("gptq", f"GPTQ's format, 4 bits in groups of {GROUP}", "gptq"),
        Scheme("w8a16", "int8, inputs as they are", weights={"num_bits": 8, **_GROUPS}),
        Scheme("w4a8", "int4, inputs int8 per token", weights=_INT4, inputs=_TOKEN),
        Scheme(
            "fp8",
            "fp8, inputs fp8 per token",
            weights={**_FP8, "strategy": "channel"},
            inputs={**_FP8, "strategy": "token", "dynamic": True},
        ),
        Scheme(
            "fp8-static",
            "fp8 with a scale a layer, inputs fp8 by a stored scale",
            weights={**_FP8, "strategy": "tensor"},
            inputs={**_FP8, "strategy": "tensor"},
        ),
    )
}


def write(
    model: Path, folder: Path, schemes: dict[str, Scheme], prompts: Sequence[Sequence[int]] = ()
) -> Path:
    """Write a quantised copy of a model with its tokenizer; return the folder.

    Args:
        model: A checkpoint that transformers reads.
        folder: Must not exist.
        schemes: By the layers that have them, "Linear" for all or ``re:`` and an expression. Only
            compressed-tensors takes more than one.
        prompts: Token ids, from which stored scales of inputs are taken.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(model).eval()
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    methods = {scheme.method for scheme in schemes.values()}
    if methods == {"compressed-tensors"}:
        _compress(loaded, schemes, prompts, folder)
    elif len(schemes) == 1:
        _pack(loaded, *methods, folder)
    else:
        raise ValueError(f"schemes={list(schemes)}: only compressed-tensors mixes them")
    return folder


def _compress(
    model: Any, schemes: dict[str, Scheme], prompts: Sequence[Sequence[int]], folder: Path
) -> None:
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    def made(arguments: dict[str, Any] | None) -> QuantizationArgs | None:
        return None if arguments is None else QuantizationArgs(**arguments)

    groups = {
        f"group_{index}": QuantizationScheme(
            targets=[target], weights=made(scheme.weights), input_activations=made(scheme.inputs)
        )
        for index, (target, scheme) in enumerate(schemes.items())
    }
    ranges = _input_ranges(model, prompts)
    config = QuantizationConfig(config_groups=groups, ignore=["lm_head"])
    apply_quantization_config(model, config)
    with torch.no_grad():
        for name, layer in model.named_modules():
            if (scheme := getattr(layer, "quantization_scheme", None)) is None:
                continue
            weight, size = layer.weight.float(), scheme.weights.group_size
            rows = weight.unflatten(1, (-1, size)) if size else weight[:, None]
            least, most = rows.amin(-1), rows.amax(-1)
            if scheme.weights.strategy == "tensor":
                least, most = least.min()[None], most.max()[None]
            _set_scale(layer, "weight", least, most, scheme.weights)
            if scheme.input_activations is not None and not scheme.input_activations.dynamic:
                _set_scale(layer, "input", *ranges[name], scheme.input_activations)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))


def _set_scale(layer: Any, what: str, least: Tensor, most: Tensor, arguments: Any) -> None:
    from compressed_tensors.quantization.utils import calculate_qparams

    scale, zero = calculate_qparams(least, most, arguments)
    getattr(layer, f"{what}_scale").copy_(scale)
    getattr(layer, f"{what}_zero_point").copy_(zero)


@torch.inference_mode()
def _input_ranges(model: Any, prompts: Sequence[Sequence[int]]) -> dict[str, tuple[Tensor, Tensor]]:
    """The least and the largest input of each linear layer, [1]."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: Any, inputs: tuple[Tensor]) -> None:
            x = inputs[0].float()
            least, most = x.min()[None], x.max()[None]
            if name in found:
                least, most = (
                    torch.minimum(least, found[name][0]),
                    torch.maximum(most, found[name][1]),
                )
            found[name] = least, most

        return hook

    layers = ((n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear))
    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers]
    for prompt in prompts:
        model(input_ids=torch.tensor([list(prompt)]))
    for hook in hooks:
        hook.remove()
    return {name: (least.clone(), most.clone()) for name, (least, most) in found.items()}


def _pack(model: Any, method: str, folder: Path) -> None:
    """AWQ or GPTQ: eight numbers of 4 bits in an int32."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            weight = state.pop(f"{name}.weight")
            packed = (awq if method == "awq" else gptq)(weight.float())
            state |= {f"{name}.{part}": value for part, value in packed.items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    model.config.quantization_config = {
        "quant_method": method,
        "bits": 4,
        "group_size": GROUP,
        **(
            {"zero_point": True, "version": "gemm", "modules_to_not_convert": None}
            if method == "awq"
            else {"sym": True, "desc_act": False, "checkpoint_format": "gptq", "lm_head": False}
        ),
    }
    from safetensors.torch import save_file

    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2))
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def pack(values: Tensor, dim: int, order: Sequence[int] = range(8)) -> Tensor:
    """Eight numbers from 0 to 15, which follow each other in ``dim``, to each int32."""
    eights = values.to(torch.int32).movedim(dim, -1).unflatten(-1, (-1, 8))[..., list(order)]
    packed = (eights << 4 * torch.arange(8, dtype=torch.int32)).sum(-1, dtype=torch.int32)
    return packed.movedim(-1, dim).contiguous()


def _groups(weight: Tensor) -> Tensor:
    return weight.unflatten(1, (-1, GROUP))  # [N, G, GROUP]


def awq(weight: Tensor) -> dict[str, Tensor]:
    """A weight [N, K] as AWQ stores it."""
    groups = _groups(weight)
    least, most = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    # bfloat16's values, which are float16's too: engines of both dtypes compute the same.
    scale = ((most - least) / 15).clamp(min=1e-4).bfloat16().float()
    zero = (-least / scale).round().clamp(0, 15)
    numbers = (groups / scale[..., None] + zero[..., None]).round().clamp(0, 15).flatten(1)
    return {
        "qweight": pack(numbers.t(), 1, AWQ_ORDER),
        "qzeros": pack(zero.t(), 1, AWQ_ORDER),
        "scales": scale.t().half().contiguous(),
    }


def gptq(weight: Tensor) -> dict[str, Tensor]:
    """A weight [N, K] as GPTQ stores it, symmetric: 8 stands for zero, stored as 7."""
    groups = _groups(weight)
    scale = (groups.abs().amax(-1) / 7.5).clamp(min=1e-4).bfloat16().float()
    numbers = ((groups / scale[..., None]).round() + 8).clamp(0, 15).flatten(1)
    return {
        "qweight": pack(numbers.t(), 0),
        "qzeros": pack(torch.full_like(scale.t(), 7), 1),
        "scales": scale.t().half().contiguous(),
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }


def checkpoint(name: str) -> Path:
    """The folder of SmolLM2 in one of ``SCHEMES``, made if it is missing."""
    from transformers import AutoTokenizer

    from benchmarks.e2e.run import TASK
    from examples.smollm2 import default_cache_dir, model_path
    from examples.tasks import TASKS, chat_prompt

    source = model_path()
    folder = default_cache_dir().resolve() / f"SmolLM2-135M-Instruct-{name}"
    if not folder.is_dir():
        tokenizer = AutoTokenizer.from_pretrained(source)
        texts = [chat_prompt(tokenizer, each) for each in TASKS[TASK].prompts("train", 8)]
        prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        write(source, partial, {"Linear": SCHEMES[name]}, prompts)
        partial.rename(folder)  # its existence is proof that it is whole
    return folder


if __name__ == "__main__":
    for chosen in sys.argv[1:] or SCHEMES:
        if chosen not in SCHEMES:
            sys.exit(f"error: {chosen}: must be among {', '.join(SCHEMES)}")
        print(checkpoint(chosen))
