# SPDX-License-Identifier: Apache-2.0
"""Contracts of vllm-ascend; nothing to check where vLLM runs on another platform."""

from vllm_cold.npu import npu_platform
from vllm_cold.vllm.contracts.contract import contract
from vllm_cold.vllm.contracts.source import (
    attribute,
    contains,
    has_kind,
    has_parameters,
    in_order,
    require,
    schedulers,
    source_of,
)


@contract("vllm_ascend.platform.NPUPlatform.get_punica_wrapper", "it names the NPU's LoRA class")
def _check_punica_wrapper_of_npus() -> None:
    if not npu_platform.is_npu():
        return
    import vllm.config
    from vllm.platforms import current_platform

    owner = type(current_platform)
    has_kind(owner, "get_punica_wrapper", classmethod)
    attribute(vllm.config, "get_current_vllm_config_or_none")
    name = npu_platform.named()
    require(
        name == npu_platform.STOCK,
        f"NPUPlatform.get_punica_wrapper() is {name}, not {npu_platform.STOCK}.",
    )


@contract(
    "vllm_ascend.lora.punica_npu.PunicaWrapperNPU",
    "experts keep their adapters in compiled models, as every step is said to be no prefill",
)
def _check_punica_npu() -> None:
    if not npu_platform.is_npu():
        return
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
    from vllm_ascend.lora.punica_npu import PunicaWrapperNPU

    where = "PunicaWrapperNPU"
    require(LoRAMapping((), (), is_prefill=True).is_prefill, "LoRAMapping lost its is_prefill.")
    if "update_metadata" in vars(PunicaWrapperNPU):  # in later versions
        own = source_of(PunicaWrapperNPU.update_metadata)
        contains(own, f"{where}.update_metadata", "super().update_metadata(mapping")
    has_parameters(PunicaWrapperNPU, "update_metadata", "mapping")
    in_order(
        source_of(PunicaWrapperBase.update_metadata),
        "PunicaWrapperBase.update_metadata",
        "if mapping.is_prefill:",
        "self._update_prefill_metadata(",
        "else:\n        self.is_prefill = False",
    )
    for name, kernel in (
        ("_shrink_decode", "self.bgmv_shrink(x, w_t_all, y, self._get_token_lora_indices(x), "),
        ("_expand_decode", "self.bgmv_expand(x, w_t_all, y, self._get_token_lora_indices(x), "),
        (
            "_expand_slice_decode",
            "self.bgmv_expand_slice(x, w_t_all, y, self._get_token_lora_indices(x), ",
        ),
        ("_get_token_lora_indices", "torch.narrow(self._token_lora_indices, 0, 0, x.size(0))"),
        ("_apply_shrink", "self._shrink_prefill if self.is_prefill else self._shrink_decode"),
        (
            "_apply_expand",
            "self._expand_slice_prefill if self.is_prefill else self._expand_slice_decode",
        ),
        ("add_lora_embedding", "self._expand_prefill if self.is_prefill else self._expand_decode"),
    ):
        contains(source_of(attribute(PunicaWrapperNPU, name)), f"{where}.{name}", kernel)
    # Which operations it has, ours knows by where they are from.
    contains(
        source_of(PunicaWrapperNPU.__init__),
        f"{where}.__init__",
        "from vllm.lora.ops.torch_ops import bgmv_expand, bgmv_expand_slice, bgmv_shrink",
        "self.bgmv_shrink = bgmv_shrink",
    )


@contract(
    "vllm_ascend.lora.punica_npu.PunicaWrapperNPU",
    "COLD_LORA=ascendc computes what these two are called for",
)
def _check_punica_npu_layers() -> None:
    if not npu_platform.is_npu():
        return
    from vllm_ascend.lora.punica_npu import PunicaWrapperNPU

    layer = ("y", "x", "lora_a_stacked", "lora_b_stacked", "scale")
    has_parameters(PunicaWrapperNPU, "add_lora_linear", *layer, "output_slices", "buffer")
    has_parameters(PunicaWrapperNPU, "add_lora_logits", *layer, "buffer")
    contains(
        source_of(PunicaWrapperNPU.add_lora_logits),
        "PunicaWrapperNPU.add_lora_logits",
        "torch.narrow(self._sampler_indices, 0, 0, x.size(0))",
    )


@contract(
    "vllm_ascend.patch.platform.patch_balance_schedule.BalanceScheduler",
    "CoLD's scheduler extends it; the other contracts look at vLLM's class, behind it",
)
def _check_ascend_scheduler() -> None:
    if not npu_platform.is_npu():
        return
    known = {"schedule", "balance_gather", "reset_prefix_cache", "_abc_impl"}
    for kind in schedulers()[:-1]:
        new = {name for name in vars(kind) if not name.startswith("__")} - known
        require(not new, f"{kind.__qualname__} has {', '.join(sorted(new))} of its own.")
        if "schedule" in vars(kind):
            contains(
                source_of(kind.schedule),
                f"{kind.__qualname__}.schedule",
                "if not self._balance_enabled",
                "return super().schedule(",
            )


@contract(
    "vllm_ascend.lora.punica_npu.PunicaWrapperNPU",
    "bgmv_wrapper is there because compiled models keep the number of runs of adapters",
    note=True,
)
def _check_punica_npu_still_counts_runs() -> None:
    if not npu_platform.is_npu():
        return
    from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
    from vllm_ascend.lora.punica_npu import PunicaWrapperNPU

    require(
        "*self.prefill_metadata" in source_of(PunicaWrapperNPU._shrink_prefill)
        and "self._seq_lengths[:self.batch_size]" in source_of(PunicaWrapperBase),
        "PunicaWrapperNPU passes no number of runs any more: see whether bgmv_wrapper can go.",
    )


@contract(
    "vllm_ascend.sample.sampler.AscendSampler",
    "amateurs are told their tokens behind vLLM's Sampler.forward, which it leaves as it is",
    note=True,
)
def _check_ascend_sampler() -> None:
    if not npu_platform.is_npu():
        return
    from vllm.v1.sample.sampler import Sampler
    from vllm_ascend.sample.sampler import AscendSampler

    require(
        issubclass(AscendSampler, Sampler) and "forward" not in vars(AscendSampler),
        "AscendSampler has a forward of its own: see whether amateur_tokens still wraps it.",
    )
