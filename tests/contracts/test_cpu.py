# SPDX-License-Identifier: Apache-2.0
"""LoRA on CPU, and bugs of vLLM: which of them are still there.

A test of the second kind fails when vLLM has fixed a bug: then its workaround can go, unless the
test says otherwise. ``tests/upstream/reports`` names the test.
"""

import ast
import inspect
from typing import Any

import pytest

from tests.contracts.source import contains, find, in_order, parameters, since, source_of, until
from vllm_cold.cpu.cpu_platform import STOCK

pytestmark = pytest.mark.unit

_PLATFORM = "vllm.platforms.cpu:CpuPlatform"
_PUNICA = "vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU"
_EXPERTS = "vllm.model_executor.layers.fused_moe"
_V1 = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_NO_V1 = "there is no V1 model runner"


def test_the_platform_names_the_class_that_ours_stands_in_for() -> None:
    assert find(f"{_PLATFORM}.get_punica_wrapper")(find(_PLATFORM)) == STOCK


def test_lora_switches_nothing_but_compilation_off() -> None:
    """The configuration is made as if there were no LoRA."""
    where = f"{_PLATFORM}.check_and_update_config"
    contains(
        where,
        "if vllm_config.lora_config is not None:\n"
        "        compilation_config.mode = CompilationMode.NONE",
    )
    assert source_of(find(where)).count("lora_config") == 1


def _used_of_punica_wrapper(code: Any) -> set[str]:
    return {
        node.attr
        for node in ast.walk(ast.parse(source_of(code)))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("punica_wrapper")
    }


def test_layers_use_of_their_wrapper_what_ours_has() -> None:
    layers = "vllm.lora.layers."
    linear = [
        cls
        for name in ("base_linear", "column_parallel_linear", "row_parallel_linear")
        for _, cls in inspect.getmembers(find(layers + name), inspect.isclass)
        if cls.__module__ == layers + name
    ]
    used = set().union(*(_used_of_punica_wrapper(cls) for cls in linear))
    assert used == {"add_lora_linear", "add_shrink", "add_expand"}
    embedding = find("vllm.lora.layers:VocabParallelEmbeddingWithLoRA")
    assert _used_of_punica_wrapper(embedding) == {"_embeddings_indices", "add_lora_embedding"}


def test_weights_stay_at_their_addresses() -> None:
    in_order(
        "vllm.lora.model_manager:LoRAModelManager._create_lora_modules",
        "from_layer(",
        "new_module.set_mapping(punica_wrapper)",
    )
    for layer in (
        "vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA",
        "vllm.lora.layers:VocabParallelEmbeddingWithLoRA",
        "vllm.lora.layers:LogitsProcessorWithLoRA",
    ):
        contains(f"{layer}.reset_lora", "[index] = 0")
        contains(f"{layer}.set_lora", ".copy_(")


@since("0.31")
def test_kernels_for_experts_take_adapters_as_ours_do() -> None:
    kernel = f"{_EXPERTS}.experts.cpu_moe:CPUUnquantizedExperts"
    assert parameters(f"{kernel}.apply") == [
        *("output", "hidden_states", "w1", "w2", "topk_weights", "topk_ids", "activation"),
        *("global_num_experts", "expert_map", "a1q_scale", "a2_scale", "workspace13"),
        *("workspace2", "expert_tokens_meta", "apply_router_weight_on_input"),
    ]
    contains(
        f"{kernel}.process_weights_after_loading",
        "self._use_zentorch = ",
        "cpu_prepack_moe_weight(layer.w13_weight, self.isa)",
    )
    # Adapters come by these two; slots have one entry more, of no adapter.
    layer = "vllm.lora.layers.fused_moe:FusedMoEWithLoRA"
    in_order(f"{layer}.set_mapping", "self._build_lora_context()", ".set_lora_context(")
    contains(f"{layer}.create_lora_weights", "[0] * (max_loras + 1)")
    contains(f"{layer}.set_lora", "self.adapter_enabled[index] = 1", ".copy_(")
    contains(f"{layer}.reset_lora", "self.adapter_enabled[index] = 0")
    contains(f"{_EXPERTS}.experts.lora_experts_mixin:LoRAExpertsMixin", "self._lora_context = ctx")


# ---- bugs that are worked around -----------------------------------------------------------------


@until("0.33", "these rows are masked")
def test_cpu_lora_still_wraps_base_rows() -> None:
    """Where they are masked, ``lora_fallback`` is for speed alone."""
    import torch
    from vllm.lora.ops.torch_ops.lora_ops import bgmv_shrink

    out = torch.zeros(1, 1)
    bgmv_shrink(torch.ones(1, 2), torch.ones(1, 1, 2), out, torch.tensor([-1]), 1.0)
    assert out.item() != 0.0


def test_cpu_logits_still_take_sampled_rows() -> None:
    """Else ``_logits_slots`` of ``lora_fallback`` can go."""
    contains(f"{_PUNICA}.add_lora_logits", "self.sampler_indices")


@until("0.34", "the weight is an empty tensor")
def test_lora_device_is_still_of_the_weight() -> None:
    contains(
        "vllm.lora.layers.base_linear:_get_lora_device",
        "if hasattr(base_layer, 'weight'):\n        return base_layer.weight.device",
    )
    contains(
        "vllm.model_executor.kernels.linear.scaled_mm.cpu:CPUInt8ScaledMMLinearKernel",
        "setattr(layer, w_q_name, None)",
    )


@since("0.31")
def test_experts_with_lora_still_get_triton() -> None:
    in_order(
        f"{_EXPERTS}.oracle.unquantized:select_unquantized_moe_backend",
        "if moe_config.is_lora_enabled:",
        "UnquantizedMoeBackend.TRITON",
        "_get_priority_backends(moe_config)",
    )
    kernels = find(f"{_EXPERTS}.experts.cpu_moe:CPUUnquantizedExperts")
    assert not kernels.supports_lora()


@until("0.34", _NO_V1)
def test_cpu_runner_still_rewinds_by_offset() -> None:
    contains(_V1, ".set_offset(")


@until("0.34", _NO_V1)
def test_cpu_still_expands_into_a_copy() -> None:
    kernel = "vllm.utils.cpu_triton_utils:_expand_kernel_impl"
    contains(kernel, "_ensure_int64(output)")
    assert ".copy_(" not in source_of(find(kernel))


@since("0.32")
@until("0.34", "each row of logits has its own")
def test_v2_still_maps_logits_by_request() -> None:
    told = parameters("vllm.v1.worker.gpu.lora_utils:LoraState.make_lora_inputs")
    assert told == ["req_ids", "idx_mapping", "num_scheduled_tokens"]


@since("0.32")
def test_v2_drafters_of_gemma_still_take_the_embedding_with_its_adapters() -> None:
    """Others take it without."""
    speculators = "vllm.v1.worker.gpu.spec_decode."
    in_order(
        speculators + "eagle.utils:maybe_share_target_embed",
        "if isinstance(target_embed, BaseLayerWithLoRA):",
        "target_embed = target_embed.base_layer",
        "draft_inner.embed_tokens = target_embed",
    )
    share = speculators + "gemma4.speculator:Gemma4Speculator._share_embeddings"
    contains(share, "draft_model.model.embed_tokens = target_embed")
    assert "base_layer" not in source_of(find(share))


@since("0.32")
def test_cpu_scan_still_gives_the_last_states_alone() -> None:
    scan = "vllm.model_executor.layers.mamba.ops.cpu.mamba_ssm:_mamba_chunk_scan_combined_fwd_cpu"
    assert source_of(find(scan)).count("return_intermediate_states") == 1  # a parameter
    spec = "vllm.model_executor.layers.mamba.mamba_mixer2:MambaMixer2.get_kv_cache_spec"
    contains(spec, "num_prefill_checkpoint_blocks=1")
    assert "is_cpu" not in source_of(find(spec))


@since("0.32")
def test_cpu_still_turns_one_head_of_three_dimensions() -> None:
    import torch
    from vllm._custom_ops import rotary_embedding

    if not hasattr(torch.ops._C, "rotary_embedding"):
        pytest.skip("of this vLLM no build with the CPU's kernels is installed")
    positions, table = torch.arange(3), torch.randn(3, 32)
    heads = torch.randn(3, 2, 32)
    flat = heads.clone().flatten(1)
    rotary_embedding(positions, heads, None, 32, table, True)
    rotary_embedding(positions, flat, None, 32, table, True)
    assert not torch.allclose(heads.flatten(1), flat)


# ---- bugs that later releases do not have -------------------------------------------------------


@since("0.34")
def test_weights_that_onednn_took_have_a_device() -> None:
    kernel = "vllm.model_executor.kernels.linear.scaled_mm.cpu:CPUInt8ScaledMMLinearKernel"
    contains(kernel, "replace_parameter(layer, w_q_name, weight.new_empty(0))")
    assert "setattr(layer, w_q_name, None)" not in source_of(find(kernel))


@since("0.34")
def test_v2_maps_logits_by_their_rows() -> None:
    contains(
        "vllm.v1.worker.gpu.lora_utils:LoraState.make_lora_inputs", "lora_ids.repeat(num_logits)"
    )
