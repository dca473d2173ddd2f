# SPDX-License-Identifier: Apache-2.0
"""What LoRA on Ascend NPUs wraps and relies on in vLLM and vllm-ascend. Data alone."""

from vllm_cold.compat import places
from vllm_cold.compat.patching import Hook, Relies, Wraps, lazy

# fmt: off
# A module is loaded when one of its functions wraps something.
lora_bgmv, npu_platform = lazy("vllm_cold.npu", "lora_bgmv npu_platform")


TABLE = (
    Hook(
        npu_platform, places.NPU,
        "In engines that vllm-cold serves `npu.lora_bgmv` runs LoRA on Ascend NPUs.",
        "with `npu.lora_bgmv`.",
        Wraps("vllm.platforms:current_platform.get_punica_wrapper",
              npu_platform.wrap_npu_punica_wrapper, kind=classmethod),
        lost="LoRA on NPUs is vllm-ascend's", platform="npu",
    ),
    Hook(
        lora_bgmv, places.NPU_LORA,
        "vLLM's V1 runner says `prefill` in every step, so that vllm-ascend uses its SGMV "
        "kernels. These are told how many runs of equal adapters the batch's rows form, as a "
        "Python number, which a compiled model keeps from its tracing: the rows after the first "
        "runs get no adapter. The BGMV kernels read each row's own adapter from a tensor.",
        "when vllm-ascend passes no Python number to its kernels.",
        Relies("vllm_ascend.lora.punica_npu:PunicaWrapperNPU",
               has="_shrink_decode _expand_decode _expand_slice_decode _get_token_lora_indices "
               "update_metadata(mapping)"),
        link="https://github.com/vllm-project/vllm-ascend/pull/16457", platform="npu",
    ),
)
# fmt: on
