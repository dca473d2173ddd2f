# SPDX-License-Identifier: Apache-2.0
"""Workarounds for bugs of vLLM on CPU in engines with LoRA. ``tests/contracts/test_cpu.py`` says
which bugs are still there; ``tests/engine/test_workarounds.py`` has some of this with engines.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vllm_cold.compat import cpu_sampling
from vllm_cold.compat.patching import bind, original_of
from vllm_cold.cpu import workarounds
from vllm_cold.worker import prompt_embeds

pytestmark = pytest.mark.unit

ENDS = torch.tensor([2, 2, 5, 6], dtype=torch.int32)  # 2, 0, 3 and 1 rows


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


def test_rows_without_a_token_keep_their_place_among_those_that_have_one() -> None:
    class Model(torch.nn.Module):
        def embed_input_ids(self, input_ids: Tensor) -> Tensor:
            seen.append(input_ids.tolist())
            # As LoRA of an embedding: by token, and by the row's adapter.
            return torch.stack([input_ids, torch.arange(len(input_ids)) * 10], dim=1)

    def original(self: Any, scheduler_output: Any, more: int) -> Tensor | None:
        is_token = self.is_token_ids.np[: scheduler_output.total_num_scheduled_tokens]
        ids = torch.arange(100, 100 + len(is_token))[torch.from_numpy(is_token)]
        return self.model.embed_input_ids(input_ids=ids) if len(ids) else None

    seen: list[list[int]] = []
    runner = SimpleNamespace(
        enable_prompt_embeds=True, lora_config=object(), supports_mm_inputs=False, model=Model()
    )
    preprocess = bind(prompt_embeds.wrap_runner_preprocess, original)
    output = SimpleNamespace(total_num_scheduled_tokens=5)

    def found(*is_token: bool) -> Any:
        seen.clear()
        runner.is_token_ids = SimpleNamespace(np=np.array([*is_token, True]))
        rows = preprocess(runner, output, 3)
        assert "embed_input_ids" not in vars(runner.model)
        return None if rows is None else rows.tolist()

    assert found(False, True, True, False, True) == [[101, 10], [102, 20], [104, 40]]
    assert seen == [[0, 101, 102, 0, 104]]
    assert found(*[True] * 5) == [[100 + i, 10 * i] for i in range(5)]
    assert found(*[False] * 5) is None and not seen
    # Left alone without adapters, or where the model reads images and vLLM embeds all rows.
    for name, value in (("lora_config", None), ("supports_mm_inputs", True)):
        before = getattr(runner, name)
        setattr(runner, name, value)
        assert found(False, False, False, True, False) == [[103, 0]]
        setattr(runner, name, before)


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
