# SPDX-License-Identifier: Apache-2.0
"""Contracts of LoRA on CPU, and what is cured there."""

import ast
import inspect
import textwrap
from typing import Any

from vllm_cold.vllm.contracts.contract import contract
from vllm_cold.vllm.contracts.source import (
    contains,
    has_kind,
    has_parameters,
    in_order,
    require,
    source_of,
)


@contract("vllm.platforms.cpu.CpuPlatform.get_punica_wrapper", "it names the CPU's LoRA class")
def _check_punica_wrapper_of_the_cpu() -> None:
    from vllm.platforms.cpu import CpuPlatform

    from vllm_cold.cpu.cpu_platform import STOCK

    has_kind(CpuPlatform, "get_punica_wrapper", classmethod)
    method = CpuPlatform.get_punica_wrapper.__func__
    name = getattr(method, "_vllm_cold_original", method)(CpuPlatform)
    require(name == STOCK, f"CpuPlatform.get_punica_wrapper() is {name}, not {STOCK}.")


@contract(
    "vllm.platforms.cpu.CpuPlatform.check_and_update_config",
    "it is called as if there were no LoRA, which must switch on nothing but compilation",
)
def _check_lora_on_cpu_is_not_compiled() -> None:
    from vllm.platforms.cpu import CpuPlatform

    has_kind(CpuPlatform, "check_and_update_config", classmethod)
    method = CpuPlatform.check_and_update_config.__func__
    where = "CpuPlatform.check_and_update_config"
    source = source_of(getattr(method, "_vllm_cold_original", method))
    contains(
        source,
        where,
        "if vllm_config.lora_config is not None:\n"
        "        compilation_config.mode = CompilationMode.NONE",
    )
    require(source.count("lora_config") == 1, f"{where} looks at lora_config elsewhere too.")


def _used_of_punica_wrapper(code: Any) -> set[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("punica_wrapper")
    }


@contract("vllm.lora.layers", "each layer gets an object with what it uses of its punica_wrapper")
def _check_lora_layers() -> None:
    from vllm.lora import model_manager
    from vllm.lora.layers import (
        BaseLayerWithLoRA,
        LogitsProcessorWithLoRA,
        VocabParallelEmbeddingWithLoRA,
        base_linear,
        column_parallel_linear,
        row_parallel_linear,
    )

    linear = {"add_lora_linear", "add_shrink", "add_expand"}
    modules = (base_linear, column_parallel_linear, row_parallel_linear)
    used = set().union(*(_used_of_punica_wrapper(module) for module in modules))
    require(used == linear, f"linear LoRA layers use {sorted(used)} of their punica_wrapper.")
    used = _used_of_punica_wrapper(VocabParallelEmbeddingWithLoRA)
    require(
        used == {"_embeddings_indices", "add_lora_embedding"},
        f"VocabParallelEmbeddingWithLoRA uses {sorted(used)} of its punica_wrapper.",
    )
    has_parameters(BaseLayerWithLoRA, "set_mapping", "punica_wrapper", exact=True)
    in_order(
        source_of(model_manager.LoRAModelManager._create_lora_modules),
        "LoRAModelManager._create_lora_modules",
        "from_layer(",
        "new_module.set_mapping(punica_wrapper)",
    )
    with_weights = (base_linear.BaseLinearLayerWithLoRA, VocabParallelEmbeddingWithLoRA)
    for layer in (*with_weights, LogitsProcessorWithLoRA):
        where = f"{layer.__name__} (weights must stay at their addresses)"
        contains(source_of(layer.reset_lora), where, "[index] = 0")
        contains(source_of(layer.set_lora), where, ".copy_(")


@contract("vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU", "its methods are overridden")
def _check_punica_cpu() -> None:
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    has_parameters(PunicaWrapperCPU, "update_metadata")
    has_parameters(PunicaWrapperCPU, "add_shrink", "y", "x", "lora_a_stacked", "scale")
    has_parameters(
        PunicaWrapperCPU,
        "add_expand",
        "y",
        "x",
        "lora_b_stacked",
        "output_slices",
        "offset_start",
        "add_inputs",
    )
    has_parameters(PunicaWrapperCPU, "add_lora_embedding", "y", "x", "lora_b_stacked", "add_inputs")
    matrices = ("y", "x", "lora_a_stacked", "lora_b_stacked", "scale")
    has_parameters(PunicaWrapperCPU, "add_lora_linear", *matrices, "output_slices", "buffer")
    has_parameters(PunicaWrapperCPU, "add_lora_logits", *matrices, "buffer")
    for name in ("token_lora_indices", "sampler_indices"):
        has_kind(PunicaWrapperCPU, name, property)


@contract(
    "vllm.lora.ops.torch_ops.lora_ops",
    "vllm_cold's own CPU backend is there because rows of the base model get the last adapter",
    until=(0, 33),
    note=True,
)
def _check_cpu_lora_still_wraps_base_rows() -> None:
    import torch
    from vllm.lora.ops.torch_ops.lora_ops import bgmv_shrink

    out = torch.zeros(1, 1)
    base = torch.tensor([-1])
    bgmv_shrink(torch.ones(1, 2), torch.ones(1, 1, 2), out, base, 1.0)
    require(
        out.item() != 0.0,
        "vLLM's CPU LoRA ops leave rows of the base model alone: the reason for "
        "lora_fallback is speed alone now.",
    )


@contract(
    "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU.add_lora_logits",
    "lora_fallback finds the adapters of a prompt's logits as vLLM takes those of sampled rows",
    note=True,
)
def _check_cpu_logits_still_take_sampled_rows() -> None:
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    require(
        "self.sampler_indices" in source_of(PunicaWrapperCPU.add_lora_logits),
        "PunicaWrapperCPU.add_lora_logits does not use sampler_indices: see whether logits_slots "
        "can go.",
    )


@contract(
    "vllm.lora.layers.utils._get_lora_device",
    "lora_device is there because it takes no layer whose weight oneDNN keeps",
    note=True,
)
def _check_lora_device_is_still_of_the_weight() -> None:
    from vllm.lora.layers import base_linear
    from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel

    method = base_linear._get_lora_device
    source = source_of(getattr(method, "_vllm_cold_original", method))
    require(
        "if hasattr(base_layer, 'weight'):\n        return base_layer.weight.device" in source
        and "setattr(layer, w_q_name, None)" in source_of(CPUInt8ScaledMMLinearKernel),
        "_get_lora_device takes layers without a weight, or there are none: lora_device can go.",
    )
