# SPDX-License-Identifier: Apache-2.0
"""Grouped multi-LoRA against loops in float64, and in vLLM's CPU LoRA wrapper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from vllm_cold.cpu.lora_fallback import GroupedPunicaWrapperCPU, expand_add, group_rows, shrink
from vllm_cold.cpu.lora_wrapper import BoundLinear, NativePunicaWrapperCPU

pytestmark = pytest.mark.unit

ROWS = {
    "base first": [-1, -1, 0, 0, 1],
    "base last": [0, 2, 2, -1, -1],
    "alternating": [-1, 0, -1, 0, -1, 0],
    "all base": [-1, -1, -1],
    "one adapter": [1, 1, 1, 1],
    "three scattered": [2, 0, -1, 1, 2, 0, -1, 1, 1],
    "one row": [0],
    "one base row": [-1],
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
cases = pytest.mark.parametrize("slots", ROWS.values(), ids=ROWS)
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
OURS = (GroupedPunicaWrapperCPU, NativePunicaWrapperCPU)
ours = pytest.mark.parametrize("cls", OURS, ids=("torch", "cpp"))


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def weights(
    slots: int, rank: int, size_in: int, size_out: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Stacked as vLLM does it: [S, 1, r, K] and [S, 1, N, r]."""
    a = draw(slots, 1, rank, size_in, dtype=dtype, seed=seed) / size_in**0.5
    b = draw(slots, 1, size_out, rank, dtype=dtype, seed=seed + 1) / rank**0.5
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


@cases
@dtypes
@pytest.mark.parametrize("rank", [1, 3, 8, 13])
def test_shrink_and_expand(slots: list[int], dtype: torch.dtype, rank: int) -> None:
    a, b = weights(3, rank, 24, 10, dtype)
    x, y = draw(len(slots), 24, dtype=dtype), draw(len(slots), 10, dtype=dtype)
    before = y.clone()
    groups = group_rows(torch.tensor(slots))
    hidden = torch.full((len(slots), rank + 2), torch.nan)  # fresh memory holds anything
    shrink(x, a, groups, 0.5, hidden)
    assert (hidden[[t for t, s in enumerate(slots) if s < 0]] == 0).all()
    expand_add(hidden, b, groups, y, 0, 10)
    assert_added(before, y, loop(x, slots, [(a, b)], 0.5), slots)


# ---- in vLLM's wrapper, with torch operations and in C++ ---------------------------------------


def wrapper(
    cls: type[PunicaWrapperCPU],
    slots: Sequence[int],
    max_loras: int,
    is_prefill: bool = False,
    sampled: Sequence[int] | None = None,
) -> Any:
    """Told of a batch as vLLM tells it; adapter ids are 100, 101, ... by slot."""
    made = cls(64, 16, torch.device("cpu"))
    ids = [100 + slot for slot in range(max_loras)]
    tokens, prompts = (
        tuple(ids[slot] if slot >= 0 else 0 for slot in group)
        for group in (slots, slots if sampled is None else sampled)
    )
    made.update_metadata(LoRAMapping(tokens, prompts, is_prefill), list(ids), max_loras, 512)
    return made


def linear(punica: Any, slots: Sequence[int], max_loras: int, dtype: torch.dtype) -> Any:
    """A packed layer of three slices; (before, after, what the adapters add)."""
    sizes = (6, 2, 2)
    packed = [weights(max_loras, 5, 24, n, dtype, seed=n) for n in sizes]
    x, y = draw(len(slots), 24, dtype=dtype), draw(len(slots), sum(sizes), dtype=dtype)
    before = y.clone()
    punica.add_lora_linear(
        y, x, tuple(a for a, _ in packed), tuple(b for _, b in packed), 2.0, sizes
    )
    return before, y, loop(x, slots, packed, 2.0)


@cases
@dtypes
@ours
@pytest.mark.parametrize("is_prefill", [False, True])
def test_linear(slots: list[int], dtype: torch.dtype, is_prefill: bool, cls: Any) -> None:
    punica = wrapper(cls, slots, 3, is_prefill)
    assert_added(*linear(punica, slots, 3, dtype), slots)


@ours
def test_the_next_steps_batch_replaces_the_last(cls: Any) -> None:
    punica = wrapper(cls, [0, 0, 1, -1], 2)
    for slots in ([-1, 1], [1, -1, 0], [-1]):
        ids = tuple(100 + s if s >= 0 else 0 for s in slots)
        punica.update_metadata(LoRAMapping(ids, ids, False), [100, 101], 2, 512)
        assert_added(*linear(punica, slots, 2, torch.float32), slots)


@ours
@pytest.mark.parametrize("sampled", [[0, -1], [-1, 0]])
def test_logits_follow_the_sampled_rows(sampled: list[int], cls: Any) -> None:
    """Two prompts of three tokens; one row each is sampled."""
    tokens = [slot for slot in sampled for _ in range(3)]
    punica = wrapper(cls, tokens, 1, True, sampled)
    a, b = weights(1, 4, 24, 30, torch.float32)
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
    a, b = weights(2, 4, 24, 30, torch.float32)
    hidden = draw(len(slots), 24)
    for first in range(len(slots)):
        for last in range(first + 1, len(slots) + 1):
            y = draw(last - first, 30)
            before, x = y.clone(), hidden[first:last]
            punica.add_lora_logits(y, x, a, b, 0.5)
            piece = slots[first:last]
            assert_added(before, y, loop(x, piece, [(a, b)], 0.5), piece)


@ours
def test_logits_of_unknown_rows(cls: Any) -> None:
    punica = wrapper(cls, [0, 1, -1], 2)
    a, b = weights(2, 4, 24, 30, torch.float32)
    for rows in (2, 4):
        with pytest.raises(RuntimeError, match=f"{rows} rows of logits"):
            punica.add_lora_logits(draw(rows, 30), draw(rows, 24), a, b, 0.5)


def test_layers_get_objects_of_their_own_but_for_classification_heads() -> None:
    """vLLM tells a head of its rows only if it has the very wrapper."""
    from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA

    class Head(BaseLinearLayerWithLoRA):
        def _apply_lora_to_output(self, x: Tensor, output: Tensor) -> Tensor:
            raise AssertionError

    punica = wrapper(NativePunicaWrapperCPU, [0, -1], 1)
    a, b = weights(1, 4, 24, 30, torch.float32)
    for kind in (BaseLinearLayerWithLoRA, Head):
        layer = kind.__new__(kind)
        torch.nn.Module.__init__(layer)
        layer.lora_a_stacked, layer.lora_b_stacked, layer.output_slices = (a,), (b,), (30,)
        layer.set_mapping(punica)
        assert (layer.punica_wrapper is punica) == (kind is Head)
    x, y = draw(2, 24), draw(2, 30)
    transposed = x.T.contiguous().T  # neither is it contiguous, nor its rows
    results = [y.clone(), y.clone()]
    bound = BoundLinear(punica._tokens, (a,), (b,), (30,))
    for given, result in zip((x, transposed), results, strict=True):
        bound.add_lora_linear(result, given, (a,), (b,), 1.0, (30,))
    assert torch.equal(*results) and not torch.equal(results[0], y)


@ours
def test_embedding(cls: Any) -> None:
    slots = [-1, 1, 0, -1, 1]
    punica = wrapper(cls, slots, 2, True)
    _, b = weights(2, 4, 24, 10, torch.float32)
    looked_up, y = draw(5, 4), draw(5, 10)
    before = y.clone()
    punica.add_lora_embedding(y, looked_up, b)
    delta = torch.zeros(5, 10, dtype=torch.float64)
    for t, slot in enumerate(slots):
        if slot >= 0:
            delta[t] = b[slot, 0].double() @ looked_up[t].double()
    assert_added(before, y, delta, slots)
