# SPDX-License-Identifier: Apache-2.0
"""Every row of a batch gets its own adapter, compiled as vLLM compiles: without guards.

vLLM's and vllm-ascend's own ``PunicaWrapperNPU`` compute, with their kernels in torch.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import set_current_vllm_config
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_selector import get_punica_wrapper
from vllm_ascend import utils
from vllm_ascend.lora.punica_npu import PunicaWrapperNPU

from tests.ascend import kernels  # noqa: F401  (names them)
from vllm_cold.npu import lora_bgmv, npu_platform

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
    weights[0] = torch.nan  # of one adapter: rows of others and of the base model have none
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
    """When this fails on a newer vllm-ascend, see whether ``npu`` can go."""
    stock = make_engine(**STOCK_ENGINE)
    found = Layer(stock, compiled=True).found(rows)
    assert found == ([1, 0, 0, 0] if rows[0] else [0, 0, 0, 0])
    assert Layer(stock, compiled=False).found(rows) == list(rows)


def test_vllm_ascend_alone_gives_base_rows_an_adapter(make_engine: Any) -> None:
    """The same for ranks from 128."""
    layer = Layer(make_engine(**STOCK_ENGINE), compiled=False, rank=128)
    assert layer.found((1, 0, 1, 0)) == [1, 1, 1, 1]


def test_who_gets_which_wrapper(engine: Any, make_engine: Any) -> None:
    """Engines in which vllm-cold cannot be keep vllm-ascend's."""
    assert type(Layer(engine, compiled=False).wrapper) is lora_bgmv.BgmvPunicaWrapperNPU
    stock = Layer(make_engine(**STOCK_ENGINE), compiled=False).wrapper
    assert type(stock) is PunicaWrapperNPU
