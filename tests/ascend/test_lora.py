# SPDX-License-Identifier: Apache-2.0
"""Every row of a batch gets its own adapter, compiled as vLLM compiles: without guards.

vLLM's and vllm-ascend's own ``PunicaWrapperNPU`` compute, with their kernels in torch. With
``COLD_LORA=ascendc`` they call our op, as it is declared and computed in torch; what it does not
take goes to BGMV.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.config import set_current_vllm_config
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_selector import get_punica_wrapper
from vllm_ascend import utils
from vllm_ascend.lora.punica_npu import PunicaWrapperNPU

from tests.ascend import kernels  # noqa: F401  (names them)
from vllm_cold.npu import lora_bgmv, lora_ops, npu_platform

HIDDEN, SLICES = 256, (24, 8)
STOCK_ENGINE = {"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}
PAIRS = [(1, 0, 1, 0), (0, 1, 0, 1)]  # the adapter of each row; 0 is the base model
compiled_or_not = pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])


class Layer:
    """A linear layer of two slices, all of it LoRA, with an engine's wrapper."""

    def __init__(self, config: Any, *, compiled: bool, rank: int = 8, max_loras: int = 1) -> None:
        with set_current_vllm_config(config):
            self.wrapper: Any = get_punica_wrapper(
                64,
                max_batches=8,
                device=torch.device("cpu"),
                lora_config=SimpleNamespace(max_lora_rank=rank, max_loras=max_loras),
            )
        draw = torch.Generator().manual_seed(0)
        self.a, self.b = (
            tuple(torch.randn(max_loras, 1, *shape, generator=draw) / 16 for shape in shapes)
            for shapes in ([(rank, HIDDEN)] * 2, [(size, rank) for size in SLICES])
        )
        self.slots: list[int | None] = list(range(1, max_loras + 1))
        self._compute: Any = self._add
        if compiled:
            torch._dynamo.reset()  # what other layers were compiled to
            self._compute = torch.compile(
                self._add,
                backend=lambda graph, inputs: graph.forward,
                fullgraph=True,
                options={"guard_filter_fn": torch.compiler.skip_all_guards_unsafe},
            )
        self.step([1] * 6)  # the profile run, in which the layer is compiled

    def _add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.wrapper.add_lora_linear(y, x, self.a, self.b, 2.0, SLICES)

    def step(self, adapters: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the rows get added, and what they should."""
        # As vLLM's runner: every step is a prefill.
        mapping = LoRAMapping(tuple(adapters), tuple(adapters), is_prefill=True)
        self.wrapper.update_metadata(mapping, self.slots, len(self.slots), 100)
        x = torch.randn(len(adapters), HIDDEN, generator=torch.Generator().manual_seed(1))
        y, want = torch.zeros(2, len(adapters), sum(SLICES))
        for tensor in (x, y):
            torch._dynamo.mark_dynamic(tensor, 0)
        self._compute(x, y)
        for row, adapter in enumerate(adapters):
            if adapter:
                weights = zip(self.a, self.b, strict=True)
                parts = [b[adapter - 1, 0] @ (a[adapter - 1, 0] @ x[row]) for a, b in weights]
                want[row] = 2.0 * torch.cat(parts)
        return y, want

    def found(self, adapters: Sequence[int]) -> list[int]:
        """By row, the adapter that it was given; -1 if it is none of them."""
        y, _ = self.step(adapters)
        kinds = [self.step([kind] * len(adapters))[1] for kind in range(len(self.slots) + 1)]
        return [
            next((kind for kind, w in enumerate(kinds) if torch.allclose(row, w[i], atol=1e-5)), -1)
            for i, row in enumerate(y)
        ]


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
@pytest.mark.parametrize(("rank", "max_loras"), [(8, 1), (8, 2), (128, 1), (128, 2)])
@pytest.mark.parametrize("rows", [*PAIRS, (1, 2, 0, 2, 1), (1,)])
def test_each_row_has_its_adapter(
    engine: Any, rows: tuple[int, ...], rank: int, max_loras: int, compiled: bool
) -> None:
    """Rank 128 takes torch operations, in vllm-ascend too."""
    layer = Layer(engine, compiled=compiled, rank=rank, max_loras=max_loras)
    rows = tuple(min(row, max_loras) for row in rows)
    assert layer.found(rows) == list(rows)
    torch.testing.assert_close(*layer.step(rows), rtol=1e-5, atol=1e-5)


@compiled_or_not
@pytest.mark.parametrize(("rank", "max_loras"), [(8, 1), (128, 2)])
@pytest.mark.parametrize("rows", [*PAIRS, (1, 2, 0, 2, 1)])
def test_ours_gives_each_row_its_adapter(
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


def test_what_ours_does_not_take_goes_to_bgmv(engine: Any, calls: list[int]) -> None:
    layer = Layer(engine, compiled=False)
    layer.step((1, 0, 1))
    calls.clear()
    a = tuple(weights.double() for weights in layer.a)  # another dtype than the layer's
    x, y = torch.ones(3, HIDDEN), torch.zeros(3, sum(SLICES))
    layer.wrapper.add_lora_linear(y, x, a, layer.b, 2.0, SLICES)
    assert not calls and y.any(dim=1).tolist() == [True, False, True]


@compiled_or_not
def test_logits_by_ours(engine: Any, calls: list[int], compiled: bool) -> None:
    layer = Layer(engine, compiled=False)
    layer.step((1, 0, 1, 1))
    calls.clear()
    x, y = torch.randn(4, HIDDEN), torch.zeros(4, SLICES[0])

    def add(x: Tensor, y: Tensor) -> None:
        layer.wrapper.add_lora_logits(y, x, layer.a[0], layer.b[0], 1.0)

    (torch.compile(add, backend="eager", fullgraph=True) if compiled else add)(x, y)
    want = x @ layer.a[0][0, 0].T @ layer.b[0][0, 0].T
    want[1] = 0
    torch.testing.assert_close(y, want, atol=1e-5, rtol=1e-5)
    assert calls == [4]


@compiled_or_not
def test_each_row_has_its_adapter_on_310p(
    engine: Any, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [npu_platform.computes_with_torch(rank) for rank in (64, 128)] == [False, True]
    monkeypatch.setattr(utils, "_ascend_device_type", utils.AscendDeviceType._310P)
    assert npu_platform.computes_with_torch(8)
    layer = Layer(engine, compiled=compiled)
    for rows in PAIRS:
        assert layer.found(rows) == list(rows)


@pytest.mark.parametrize("slots", [1, 3, 9], ids=lambda slots: f"{slots} slots")
@pytest.mark.parametrize("dims", [3, 4])
def test_torch_operations_for_few_slots_and_for_many(slots: int, dims: int) -> None:
    """Of 6 rows: one slot after the other, or the weights of each row."""
    draw = torch.Generator().manual_seed(slots)
    weights = torch.randn(slots, 5, 7, generator=draw)
    x = torch.randn(6, 7, generator=draw)
    adapters = torch.tensor([0, -1, slots - 1, -1, 0, slots // 2])
    want = torch.zeros(6, 5)
    for row in range(6):
        if adapters[row] >= 0:
            want[row] = weights[adapters[row]] @ x[row]
    if dims == 4:
        weights = weights.unsqueeze(1)
    y = torch.full((6, 8), 9.0)
    lora_bgmv.bgmv_shrink(x, weights, y, adapters, 2.0)
    torch.testing.assert_close(y, torch.cat((2 * want, torch.full((6, 3), 9.0)), 1))
    for add in (True, False):
        y = torch.ones(6, 5)
        lora_bgmv.bgmv_expand(x, weights, y, adapters, add)
        torch.testing.assert_close(y, want + add)
    weights[0] = torch.nan  # an adapter's; others and the base model have nothing to do with it
    y = torch.ones(6, 5)
    lora_bgmv.bgmv_expand(x, weights, y, adapters)
    assert y.isnan().any(dim=1).tolist() == (adapters == 0).tolist()
    assert (y[adapters < 0] == 1).all()


def test_a_slot_after_the_other_takes_no_rows_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile run has as many rows as the token budget."""
    monkeypatch.setattr(torch, "einsum", None)  # as it works on gathered weights
    y = torch.zeros(300, 128)
    adapters = torch.arange(300) % 3 - 1
    lora_bgmv.bgmv_shrink(torch.ones(300, 8), torch.ones(2, 128, 8), y, adapters)
    assert torch.equal(y, 8.0 * (adapters >= 0).unsqueeze(1).expand_as(y))


def test_embeddings_and_logits(engine: Any) -> None:
    """The other two ways in."""
    layer = Layer(engine, compiled=False)
    embed, logits = layer.wrapper.add_lora_embedding, layer.wrapper.add_lora_logits
    layer.step((0, 1, 0, 1))
    x, y = torch.ones(4, 8), torch.zeros(4, SLICES[0])
    embed(y, x, layer.b[0])
    assert y.any(dim=1).tolist() == [False, True, False, True]
    x, y = torch.ones(4, HIDDEN), torch.zeros(4, SLICES[0])
    logits(y, x, layer.a[0], layer.b[0], 1.0)
    assert y.any(dim=1).tolist() == [False, True, False, True]


@pytest.mark.parametrize("rows", PAIRS)
def test_vllm_ascend_alone_loses_adapters(make_engine: Any, rows: tuple[int, ...]) -> None:
    """What the cure is for. When this fails on a newer vllm-ascend, see whether it can go."""
    stock = make_engine(**STOCK_ENGINE)
    found = Layer(stock, compiled=True).found(rows)
    assert found == ([1, 0, 0, 0] if rows[0] else [0, 0, 0, 0])
    assert Layer(stock, compiled=False).found(rows) == list(rows)


def test_vllm_ascend_alone_gives_base_rows_an_adapter(make_engine: Any) -> None:
    """The same for ranks from 128."""
    layer = Layer(make_engine(**STOCK_ENGINE), compiled=False, rank=128)
    assert layer.found((1, 0, 1, 0)) == [1, 1, 1, 1]


def test_who_gets_which_wrapper(
    engine: Any, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines in which CoLD cannot be keep vllm-ascend's."""
    ours = npu_platform.WRAPPERS[npu_platform.choice()].rpartition(".")[2]
    assert type(Layer(engine, compiled=False).wrapper).__name__ == ours
    stock = Layer(make_engine(**STOCK_ENGINE), compiled=False).wrapper
    assert type(stock) is PunicaWrapperNPU
    monkeypatch.setenv("COLD_LORA", "ascendc")
    with pytest.raises(RuntimeError, match=r"COLD_LORA=ascendc was asked for\. Its library was"):
        npu_platform.choice()
    monkeypatch.setattr(lora_ops, "missing", lambda device: None)
    assert npu_platform.choice() == "ascendc"
    monkeypatch.setenv("COLD_LORA", "cpp")
    with pytest.raises(ValueError, match="on NPUs it must be one of bgmv, ascendc"):
        npu_platform.choice()
