# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding on the V2 runner: how it is told of rows, where chunks end, who is told."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams

from tests import engine_config
from tests.contrast import Contrast
from vllm_cold.compat import versions
from vllm_cold.compat.patching import bind, original_of
from vllm_cold.worker import drafts_v2
from vllm_cold.worker.group_rows import GroupRows

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(versions.is_before("0.32"), reason="vllm-cold speculates since vLLM 0.32"),
]


def vllms_chunks(cu_num_logits: np.ndarray, most: int) -> list[tuple[int, int]]:
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler

    chunks = rejection_sampler._iter_request_chunks
    return list(original_of(chunks)(cu_num_logits, most))


def groups_of(members: Sequence[Sequence[int]]) -> GroupRows:
    """By position alone."""
    nothing: Any = torch.empty(0, dtype=torch.int64)
    return GroupRows((), tuple(members), nothing, nothing, nothing)


def chunks(
    counts: Sequence[int], most: int, members: Sequence[Sequence[int]]
) -> list[tuple[int, int]]:
    """Of requests with so many rows each."""
    ours = bind(drafts_v2.wrap_iter_request_chunks, lambda *args: iter(vllms_chunks(*args)))
    token = drafts_v2._verified.set(groups_of(members))
    try:
        return list(ours(np.cumsum([0, *counts], dtype=np.int32), most))
    finally:
        drafts_v2._verified.reset(token)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], int, list[list[int]]]:
    """Rows of each request, the most rows of a chunk, and the positions of groups."""
    size = draw(st.integers(1, 40))
    counts = draw(st.lists(st.integers(1, 6), min_size=size, max_size=size))
    # Groups next to each other, as the scheduler has them, or anywhere.
    free = draw(st.permutations(range(size)) | st.just(list(range(size))))
    members, free = [], list(free)
    while len(free) >= 2 and draw(st.integers(0, 3)):
        num = draw(st.integers(2, min(4, len(free))))
        members.append([free.pop() for _ in range(num)])
        for _ in range(draw(st.integers(0, min(3, len(free))))):
            free.pop()
    return counts, draw(st.integers(1, 60)), members


@settings(max_examples=100, deadline=None)
@given(batches())
def test_no_group_is_split(batch: tuple[list[int], int, list[list[int]]]) -> None:
    """Every request is verified once, in the order of the batch."""
    counts, most, members = batch
    found = chunks(counts, most, members)
    assert [start for start, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == len(counts) and all(start < end for start, end in found)
    for group in members:
        assert len({sum(end <= position for _, end in found) for position in group}) == 1
    # What is larger than a chunk may be is what cannot be smaller.
    inside = {p for group in members for p in range(min(group) + 1, max(group) + 1)}
    for start, end in found:
        apart = [position for position in range(start + 1, end) if position not in inside]
        assert sum(counts[start:end]) <= most or not apart
        # And it is filled: the next thing that may not be split does not fit.
        following = next(p for p in range(end + 1, len(counts) + 1) if p not in inside) if (
            end < len(counts)
        ) else None  # fmt: skip
        assert following is None or sum(counts[start:following]) > most


# ---- around the rejection sampler ----------------------------------------------------------------


ONE = Contrast((-0.5,))


@pytest.fixture
def processor() -> Any:
    """Slots: 5 and 2 are x's, 1 and 7 are y's, 3 is a regular request's."""
    from vllm_cold.worker.processor_v2 import ColdLogitsProcessorV2

    states: Any = SimpleNamespace(device=torch.device("cpu"), max_num_reqs=8, prompt_len=None)
    made = ColdLogitsProcessorV2(engine_config.config(), states)
    for slot, name, index in ((5, "x", 0), (2, "x", 1), (1, "y", 0), (7, "y", 1)):
        made.add_request(slot, ONE.params(name, index))
    made.add_request(3, SamplingParams())
    return made


ORDER = np.array([7, 5, 3, 1, 2])
EXPERT_OF = [3, 1, 2, 3, 1]  # by position


def batch_of(counts: Sequence[int]) -> Any:
    return SimpleNamespace(
        idx_mapping_np=ORDER,
        idx_mapping=torch.from_numpy(ORDER),
        cu_num_logits_np=np.cumsum([0, *counts], dtype=np.int32),
    )


def output_of(num: int) -> Any:
    return SimpleNamespace(
        sampled_token_ids=torch.arange(num * 3).view(num, 3),
        num_sampled=torch.arange(num),
        num_rejected=10 * torch.arange(num),
    )


def test_it_knows_the_rows_before_and_tells_amateurs_after(processor: Any) -> None:
    output = output_of(5)
    seen: list[Any] = []

    def stock(self: Any, logits: Any, input_batch: Any, draft_logits: Any, *, invalid: Any) -> Any:
        seen.append((processor._num_rows[ORDER].tolist(), drafts_v2._verified.get()))
        assert (logits, draft_logits, invalid) == ("logits", "draft logits", "invalid")
        return output

    sampler = SimpleNamespace(sampler=SimpleNamespace(logits_processors=[object(), processor]))
    call = bind(drafts_v2.wrap_rejection_call, stock)
    batch = batch_of([2, 3, 1, 2, 3])
    assert call(sampler, "logits", batch, "draft logits", invalid="invalid") is output
    ((rows, groups),) = seen
    assert rows == [2, 3, 1, 2, 3]
    assert sorted(map(tuple, groups.members)) == [(1, 4), (3, 0)]
    assert drafts_v2._verified.get() is None
    assert output.num_sampled.tolist() == EXPERT_OF
    assert output.num_rejected.tolist() == [10 * position for position in EXPERT_OF]
    assert output.sampled_token_ids[:, 0].tolist() == [3 * position for position in EXPERT_OF]


# ---- around the drafter --------------------------------------------------------------------------


def runner_of(processors: Sequence[Any], **fields: Any) -> Any:
    return SimpleNamespace(
        **{
            "execute_model_state": SimpleNamespace(input_batch=batch_of([1] * 5)),
            "speculator": object(),
            "sampler": SimpleNamespace(logits_processors=list(processors)),
            "req_states": SimpleNamespace(draft_tokens=torch.arange(16).view(8, 2)),
            **fields,
        }
    )


def sample(runner: Any) -> list[int]:
    """The first draft of each slot after a step that drafts twice the slot's number."""

    def stock(self: Any, *args: Any) -> Any:
        self.execute_model_state = None  # as vLLM does
        return "output"

    assert bind(drafts_v2.wrap_sample_tokens, stock)(runner, None) == "output"
    drafts: list[int] = runner.req_states.draft_tokens[:, 0].tolist()
    return drafts


def test_amateurs_are_told_the_next_drafts(processor: Any) -> None:
    told = sample(runner_of([object(), processor]))
    assert told == [0, 2, 10, 6, 8, 10, 12, 2]


@pytest.mark.parametrize(
    "fields",
    [
        {"execute_model_state": None},
        {"speculator": None},
        {"sampler": None},
        {"sampler": SimpleNamespace(logits_processors=[object()])},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_nobody_to_be_told(processor: Any, fields: dict[str, Any]) -> None:
    """The last step failed, no drafter, no sampler on this rank, no group."""
    assert sample(runner_of([processor], **fields)) == list(range(0, 16, 2))


def test_half_a_group_keeps_its_drafts(processor: Any) -> None:
    runner = runner_of([processor])
    batch = runner.execute_model_state.input_batch
    batch.idx_mapping_np = ORDER[1:4]
    batch.idx_mapping = torch.from_numpy(ORDER[1:4])
    assert sample(runner) == list(range(0, 16, 2))
