# SPDX-License-Identifier: Apache-2.0
"""LoRA on CPU in vLLM's wrapper, with torch operations and in C++, against a loop over rows: every
row gets its own adapter, and rows of the base model get none.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.lora.layers import LoRAMapping, VocabParallelEmbeddingWithLoRA
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from vllm_cold.cpu.lora_fallback import GroupedPunicaWrapperCPU
from vllm_cold.cpu.lora_wrapper import NativePunicaWrapperCPU

pytestmark = pytest.mark.unit

ROWS = {
    "base first": [-1, -1, 0, 0, 1],
    "all base": [-1, -1, -1],
    "three scattered": [2, 0, -1, 1, 2, 0, -1, 1, 1],
    "one row": [0],
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
OURS = (GroupedPunicaWrapperCPU, NativePunicaWrapperCPU)
ours = pytest.mark.parametrize("cls", OURS, ids=("torch", "cpp"))


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def weights(
    slots: int, rank: int, size_in: int, size_out: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Stacked as vLLM does it: [S, 1, r, K] and [S, 1, N, r]."""
    a = draw(slots, 1, rank, size_in, dtype=dtype, seed=size_out) / size_in**0.5
    b = draw(slots, 1, size_out, rank, dtype=dtype, seed=size_out + 1) / rank**0.5
    return a, b


def loop(
    x: Tensor, slots: Sequence[int], pairs: Sequence[tuple[Tensor, Tensor]], scale: float = 1.0
) -> Tensor:
    """What the adapters add, [T, sum of N], row by row."""
    total = sum(b.shape[-2] for _, b in pairs)
    out = torch.zeros(len(slots), total, dtype=torch.float64)
    for t, slot in enumerate(slots):
        if slot >= 0:
            deltas = [b[slot, 0].double() @ (a[slot, 0].double() @ x[t].double()) for a, b in pairs]
            out[t] = scale * torch.cat(deltas)
    return out


def assert_added(before: Tensor, after: Tensor, delta: Tensor, slots: Sequence[int]) -> None:
    tolerance = TOLERANCE[after.dtype]
    want = before.double() + delta
    torch.testing.assert_close(after.double(), want, rtol=tolerance, atol=2 * tolerance)
    for t, slot in enumerate(slots):
        if slot < 0:
            assert torch.equal(before[t], after[t]), f"base row {t} was changed"


def wrapper(
    cls: type[PunicaWrapperCPU],
    slots: Sequence[int],
    max_loras: int,
    is_prefill: bool = False,
    sampled: Sequence[int] | None = None,
) -> Any:
    made = cls(64, 16, torch.device("cpu"))
    tell(made, slots, max_loras, is_prefill, sampled)
    return made


def tell(
    punica: Any,
    slots: Sequence[int],
    max_loras: int,
    is_prefill: bool = False,
    sampled: Sequence[int] | None = None,
) -> None:
    """Of a batch as vLLM tells it; adapter ids are 100, 101, ... by slot."""
    ids = [100 + slot for slot in range(max_loras)]
    tokens, prompts = (
        tuple(ids[slot] if slot >= 0 else 0 for slot in group)
        for group in (slots, slots if sampled is None else sampled)
    )
    punica.update_metadata(LoRAMapping(tokens, prompts, is_prefill), list(ids), max_loras, 512)


def layer_of(kind: type[Any], punica: Any, **attributes: Any) -> Any:
    """One of vLLM's layers, made for the wrapper."""
    layer = kind.__new__(kind)
    torch.nn.Module.__init__(layer)
    for name, value in attributes.items():
        setattr(layer, name, value)
    layer.set_mapping(punica)
    return layer


@pytest.mark.parametrize("slots", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@ours
def test_linear(slots: list[int], dtype: torch.dtype, cls: Any) -> None:
    """A packed layer of three slices; and the next steps' batches."""
    sizes = (6, 2, 2)
    a, b = zip(*(weights(3, 5, 24, n, dtype) for n in sizes), strict=True)
    punica = wrapper(cls, [0, 0, 1, -1], 3, True)
    layer = layer_of(
        BaseLinearLayerWithLoRA, punica, lora_a_stacked=a, lora_b_stacked=b, output_slices=sizes
    )
    for batch in (slots, slots[::-1], [-1, 1]):
        for is_prefill in (False, True):
            tell(punica, batch, 3, is_prefill)
            x, y = draw(len(batch), 24, dtype=dtype), draw(len(batch), sum(sizes), dtype=dtype)
            x = x if is_prefill else x.T.contiguous().T  # neither is it contiguous, nor its rows
            before = y.clone()
            layer.punica_wrapper.add_lora_linear(y, x, a, b, 2.0, sizes)
            assert_added(before, y, loop(x, batch, list(zip(a, b, strict=True)), 2.0), batch)
    with punica.without_adapters():  # a drafter's rows, of any number
        x, y = draw(9, 24, dtype=dtype), draw(9, sum(sizes), dtype=dtype)
        before = y.clone()
        layer.punica_wrapper.add_lora_linear(y, x, a, b, 2.0, sizes)
        punica.add_lora_logits(y, x, a[0], b[0], 1.0)
        assert torch.equal(y, before)


@ours
def test_embedding(cls: Any) -> None:
    slots = [-1, 1, 0, -1, 1]
    punica = wrapper(cls, slots, 2, True)
    _, b = weights(2, 4, 24, 10)
    layer = layer_of(VocabParallelEmbeddingWithLoRA, punica, lora_b_stacked=b)
    assert torch.equal(layer.punica_wrapper._embeddings_indices, punica._embeddings_indices)
    looked_up, y = draw(5, 4), draw(5, 10)
    before = y.clone()
    layer.punica_wrapper.add_lora_embedding(y, looked_up, b, add_input=True)
    delta = torch.zeros(5, 10, dtype=torch.float64)
    for t, slot in enumerate(slots):
        if slot >= 0:
            delta[t] = b[slot, 0].double() @ looked_up[t].double()
    assert_added(before, y, delta, slots)


@ours
@pytest.mark.parametrize("sampled", [[0, -1], [-1, 0]])
def test_logits_follow_the_sampled_rows(sampled: list[int], cls: Any) -> None:
    """Two prompts of three tokens; one row each is sampled."""
    tokens = [slot for slot in sampled for _ in range(3)]
    punica = wrapper(cls, tokens, 1, True, sampled)
    a, b = weights(1, 4, 24, 30)
    x, y = draw(2, 24), draw(2, 32)
    before = y.clone()
    punica.add_lora_logits(y, x, a, b, 0.5)
    assert_added(before[:, :30], y[:, :30], loop(x, sampled, [(a, b)], 0.5), sampled)
    assert torch.equal(before[:, 30:], y[:, 30:])


@ours
@pytest.mark.parametrize("slots", [[0, 0, 0, -1, -1, 1, 1, 1], [-1] * 3 + [1] * 5])
def test_logits_of_a_piece_of_a_prompt(slots: list[int], cls: Any) -> None:
    """Prompt logprobs: the rows are a slice of the step's hidden states, of any length."""
    punica = wrapper(cls, slots, 2, True, [slots[0], slots[-1]])
    a, b = weights(2, 4, 24, 30)
    hidden = draw(len(slots), 24)
    for first in range(len(slots)):
        for last in range(first + 1, len(slots) + 1):
            y = draw(last - first, 30)
            before, x = y.clone(), hidden[first:last]
            punica.add_lora_logits(y, x, a, b, 0.5)
            piece = slots[first:last]
            assert_added(before, y, loop(x, piece, [(a, b)], 0.5), piece)
    for rows in (3, 9):
        with pytest.raises(RuntimeError, match=f"{rows} rows of logits"):
            punica.add_lora_logits(draw(rows, 30), draw(rows, 24), a, b, 0.5)


def test_layers_of_other_kinds() -> None:
    """vLLM tells a classification head of its rows only if it has the very wrapper; what is linear
    has an object of its own, as a compiled model cannot use the wrapper.
    """

    class Head(BaseLinearLayerWithLoRA):
        def _apply_lora_to_output(self, x: Tensor, output: Tensor) -> Tensor:
            raise AssertionError

    punica = wrapper(NativePunicaWrapperCPU, [0, -1], 1)
    a, b = weights(1, 4, 24, 30)
    of_linear = {"lora_a_stacked": (a,), "lora_b_stacked": (b,), "output_slices": (30,)}
    assert layer_of(Head, punica, **of_linear).punica_wrapper is punica
    with pytest.raises(NotImplementedError, match="COLD_LORA=torch"):
        punica.add_lora_linear(draw(2, 30), draw(2, 24), (a,), (b,), 1.0, (30,))
    # In the base layer's product it cannot be scaled.
    linear = layer_of(BaseLinearLayerWithLoRA, punica, **of_linear).punica_wrapper
    linear._product, linear._base_layer = product, SimpleNamespace(cpu_linear=product)
    with pytest.raises(ValueError, match="scaled by 2.0; it can be by 1 only"):
        linear.add_lora_linear(draw(2, 30), draw(2, 24), (a,), (b,), 2.0, (30,))


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    raise AssertionError
