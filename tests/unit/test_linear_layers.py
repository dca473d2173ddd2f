# SPDX-License-Identifier: Apache-2.0
"""Which of vLLM's linear layers get their products from here, and that LoRA goes along."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from vllm.model_executor.layers import linear as layers
from vllm.model_executor.layers import utils

from vllm_cold.compat.patching import bind
from vllm_cold.cpu import linear_layers, linear_ops, lora_ops, memory

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(linear_ops.missing() is not None, reason=str(linear_ops.missing())),
]

# With fewer, oneDNN 3.10, of vLLM 0.23's torch, does not pack float32 weights on some CPUs.
INPUTS = 1024
OURS = "vllm_cold.scheduler.scheduler.ColdScheduler"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The engine whose model is loaded."""
    scheduler = SimpleNamespace(scheduler_cls=OURS)
    config = SimpleNamespace(scheduler_config=scheduler, lora_config=None)
    monkeypatch.setattr("vllm.config.get_current_vllm_config_or_none", lambda: config)
    monkeypatch.setattr(utils.ops, "_supports_onednn", True)
    monkeypatch.delenv("COLD_LINEAR", raising=False)
    return config


def weights(outputs: int = 128, inputs: int = INPUTS) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5, requires_grad=False)


def layer_of(outputs: int = 128, bias: bool = False) -> Any:
    layer = torch.nn.Module.__new__(layers.LinearBase)
    torch.nn.Module.__init__(layer)
    layer.weight = weights(outputs)
    layer.bias = torch.nn.Parameter(torch.randn(outputs), requires_grad=False) if bias else None
    return layer


def dispatch(layer: Any, remove_weight: bool = True) -> list[Any]:
    """Call it as vLLM does; the layers that were left to vLLM."""
    left: list[Any] = []
    bind(linear_layers.wrap_dispatch_gemm, lambda layer, _: left.append(layer))(
        layer, remove_weight
    )
    return left


def near(found: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_of_an_engine_that_we_serve(engine: SimpleNamespace, bias: bool) -> None:
    layer = layer_of(bias=bias)
    weight, x = layer.weight.data.clone(), torch.randn(3, INPUTS)
    assert dispatch(layer) == [] and layer.weight.numel() == 0
    near(layer.cpu_linear(x, layer.weight, None), x @ weight.t())
    deep = layer.cpu_linear(x.view(1, 3, INPUTS), layer.weight, layer.bias)
    near(deep, torch.nn.functional.linear(x, weight, layer.bias).unsqueeze(0))
    if not bias:
        with pytest.raises(IndexError):  # an unknown bias is not silently left out
            layer.cpu_linear(x, layer.weight, torch.randn(128))


def test_layers_that_stay_vllms(engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    odd, three = layer_of(65), layer_of()
    three.weight = torch.nn.Parameter(torch.randn(4, 64, 64))
    assert dispatch(odd) == [odd] and dispatch(three) == [three]
    for owner, name, value in (
        (utils.ops, "_supports_onednn", False),
        (utils, "check_cpu_sgl_kernel", lambda n, k, dtype: True),
        (memory, "allocate", Mock(side_effect=OSError("no room"))),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert len(dispatch(layer_of())) == 1
    with monkeypatch.context() as patch:  # a vLLM that does not say
        patch.delattr(utils, "check_cpu_sgl_kernel")
        assert len(dispatch(layer_of())) == 1
    with monkeypatch.context() as patch:
        patch.setenv("COLD_LINEAR", "stock")
        assert len(dispatch(layer_of())) == 1
        patch.setenv("COLD_LINEAR", "fast")
        with pytest.raises(ValueError, match="COLD_LINEAR='fast': must be packed or stock"):
            dispatch(layer_of())
    ours = layer_of()
    assert dispatch(ours) == []
    ours.weight = weights()
    engine.scheduler_config.scheduler_cls = None  # another engine's; what was ours is forgotten
    assert dispatch(ours) == [ours] and not hasattr(ours, "_vllm_cold_linears")


def test_shared_weights_are_packed_once(engine: SimpleNamespace) -> None:
    embedding, head = layer_of(), layer_of()
    head.weight = embedding.weight
    assert dispatch(embedding, False) == dispatch(head, False) == []
    one, other = embedding._vllm_cold_linears[0], head._vllm_cold_linears[0]
    assert one.weights is other.weights and embedding.weight.numel() > 0


def lora() -> tuple[lora_ops.Plan, lora_ops.Layer, Tensor]:
    plan = lora_ops.Plan(8)
    a, b = weights(8).view(1, 1, 8, INPUTS), weights(128, 8).view(1, 1, 128, 8)
    return plan, lora_ops.Layer(plan, [a], [b], [128]), b[0, 0] @ a[0, 0]


def test_lora_goes_along_and_stays_when_weights_are_loaded_anew(engine: SimpleNamespace) -> None:
    layer = layer_of(bias=True)
    first, x = layer.weight.data.clone(), torch.randn(2, INPUTS)
    dispatch(layer)
    plan, adapter, product = lora()
    plan.set(torch.tensor([-1, 0]))
    ours = linear_layers.add_lora(layer, adapter.table)
    assert ours is not None and layer.cpu_linear is ours

    def right(weight: Tensor) -> Tensor:
        y = torch.nn.functional.linear(x, weight, layer.bias)
        return y + torch.stack([torch.zeros(128), product @ x[1]])

    near(ours(x, layer.weight, layer.bias), right(first))
    layer.weight = weights()
    second = layer.weight.data.clone()
    assert dispatch(layer) == [] and layer.cpu_linear is ours and layer.weight.numel() == 0
    near(ours(x, layer.weight, layer.bias), right(second))
    # Another shape has another product, which knows of no LoRA: it is told apart.
    layer.weight = weights(inputs=2 * INPUTS)
    assert dispatch(layer) == [] and layer.cpu_linear is not ours


def test_lora_goes_along_with_vllms_own_layers_alone(engine: SimpleNamespace) -> None:
    class Gate(layers.LinearBase):  # which may do more in between
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

    gate = Gate()
    gate.weight = weights()
    _, adapter, _ = lora()
    assert linear_layers.add_lora(gate, adapter.table) is None
    assert dispatch(gate) == []
    assert linear_layers.add_lora(gate, adapter.table) is None
    assert linear_layers.add_lora(layer_of(), adapter.table) is None  # not ours
