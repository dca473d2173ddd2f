# SPDX-License-Identifier: Apache-2.0
"""Adapters on experts on CPU, compared with a loop over rows in float64; what is refused, and what
is left to vLLM's kernel. ``tests/engine/test_families.py`` has the same with engines.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vllm_cold.compat import versions
from vllm_cold.compat.patching import bind
from vllm_cold.cpu import operators

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(versions.is_before("0.31"), reason="of another make before 0.31"),
]

EXPERTS, HIDDEN, RANK, SLOTS = 5, 64, 4, 3
# Of each row: the base model, three adapters, of which the last leaves the experts alone.
ROWS = [0, -1, 1, 2, 1, -1, 0, 2, 0, 0, 1, -1]
ADAPTED = torch.tensor([slot in (0, 1) for slot in ROWS])
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def kernels() -> None:
    """vLLM's C++ part, which is not there for every release that is tested."""
    operators.of_vllm()  # loads it

    if not hasattr(torch.ops._C, "cpu_fused_moe"):
        pytest.skip("vLLM's C++ part is not there")


class Case:
    """A layer of experts with the adapters of ``SLOTS`` slots, and its inputs."""

    def __init__(
        self,
        activation: str = "silu",
        fused: bool = False,
        shared: bool = False,
        biased: bool = False,
        dtype: torch.dtype = torch.float32,
        size: int = 96,
        top: int = 2,
    ) -> None:
        self.activation, self.fused, self.top, self.size = activation, fused, top, size
        self.dtype, self.biased = dtype, biased
        self.interleaved = activation == "swigluoai"
        generator = torch.Generator().manual_seed(7)

        def draw(*shape: int, std: float = 1.0) -> Tensor:
            return (std * torch.randn(*shape, generator=generator)).to(dtype)

        self.w13 = draw(EXPERTS, 2 * size, HIDDEN, std=HIDDEN**-0.5)
        self.w2 = draw(EXPERTS, HIDDEN, size, std=size**-0.5)
        self.b13, self.b2 = draw(EXPERTS, 2 * size), draw(EXPERTS, HIDDEN)
        outputs = [2 * size] if fused else [size, size]
        of_all = 1 if shared else EXPERTS
        self.a13 = [draw(SLOTS, of_all, RANK, HIDDEN, std=HIDDEN**-0.5) for _ in outputs]
        self.bb13 = [draw(SLOTS, EXPERTS, n, RANK, std=0.4) for n in outputs]
        self.a2 = draw(SLOTS, EXPERTS, RANK, size, std=size**-0.5)
        self.bb2 = draw(SLOTS, of_all, HIDDEN, RANK, std=0.4)
        self.x = draw(len(ROWS), HIDDEN, std=3.0)  # some reach the clamps
        logits = torch.randn(len(ROWS), EXPERTS, generator=generator)
        weights, ids = logits.softmax(-1).topk(top)
        self.weights, self.ids = weights.contiguous(), ids.to(torch.int32).contiguous()

    def halves(self, tensor: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Gate and up."""
        index = torch.arange(2 * self.size)
        chosen = (index[::2], index[1::2]) if self.interleaved else index.chunk(2)
        gate, up = (tensor.index_select(dim, each) for each in chosen)
        return gate, up

    def config(self) -> Any:
        from vllm.model_executor.layers.fused_moe.activation import MoEActivation
        from vllm.model_executor.layers.fused_moe.config import (
            FusedMoEConfig,
            FusedMoEParallelConfig,
            RoutingMethodType,
        )

        return FusedMoEConfig(
            num_experts=EXPERTS,
            experts_per_token=self.top,
            hidden_dim=HIDDEN,
            intermediate_size=self.size,
            num_local_experts=EXPERTS,
            num_logical_experts=EXPERTS,
            activation=MoEActivation(self.activation),
            device="cpu",
            routing_method=RoutingMethodType.Default,
            moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(),
            in_dtype=self.dtype,
            has_bias=self.biased,
            is_lora_enabled=True,
        )

    def build(self, kernel: Any) -> tuple[Any, Any]:
        """The experts, as vLLM makes them from a class, and the layer with their weights."""
        from vllm.model_executor.layers.fused_moe.config import (
            FusedMoEQuantConfig,
            biased_moe_quant_config,
        )

        layer, quant = torch.nn.Module(), FusedMoEQuantConfig.make()
        values = {"w13_weight": self.w13, "w2_weight": self.w2}
        if self.biased:
            values |= {"w13_bias": self.b13, "w2_bias": self.b2}
        for name, value in values.items():
            weight = torch.nn.Parameter(value.clone().contiguous(), requires_grad=False)
            layer.register_parameter(name, weight)
        if self.biased:
            quant = biased_moe_quant_config(layer.w13_bias, layer.w2_bias)
        experts = kernel(self.config(), quant)
        experts.process_weights_after_loading(layer)
        return experts, layer

    def context(self, **changes: Any) -> Any:
        from vllm.model_executor.layers.fused_moe.experts.lora_context import MoELoRAContext

        fields: dict[str, Any] = {
            "w13_lora_a_stacked": tuple(self.a13),
            "w13_lora_b_stacked": tuple(self.bb13),
            "w2_lora_a_stacked": (self.a2,),
            "w2_lora_b_stacked": (self.bb2,),
            "adapter_enabled": torch.tensor([1, 1, 0, 0], dtype=torch.int32),
            "max_loras": SLOTS,
            "top_k": self.top,
            "w13_num_slices": len(self.a13),
            "fully_sharded": False,
            "tp_rank": 0,
            "tp_size": 1,
            "local_num_experts": EXPERTS,
            "punica_wrapper": SimpleNamespace(token_lora_indices=torch.tensor(ROWS)),
            "use_tuned_config": False,
        }
        return MoELoRAContext(**fields | changes)

    def ours(self, **changes: Any) -> tuple[Any, Any]:
        from vllm_cold.cpu import moe_lora

        experts, layer = self.build(moe_lora.with_lora(stock_kernel()))
        experts.set_lora_context(self.context(**changes))
        return experts, layer

    def run(self, experts: Any, layer: Any, weighted: bool = False) -> Tensor:
        out = torch.full_like(self.x, torch.nan)
        x = self.x * self.weights.to(self.dtype) if weighted else self.x
        experts.apply(
            output=out,
            hidden_states=x,
            w1=layer.w13_weight,
            w2=layer.w2_weight,
            topk_weights=self.weights.clone(),
            topk_ids=self.ids,
            activation=experts.moe_config.activation,
            global_num_experts=EXPERTS,
            workspace13=out.new_empty(0),
            workspace2=out.new_empty(0),
            apply_router_weight_on_input=weighted,
            **dict.fromkeys(("expert_map", "a1q_scale", "a2_scale", "expert_tokens_meta")),
        )
        return out

    def merged(self, expert: int, slot: int) -> tuple[Tensor, Tensor]:
        """An expert's weights [2N, H] and [H, N] in float64 with an adapter's changes."""
        w13, w2 = self.w13[expert].double(), self.w2[expert].double()
        if slot not in (0, 1):
            return w13, w2
        of_all = expert if self.a13[0].shape[1] > 1 else 0
        changes = [
            b[slot, expert].double() @ a[slot, of_all].double()
            for a, b in zip(self.a13, self.bb13, strict=True)
        ]
        whole = torch.cat(changes)
        if self.interleaved and not self.fused:
            whole = torch.stack(changes, 1).flatten(0, 1)
        down = self.bb2[slot, of_all].double() @ self.a2[slot, expert].double()
        return w13 + whole, w2 + down

    def want(self, weighted: bool = False) -> Tensor:
        """[T, H] float64, one row and one expert after the other."""
        out = torch.zeros(len(ROWS), HIDDEN, dtype=torch.float64)
        for row, slot in enumerate(ROWS):
            for factor, expert in zip(self.weights[row], self.ids[row].tolist(), strict=True):
                w13, w2 = self.merged(expert, slot)
                x = self.x[row].double() * (factor.double() if weighted else 1.0)
                y = w13 @ x + self.b13[expert].double() * self.biased
                gate, up = self.halves(y[None], 1)
                if self.interleaved:
                    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
                    hidden = gate / (1.0 + (-1.702 * gate).exp()) * (up + 1.0)
                else:
                    hidden = {
                        "silu": functional.silu,
                        "gelu": functional.gelu,
                        "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
                    }[self.activation](gate) * up
                y = w2 @ hidden[0] + self.b2[expert].double() * self.biased
                out[row] += y * (1.0 if weighted else factor.double())
        return out

    def close(self, got: Tensor, want: Tensor) -> None:
        error = (got.double() - want).abs().max() / want.abs().max()
        assert error < TOLERANCE[self.dtype]


def stock_kernel() -> Any:
    """vLLM's for any CPU, and any dtype."""
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

    return CPUUnquantizedExperts


BF16 = torch.bfloat16


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": BF16, "biased": True},
        {"size": 80},  # which the kernel pads
        {"fused": True, "biased": True},
        {"fused": True, "dtype": BF16},
        {"shared": True},  # a matrix for all experts
        {"activation": "gelu", "fused": True},
        {"activation": "gelu_tanh", "biased": True},
        {"activation": "swigluoai"},
        {"activation": "swigluoai", "shared": True, "biased": True},
        {"activation": "swigluoai", "fused": True, "dtype": BF16},
        {"top": 1, "weighted": True},
        {"top": 1, "weighted": True, "biased": True},
    ],
    ids=str,
)
def test_rows_get_what_a_loop_gives(options: dict[str, Any]) -> None:
    """Regular rows of the batch are the kernel's. Adapters change when they are loaded; of the
    experts' weights there is no second copy.
    """
    options = dict(options)
    weighted = options.pop("weighted", False)
    case = Case(**options)
    experts, layer = case.ours()
    alone = case.run(*case.build(stock_kernel()), weighted)
    for _ in range(2):
        got = case.run(experts, layer, weighted)
        case.close(got[ADAPTED], case.want(weighted)[ADAPTED])
        assert torch.equal(got[~ADAPTED], alone[~ADAPTED])
        unlike = (got[ADAPTED] - alone[ADAPTED]).abs().amax(-1)
        assert (unlike > 0.1 * alone.abs().max()).all(), "the adapters make no difference"
        case.bb2 *= 2.0  # in place, as vLLM writes an adapter into its slot
    kept = [value for value in vars(experts).values() if isinstance(value, Tensor)]
    assert sum(tensor.numel() for tensor in kept) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter_enabled": torch.zeros(SLOTS + 1, dtype=torch.int32)},
        {"punica_wrapper": SimpleNamespace(token_lora_indices=torch.tensor([-1, 2] * 6))},
        # More rows than requests have, as when vLLM warms up.
        {"punica_wrapper": SimpleNamespace(token_lora_indices=torch.tensor([-1]))},
    ],
    ids=["no adapter on experts", "none in this batch", "rows of no request"],
)
def test_the_kernel_has_batches_without_adapters(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case()
    experts, layer = case.ours(**changes)
    monkeypatch.setattr(experts, "_with_lora", None)
    alone = case.run(*case.build(stock_kernel()))
    assert torch.equal(case.run(experts, layer), alone)
    experts._lora_context = None  # of a drafter
    assert torch.equal(case.run(experts, layer), alone)


def test_a_batch_of_adapters_alone() -> None:
    case = Case()
    context = SimpleNamespace(token_lora_indices=torch.zeros(len(ROWS), dtype=torch.int64))
    got = case.run(*case.ours(punica_wrapper=context))
    zero = torch.tensor(ROWS) == 0
    torch.testing.assert_close(got[zero], case.run(*case.ours())[zero])
    assert not torch.isnan(got).any()


def _pack(weights: Tensor, n: int, g: int) -> Tensor:
    """[E, O, I] as [O / n, I / g, n, g] of each expert."""
    experts, outputs, inputs = weights.shape
    blocks = weights.view(experts, outputs // n, n, inputs // g, g)
    return blocks.transpose(2, 3).reshape(weights.shape)


@pytest.mark.parametrize(
    ("order", "dtype"),
    [
        ((16, 1), torch.float32),
        ((16, 1), torch.bfloat16),
        ((16, 2), torch.bfloat16),
        ((8, 4), torch.bfloat16),
        ((4, 2), torch.bfloat16),
    ],
)
def test_orders_are_found(order: tuple[int, int], dtype: torch.dtype) -> None:
    from vllm_cold.cpu import moe_lora

    weights = torch.randn(2, 32, 48).to(dtype)
    packed = _pack(weights, *order)
    assert not torch.equal(packed, weights)
    assert torch.equal(moe_lora.unpack(packed[1], order), weights[1])
    for rows in (1, 16, 17):  # few, and more
        x = torch.randn(rows, 48).to(dtype)
        got = moe_lora.product(x, packed[1], order)
        torch.testing.assert_close(got, x @ weights[1].t(), rtol=2e-2, atol=1e-1)
    found = moe_lora.find_order(lambda given, isa: _pack(given, *order), "made up", dtype)
    assert found == order
    assert torch.equal(moe_lora.unpack(weights[0], moe_lora.UNPACKED), weights[0])


def test_what_is_refused() -> None:
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation

    from vllm_cold.cpu import moe_lora

    with pytest.raises(RuntimeError, match="kernel 'odd' for experts packs .* not known here"):
        moe_lora.find_order(lambda weights, isa: weights.flip(1), "odd", torch.float32)
    case = Case()
    for config, name, value, changes, says in (
        ("parallel", "use_ep", True, {}, "does not work with --enable-expert-parallel: leave out"),
        ("parallel", "dp_size", 2, {}, "does not work with --data-parallel-size above 1"),
        ("", "activation", MoEActivation.RELU2, {}, "relu2; allowed are silu, gelu, gelu_tanh, sw"),
        ("", "", None, {"fully_sharded": True, "tp_size": 2}, "work with --fully-sharded-loras"),
    ):
        experts, _ = case.ours(fully_sharded=True)  # alone it has whole matrices
        moe = experts.moe_config
        if name:
            setattr(moe.moe_parallel_config if config else moe, name, value)
        with pytest.raises(ValueError, match=says):
            experts.set_lora_context(case.context(**changes))


def test_which_kernel_takes_adapters() -> None:
    from vllm.model_executor.layers.fused_moe.oracle import unquantized

    from vllm_cold.cpu import moe_lora

    select = bind(moe_lora.wrap_select_moe_backend, unquantized.select_unquantized_moe_backend)
    config = Case().config()
    backend, kernel = select(config)
    assert backend is unquantized.UnquantizedMoeBackend.CPU
    assert config.is_lora_enabled
    (stock,) = [base for base in kernel.__bases__ if base is not moe_lora.LoRAExperts]
    assert issubclass(stock, stock_kernel()) and not stock.supports_lora()
    assert kernel.supports_lora() and select(config)[1] is kernel
    config.is_lora_enabled = False
    assert select(config) == (backend, stock)
    # Where vLLM has no kernel, another kind, or one that takes adapters, its answer holds.
    config.is_lora_enabled = True
    other = type("Other", (), {"supports_lora": staticmethod(lambda: False)})
    for answer in (None, kernel, other):
        select = bind(
            moe_lora.wrap_select_moe_backend, lambda given, a=answer: (given.is_lora_enabled, a)
        )
        assert select(config) == (True, answer)


def test_experts_are_compiled() -> None:
    """A model's graph has them as one operator, whatever rows have."""
    case = Case()
    experts, layer = case.ours()
    compiled = torch.compile(lambda: case.run(experts, layer), fullgraph=True, backend="eager")
    assert torch.equal(compiled(), case.run(experts, layer))
    experts._lora_context.adapter_enabled.zero_()
    assert torch.equal(compiled(), case.run(*case.build(stock_kernel())))


def test_experts_of_another_process_are_noticed() -> None:
    case = Case()
    experts, layer = case.ours()
    experts._number = experts._number + 1
    with pytest.raises(RuntimeError, match="wants experts of another process"):
        case.run(experts, layer)
