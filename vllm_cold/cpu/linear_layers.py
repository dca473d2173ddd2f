# SPDX-License-Identifier: Apache-2.0
"""Products of linear layers with few rows on CPU, by ``linear_ops``, in engines with LoRA or with
contrastive decoding.

Layers that vLLM would not give to oneDNN, and weights that ``linear_ops`` does not fit, are left
alone. Weights that are shared (of the embedding and the logits) are packed once.
``COLD_LINEAR=stock`` switches it off.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vllm_cold.compat import hardware
from vllm_cold.compat.patching import Original
from vllm_cold.cpu import linear_ops

logger = logging.getLogger("vllm." + __name__)

_PACKED = "_vllm_cold_packed"  # of a weight that stays, as other layers may have it too
_LINEARS = "_vllm_cold_linears"  # of a layer: without its bias, and with it


def _is_for_onednn(weight: Tensor) -> bool:
    """Whether vLLM would have oneDNN compute a product with a weight, in an engine that gets our
    products.

    Raises:
        ImportError, AttributeError: this vLLM does not say.
    """
    from vllm.config import get_current_vllm_config_or_none
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform

    engine = get_current_vllm_config_or_none()
    if engine is None:
        return False
    if engine.lora_config is None and not hardware.is_contrastive(engine):  # it did not ask
        return False
    if weight.is_meta or weight.ndim != 2 or not utils.ops._supports_onednn:
        return False
    if current_platform.is_zen_cpu():
        return False
    return not utils.check_cpu_sgl_kernel(*weight.shape, weight.dtype)


def _takes(layer: Any, remove_weight: bool) -> bool:
    """Give a layer its product; False if that is left to vLLM."""
    weight, bias = layer.weight, getattr(layer, "bias", None)
    if (reason := linear_ops.problem()) is not None:
        _say(reason)
        return False
    try:
        if not _is_for_onednn(weight) or not linear_ops.fits(weight):
            return False
        if _is_loaded_anew(layer, weight, bias):
            return True
        weights = getattr(weight, _PACKED, None) or linear_ops.Weights(weight)
        linears = [linear_ops.Linear(weights, None)]
        if bias is not None:
            linears.append(linear_ops.Linear(weights, bias.data))
    except (ImportError, AttributeError, ValueError, RuntimeError, OSError) as error:
        _say(str(error))
        return False
    layer.cpu_linear = _product(linears, None)
    setattr(layer, _LINEARS, linears)  # the tables have addresses of what they keep
    if not remove_weight:
        setattr(weight, _PACKED, weights)
    return True


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
        The product, or None if that is vLLM's.
    """
    # Other classes may do more between the product and LoRA.
    usual = type(layer).__module__ == "vllm.model_executor.layers.linear"
    if not usual or (linears := getattr(layer, _LINEARS, None)) is None:
        return None
    product = layer.cpu_linear = _product(linears, table)
    return product


@cache
def _say(error: str) -> None:
    """Once, not for each layer."""
    logger.info("vllm-cold: products of linear layers are vLLM's. %s", error)


def wrap_dispatch_gemm(
    original: Original, layer: Any, remove_weight: bool, *args: Any, **kwargs: Any
) -> None:
    """Wrap ``dispatch_cpu_unquantized_gemm``."""
    if not _takes(layer, remove_weight):
        vars(layer).pop(_LINEARS, None)  # of weights that it had before
        original(layer, remove_weight, *args, **kwargs)
    elif remove_weight:
        empty = torch.empty(0, dtype=layer.weight.dtype, device=layer.weight.device)
        layer.weight = torch.nn.Parameter(empty, requires_grad=False)
