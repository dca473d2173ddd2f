# SPDX-License-Identifier: Apache-2.0
"""vllm-ascend's sampler: amateurs are told their expert's token, whatever they draw themselves.

Streams prefill in different numbers of steps. Each step advances a row's generator, and
vllm-ascend takes less back than an NPU advances (12 and 4), so streams of a request draw
differently.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.logits_processor.interface import BatchUpdate
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler
from vllm_ascend.ascend_config import get_ascend_config
from vllm_ascend.sample.sampler import AscendSampler

from tests.contrast import Contrast
from vllm_cold.patching import original_of
from vllm_cold.vllm.worker.processor_v1 import ColdLogitsProcessorV1

VOCAB = 1000
# Rows of two groups, and a plain one between them.
ROWS = [("x", 0), None, ("x", 1), ("y", 0), ("y", 1)]
STEPS = [3, 1, 2, 1, 4]  # in which the generator was used before


def processor() -> ColdLogitsProcessorV1:
    config = SimpleNamespace(additional_config=None, model_config=SimpleNamespace(is_hybrid=False))
    made = ColdLogitsProcessorV1(config, torch.device("cpu"), False)
    params = [Contrast((-0.5,)).params(*row) if row else SamplingParams() for row in ROWS]
    added = [(row, each, None, []) for row, each in enumerate(params)]
    made.update_state(BatchUpdate(len(ROWS), [], added, []))
    return made


def metadata(processor: Any) -> SamplingMetadata:
    generators = {}
    for row, steps in enumerate(STEPS):
        generators[row] = torch.Generator().manual_seed(7)
        for _ in range(steps):
            torch.empty(VOCAB).exponential_(generator=generators[row])
    none = torch.zeros(len(ROWS))
    return SamplingMetadata(
        temperature=torch.ones(len(ROWS)),
        all_greedy=False,
        all_random=True,
        top_p=None,
        top_k=None,
        generators=generators,
        max_num_logprobs=None,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=none,
        presence_penalties=none,
        repetition_penalties=none,
        output_token_ids=[[] for _ in ROWS],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors([processor]),
    )


@pytest.mark.parametrize("ahead", [False, True], ids=["", "async exponential"])
def test_amateurs_get_their_experts_token(
    engine: Any, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = get_ascend_config()
    monkeypatch.setattr(config, "enable_async_exponential", ahead)
    empty = torch.empty

    def on_cpu(*args: Any, **kwargs: Any) -> torch.Tensor:
        return empty(*args, **{k: v for k, v in kwargs.items() if v != "npu"})

    monkeypatch.setattr(torch, "empty", on_cpu)

    ours = processor()  # which wraps vLLM's sampler

    def sample(forward: Any) -> list[int]:
        told = metadata(ours)
        sampler = AscendSampler()
        if ahead:  # in front of the model
            sampler.do_async_exponential(len(ROWS), VOCAB, told.generators)
        logits = torch.zeros(len(ROWS), VOCAB)
        return forward(sampler, logits, told).sampled_token_ids.flatten().tolist()

    expert_x, plain, amateur_x, expert_y, amateur_y = sample(AscendSampler.forward)
    assert (amateur_x, amateur_y) == (expert_x, expert_y)
    alone = sample(original_of(Sampler.forward))
    # They drew other tokens, and nobody else's was changed.
    assert alone[2] != expert_x and alone[4] != expert_y
    assert [alone[0], alone[1], alone[3]] == [expert_x, plain, expert_y]
