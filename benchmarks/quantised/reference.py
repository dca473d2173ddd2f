# SPDX-License-Identifier: Apache-2.0
"""A quantised checkpoint in transformers: dequantised weights, and inputs rounded where the
checkpoint says so. It shares no code with vLLM, and none with what packs the weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Layer = dict[str, Tensor]


def weights(folder: Path) -> dict[str, Tensor]:
    """The weights [N, K] in float32 of all quantised layers, by the layers' names."""
    from safetensors.torch import load_file

    method = _config(folder)["quant_method"]
    layers: dict[str, Layer] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, value in load_file(file).items():
            layer, _, part = name.rpartition(".")
            layers.setdefault(layer, {})[part] = value
    read = {"awq": _awq, "gptq": _gptq}.get(method, _compressed)
    return {
        name: read(layer)
        for name, layer in layers.items()
        if "weight_scale" in layer or "qweight" in layer
    }


def _config(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return dict(config["quantization_config"])


def _dequantised(numbers: Tensor, zero: Tensor | float, scale: Tensor) -> Tensor:
    """[N, K] of numbers [N, K] and a zero point and scale for each group, [N, G]."""
    groups = numbers.float().unflatten(1, (scale.shape[1], -1))
    if isinstance(zero, Tensor):
        zero = zero.float()[..., None]
    return ((groups - zero) * scale.float()[..., None]).flatten(1)


def _compressed(layer: Layer) -> Tensor:
    scale = layer["weight_scale"].reshape(-1, layer["weight_scale"].shape[-1])
    if "weight_packed" not in layer:
        weight = layer["weight"]
        return _dequantised(weight, 0.0, scale.expand(len(weight), -1))
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    rows, columns = layer["weight_shape"].tolist()
    bits = 32 * layer["weight_packed"].shape[1] // columns
    numbers = unpack_from_int32(layer["weight_packed"], bits, torch.Size((rows, columns)))
    zero: Tensor | float = 0.0
    if "weight_zero_point" in layer:
        shape = torch.Size((rows, scale.shape[1]))
        zero = unpack_from_int32(layer["weight_zero_point"], bits, shape, packed_dim=0)
    return _dequantised(numbers, zero, scale)


def _bits(packed: Tensor, place: int) -> Tensor:
    return packed >> 4 * place & 15


def _awq(layer: Layer) -> Tensor:
    def columns(packed: Tensor) -> Tensor:  # [K, N / 8] -> [N, K]
        places = [_bits(packed, place) for place in (0, 4, 1, 5, 2, 6, 3, 7)]
        return torch.stack(places, -1).flatten(1).t()

    return _dequantised(columns(layer["qweight"]), columns(layer["qzeros"]), layer["scales"].t())


def _gptq(layer: Layer) -> Tensor:
    inputs = torch.stack([_bits(layer["qweight"], place) for place in range(8)], 1)
    return _dequantised(inputs.flatten(0, 1).t(), 8.0, layer["scales"].t())


def fake_int8(x: Tensor, scale: Tensor | None = None) -> Tensor:
    """Rounded to int8 and back; the scale is each token's, x [..., K], if there is none."""
    if scale is None:
        scale = (x.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-10)
    return (x / scale).round().clamp(-128, 127) * scale


def fake_int8_asymmetric(x: Tensor) -> Tensor:
    """Rounded to int8 with a zero point for each token, and back."""
    least, most = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scale = ((most - least) / 255).clamp(min=1e-10)
    zero = (-128 - least / scale).round()
    return ((x / scale + zero).round().clamp(-128, 127) - zero) * scale


def fake_fp8(x: Tensor, scale: Tensor | None = None) -> Tensor:
    """Rounded to fp8 (e4m3) and back, as ``fake_int8``."""
    if scale is None:
        scale = (x.abs().amax(-1, keepdim=True) / 448).clamp(min=1e-10)
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


def dress(model: Any, folder: Path) -> None:
    """Give a model, which may have adapters of peft, the weights and the inputs of a checkpoint.

    Products are summed in float32, of numbers that were rounded as the checkpoint says and not once
    more; what they give is rounded to the model's dtype.

    Raises:
        ValueError: The model lacks a layer of the checkpoint.
    """
    from safetensors import safe_open

    missing, dtype = weights(folder), model.dtype
    groups = _config(folder).get("config_groups", {}).values()
    file = next(folder.glob("*.safetensors"))
    for full, layer in model.named_modules():
        if not isinstance(layer, torch.nn.Linear):
            continue
        name = full.removeprefix("base_model.model.").removesuffix(".base_layer")
        if name not in missing:
            continue
        layer.weight = torch.nn.Parameter(missing.pop(name), requires_grad=False)
        if layer.bias is not None:
            layer.bias = torch.nn.Parameter(layer.bias.float(), requires_grad=False)
        inputs = next((g["input_activations"] for g in groups if _is_target(name, g)), None)
        scale = None
        if inputs is not None and not inputs["dynamic"]:
            with safe_open(file, "pt") as tensors:
                scale = tensors.get_tensor(f"{name}.input_scale").float()
        layer.register_forward_pre_hook(_rounding(inputs, scale))
        layer.register_forward_hook(_as_dtype(dtype))
    if missing:
        raise ValueError(f"{folder} has {', '.join(missing)}, the model has not")


def _is_target(name: str, group: dict[str, Any]) -> bool:
    return any(
        target == "Linear" or (target.startswith("re:") and re.match(target[3:], name))
        for target in group["targets"]
    )


def _rounding(inputs: dict[str, Any] | None, scale: Tensor | None) -> Callable[..., Tensor]:
    def hook(layer: Any, arguments: tuple[Tensor]) -> Tensor:
        x = arguments[0].float()
        if inputs is None:
            return x
        if inputs["type"] == "float":
            return fake_fp8(x, scale)
        return fake_int8(x, scale) if inputs["symmetric"] else fake_int8_asymmetric(x)

    return hook


def _as_dtype(dtype: torch.dtype) -> Callable[..., Tensor]:
    def hook(layer: Any, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        return output.to(dtype)

    return hook
