# SPDX-License-Identifier: Apache-2.0
"""LoRA on CPU in vLLM's wrapper, with torch operations and in C++, against a loop over rows: every
row gets its own adapter, and rows of the base model get none.
"""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.lora.layers import LoRAMapping, VocabParallelEmbeddingWithLoRA
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from tests.ops.lora_cases import Case, make_case
from vllm_cold.cpu.lora_fallback import GroupedPunicaWrapperCPU
from vllm_cold.cpu.lora_wrapper import NativePunicaWrapperCPU

pytestmark = pytest.mark.unit

ROWS = {
    "base first": [-1, -1, 0, 0, 1],
    "all base": [-1, -1, -1],
    "three scattered": [2, 0, -1, 1, 2, 0, -1, 1, 1],
    "one row": [0],
}
# How often torch rounds a term; with 16 bits it rounds A @ x, and what is added.
STEPS = {torch.float32: 64, torch.bfloat16: 2**17}
OURS = (GroupedPunicaWrapperCPU, NativePunicaWrapperCPU)
ours = pytest.mark.parametrize("cls", OURS, ids=("torch", "cpp"))


def case_of(
    slots: Sequence[int], widths: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Case:
    """A batch, for the same three adapters in every batch."""
    batch, same = (
        make_case(7, list(rows), 5, 24, widths, dtype, adapters=3, padded=2)
        for rows in (slots, [0] * 9)
    )
    return replace(batch, a=same.a, b=same.b, scale=0.5)


def wrapper(cls: type[PunicaWrapperCPU], *batch: Any) -> Any:
    """For a batch, as ``tell`` takes it."""
    punica = cls(64, 16, torch.device("cpu"))
    tell(punica, *batch)
    return punica


def tell(
    punica: Any,
    slots: Sequence[int],
    is_prefill: bool = False,
    sampled: Sequence[int] | None = None,
) -> None:
    """Of a batch as vLLM tells it; adapter ids are 100, 101 and 102 by slot."""
    ids = [100, 101, 102]
    tokens, prompts = (
        tuple(ids[slot] if slot >= 0 else 0 for slot in rows) for rows in (slots, sampled or slots)
    )
    punica.update_metadata(LoRAMapping(tokens, prompts, is_prefill), ids, len(ids), 512)


def layer_of(kind: type[Any], punica: Any, **attributes: Any) -> Any:
    """One of vLLM's layers, made for the wrapper."""
    layer = kind.__new__(kind)
    torch.nn.Module.__init__(layer)
    for name, value in attributes.items():
        setattr(layer, name, value)
    layer.set_mapping(punica)
    return layer


@pytest.mark.parametrize("slots", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("dtype", STEPS, ids=str)
@ours
def test_linear(slots: list[int], dtype: torch.dtype, cls: Any) -> None:
    """A packed layer of three slices; and the next steps' batches."""
    sizes = (6, 2, 2)
    case = case_of([], sizes, dtype)
    punica = wrapper(cls, [0, 0, 1, -1], True)
    layer = layer_of(
        BaseLinearLayerWithLoRA,
        punica,
        lora_a_stacked=case.a,
        lora_b_stacked=case.b,
        output_slices=sizes,
    )

    def add(case: Case) -> Tensor:
        y, x = case.y.clone(), case.x.T.contiguous().T  # neither is it contiguous, nor its rows
        layer.punica_wrapper.add_lora_linear(y, x, case.a, case.b, case.scale, sizes)
        return y

    for batch in (slots, slots[::-1], [-1, 1]):
        for is_prefill in (False, True):
            tell(punica, batch, is_prefill)
            case = replace(case_of(batch, sizes, dtype), a=case.a, b=case.b)
            case.check(add(case), STEPS[dtype])
    with punica.without_adapters():  # a drafter's rows, of any number
        case = replace(case_of([1] * 9, sizes, dtype), a=case.a, b=case.b)
        y = add(case)
        punica.add_lora_logits(y, case.x, case.a[0], case.b[0], 1.0)
        assert torch.equal(y, case.y)


def test_before_the_first_batch_no_row_has_an_adapter() -> None:
    punica, case = GroupedPunicaWrapperCPU(64, 16, torch.device("cpu")), case_of([0, 1], (6,))
    punica.add_lora_linear(y := case.y.clone(), case.x, case.a, case.b, 1.0, (6,))
    assert torch.equal(y, case.y)


@ours
def test_the_halves_of_sharded_adapters(cls: Any) -> None:
    slots, sizes = [-1, 1, 0, 2], (6, 2)
    punica, case = wrapper(cls, slots), case_of(slots, sizes)
    weights = {"lora_a_stacked": case.a, "lora_b_stacked": case.b, "output_slices": sizes}
    layer = layer_of(BaseLinearLayerWithLoRA, punica, **weights)
    y, hidden = case.y.clone(), torch.zeros(2, 4, 5)
    layer.punica_wrapper.add_shrink(hidden, case.x.T.contiguous().T, case.a, case.scale)
    layer.punica_wrapper.add_expand(y, hidden, case.b, sizes, offset_start=0, add_input=True)
    case.check(y, STEPS[y.dtype])


@ours
def test_embedding(cls: Any) -> None:
    slots = [-1, 1, 0, -1, 1]
    punica, case = wrapper(cls, slots, True), case_of(slots, (10,))
    layer = layer_of(VocabParallelEmbeddingWithLoRA, punica, lora_b_stacked=case.b[0])
    assert torch.equal(layer.punica_wrapper._embeddings_indices, punica._embeddings_indices)
    case.a = (torch.eye(5).expand(3, 1, 5, 5),)  # vLLM has looked its rows up
    case.x, case.scale, y = case.x[:, :5], 1.0, case.y.clone()
    layer.punica_wrapper.add_lora_embedding(y, case.x, case.b[0], add_input=True)
    case.check(y, STEPS[y.dtype])


def add_logits(punica: Any, case: Case) -> Tensor:
    y = case.y.clone()
    punica.add_lora_logits(y, case.x, case.a[0], case.b[0], case.scale)
    return y


@ours
@pytest.mark.parametrize("sampled", [[0, -1], [-1, 0]])
def test_logits_follow_the_sampled_rows(sampled: list[int], cls: Any) -> None:
    """Two prompts of three tokens; one row each is sampled."""
    tokens = [slot for slot in sampled for _ in range(3)]
    punica, case = wrapper(cls, tokens, True, sampled), case_of(sampled, (30,))
    case.x, case.y = case.x.clone(), torch.nn.functional.pad(case.y, (0, 2))
    case.check(add_logits(punica, case), STEPS[case.y.dtype])


@ours
@pytest.mark.parametrize("slots", [[0, 0, 0, -1, -1, 1, 1, 1], [-1] * 3 + [1] * 5])
def test_logits_of_a_piece_of_a_prompt(slots: list[int], cls: Any) -> None:
    """Prompt logprobs: the rows are a slice of the step's hidden states, of any length."""
    punica = wrapper(cls, slots, True, [slots[0], slots[-1]])
    case = case_of(slots, (30,))
    case.x = case.x.clone()
    for first in range(len(slots)):
        for last in range(first + 1, len(slots) + 1):
            rows = slice(first, last)
            piece = replace(case, x=case.x[rows], y=case.y[rows], indices=case.indices[rows])
            piece.check(add_logits(punica, piece), STEPS[case.y.dtype])
    for rows in (3, 9):
        unknown = replace(case, x=torch.randn(rows, 24), y=torch.randn(rows, 30))
        with pytest.raises(RuntimeError, match=f"{rows} rows of logits"):
            add_logits(punica, unknown)


def test_layers_of_other_kinds() -> None:
    """vLLM tells a classification head of its rows only if it has the very wrapper; what is linear
    has an object of its own, as a compiled model cannot use the wrapper.
    """

    class Head(BaseLinearLayerWithLoRA):
        def _apply_lora_to_output(self, x: Tensor, output: Tensor) -> Tensor:
            raise AssertionError

    punica, case = wrapper(NativePunicaWrapperCPU, [0, -1]), case_of([0, -1], (30,))
    arguments = case.y, case.x, case.a, case.b, 2.0, (30,)
    weights = {"lora_a_stacked": case.a, "lora_b_stacked": case.b, "output_slices": (30,)}
    assert layer_of(Head, punica, **weights).punica_wrapper is punica
    with pytest.raises(NotImplementedError, match="COLD_LORA=torch"):
        punica.add_lora_linear(*arguments)
    # In the base layer's product it cannot be scaled.
    linear = layer_of(BaseLinearLayerWithLoRA, punica, **weights).punica_wrapper
    linear._product = object()
    linear._base_layer = SimpleNamespace(cpu_linear=linear._product)
    with pytest.raises(ValueError, match="scaled by 2.0; it can be by 1 only"):
        linear.add_lora_linear(*arguments)
