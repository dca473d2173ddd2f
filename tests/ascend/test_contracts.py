# SPDX-License-Identifier: Apache-2.0
"""vllm-ascend's source against what the package expects of it."""

from tests.contracts.source import find
from vllm_cold.compat import patching, places
from vllm_cold.npu import npu_platform

_PUNICA = "vllm_ascend.lora.punica_npu:PunicaWrapperNPU"


def test_names_and_parameters() -> None:
    kernels = places.rows(places.NPU, places.NPU_LORA)
    assert _PUNICA in {place.where for hook in kernels for place in hook.places}
    assert patching.problems(kernels) is None and places.problem(*places.EVERY_ENGINE) is None
    assert hasattr(find("vllm.config"), "get_current_vllm_config_or_none")
    assert npu_platform.named() == npu_platform.STOCK


def test_its_sampler_is_vllms() -> None:
    """Amateurs get their tokens after ``Sampler.forward``."""
    from vllm.v1.sample.sampler import Sampler
    from vllm_ascend.sample.sampler import AscendSampler

    assert issubclass(AscendSampler, Sampler) and "forward" not in vars(AscendSampler)
