# SPDX-License-Identifier: Apache-2.0
"""vllm-ascend's source against what the package expects of it."""

import pytest
from vllm_ascend.lora.punica_npu import PunicaWrapperNPU

from tests.contracts.source import contains, find, in_order, source_of
from vllm_cold import patching, places
from vllm_cold.npu import npu_platform

_PUNICA = "vllm_ascend.lora.punica_npu:PunicaWrapperNPU"
_BASE = "vllm.lora.punica_wrapper.punica_base:PunicaWrapperBase"
_BALANCE = "vllm_ascend.patch.platform.patch_balance_schedule:BalanceScheduler"
_ROWS = "x, w_t_all, y, self._get_token_lora_indices(x), "


def test_names_and_parameters() -> None:
    kernels = places.rows(places.PLATFORM, places.LORA)
    assert _PUNICA in {contract.where for touch in kernels for contract in touch.relies}
    assert patching.problems(kernels) is None and places.problem(*places.EVERY_ENGINE) is None
    assert hasattr(find("vllm.config"), "get_current_vllm_config_or_none")
    assert npu_platform.named() == npu_platform.STOCK


@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("_shrink_decode", f"self.bgmv_shrink({_ROWS}"),
        ("_expand_decode", f"self.bgmv_expand({_ROWS}"),
        ("_expand_slice_decode", f"self.bgmv_expand_slice({_ROWS}"),
        ("_get_token_lora_indices", "torch.narrow(self._token_lora_indices, 0, 0, x.size(0))"),
        ("_apply_shrink", "self._shrink_prefill if self.is_prefill else self._shrink_decode"),
        (
            "_apply_expand",
            "self._expand_slice_prefill if self.is_prefill else self._expand_slice_decode",
        ),
        ("add_lora_embedding", "self._expand_prefill if self.is_prefill else self._expand_decode"),
        ("add_lora_logits", "torch.narrow(self._sampler_indices, 0, 0, x.size(0))"),
        ("__init__", "from vllm.lora.ops.torch_ops import bgmv_expand, bgmv_expand_slice, bgmv_sh"),
        ("__init__", "self.bgmv_shrink = bgmv_shrink"),
    ],
)
def test_lora_of_steps_that_are_no_prefill(method: str, part: str) -> None:
    """Experts keep their adapters in compiled models, as every step is said to be none."""
    contains(f"{_PUNICA}.{method}", part)


def test_a_step_that_is_no_prefill_is_said_to_be_none() -> None:
    from vllm.lora.layers import LoRAMapping

    assert LoRAMapping((), (), is_prefill=True).is_prefill
    if "update_metadata" in vars(PunicaWrapperNPU):  # in later versions
        contains(f"{_PUNICA}.update_metadata", "super().update_metadata(mapping")
    in_order(
        f"{_BASE}.update_metadata",
        "if mapping.is_prefill:",
        "self._update_prefill_metadata(",
        "else:\n        self.is_prefill = False",
    )


def test_balance_scheduling_steps_aside() -> None:
    own = {name for name in vars(find(_BALANCE)) if not name.startswith("__")}
    assert own <= {"schedule", "balance_gather", "reset_prefix_cache", "_abc_impl"}
    contains(f"{_BALANCE}.schedule", "if not self._balance_enabled", "return super().schedule(")


def test_the_number_of_runs_is_still_kept_in_compiled_models() -> None:
    """Else ``lora_bgmv`` may go."""
    contains(f"{_PUNICA}._shrink_prefill", "*self.prefill_metadata")
    assert "self._seq_lengths[:self.batch_size]" in source_of(find(_BASE))


def test_its_sampler_is_vllms() -> None:
    """Amateurs are told their tokens behind ``Sampler.forward``."""
    from vllm.v1.sample.sampler import Sampler
    from vllm_ascend.sample.sampler import AscendSampler

    assert issubclass(AscendSampler, Sampler) and "forward" not in vars(AscendSampler)
