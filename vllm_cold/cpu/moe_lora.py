# SPDX-License-Identifier: Apache-2.0
"""LoRA on mixtures of experts on CPU: vLLM's kernels for them learn to take adapters.

The kernel computes rows of the base model, and those whose adapter leaves the experts alone. For
the others torch operations compute one expert after the other from the kernel's own weights, of
which one is unpacked at a time. vLLM compiles a model on CPU with its experts: so an operator finds
out which rows have an adapter. In vLLM 0.23 experts on CPU are of another kind, which refuses LoRA.
"""

import secrets
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn import functional
from vllm.model_executor.layers.fused_moe.experts.lora_experts_mixin import LoRAExpertsMixin

from vllm_cold.compat.patching import Original
from vllm_cold.cpu import cpu_platform, operators
from vllm_cold.cpu.lora_fallback import add_lora, group_rows

# Packed weights [O, I] of an expert are stored as [O / n, I / g, n, g]; (n, g) of the kernels with
# vector instructions, with AMX, for Arm and for POWER.
ORDERS = ((16, 1), (16, 2), (8, 4), (4, 2))
UNPACKED = (1, 1)
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes
_PROBE = 64
_FEW_ROWS = 16


def _swiglu_oai(gate: Tensor, up: Tensor) -> Tensor:
    """GPT-OSS's activation (its model card, 2025)."""
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1.0) * gate * torch.sigmoid(1.702 * gate)


# By the value of vLLM's ``MoEActivation``: those that its kernels for CPUs have.
ACTIVATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": lambda gate, up: functional.silu(gate) * up,
    "gelu": lambda gate, up: functional.gelu(gate) * up,
    "gelu_tanh": lambda gate, up: functional.gelu(gate, approximate="tanh") * up,
    "swigluoai": _swiglu_oai,
}


def unpack(packed: Tensor, order: tuple[int, int]) -> Tensor:
    """The weights [O, I] of one expert as they were before a kernel packed them."""
    n, g = order
    outputs, inputs = packed.shape
    wide = packed.view(_INTEGERS[g * packed.element_size()])  # g weights are one number
    blocks = wide.view(outputs // n, inputs // g, n).transpose(1, 2)
    return blocks.reshape(outputs, inputs // g).view(packed.dtype)


def product(x: Tensor, packed: Tensor, order: tuple[int, int]) -> Tensor:
    """X [T, I] times the weights of one expert: [T, O]."""
    n, g = order
    if g > 1 or n == 1 or len(x) > _FEW_ROWS:
        return x @ unpack(packed, order).t()
    # Unpacking takes longer than a product of few rows; a block needs none.
    outputs, inputs = packed.shape
    y = x @ packed.view(outputs // n, inputs, n)  # [O / n, T, n]
    return y.transpose(0, 1).reshape(len(x), outputs)


@cache
def find_order(pack: Callable[[Tensor, str], Tensor], isa: str, dtype: torch.dtype) -> Any:
    """The order in which a kernel packs weights, found by packing known numbers.

    Args:
        pack: Takes weights [E, O, I] and ``isa``, and returns them packed.
        isa: vLLM's name of the kernel.
        dtype: Of the weights.

    Raises:
        RuntimeError: it is none of ``ORDERS``.
    """
    size, integer = dtype.itemsize, _INTEGERS[dtype.itemsize]
    numbers = torch.arange(_PROBE * _PROBE, dtype=integer).view(_PROBE, _PROBE)
    packed = pack(numbers.view(dtype)[None], isa)[0]
    for order in ORDERS:
        known = order[1] * size in _INTEGERS
        if known and torch.equal(unpack(packed, order).view(integer), numbers):
            return order
    raise RuntimeError(
        f"vllm-cold: this vLLM's kernel {isa!r} for experts packs its weights in an order that is "
        "not known here, so that adapters cannot be added: serve the model without --enable-lora"
    )


def _halves(tensor: Tensor, dim: int, interleaved: bool) -> Sequence[Tensor]:
    """Views of gate and up, which are halves of a dimension or alternate in it."""
    if not interleaved:
        return tensor.chunk(2, dim)
    last = tensor.movedim(dim, -1)
    return [last[..., first::2].movedim(-1, dim) for first in (0, 1)]


class LoRAExperts(LoRAExpertsMixin):  # type: ignore[misc]
    """Adapters for one of vLLM's kernels for experts on CPU; ``with_lora`` mixes it in."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A tensor, for the operator; random, as a compiled model may come from another process.
        number = secrets.randbits(63)
        self._number = torch.tensor(number)
        _layers[number] = self

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        super().process_weights_after_loading(layer)
        packed = not self._use_zentorch
        dtype = layer.w13_weight.dtype
        pack = operators.of_vllm().cpu_prepack_moe_weight
        self._order = find_order(pack, self.isa, dtype) if packed else UNPACKED

    def set_lora_context(self, ctx: Any) -> None:
        """Take the adapters' weights, which stay where they are and may change.

        Raises:
            ValueError: an option that spreads experts or adapters over processes, or the model's
                activation, is not supported.
        """
        parallel, activation = self.moe_config.moe_parallel_config, self.moe_config.activation.value
        for option, refused in (
            ("--enable-expert-parallel", parallel.use_ep),
            ("--data-parallel-size above 1", parallel.dp_size > 1),
            ("--fully-sharded-loras", ctx.fully_sharded and ctx.tp_size > 1),
        ):
            if refused:
                raise ValueError(
                    f"vllm-cold: LoRA on a mixture of experts on CPU does not work with {option}: "
                    "leave out that option, or --enable-lora"
                )
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"vllm-cold: LoRA on a mixture of experts on CPU with the activation {activation}; "
                f"allowed are {', '.join(ACTIVATIONS)}: serve the model without --enable-lora"
            )
        super().set_lora_context(ctx)
        self._interleaved = activation == "swigluoai"

        def of_experts(stacked: Sequence[Tensor]) -> list[Tensor]:
            """[S, E, ., .]; an adapter may have one matrix for all experts."""
            return [weight.expand(-1, ctx.local_num_experts, -1, -1) for weight in stacked]

        a, b = of_experts(ctx.w13_lora_a_stacked), of_experts(ctx.w13_lora_b_stacked)
        if len(b) == 1:  # of gate and up together, in the order of the weights themselves
            a, b = a * 2, list(_halves(b[0], -2, self._interleaved))
        self._gate_and_up = list(zip(a, b, strict=True))
        (a2,), (b2,) = of_experts(ctx.w2_lora_a_stacked), of_experts(ctx.w2_lora_b_stacked)
        self._down = a2, b2

    def apply(
        self,
        output: Tensor,
        hidden_states: Tensor,
        w1: Tensor,
        w2: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        *args: Any,
        apply_router_weight_on_input: bool,
        **kwargs: Any,
    ) -> None:
        """See the base class, which uses none of the arguments that are left out."""
        torch.ops.vllm_cold.lora_experts(
            output, hidden_states, w1, w2, topk_weights, topk_ids, self._number,
            apply_router_weight_on_input,
        )  # fmt: skip

    def compute(
        self,
        output: Tensor,
        x: Tensor,
        w13: Tensor,
        w2: Tensor,
        weights: Tensor,
        ids: Tensor,
        is_weighted: bool,
    ) -> None:
        """Fill the output [T, H]. ``w13`` [E, 2N, H], gate and up, and ``w2`` [E, H, N] are packed;
        each row of ``x`` [T, H] has the experts ``ids`` [T, k] int32 with ``weights`` [T, k]
        float32, which ``x`` has been multiplied with already if ``is_weighted``.
        """
        context, rows = self._lora_context, x.new_empty(0, dtype=torch.int64)
        if context is not None:
            slots = context.punica_wrapper.token_lora_indices[: len(x)]
            # The base model's -1 indexes the last entry, which is of no slot and 0.
            rows = context.adapter_enabled[slots].nonzero().squeeze(1)
        kernel, config = super().apply, self.moe_config

        def without_lora(output: Tensor, x: Tensor, weights: Tensor, ids: Tensor) -> None:
            kernel(
                output, x, w13, w2, weights, ids, config.activation, config.num_experts,
                expert_map=None, a1q_scale=None, a2_scale=None, workspace13=None, workspace2=None,
                expert_tokens_meta=None, apply_router_weight_on_input=is_weighted,
            )  # fmt: skip

        if not len(rows):
            without_lora(output, x, weights, ids)
            return
        if len(rows) < len(x):
            has_none = torch.ones(len(x), dtype=torch.bool)
            has_none[rows] = False
            others = has_none.nonzero().squeeze(1)
            part = x[others]
            base = torch.empty_like(part)
            without_lora(base, part, weights[others], ids[others])
            output[others] = base
        factors = torch.ones_like(weights) if is_weighted else weights
        adapted = self._with_lora(x[rows], w13, w2, factors[rows], ids[rows], slots[rows])
        output[rows] = adapted.to(output.dtype)

    def _with_lora(
        self, x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, ids: Tensor, slots: Tensor
    ) -> Tensor:
        """[T, H] float32, of rows that all have an adapter, in the slots [T]."""
        activate = ACTIVATIONS[self.moe_config.activation.value]
        out = torch.zeros(x.shape, dtype=torch.float32)
        for expert in sorted(set(ids.flatten().tolist())):
            rows, choice = (ids == expert).nonzero(as_tuple=True)
            inputs, groups = x[rows], group_rows(slots[rows])
            y = self._product(inputs, w13[expert], self.w1_bias, expert)
            gate, up = _halves(y, -1, self._interleaved)
            for part, (a, b) in zip((gate, up), self._gate_and_up, strict=True):
                add_lora(part, inputs, a[:, expert], b[:, expert], groups)
            # Kernels may pad N with zeros.
            hidden = activate(gate, up).to(x.dtype)
            y = self._product(hidden, w2[expert], self.w2_bias, expert)
            a, b = self._down
            add_lora(y, hidden[:, : a.shape[-1]], a[:, expert], b[:, expert], groups)
            out.index_add_(0, rows, y * weights[rows, choice, None])
        return out

    def _product(self, x: Tensor, packed: Tensor, bias: Tensor | None, expert: int) -> Tensor:
        """[T, O] float32."""
        y = product(x, packed, self._order).float()
        return y if bias is None else y + bias[expert]


_layers: WeakValueDictionary[int, LoRAExperts] = WeakValueDictionary()


def _lora_experts(*args: Any) -> None:
    output, x, w13, w2, weights, ids, number, is_weighted = args
    layer = _layers.get(int(number))
    if layer is None:
        raise RuntimeError(
            "vllm-cold: a compiled model wants experts of another process; start the engine with "
            "--enforce-eager, and report this"
        )
    layer.compute(output, x, w13, w2, weights, ids, is_weighted)


# torch.library is untyped.
_library = torch.library.Library("vllm_cold", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "lora_experts(Tensor(a!) output, Tensor x, Tensor w13, Tensor w2, Tensor weights, Tensor ids, "
    "Tensor number, bool is_weighted) -> ()"
)
_library.impl("lora_experts", _lora_experts, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("vllm_cold::lora_experts", lambda *args: None, lib=_library)


@cache
def with_lora(kernel: type[Any]) -> type[Any]:
    """One of vLLM's classes for experts on CPU, with adapters."""
    return type(f"{kernel.__name__}WithLoRA", (LoRAExperts, kernel), {})


def wrap_select_moe_backend(original: Original, moe_config: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap ``select_unquantized_moe_backend``."""
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

    if not moe_config.is_lora_enabled or cpu_platform.choice() == "stock":
        return original(moe_config, *args, **kwargs)
    moe_config.is_lora_enabled = False
    try:
        backend, kernel = original(moe_config, *args, **kwargs)
    finally:
        moe_config.is_lora_enabled = True
    if kernel and not kernel.supports_lora() and issubclass(kernel, CPUUnquantizedExperts):
        return backend, with_lora(kernel)
    return original(moe_config, *args, **kwargs)
