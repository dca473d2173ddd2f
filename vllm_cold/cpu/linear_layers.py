# SPDX-License-Identifier: Apache-2.0
"""Products of linear layers with few rows on CPU, by ``linear_ops``, in engines with LoRA or with
contrastive decoding.

Layers that vLLM would not give to oneDNN are left alone, and those whose product is as fast there
(``linear_probe``). Weights that are shared (of the embedding and the logits) are packed once.
``COLD_LINEAR=stock`` switches it off, ``COLD_LINEAR=packed`` takes it without measuring.
"""

import logging
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vllm_cold.compat import hardware
from vllm_cold.compat.patching import Original
from vllm_cold.cpu import cpu_paths, cpu_platform, linear_ops, linear_probe, operators

logger = logging.getLogger("vllm." + __name__)

_PACKED = "_vllm_cold_packed"  # of a weight that stays, as other layers may have it too
_LINEARS = "_vllm_cold_linears"  # of a layer: without its bias, and with it


def _has_another_kernel(weight: Tensor) -> bool:
    """Whether vLLM would not have oneDNN compute a product with a weight, or oneDNN not pack it.

    Raises:
        ImportError, AttributeError: this vLLM does not say.
    """
    from vllm import envs
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform

    if weight.is_meta or weight.ndim != 2 or not operators.of_vllm()._supports_onednn:
        return True
    if current_platform.is_zen_cpu() or weight.dtype not in (torch.float32, torch.bfloat16):
        return True
    if weight.numel() == 0:
        return True
    may_be_sgl = getattr(envs, "VLLM_CPU_SGL_KERNEL", True)  # a switch of 0.23 alone, off there
    return may_be_sgl and bool(utils.check_cpu_sgl_kernel(*weight.shape, weight.dtype))


def _take(original: Original, layer: Any, remove_weight: bool) -> str | None:
    """Give a layer its product. If that is left to vLLM: the reason.

    Raises:
        ImportError, AttributeError, ValueError, RuntimeError, OSError: so it is; says why.
    """
    from vllm.config import get_current_vllm_config_or_none

    weight, bias = layer.weight, getattr(layer, "bias", None)
    engine = get_current_vllm_config_or_none()
    if engine is None or (engine.lora_config is None and not hardware.is_contrastive(engine)):
        return "the engine has neither LoRA nor contrastive decoding"
    if _has_another_kernel(weight):
        return "it has another kernel than oneDNN's for such weights"
    if _is_loaded_anew(layer, weight, bias):
        return None

    def stock_of(part: Tensor) -> linear_probe.Product:
        stand_in = SimpleNamespace(weight=part, bias=None)
        original(stand_in, False)
        return lambda x: stand_in.cpu_linear(x, part, None)

    lora = engine.lora_config
    has_lora = lora is not None and not lora.fully_sharded_loras and _is_usual(layer)
    has_lora = has_lora and cpu_platform.choice() == "cpp"
    choice = linear_probe.choose(weight, stock_of, has_lora)
    if choice.path == "vllm":
        return choice.reason
    weights = getattr(weight, _PACKED, None) or linear_ops.Weights(weight, choice.by_kernel)
    linears = [linear_ops.Linear(weights, None)]
    if bias is not None:
        linears.append(linear_ops.Linear(weights, bias.data))
    path = choice if weights.has_kernel else ("onednn", linear_probe.UNKNOWN)
    cpu_paths.note("products", *path[:2])
    layer.cpu_linear = _product(linears, None)
    setattr(layer, _LINEARS, linears)  # the tables have addresses of what they keep
    if not remove_weight:
        setattr(weight, _PACKED, weights)
    return None


def _is_loaded_anew(layer: Any, weight: Tensor, bias: Tensor | None) -> bool:
    """Load a layer's numbers to where those before were, if they fit: a compiled model has the
    addresses, and LoRA may be in the product. False if they do not fit.

    Raises:
        ValueError: see ``linear_ops.Weights.load``.
    """
    before: list[linear_ops.Linear] = getattr(layer, _LINEARS, [])
    biases = [None] if bias is None else [None, bias.data_ptr()]
    if [b.bias if b.bias is None else b.bias.data_ptr() for b in before] != biases:
        return False
    weights = before[0].weights
    if (weights.dtype, (weights.outputs, weights.inputs)) != (weight.dtype, weight.shape):
        return False
    weights.load(weight)
    return True


Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _product(linears: list[linear_ops.Linear], lora: Tensor | None) -> Product:
    """What vLLM calls with an input [..., K], the weights and a bias.

    The first of ``linears`` is without the bias, the second with it.
    """
    weights = linears[0].weights
    outputs, inputs = weights.outputs, weights.inputs
    tables = tuple(linear.table for linear in linears)

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # An int: torch 2.11, of vLLM 0.23, compiles no index that is a bool.
        rows, table = x.reshape(-1, inputs), tables[0 if bias is None else 1]
        if lora is None:
            y: Tensor = torch.ops.vllm_cold.linear(rows, table, outputs)
        else:
            rows = rows if rows.stride(-1) == 1 else rows.contiguous()
            y = torch.ops.vllm_cold.linear_lora(rows, table, outputs, lora, 1.0)
        return y if x.dim() == 2 else y.view(*x.shape[:-1], outputs)

    return product


def add_lora(layer: Any, table: Tensor) -> Product | None:
    """Have the product of a LoRA layer's base layer add the LoRA, too.

    Args:
        layer: The base layer.
        table: Of a ``lora_ops.Layer`` that lives as long.

    Returns:
        The product, or None if LoRA is to be added after it.
    """
    linears = getattr(layer, _LINEARS, None)
    if linears is None or not _is_usual(layer):
        cpu_paths.note("lora", "beside", "the product is vLLM's, or more than a product")
        return None
    cpu_paths.note("lora", "inside", cpu_paths.ONE_CALL)
    product = layer.cpu_linear = _product(linears, table)
    return product


def _is_usual(layer: Any) -> bool:
    """Whether LoRA follows upon the product: classes of models may do more in between."""
    return type(layer).__module__ == "vllm.model_executor.layers.linear"


@cache
def _warn(reason: str) -> None:
    """Say once that this vLLM is not as the table has it."""
    logger.warning("vllm-cold: small-M GEMMs are not faster here, as vLLM changed: %s.", reason)


def wrap_dispatch_gemm(
    original: Original, layer: Any, remove_weight: bool, *args: Any, **kwargs: Any
) -> None:
    """Wrap ``dispatch_cpu_unquantized_gemm``."""
    reason = linear_ops.problem()
    try:
        reason = reason or _take(original, layer, remove_weight)
    except (ImportError, AttributeError) as error:
        reason = str(error)
        _warn(reason)
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error)
    if reason is not None:
        cpu_paths.note("products", "vllm", reason)
        vars(layer).pop(_LINEARS, None)  # of weights that it had before
        original(layer, remove_weight, *args, **kwargs)
    elif remove_weight:
        empty = torch.empty(0, dtype=layer.weight.dtype, device=layer.weight.device)
        layer.weight = torch.nn.Parameter(empty, requires_grad=False)
