# SPDX-License-Identifier: Apache-2.0
"""Products of few rows: bit for bit oneDNN's, from weights that are in memory once."""

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from vllm_cold.cpu import linear_ops, linear_probe, lora_ops, memory, operators

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(linear_ops.missing() is not None, reason=str(linear_ops.missing())),
]


def weight_of(outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(outputs + inputs)
    return (torch.randn(outputs, inputs, generator=generator) * 0.05).to(dtype)


def is_packed(dtype: torch.dtype) -> bool:
    if linear_ops.missing() is not None:
        return False
    try:
        linear_ops.Weights(weight_of(64, 64, dtype))
    except RuntimeError as error:  # bfloat16 on a CPU without AVX-512
        assert "bf16 path needs the cpu support" in str(error)
        return False
    return True


ALL_DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if is_packed(dtype)]
# Outputs and inputs: SmolLM2's, several sums of oneDNN's for each output, one block, one padded.
SHAPES = ((960, 576), (576, 1536), (128, 4160), (64, 64), (80, 1024))
FURTHER_SHAPES = ((208, 1024), (720, 1024), (144, 1088), (16, 1088), (1008, 1088))


def is_computed(dtype: torch.dtype) -> bool:
    """Whether the kernel computes products here. With AMX, in which order oneDNN sums has not been
    seen, and it may be known for some shapes and numbers of rows alone.
    """
    if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        shapes = (*SHAPES, *FURTHER_SHAPES)
        return all(linear_ops.Weights(weight_of(*shape, dtype)).few_rows.all() for shape in shapes)
    return linear_ops.Weights(weight_of(64, 1024, dtype)).has_kernel


DTYPES = [dtype for dtype in ALL_DTYPES if is_computed(dtype)]
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
    assert weights.few_rows.all(), weights.few_rows  # the kernel computes, not oneDNN
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
    assert not weights.has_kernel
    x = torch.randn(2, 2112).to(dtype)
    assert torch.equal(linear_ops.Linear(weights, None)(x), onednn(x, weight, None))


# ---- how weights lie -----------------------------------------------------------------------------


def pack(weight: Tensor, width: int) -> Tensor:
    """The bytes of weights in blocks of so many outputs, the last one padded."""
    numbers = weight.view(torch.int32)
    blocks = pad(numbers, (0, 0, 0, -len(numbers) % width)).unflatten(0, (-1, width))
    return blocks.transpose(1, 2).contiguous().view(-1).view(torch.uint8)


def repacked(weights: linear_ops.Weights, weight: Tensor, width: int) -> linear_ops.Weights:
    """The same weights as another machine's oneDNN packs them, for products of few rows."""
    other = copy.copy(weights)
    other.memory = pack(weight, width)
    other.few_rows = weights.few_rows.clone()
    other.few_rows[0] = width
    return other


WIDTHS = (16, 32, 48, 64)


@pytest.mark.parametrize("outputs", [16, 48, 64, 80, 576, 1008])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_width_gives_the_same(dtype: torch.dtype, outputs: int) -> None:
    """One that does not divide the outputs, too."""
    weight, bias = weight_of(outputs, 1088, dtype), weight_of(1, outputs, dtype)[0]
    weights = linear_ops.Weights(weight)
    assert weights.few_rows.all()
    for width in WIDTHS:
        linear = linear_ops.Linear(repacked(weights, weight, width), bias)
        for rows in range(1, linear_ops.FEW_ROWS + 1):
            x = torch.randn(rows, 1088).to(dtype)
            assert torch.equal(linear(x), onednn(x, weight, bias)), (width, rows)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_share_blocks_of_every_width(dtype: torch.dtype, threads: int) -> None:
    weight, before = weight_of(720, 1024, dtype), torch.get_num_threads()
    weights, x = linear_ops.Weights(weight), torch.randn(3, 1024).to(dtype)
    right = onednn(x, weight, None)
    try:
        torch.set_num_threads(threads)
        for width in WIDTHS:
            assert torch.equal(linear_ops.Linear(repacked(weights, weight, width), None)(x), right)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("outputs", [16, 64, 80, 960, 6400])
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_the_width_is_read(dtype: torch.dtype, outputs: int) -> None:
    weight = weight_of(outputs, 64, dtype)
    for width in WIDTHS:
        data = pack(weight, width)
        assert [w for w in WIDTHS if linear_ops._lies(data, weight, w)] == [width]
        data.view(torch.int32)[
            (outputs - 1) // width * width * weight.view(torch.int32).shape[1]
        ] += 1
        assert not linear_ops._lies(data, weight, width)  # in the last block


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_width_is_found_and_used(
    dtype: torch.dtype, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, by_onednn = weight_of(208, 1024, dtype), linear_ops._pack
    linear_ops.Weights(weight)  # finds the order of sums
    with monkeypatch.context() as patch:
        patch.setattr(linear_ops, "_pack", lambda w: (by_onednn(w)[0], pack(w, width)))
        weights = linear_ops.Weights(weight)
        weights.load(weight * 2)
    assert weights.few_rows[0] == width and weights.few_rows.all()
    x = torch.randn(4, 1024).to(dtype)
    assert torch.equal(linear_ops.Linear(weights, None)(x), onednn(x, weight * 2, None))


@pytest.mark.parametrize("hint", [1, 2, 16, 256])
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_results_are_right_for_every_hint(
    dtype: torch.dtype, hint: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which oneDNN packs for; it may pack in other blocks then."""
    monkeypatch.setattr(linear_ops, "_HINT", hint)
    monkeypatch.setattr(linear_ops, "_summed", {})
    weight = weight_of(960, 1024, dtype)
    linear = linear_ops.Linear(linear_ops.Weights(weight), None)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, hint)
    for rows in ROWS:
        x = torch.randn(rows, 1024).to(dtype)
        right = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        assert torch.equal(linear(x), right)


def turned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed weights lie in a way that nobody knows: here the last output is the first."""
    reorder = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(
        torch.ops.mkldnn, "_reorder_linear_weight", lambda w, rows: reorder(w.flip(0), rows)
    )


# Odd sizes, few inputs, and those that the kernel takes.
@pytest.mark.parametrize("shape", [(128, 1024), (65, 129), (3, 5), (64, 16)])
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_an_unreadable_layout_is_onednns_with_lora_too(
    dtype: torch.dtype, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, bias = weight_of(*shape, dtype), weight_of(1, shape[0], dtype)[0]
    with monkeypatch.context() as patch:
        turned(patch)
        weights = linear_ops.Weights(weight)
    assert not weights.few_rows.any()
    linear = linear_ops.Linear(weights, bias)
    for rows in ROWS:
        x = torch.randn(rows, shape[1]).to(dtype)
        assert torch.equal(linear(x), onednn(x, weight.flip(0), bias))
    check_lora(linear)


def test_numbers_that_repeat_themselves_tell_of_no_width() -> None:
    """With other numbers, the products are right all the same."""
    weights = linear_ops.Weights(torch.zeros(128, 1024))
    assert not weights.few_rows.any()
    weights.load(weight := weight_of(128, 1024, torch.float32))
    x = torch.randn(2, 1024)
    assert torch.equal(linear_ops.Linear(weights, None)(x), onednn(x, weight, None))


def test_weights_that_are_packed_otherwise_are_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weight_of(128, 1024, torch.float32)
    weights = linear_ops.Weights(weight)
    weights.load(other := weight_of(128, 1024, torch.float32) + 1)
    x = torch.randn(2, 1024)
    assert torch.equal(linear_ops.Linear(weights, None)(x), onednn(x, other, None))
    layout_of = torch.ops.mkldnn._get_mkldnn_serialized_md
    monkeypatch.setattr(
        torch.ops.mkldnn, "_get_mkldnn_serialized_md", lambda packed: layout_of(packed) + 1
    )
    with pytest.raises(ValueError, match="in another way than those before"):
        weights.load(weight)


def summed_by_tiles(x: Tensor, weight: Tensor, inputs_summed: int) -> Tensor:
    """AMX's TDPBF16PS, number by number, as Intel's manual describes it: of 32 inputs the even ones
    and the odd ones are summed from zero; both sums are added, then added to the sum before.
    """
    x, weight = (numbers.float() for numbers in (x, weight))
    y = torch.zeros(len(x), len(weight))
    for start in range(0, x.shape[1], inputs_summed):
        total = torch.zeros_like(y)
        for first in range(start, min(start + inputs_summed, x.shape[1]), 32):
            even, odd = torch.zeros_like(y), torch.zeros_like(y)
            for k in range(first, first + 32, 2):  # products of bfloat16 are exact in float32
                even += x[:, k, None] * weight[:, k]
                odd += x[:, k + 1, None] * weight[:, k + 1]
            total += even + odd
        y += total
    return y


@pytest.mark.skipif(torch.bfloat16 not in DTYPES, reason="no kernel of bfloat16 here")
@pytest.mark.parametrize("inputs_summed", [256, 1088])
def test_the_order_of_amx(inputs_summed: int) -> None:
    """It has not been run on AMX: where oneDNN sums so, ``_find_summed`` finds it."""
    weight = weight_of(144, 1088, torch.bfloat16)
    weights = linear_ops.Weights(weight)
    weights.few_rows[1:] = -inputs_summed
    # A bias that cancels the result shows its last bits.
    bias, zero = torch.zeros(2, 144).bfloat16()
    for width in WIDTHS:
        linear = linear_ops.Linear(repacked(weights, weight, width), bias)
        for rows in range(1, linear_ops.FEW_ROWS + 1):
            x = torch.randn(rows, 1088).bfloat16()
            right = summed_by_tiles(x, weight, inputs_summed)
            bias.copy_(-right[0])
            assert torch.equal(linear(x), (right + bias.float()).bfloat16()), (width, rows)
            bias.copy_(zero)
    tiny = torch.full((1, 1088), 2.0**-64).bfloat16()  # times 2^-64 is subnormal: tiles give 0
    weights.load(weight * 0 + 2.0**-64)
    assert not linear_ops.Linear(weights, None)(tiny).any()
    assert (torch.ones(1) * 2.0**-130 > 0).all()  # torch's own numbers may be subnormal, as before


@pytest.mark.skipif(torch.bfloat16 not in DTYPES, reason="no kernel of bfloat16 here")
def test_the_order_of_amx_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    weight = weight_of(64, 1088, torch.bfloat16)
    weights = linear_ops.Weights(weight)
    bias_of: list[Tensor] = []

    def by_tiles(linear: linear_ops.Linear, x: Tensor) -> Tensor:
        """oneDNN as it may be with AMX."""
        rows = linear.weights.few_rows[len(x)]
        if rows:
            y: Tensor = torch.ops.vllm_cold.linear(x, linear.table, 64)
            return y
        assert linear.bias is not None
        bias_of.append(linear.bias)
        return (summed_by_tiles(x, weight, 1088) + linear.bias.float()).bfloat16()

    monkeypatch.setattr(linear_ops.Linear, "__call__", by_tiles)
    assert linear_ops._find_summed(weights) == [-1088] * linear_ops.FEW_ROWS and bias_of


def test_which_weights_the_kernel_takes() -> None:
    isa = linear_ops.cpu_library.ISAS[linear_ops.cpu_library.best_isa()]
    assert linear_ops.fits(torch.empty(64, 16)) == isa.startswith("avx512")
    assert linear_ops.fits(torch.empty(16, 32, dtype=torch.bfloat16)) == (isa == "avx512bf16")
    assert not linear_ops.fits(torch.empty(65, 16))
    assert not linear_ops.fits(torch.empty(64, 17))
    assert not linear_ops.fits(torch.empty(64, 16, dtype=torch.bfloat16))
    assert not linear_ops.fits(torch.empty(64, 64, dtype=torch.float16))


# ---- which product is the fastest ----------------------------------------------------------------


def stock_of(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.nn.functional.linear(x, weight)


SLOW, SAME, FAST = (2.0, 2.0, 2.0), (1.0, 1.0, 1.0), (0.5, 0.5, 0.5)


@pytest.mark.skipif(not DTYPES, reason="no kernel here")
@pytest.mark.parametrize(
    ("seconds", "has_lora", "path", "by_kernel"),
    [  # of the kernel, oneDNN and vLLM, with 1, 4 and 8 rows
        ((FAST, SAME, SAME), False, "kernel", [1] * 8),
        ((SLOW, FAST, SAME), False, "onednn", [0] * 8),
        ((SLOW, SLOW, SAME), False, "vllm", [0] * 8),
        ((SLOW, SLOW, SAME), True, "vllm", [0] * 8),
        ((SAME, SAME, SAME), False, "vllm", [0] * 8),  # ties
        ((SAME, SAME, SAME), True, "onednn", [0] * 8),
        ((SAME, SLOW, SAME), True, "kernel", [1] * 8),
        (((0.5, 0.5, 1.0), (1.0, 1.0, 0.5), SAME), False, "kernel", [1] * 4 + [0] * 4),
        (((1.0, 0.5, 0.5), (0.5, 1.0, 1.0), SAME), False, "kernel", [0] * 2 + [1] * 6),
    ],
)
def test_the_fastest_product_is_taken(
    seconds: Sequence[Sequence[float]],
    has_lora: bool,
    path: str,
    by_kernel: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COLD_LINEAR", raising=False)
    monkeypatch.setattr(linear_probe, "_choices", {})
    monkeypatch.setattr(linear_probe, "_seconds", lambda *_: torch.tensor(seconds))
    weight = weight_of(128, 1024, DTYPES[0])
    choice = linear_probe.choose(weight, stock_of, has_lora)
    assert (choice.path, list(choice.by_kernel)) == (path, by_kernel), choice
    weights = linear_ops.Weights(weight, choice.by_kernel)
    assert (weights.few_rows[1:] != 0).tolist() == by_kernel
    monkeypatch.setattr(linear_probe, "_seconds", None)  # measured once
    assert linear_probe.choose(weight + 1, stock_of, has_lora) == choice


def test_what_the_kernel_does_not_know_is_ours_for_lora_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without adapters it would be oneDNN's product in an operator more."""
    monkeypatch.delenv("COLD_LINEAR", raising=False)
    monkeypatch.setattr(linear_probe, "_choices", {})
    monkeypatch.setattr(linear_probe, "_seconds", lambda *_: torch.ones(3, 3))
    turned(monkeypatch)
    weight = weight_of(128, 1024, torch.float32)
    for has_lora, path in ((False, "vllm"), (True, "onednn")):
        choice = linear_probe.choose(weight, stock_of, has_lora)
        assert choice[:2] == (path, linear_probe.UNKNOWN) and not any(choice.by_kernel)


@pytest.mark.parametrize("shape", [(128, 1024), (3, 5), (20000, 512), (20001, 512)])
def test_it_is_measured(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weights beyond 16 MiB a part; a product that waits is never the fastest."""
    monkeypatch.delenv("COLD_LINEAR", raising=False)
    monkeypatch.setattr(linear_probe, "_choices", {})
    sizes: list[int] = []

    def waiting(weight: Tensor) -> Callable[[Tensor], Tensor]:
        product, event = stock_of(weight), torch.ones(3000, 3000)
        sizes.append(weight.nbytes)

        def wait(x: Tensor) -> Tensor:
            event.sum()
            return product(x)

        return wait

    choice = linear_probe.choose(weight_of(*shape, torch.float32), waiting, True)
    fits = linear_ops.fits(torch.empty(shape))
    assert choice.path in (("kernel", "onednn") if fits else ("onednn",))
    assert sizes == [min(shape[0] * shape[1] * 4, (8192 // 192 * 192 + shape[0] % 16) * 512 * 4)]


def test_it_can_be_had_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLD_LINEAR", "packed")
    monkeypatch.setattr(linear_probe, "_seconds", None)
    choice = linear_probe.choose(torch.empty(64, 64), stock_of, False)
    assert choice == ("kernel", "COLD_LINEAR=packed", linear_ops.ALL_ROWS)


# ---- the rest ------------------------------------------------------------------------------------


def test_weights_of_many_layers_share_memory_and_do_not_overlap() -> None:
    originals = [weight_of(64 * n, 64, torch.float32) + n for n in range(1, 30)]
    layers = [linear_ops.Linear(linear_ops.Weights(weight), None) for weight in originals]
    x = torch.randn(3, 64)
    for layer, weight in zip(layers, originals, strict=True):
        assert torch.equal(layer(x), onednn(x, weight, None))
        assert layer.weights.memory.data_ptr() % 64 == 0
    ends = {weights.weights.memory.data_ptr() // memory._ARENA for weights in layers}
    assert len(ends) <= 3


def test_memory_that_is_lent_is_used_again() -> None:
    with memory.lent():
        addresses = [memory.allocate(1 << 20).data_ptr() for _ in range(3)]
    assert [memory.allocate(1 << 20).data_ptr() for _ in range(3)] == addresses


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


def check_lora(linear: linear_ops.Linear, most_rows: int = 12) -> None:
    """LoRA in the product's call is what it is in one of its own."""
    dtype, outputs, inputs = linear.weights.dtype, linear.weights.outputs, linear.weights.inputs
    a, b = torch.randn(2, 1, 8, inputs).to(dtype), torch.randn(2, 1, outputs, 8).to(dtype)
    plan = lora_ops.Plan(most_rows)
    layer = lora_ops.Layer(plan, [a], [b], [outputs])
    for slots in ([-1], [0, -1, 1], [1] * 8, [-1, 0] * (most_rows // 2)):
        plan.set(torch.tensor(slots))
        x = torch.randn(len(slots), inputs).to(dtype)
        y = torch.ops.vllm_cold.linear_lora(x, linear.table, outputs, layer.table, 0.5)
        expected = linear(x)
        torch.ops.vllm_cold.lora_linear(expected, x, layer.table, 0.5)
        assert torch.equal(y, expected)
        assert torch.equal(y, linear(x)) == (max(slots) < 0)
    with pytest.raises(RuntimeError, match="another number of rows"):
        torch.ops.vllm_cold.linear_lora(x[:3], linear.table, outputs, layer.table, 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lora_in_the_same_call_is_the_same(dtype: torch.dtype) -> None:
    weight = weight_of(144, 64, dtype)
    weights = linear_ops.Weights(weight)
    check_lora(linear_ops.Linear(weights, None))
    for width in WIDTHS:
        check_lora(linear_ops.Linear(repacked(weights, weight, width), None), linear_ops.FEW_ROWS)
