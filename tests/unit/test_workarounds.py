# SPDX-License-Identifier: Apache-2.0
"""Workarounds for bugs of vLLM on CPU in engines with LoRA. ``tests/contracts/test_cpu.py`` says
which bugs are still there; ``tests/engine/test_workarounds.py`` has some of this with engines.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.contracts.source import until
from vllm_cold.compat.patching import bind, original_of
from vllm_cold.cpu import workarounds
from vllm_cold.worker.v1 import cpu_sampling

pytestmark = pytest.mark.unit

ENDS = torch.tensor([2, 2, 5, 6], dtype=torch.int32)  # 2, 0, 3 and 1 rows


@until("0.34", "there is no V1 model runner")
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64], ids=str)
def test_each_row_gets_its_requests_value(dtype: torch.dtype) -> None:
    """Temperature, top-p and top-k."""
    from vllm.v1.sample import rejection_sampler

    expand = bind(
        cpu_sampling.wrap_expand_batch_to_tokens,
        original_of(rejection_sampler.expand_batch_to_tokens),
    )
    value = torch.tensor([5.0, 0.0, 0.7, 500.0]).to(dtype)
    before = value.clone()
    expected = value[[0, 0, 2, 2, 2, 3]]
    assert torch.equal(expand(value, ENDS, 6), expected)
    replaced = expand(value, ENDS, 6, replace_from=0, replace_to=1)
    assert torch.equal(replaced, torch.where(expected == 0, 1, expected).to(dtype))
    assert replaced.dtype == dtype
    assert torch.equal(value, before)
    assert expand(value, torch.zeros_like(ENDS), 0).shape == (0,)


def test_lora_finds_its_device_without_a_weight() -> None:
    from vllm.lora.layers import base_linear

    original = original_of(base_linear._get_lora_device)
    device = bind(workarounds.wrap_get_lora_device, original)
    taken = torch.nn.Linear(2, 2)
    taken.weight = None  # type: ignore[assignment]
    assert device(taken) == torch.device("cpu")
    with pytest.raises(AttributeError, match="no attribute 'device'"):
        original(taken)
    # Other layers have weights, or packed ones under another name.
    assert device(torch.nn.Linear(2, 2, device="meta")) == torch.device("meta")
    packed = torch.nn.Module()
    packed.qweight = torch.nn.Parameter(torch.ones(1, device="meta"))
    assert device(packed) == torch.device("meta")


@until("0.34", "each row of logits has its own")
def test_v2_logits_follow_their_requests() -> None:
    from vllm.lora.request import LoRARequest
    from vllm.v1.worker.gpu.lora_utils import LoraState

    state = LoraState(4)
    state.add_request("a", 3, LoRARequest("one", 1, "/one"))
    state.add_request("b", 0, None)
    state.add_request("c", 2, LoRARequest("two", 2, "/two"))
    step = ["a", "b", "c"], np.array([3, 0, 2]), np.array([4, 1, 2])
    make = bind(workarounds.wrap_make_lora_inputs, original_of(type(state).make_lora_inputs))
    batch = SimpleNamespace(cu_num_logits_np=np.array([0, 3, 4, 6]))
    prepare = bind(workarounds.wrap_prepare_inputs, lambda self, scheduled: batch)

    runner = SimpleNamespace(lora_config=object(), lora_state=state)
    assert prepare(runner, None) is batch
    logits, tokens, requests = make(state, *step)
    assert logits == (1, 1, 1, 0, 2, 2)
    assert tokens == (1, 1, 1, 1, 0, 2, 2)
    assert {request.lora_int_id for request in requests} == {1, 2}
    # The rows are those of one step.
    assert make(state, *step)[0] == (1, 0, 2)

    without = SimpleNamespace(lora_config=None)
    assert prepare(without, None) is batch
