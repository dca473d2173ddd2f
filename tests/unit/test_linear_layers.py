# SPDX-License-Identifier: Apache-2.0
"""Which of vLLM's linear layers get their products from here, and that LoRA goes along."""

import logging
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from vllm.model_executor.layers import linear as layers
from vllm.model_executor.layers import utils

from vllm_cold.compat.patching import bind
from vllm_cold.cpu import (
    cpu_paths,
    linear_layers,
    linear_ops,
    linear_probe,
    lora_ops,
    memory,
    operators,
)

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(linear_ops.missing() is not None, reason=str(linear_ops.missing())),
]

# With fewer, oneDNN 3.10, of vLLM 0.23's torch, does not pack float32 weights on some CPUs.
INPUTS = 1024
OURS = "vllm_cold.scheduler.scheduler.ColdScheduler"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The engine whose model is loaded; which product is the fastest is not asked."""
    scheduler = SimpleNamespace(scheduler_cls=OURS)
    config = SimpleNamespace(scheduler_config=scheduler, lora_config=None)
    monkeypatch.setattr("vllm.config.get_current_vllm_config_or_none", lambda: config)
    monkeypatch.setattr(operators.of_vllm(), "_supports_onednn", True)
    monkeypatch.setattr(cpu_paths, "_noted", {})
    monkeypatch.setenv("COLD_LINEAR", "packed")
    return config


def told(name: str) -> list[tuple[str, str]]:
    """Path and reason of what layers got."""
    return [(path, reason) for of, path, reason in cpu_paths._noted if of == name]


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
    has_kernel = layer._vllm_cold_linears[0].weights.has_kernel
    assert told("products") == [
        ("kernel", "COLD_LINEAR=packed") if has_kernel else ("onednn", linear_probe.UNKNOWN)
    ]
    near(layer.cpu_linear(x, layer.weight, None), x @ weight.t())
    deep = layer.cpu_linear(x.view(1, 3, INPUTS), layer.weight, layer.bias)
    near(deep, torch.nn.functional.linear(x, weight, layer.bias).unsqueeze(0))
    if not bias:
        with pytest.raises(IndexError):  # an unknown bias is not silently left out
            layer.cpu_linear(x, layer.weight, torch.randn(128))


def test_layers_that_stay_vllms(engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    half, three, empty = layer_of(), layer_of(), layer_of(0)
    half.weight.data = half.weight.data.half()
    three.weight = torch.nn.Parameter(torch.randn(4, 64, 64))
    for layer in (half, three, empty):
        assert dispatch(layer) == [layer]
    assert told("products") == [("vllm", "it has another kernel than oneDNN's for such weights")]
    for owner, name, value in (
        (operators.of_vllm(), "_supports_onednn", False),
        (utils, "check_cpu_sgl_kernel", lambda n, k, dtype: True),
        (memory, "allocate", Mock(side_effect=OSError("no room"))),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert len(dispatch(layer_of())) == 1
    assert told("products")[-1] == ("vllm", "no room")
    with monkeypatch.context() as patch:
        patch.setenv("COLD_LINEAR", "stock")
        assert len(dispatch(layer_of())) == 1
        assert told("products")[-1] == ("vllm", "COLD_LINEAR=stock")
        patch.setenv("COLD_LINEAR", "fast")
        with pytest.raises(ValueError, match="COLD_LINEAR='fast': must be packed or stock"):
            dispatch(layer_of())
    ours = layer_of()
    assert dispatch(ours) == []
    ours.weight = weights()
    engine.scheduler_config.scheduler_cls = None  # another engine's; what was ours is forgotten
    assert dispatch(ours) == [ours] and not hasattr(ours, "_vllm_cold_linears")
    assert told("products")[-1][1] == "the engine has neither LoRA nor contrastive decoding"


@pytest.mark.parametrize("missing", ["check_cpu_sgl_kernel", "_supports_onednn"])
def test_a_vllm_that_has_changed_says_what_is_lost(
    missing: str,
    engine: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    logged: list[logging.LogRecord],
) -> None:
    """Once, and not for each layer."""
    linear_layers._warn.cache_clear()
    owner = utils if hasattr(utils, missing) else operators.of_vllm()
    monkeypatch.delattr(owner, missing)
    for layer in (layer_of(), layer_of()):
        assert dispatch(layer) == [layer]
    (line,) = [record.getMessage() for record in logged if record.levelname == "WARNING"]
    assert "small-M GEMMs are not faster here" in line and f"'{missing}'" in line
    ((path, reason),) = told("products")
    assert path == "vllm" and missing in reason


@pytest.mark.parametrize("outputs", [65, 128])
@pytest.mark.parametrize("is_usual", [False, True])
def test_the_faster_product_is_taken(
    outputs: int, is_usual: bool, engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own is measured by what it gives a layer; LoRA counts where it goes along."""
    monkeypatch.delenv("COLD_LINEAR")
    engine.lora_config = SimpleNamespace(fully_sharded_loras=False)
    asked: list[bool] = []

    def choose(weight: Tensor, stock_of: Any, has_lora: bool) -> linear_probe.Fastest:
        asked.append(has_lora)
        x = torch.randn(3, INPUTS)
        near(stock_of(weight[:64])(x), x @ weight[:64].t())
        return linear_probe.Fastest(path, "it was said so", linear_ops.ALL_ROWS)

    def stock(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    monkeypatch.setattr(linear_probe, "choose", choose)
    for path in ("kernel", "onednn", "vllm"):
        layer = layer_of(outputs)
        if not is_usual:
            layer.__class__ = type("Gate", (layers.LinearBase,), {})
        bind(linear_layers.wrap_dispatch_gemm, stock)(layer, True)
        assert hasattr(layer, "_vllm_cold_linears") == (path != "vllm")
        assert (layer.weight.numel() > 0) == (path == "vllm")
        x = torch.randn(2, INPUTS)
        if path == "vllm":
            near(layer.cpu_linear(x, layer.weight, None), x @ layer.weight.t())
    assert asked == [is_usual] * 3
    assert told("products")[-1] == ("vllm", "it was said so")


def test_products_are_measured_with_vllms_own_here(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By vLLM's own dispatch."""
    if not hasattr(torch.ops._C, "onednn_mm"):
        pytest.skip("vLLM's C++ part is not there")
    monkeypatch.delenv("COLD_LINEAR")
    monkeypatch.setattr(linear_probe, "_choices", {})
    layer = layer_of()
    weight, x = layer.weight.data.clone(), torch.randn(3, INPUTS)
    bind(linear_layers.wrap_dispatch_gemm, utils.dispatch_cpu_unquantized_gemm)(layer, True)
    near(layer.cpu_linear(x, layer.weight, None), x @ weight.t())
    (choice,) = linear_probe._choices.values()
    assert told("products") == [choice[:2]]
    assert hasattr(layer, "_vllm_cold_linears") == (choice.path != "vllm")


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

    assert [path for path, _ in told("lora")] == ["inside"]
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
    assert [path for path, _ in told("lora")] == ["beside"]


@pytest.mark.parametrize("name", ["products", "lora", "experts"])
def test_what_an_engine_is_to_expect(
    name: str, engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no layer was made; then what layers got."""

    def path() -> tuple[str, str]:
        ((_, path, reason),) = cpu_paths.take([name])
        return path, reason

    expected = {
        "": {"products": "kernel", "lora": "inside", "experts": "torch"},
        "COLD_LINEAR=stock": {"products": "vllm", "lora": "beside", "experts": "torch"},
        "COLD_LORA=torch": {"products": "kernel", "lora": "torch", "experts": "torch"},
        "COLD_LORA=stock": {"products": "kernel", "lora": "vllm", "experts": "vllm"},
    }
    for setting, by_name in expected.items():
        with monkeypatch.context() as patch:
            if setting:
                patch.setenv(*setting.split("="))
            assert path()[0] == by_name[name], setting
            if setting.removeprefix("COLD_").lower().startswith(name[:3]):
                assert path()[1] == setting
    cpu_paths.note(name, "measured", "it was so")
    assert path() == ("measured", "it was so")
    assert path()[0] == expected[""][name]  # of the next engine


def test_what_is_of_lora_alone_ends_no_other_engine(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLD_LORA", "fast")
    assert [name for name, _, _ in cpu_paths.take(["products"])] == ["products"]
    with pytest.raises(ValueError, match="COLD_LORA"):
        cpu_paths.take(["products", "lora"])
