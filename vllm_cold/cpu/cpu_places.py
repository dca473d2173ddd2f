# SPDX-License-Identifier: Apache-2.0
"""What the kernels for CPUs wrap and rely on in vLLM, with contrastive decoding or without it. Data
alone.
"""

from vllm_cold.compat import places
from vllm_cold.compat.patching import Hook, Relies, Wraps, lazy

# fmt: off
# A module is loaded when one of its functions wraps something.
(
    cpu_platform, kernel_report, linear_layers, lora_fallback, lora_wrapper, moe_lora, workarounds,
) = lazy(
    "vllm_cold.cpu",
    "cpu_platform kernel_report linear_layers lora_fallback lora_wrapper moe_lora workarounds",
)

_GPU = "vllm.v1.worker.gpu."
_RUNNER_V2 = _GPU + "model_runner:GPUModelRunner."
_DRAFTER = "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer."
_LINEAR = "y x lora_a_stacked lora_b_stacked scale"
_EXPERTS = "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method:"
_VLLM = "https://github.com/vllm-project/vllm/"
_OPERATORS, _OPERATORS_033 = "vllm._cpu_ops", "vllm._custom_ops"

TABLE = (
    Hook(
        cpu_platform, places.CPU,
        "vllm-cold's class runs LoRA on CPU. vLLM's operations cannot be compiled, so it switches "
        "compilation off for LoRA; vllm-cold's can, and a compiled model is up to twice as fast. "
        "So the configuration is made as if there were no LoRA. Only engines with LoRA see a "
        "difference.",
        "with `cpu.lora_fallback`.",
        Wraps("vllm.platforms:current_platform.get_punica_wrapper",
              cpu_platform.wrap_get_punica_wrapper, kind=classmethod),
        Wraps("vllm.platforms:current_platform.check_and_update_config",
              cpu_platform.wrap_check_and_update_config, "vllm_config", classmethod),
        lost="LoRA on CPU is vLLM's", platform="cpu",
    ),
    Hook(
        cpu_platform, places.CPU_WORKERS,
        "Workers ask their platform for kernels of its own before they load a model, with either "
        "model runner. There the rows of workers are wrapped, and not in every process.",
        "with `cpu.linear_layers` and `cpu.moe_lora`.",
        Wraps("vllm.platforms:current_platform.register_triton_kernel_overrides",
              cpu_platform.wrap_register_overrides, kind=classmethod),
        since="0.31",
        lost="small-M GEMMs are not faster here, and LoRA on mixtures of experts does not run",
        platform="cpu",
    ),
    Hook(
        lora_fallback, places.CPU_LORA,
        "vLLM's operations index the stacked adapter weights with each row's slot number, and a "
        "base-model row's -1 wraps around to the last slot: in a batch with an adapter row, base "
        "rows silently get the adapter. vLLM 0.33 masks these rows; there these classes only "
        "avoid the copies of the weights for each row.",
        "when 0.32 is no longer supported and stock groups rows by adapter.",
        Relies("vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU",
               has="token_lora_indices sampler_indices update_metadata "
               "add_shrink(y x lora_a_stacked scale) "
               "add_expand(y x lora_b_stacked output_slices offset_start add_inputs) "
               "add_lora_embedding(y x lora_b_stacked add_inputs) "
               f"add_lora_linear({_LINEAR} output_slices) "
               f"add_lora_logits({_LINEAR}) "
               "_apply_shrink(y x w_t_all scale) "
               "_apply_expand(y x w_t_all y_offset y_slice_size add_inputs)"),
        link=_VLLM + "pull/48421", platform="cpu",
    ),
    Hook(
        lora_wrapper, places.CPU_LORA,
        "All linear layers would share one wrapper and pass it their weights at each call. Here "
        "each layer has an object that knows them: a compiled model looks up one tensor a layer "
        "instead of two a slice.",
        "with `cpu.lora_fallback`.",
        Wraps("vllm.lora.layers:BaseLayerWithLoRA.set_mapping", lora_wrapper.wrap_set_mapping,
              "punica_wrapper"),
        Relies("vllm.lora.layers", has="LogitsProcessorWithLoRA VocabParallelEmbeddingWithLoRA"),
        Relies("vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA", has="_apply_lora_to_output"),
        platform="cpu",
    ),
    Hook(
        linear_layers, places.CPU_MODEL,
        "vLLM computes all products with oneDNN. With up to 8 rows, as in decoding at small "
        "batches, that takes half as long again as reading the weights. The results here are the "
        "same, bit for bit; a layer's are vLLM's own where those are as fast.",
        "when oneDNN's small-M GEMM is as fast.",
        Wraps("vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm",
              linear_layers.wrap_dispatch_gemm, "layer remove_weight"),
        Relies(_OPERATORS, has="_supports_onednn", before=_OPERATORS_033),
        Relies("vllm.model_executor.layers.utils", has="check_cpu_sgl_kernel(n k dtype)"),
        Relies("vllm.platforms:current_platform", has="is_zen_cpu()"),
        Relies("vllm.config", has="get_current_vllm_config_or_none"),
        lost="small-M GEMMs are not faster here", platform="cpu",
    ),
    Hook(
        moe_lora, places.CPU_MODEL,
        "In engines with LoRA, vLLM gives a mixture of experts Triton's kernel, which cannot run "
        "on a CPU: no such engine starts. Here it is asked for the kernel that it takes without "
        "LoRA, and that kernel learns to take adapters.",
        "when vLLM's kernels for CPUs support LoRA; nothing is changed then.",
        Wraps(_EXPERTS + "select_unquantized_moe_backend", moe_lora.wrap_select_moe_backend,
              "moe_config"),
        Relies(_OPERATORS, has="cpu_prepack_moe_weight(weight isa)", before=_OPERATORS_033),
        Relies("vllm.model_executor.layers.fused_moe.experts.cpu_moe:CPUUnquantizedExperts",
               has="isa process_weights_after_loading(layer) supports_lora()"),
        Relies("vllm.model_executor.layers.fused_moe.experts.lora_experts_mixin",
               has="LoRAExpertsMixin"),
        since="0.31", lost="LoRA on mixtures of experts does not run", platform="cpu",
    ),
    Hook(
        kernel_report, places.CPU_MODEL,
        "When a worker has loaded its model, one line of the log says which kernels compute it, "
        "and why.",
        "with the kernels.",
        Wraps("vllm.v1.worker.worker_base:WorkerWrapperBase.initialize_from_config",
              kernel_report.wrap_initialize_from_config),
        Relies("vllm.config:ModelConfig", has="is_moe"),
        since="0.31", lost="the log does not say which kernels compute", platform="cpu",
    ),
    places.workaround(
        workarounds, places.CPU_WORKAROUNDS,
        "A linear LoRA layer takes the device of the base layer's weight. Where weights and "
        "inputs are int8, oneDNN's kernel leaves None in its place, so that no engine with LoRA "
        "starts on a CPU without AMX.",
        Wraps("vllm.lora.layers.base_linear:_get_lora_device", workarounds.wrap_get_lora_device,
              "base_layer", if_loaded=True),
        can_go="when 0.32 is no longer supported.",
    ),
    places.workaround(
        workarounds, places.CPU_WORKAROUNDS,
        "Drafters such as EAGLE and MTP compute with the target's embedding, which is a LoRA "
        "layer. It would take the adapters of the last step's rows, whose number differs: LoRA "
        "raises. Here drafts are made without adapters; right or wrong, they are verified.",
        Wraps(_DRAFTER + "propose", workarounds.wrap_drafter, if_loaded=True),
        # On a rank whose requests have ended, next to busy ones.
        Wraps(_DRAFTER + "dummy_run", workarounds.wrap_drafter, if_loaded=True),
        Wraps(_GPU + "spec_decode.target_dependent_ar.speculator:"
              "TargetDependentARSpeculator.propose", workarounds.wrap_drafter, if_loaded=True),
        can_go="when its test in `tests/unit/test_workarounds.py` says so.", since="0.32",
    ),
    places.workaround(
        workarounds, places.CPU_WORKAROUNDS,
        "V2 tells the LoRA layers one adapter for each request, but with speculative decoding a "
        "request has a row of logits for each draft and one more: LoRA of the output layer takes "
        "other requests' adapters. Here each request's adapter is repeated for each of its rows, "
        "as on V1.",
        Wraps(_RUNNER_V2 + "prepare_inputs", workarounds.wrap_prepare_inputs, if_loaded=True),
        Wraps(_GPU + "lora_utils:LoraState.make_lora_inputs", workarounds.wrap_make_lora_inputs,
              if_loaded=True),
    ),
)
# fmt: on
