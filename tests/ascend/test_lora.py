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
@pytest.mark.parametrize("max_loras", [1, 2])
@pytest.mark.parametrize("rows", [*PAIRS, (1, 2, 0, 2, 1), (1,)])
def test_each_row_has_its_adapter(
    engine: Any, rows: tuple[int, ...], max_loras: int, compiled: bool
) -> None:
    layer = Layer(engine, compiled=compiled, max_loras=max_loras)
    rows = tuple(min(row, max_loras) for row in rows)
    assert layer.found(rows) == list(rows)
    torch.testing.assert_close(*layer.step(rows), rtol=1e-5, atol=1e-5)


def test_who_computes_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [npu_platform.computes_with_torch(rank) for rank in (64, 128)] == [False, True]
    monkeypatch.setattr(utils, "_ascend_device_type", utils.AscendDeviceType._310P)
    assert npu_platform.computes_with_torch(8)


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
    """For ranks from 128, and on 310P; when this fails, ``npu_platform`` need not refuse them."""
    layer = Layer(make_engine(**STOCK_ENGINE), compiled=False, rank=128)
    assert layer.found((1, 0, 1, 0)) == [1, 1, 1, 1]


def test_who_gets_which_wrapper(engine: Any, make_engine: Any) -> None:
    """Engines in which vllm-cold cannot be keep vllm-ascend's."""
    assert type(Layer(engine, compiled=False).wrapper) is lora_bgmv.BgmvPunicaWrapperNPU
    stock = Layer(make_engine(**STOCK_ENGINE), compiled=False).wrapper
    assert type(stock) is PunicaWrapperNPU
