# SPDX-License-Identifier: Apache-2.0
"""Products of few rows: bit for bit oneDNN's, from weights that are in memory once."""

import pytest
import torch
from torch import Tensor

from vllm_cold.cpu import linear_ops, lora_ops, memory, operators

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(linear_ops.missing() is not None, reason=str(linear_ops.missing())),
]


def weight_of(outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(outputs + inputs)
    return (torch.randn(outputs, inputs, generator=generator) * 0.05).to(dtype)


def is_packed_as_known(dtype: torch.dtype) -> bool:
    """With AMX oneDNN packs bfloat16 in another way, and has the product to itself."""
    if linear_ops.missing() is not None or not linear_ops.fits(torch.empty(64, 64, dtype=dtype)):
        return False
    if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        with pytest.raises(ValueError, match="packs weights in another way"):
            linear_ops.Weights(weight_of(64, 64, dtype))
        return False
    return True


DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if is_packed_as_known(dtype)]
# Outputs and inputs: SmolLM2's, several sums of oneDNN's for each output, one block.
SHAPES = ((960, 576), (576, 1536), (128, 4160), (64, 64))
ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 40)


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    ours = torch.ops.mkldnn._reorder_linear_weight(weight, 64)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, ours, bias, "none", [], "")
    return result


@pytest.fixture(scope="module", params=[(s, d) for s in SHAPES for d in DTYPES], ids=str)
def layer(request: pytest.FixtureRequest) -> tuple[Tensor, linear_ops.Weights]:
    shape, dtype = request.param
    weight = weight_of(*shape, dtype)
    return weight, linear_ops.Weights(weight)


@pytest.mark.parametrize("has_bias", [False, True])
def test_results_are_onednns_bit_for_bit(
    layer: tuple[Tensor, linear_ops.Weights], has_bias: bool
) -> None:
    weight, weights = layer
    outputs, inputs = weight.shape
    assert all(weights.summed), weights.summed  # the kernel computes, not oneDNN
    bias = weight_of(1, outputs, weight.dtype)[0] if has_bias else None
    linear = linear_ops.Linear(weights, bias)
    for rows in ROWS:
        x = torch.randn(rows, inputs).to(weight.dtype)
        y = linear(x)
        assert y.dtype == weight.dtype and torch.equal(y, onednn(x, weight, bias)), rows
        wide = torch.randn(rows, inputs + 6).to(weight.dtype)[:, 3:-3]
        assert torch.equal(linear(wide), onednn(wide.contiguous(), weight, bias)), rows
        turned = torch.randn(inputs, rows).to(weight.dtype).t()
        assert torch.equal(linear(turned), onednn(turned.contiguous(), weight, bias)), rows


def test_a_row_does_not_depend_on_the_others(layer: tuple[Tensor, linear_ops.Weights]) -> None:
    weight, weights = layer
    linear = linear_ops.Linear(weights, None)
    x = torch.randn(8, weight.shape[1]).to(weight.dtype)
    x[3], x[5] = float("nan"), float("inf")
    y = linear(x)
    assert y[3].isnan().all() and not y[5].isfinite().any()
    others = x.clone()
    others[3] = others[5] = 0
    for row in (0, 1, 2, 4, 6, 7):
        assert torch.equal(y[row], linear(others)[row])


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_order_of_sums_is_noticed_and_left_to_onednn(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of the sizes tried is oneDNN's: its own results are taken, for each number of rows."""
    monkeypatch.setattr(linear_ops, "_SUMMED", (64, 192))
    monkeypatch.setattr(linear_ops, "_summed", {})
    weight = weight_of(128, 2112, dtype)
    weights = linear_ops.Weights(weight)
    assert weights.summed == [0] * linear_ops.FEW_ROWS
    x = torch.randn(2, 2112).to(dtype)
    assert torch.equal(linear_ops.Linear(weights, None)(x), onednn(x, weight, None))


def test_another_layout_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    reorder = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(
        torch.ops.mkldnn, "_reorder_linear_weight", lambda w, rows: reorder(w.flip(0), rows)
    )
    with pytest.raises(ValueError, match="packs weights in another way"):
        linear_ops.Weights(weight_of(128, 64, torch.float32))


def test_which_weights_fit() -> None:
    assert linear_ops.fits(torch.empty(64, 16))
    assert not linear_ops.fits(torch.empty(65, 16))
    assert not linear_ops.fits(torch.empty(64, 17))
    assert not linear_ops.fits(torch.empty(64, 0))
    assert not linear_ops.fits(torch.empty(64, 64, dtype=torch.float16))


def test_weights_of_many_layers_share_memory_and_do_not_overlap() -> None:
    originals = [weight_of(64 * n, 64, torch.float32) + n for n in range(1, 30)]
    layers = [linear_ops.Linear(linear_ops.Weights(weight), None) for weight in originals]
    x = torch.randn(3, 64)
    for layer, weight in zip(layers, originals, strict=True):
        assert torch.equal(layer(x), onednn(x, weight, None))
        assert layer.weights.memory.data_ptr() % 64 == 0
    ends = {weights.weights.memory.data_ptr() // memory._ARENA for weights in layers}
    assert len(ends) <= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_move_and_their_tensor_stays(dtype: torch.dtype) -> None:
    weight = torch.arange(60, dtype=dtype).view(3, 1, 4, 5)
    part, before = weight[1], weight.clone()
    memory.move(weight)
    assert torch.equal(weight, before) and weight.is_contiguous()
    assert part.data_ptr() != weight[1].data_ptr()
    weight[2].zero_()
    assert not weight[2].any() and torch.equal(weight[:2], before[:2])


def test_what_does_not_fit_is_refused() -> None:
    weights = linear_ops.Weights(weight_of(64, 64, torch.float32))
    linear = linear_ops.Linear(weights, None)
    for x in (torch.randn(2, 63), torch.randn(2, 64).double(), torch.randn(2, 64).bfloat16()):
        with pytest.raises(RuntimeError, match="linear layer"):
            linear(x)
    for bias in (torch.randn(63), torch.randn(64).double(), torch.randn(128)[::2]):
        with pytest.raises(ValueError, match="bias is not like"):
            linear_ops.Linear(weights, bias)
    foreign = linear.table.clone()
    foreign[0] = operators.PROCESS ^ 1
    with pytest.raises(RuntimeError, match="another process"):
        torch.ops.vllm_cold.linear(torch.randn(2, 64), foreign, 64)


def test_compiled_models_call_it() -> None:
    linear = linear_ops.Linear(linear_ops.Weights(weight_of(128, 64, torch.float32)), None)
    compiled = torch.compile(lambda x: linear(x.relu()).relu(), fullgraph=True, dynamic=True)
    for rows in (2, 5, 30):
        x = torch.randn(rows, 64)
        assert torch.equal(compiled(x), linear(x.relu()).relu())


@pytest.mark.parametrize("dtype", DTYPES)
def test_lora_in_the_same_call_is_the_same(dtype: torch.dtype) -> None:
    linear = linear_ops.Linear(linear_ops.Weights(weight_of(128, 64, dtype)), None)
    plan = lora_ops.Plan(16)
    a, b = torch.randn(2, 1, 8, 64).to(dtype), torch.randn(2, 1, 128, 8).to(dtype)
    layer = lora_ops.Layer(plan, [a], [b], [128])
    for slots in ([-1], [0, -1, 1], [1] * 8, [-1, 0] * 6):
        plan.set(torch.tensor(slots))
        x = torch.randn(len(slots), 64).to(dtype)
        y = torch.ops.vllm_cold.linear_lora(x, linear.table, 128, layer.table, 0.5)
        expected = linear(x)
        torch.ops.vllm_cold.lora_linear(expected, x, layer.table, 0.5)
        assert torch.equal(y, expected)
        assert torch.equal(y, linear(x)) == (max(slots) < 0)
    with pytest.raises(RuntimeError, match="another number of rows"):
        torch.ops.vllm_cold.linear_lora(x[:3], linear.table, 128, layer.table, 0.5)
