# SPDX-License-Identifier: Apache-2.0
"""``COLD_LORA=ascendc``: layers of vLLM's and vllm-ascend's own classes call our op, as it is
declared, with each row's adapter; what it does not take goes to BGMV. The op is computed in torch.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ascend import kernels as stock  # noqa: F401  (names vllm-ascend's)
from tests.ascend.test_lora import PAIRS, Layer, compiled_or_not
from vllm_cold.npu import lora_ops, npu_platform

BINDING = Path(__file__).parents[2] / "csrc" / "ascend" / "lora_binding.cpp"


def _lora(
    y: Tensor, x: Tensor, a: list[Tensor], b: list[Tensor], indices: Tensor, scale: float
) -> None:
    assert len(indices) == len(x) == len(y)
    column = 0
    for a_slots, b_slots in zip(a, b, strict=True):
        columns = slice(column, column + b_slots.shape[-2])
        for row, slot in enumerate(indices.tolist()):
            if slot >= 0:
                y[row, columns] += scale * (b_slots[slot, 0] @ (a_slots[slot, 0] @ x[row]))
        column = columns.stop


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The op's calls, by the number of their rows."""
    found: list[int] = []
    (declared,) = re.findall(r"m\.def\((.*?)\);", BINDING.read_text(), re.DOTALL)
    library = torch.library.Library("vllm_cold", "FRAGMENT")
    library.define("".join(re.findall(r'"(.*?)"', declared)))

    def run(*arguments: Any) -> None:
        found.append(len(arguments[1]))
        _lora(*arguments)

    library.impl("ascend_lora", run, "CPU")
    library.impl("ascend_lora", lambda *arguments: None, "Meta")
    monkeypatch.setenv("COLD_LORA", "ascendc")
    monkeypatch.setattr(lora_ops, "missing", lambda device: None)
    yield found
    library._destroy()


@compiled_or_not
@pytest.mark.parametrize("rank", [8, 128])
@pytest.mark.parametrize("max_loras", [1, 2])
@pytest.mark.parametrize("rows", [*PAIRS, (1, 2, 0, 2, 1), (0, 0, 0), (1,)])
def test_each_row_has_its_adapter(
    engine: Any,
    calls: list[int],
    rows: tuple[int, ...],
    rank: int,
    max_loras: int,
    compiled: bool,
) -> None:
    rows = tuple(min(adapter, max_loras) for adapter in rows)
    layer = Layer(engine, compiled=compiled, rank=rank, max_loras=max_loras)
    got, want = layer.step(rows)
    torch.testing.assert_close(got, want)
    assert calls == [6, len(rows)]  # one in the profile run


def test_what_the_kernels_do_not_take_goes_to_bgmv(engine: Any, calls: list[int]) -> None:
    layer = Layer(engine, compiled=False)
    layer.step((1, 0, 1))
    calls.clear()
    a = tuple(weights.double() for weights in layer.a)  # another dtype than the layer's
    x, y = torch.ones(3, 256), torch.zeros(3, 32)
    layer.wrapper.add_lora_linear(y, x, a, layer.b, 2.0, (24, 8))
    assert not calls and y.any(dim=1).tolist() == [True, False, True]


@compiled_or_not
def test_logits(engine: Any, calls: list[int], compiled: bool) -> None:
    layer = Layer(engine, compiled=False)
    layer.step((1, 0, 1, 1))
    calls.clear()
    x = torch.randn(4, 256)
    y = torch.zeros(4, 24)

    def add(x: Tensor, y: Tensor) -> None:
        layer.wrapper.add_lora_logits(y, x, layer.a[0], layer.b[0], 1.0)

    (torch.compile(add, backend="eager", fullgraph=True) if compiled else add)(x, y)
    want = x @ layer.a[0][0, 0].T @ layer.b[0][0, 0].T
    want[1] = 0
    torch.testing.assert_close(y, want, atol=1e-5, rtol=1e-5)
    assert calls == [4]


def test_it_is_chosen_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLD_LORA", raising=False)
    assert npu_platform.choice() == "bgmv"
    monkeypatch.setenv("COLD_LORA", "ascendc")
    with pytest.raises(RuntimeError, match=r"COLD_LORA=ascendc was asked for\. Its library was"):
        npu_platform.choice()
    monkeypatch.setattr(lora_ops, "missing", lambda device: None)
    assert npu_platform.choice() == "ascendc"
    for name in ("cpp", "stock", "x"):
        monkeypatch.setenv("COLD_LORA", name)
        with pytest.raises(ValueError, match="on NPUs it must be one of bgmv, ascendc"):
            npu_platform.choice()
