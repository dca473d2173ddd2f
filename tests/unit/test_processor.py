# SPDX-License-Identifier: Apache-2.0
"""The V2 processor on CPU tensors: V2 itself runs on GPUs only, its interface imports anywhere."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.sample.logits_processor.interface import (
    LogitsContext,
    LogitsProcRequestState,
)
from vllm.v1.worker.gpu.sample.logits_processor.loader import (
    _load_v2_logitsprocs_by_fqcns,
    build_custom_logits_processors_params_validator,
)

from tests import engine_config
from tests.contrast import Contrast, assert_scored, of_size
from vllm_cold.compat.runner import Runner
from vllm_cold.errors import ColdError
from vllm_cold.rules.registry import BUILT_IN
from vllm_cold.wire import worker_output
from vllm_cold.wire.step_stats import OTHER_DRAFTS
from vllm_cold.worker import group_rows as rows_module
from vllm_cold.worker.processor import ColdLogitsProcessor

pytestmark = pytest.mark.unit

VOCAB = 37
SLOTS = 16
REGULAR = SamplingParams()


ONE = of_size(1)


def params(group: str, index: int, contrast: Contrast = ONE) -> SamplingParams:
    return contrast.params(group, index)


def make(
    device: str = "cpu",
    prompt_len: Sequence[int] = (1,) * SLOTS,
    prefill_len: Sequence[int] | None = None,
) -> ColdLogitsProcessor:
    buffers: Any = None  # the processor reads but two of them
    prompts, prefills = (
        SimpleNamespace(gpu=torch.tensor(lengths, dtype=torch.int32, device=device))
        for lengths in (prompt_len, prefill_len or prompt_len)
    )
    state = LogitsProcRequestState(
        torch.device(device), SLOTS, VOCAB, buffers, prompts, prefills, buffers
    )
    return ColdLogitsProcessor(engine_config.config(), state)


def context(
    slots: Sequence[int], counts: Sequence[int] | None = None, device: str = "cpu"
) -> LogitsContext:
    """The batch as V2 describes it; ``counts`` is the number of rows of each request."""
    counts = counts or [1] * len(slots)
    expanded = [slot for slot, n in zip(slots, counts, strict=True) for _ in range(n)]
    local = [j for n in counts for j in range(n)]
    unused = torch.zeros(len(expanded), dtype=torch.int64, device=device)
    return LogitsContext(
        expanded_idx_mapping=torch.tensor(expanded, device=device),
        idx_mapping=torch.tensor(slots, device=device),
        idx_mapping_np=np.array(slots, dtype=np.intp),
        expanded_local_pos=torch.tensor(local, dtype=torch.int32, device=device),
        input_ids=unused,
        pos=unused,
        seq_lens_upper_bound_np=np.ones(len(slots), dtype=np.int32),
    )


def draw(num_rows: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def test_the_first_output_tells_what_computes() -> None:
    vars(worker_output._pending).clear()
    make()
    assert vars(worker_output._pending).pop("tells_kernels")


def test_loader_accepts_it() -> None:
    assert _load_v2_logitsprocs_by_fqcns([Runner.V2.processor]) == [ColdLogitsProcessor]
    assert build_custom_logits_processors_params_validator([Runner.V2.processor])(REGULAR) is None


def test_only_streams_are_claimed() -> None:
    processor = make()
    assert processor.add_request(0, params("x", 0)) is True
    assert processor.add_request(1, params("x", 1)) is False
    assert processor.add_request(2, REGULAR) is False
    assert processor.add_request(3, SamplingParams(extra_args={"cold": 0})) is False


@pytest.mark.parametrize("slots", [[0, 1], [2, 0], [3]])
def test_without_a_complete_group_logits_are_not_looked_at(slots: list[int]) -> None:
    """But for their number: everything is decided on the host."""
    processor = make()
    logits: Any = range(len(slots))
    assert processor.apply(logits, context(slots)) is logits
    processor.add_request(0, params("x", 0))
    processor.add_request(1, REGULAR)
    processor.add_request(2, params("y", 1))
    assert processor.apply(logits, context(slots)) is logits


def test_the_same_batch_is_matched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    match = Mock(wraps=rows_module.GroupRows.match)
    monkeypatch.setattr(rows_module.GroupRows, "match", match)
    processor = make()
    for index in range(2):
        processor.add_request(index, params("x", index))
    order = np.array([0, 1], dtype=np.intp)
    batch = context([0, 1])
    object.__setattr__(batch, "idx_mapping_np", order)
    before = draw(2)
    for _ in range(3):
        assert_scored(before, processor.apply(before.clone(), batch), [(0, 1)])
    assert match.call_count == 1
    # Not fooled by an array that is filled anew in place.
    order[:] = [1, 0]
    assert_scored(before, processor.apply(before.clone(), batch), [(1, 0)])
    assert match.call_count == 2


def expect(processor: ColdLogitsProcessor, slots: Sequence[int], counts: Sequence[int]) -> None:
    """What the rejection sampler tells it of a batch."""
    processor.expect_rows(np.array(slots, dtype=np.intp), np.array(counts))


# By name, what a group asks for and its slots. Slot 9 is a regular request's.
MIXED = {
    "x": (Contrast((-0.5, 1.5, -0.75), alpha=0.01), (2, 0, 7, 5)),
    "y": (Contrast((-3.0,), alpha=0.9), (4, 8)),
    "z": (Contrast((None, 2.0), 0.0, 9, rule="adaptive", parameters={"beta_max": 40}), (1, 3, 6)),
}


def mixed(device: str = "cpu") -> ColdLogitsProcessor:
    processor = make(device)
    for name, (contrast, slots) in MIXED.items():
        for index, slot in enumerate(slots):
            processor.add_request(slot, params(name, index, contrast))
    processor.add_request(9, REGULAR)
    return processor


def test_other_drafts_are_reported_where_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request's first row reads the last token of its text, which is its own."""
    carried: list[Any] = []
    monkeypatch.setattr(worker_output, "hand_over", carried.append)
    processor = mixed()
    order, counts = [1, 4, 3, 8, 6], [3, 2, 3, 2, 3]
    expect(processor, order, counts)
    for tokens, of_y, of_z in (
        ([9, 5, 6, 3, 7, 8, 5, 6, 4, 7, 1, 5, 6], [0, 0], [0, 0, 0]),
        ([9, 5, 6, 3, 7, 8, 5, 6, 4, 7, 1, 5, 2], [0, 0], [0, 0, OTHER_DRAFTS]),
        ([9, 5, 6, 3, 7, 8, 2, 6, 4, 2, 1, 5, 6], [0, OTHER_DRAFTS], [0, OTHER_DRAFTS, 0]),
    ):
        batch = context(order, counts)
        batch.input_ids.copy_(torch.tensor(tokens))
        processor.apply(draw(13), batch)
        found = [(name, figures.nonfinite) for name, figures in carried.pop().figures()]
        assert [bad for name, bad in found if name == "y"] == of_y
        assert [bad for name, bad in found if name == "z"] == of_z


def test_what_is_expected_is_of_the_last_step() -> None:
    """The same requests verify other numbers of drafts in each."""
    processor = mixed()
    order = [4, 9, 8]
    for counts, groups in (
        ([2, 1, 2], [(0, 3), (1, 4)]),
        ([1, 3, 1], [(0, 4)]),
        ([3, 1, 3], [(0, 4), (1, 5), (2, 6)]),
        ([3, 1, 2], []),
        ([1, 1, 1], [(0, 2)]),  # nobody is told: a batch without drafts
    ):
        if sum(counts) > 3:
            expect(processor, order, counts)
        before = draw(sum(counts))
        logits = processor.apply(before.clone(), context(order, counts))
        assert_scored(before, logits, groups, MIXED["y"][0])


def test_a_part_of_a_batch_is_told_apart_from_the_whole() -> None:
    """vLLM verifies large batches in chunks of requests, and tells its samplers of each."""
    processor = mixed()
    order, counts = [8, 4, 9, 3, 1, 6], [3, 3, 2, 1, 1, 1]
    expect(processor, order, counts)
    before = draw(11)
    for part, rows, groups, contrast in (
        (slice(0, 2), slice(0, 6), [(3, 0), (4, 1), (5, 2)], MIXED["y"][0]),
        (slice(2, 3), slice(6, 8), [], None),
        (slice(3, 6), slice(8, 11), [(1, 0, 2)], MIXED["z"][0]),
    ):
        batch = context(order[part], counts[part])
        assert_scored(before[rows], processor.apply(before[rows].clone(), batch), groups, contrast)
    found = processor.groups_of(np.array(order))
    assert found is not None and sorted(map(tuple, found.members)) == [(1, 0), (4, 3, 5)]


def test_rows_after_those_of_the_requests_are_nobodys() -> None:
    """vLLM pads batches; it marks such rows with slot -1, which would wrap to the last slot."""
    processor = make()
    processor.add_request(SLOTS - 1, params("x", 0))
    processor.add_request(0, params("x", 1))
    processor.add_request(1, params("y", 0, of_size(2)))
    processor.add_request(2, params("y", 1, of_size(2)))
    processor.add_request(3, params("y", 2, of_size(2)))
    for order, counts, groups in (
        ([SLOTS - 1, 0], [2, 2], [(0, 2), (1, 3)]),
        ([SLOTS - 1, 0, 3, 1, 2], [2] * 5, [(0, 2), (1, 3), (6, 8, 4), (7, 9, 5)]),
        ([0, SLOTS - 1], [1, 1], [(1, 0)]),
    ):
        batch = context(order, [*counts[:-1], counts[-1] + 3])
        batch.expanded_idx_mapping[-3:] = -1
        batch.expanded_local_pos[-3:] = 0
        before = draw(sum(counts) + 3)
        expect(processor, order, counts)
        assert_scored(before, processor.apply(before.clone(), batch), groups)


def test_rows_that_nobody_explains_are_left_alone() -> None:
    """Fewer than are expected: the scheduler ends requests that were not scored."""
    processor = make()
    for index in range(2):
        processor.add_request(index, params("x", index))
    before = draw(3)
    expect(processor, [0, 1], [2, 2])
    assert_scored(before, processor.apply(before.clone(), context([0, 1], [2, 1])), [])


def test_amateurs_are_told() -> None:
    """By slot; also in a batch whose logits nobody asked it to look at."""
    processor = mixed()
    sampled = torch.arange(10).unsqueeze(1)
    slots = [8, 3, 9, 7, 2, 4, 1, 0, 6, 5]
    processor.tell_amateurs(sampled, np.array(slots))
    y, z, x = slots.index(4), slots.index(1), slots.index(2)
    assert sampled.flatten().tolist() == [y, z, 2, x, x, y, z, x, z, x]
    # Also after a step with drafts, of which x's streams verify different numbers.
    expect(processor, slots, [3] * 9 + [1])
    processor.apply(draw(28), context(slots, [3] * 9 + [1]))
    processor.tell_amateurs(counts := torch.arange(10), np.array(slots))
    assert counts.tolist() == sampled.flatten().tolist()
    # Without one of x, and without y's expert.
    processor.tell_amateurs(some := torch.arange(8).unsqueeze(1), np.array(slots[:5] + slots[6:9]))
    assert some.flatten().tolist() == [0, 5, 2, 3, 4, 5, 6, 5]


@pytest.mark.parametrize(
    "counts", [[1] * 10, [3, 1, 3, 2, 4, 3, 2, 3, 4, 5]], ids=["one each", "drafts"]
)
def test_no_sync(counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors have shapes only: whatever needs their values raises."""
    # Statistics are copied to the host after an event, which needs a device.
    monkeypatch.setattr(rows_module, "StepStats", lambda *found: None)
    for rule in (None, *BUILT_IN):
        processor = mixed("meta")
        if rule is not None:
            contrast = Contrast((None, None), rule=rule, slot=3, explain=1)
            for index, slot in enumerate(MIXED["z"][1]):
                processor.add_request(slot, params("z", index, contrast))
        expect(processor, range(10), counts)
        logits = torch.empty(sum(counts), VOCAB, device="meta")
        assert processor.apply(logits, context(range(10), counts, "meta")) is logits


@pytest.mark.parametrize("drafts", [False, True])
def test_a_rule_is_told_how_many_tokens_there_are(drafts: bool) -> None:
    """By each row's position after its prompt."""
    grows = Contrast((None,), 0.0, rule="m3id", parameters={"gamma": 0.2, "threshold": 1.0})
    lengths = [4 * slot + 3 for slot in range(SLOTS)]
    processor = make(prompt_len=lengths)
    for name, slots in (("x", (3, 5)), ("y", (9, 2))):
        for index, slot in enumerate(slots):
            processor.add_request(slot, params(name, index, grows))
    order, known = [2, 3, 8, 9, 5], {3: 4, 5: 4, 9: 0, 2: 0, 8: 1}
    counts = [3, 2, 1, 3, 2] if drafts else [1] * 5
    batch = context(order, counts)
    # The last token of what is read: at first the prompt's own.
    position = [
        lengths[slot] - 1 + known[slot] + nth
        for slot, num in zip(order, counts, strict=True)
        for nth in range(num)
    ]
    batch.pos.copy_(torch.tensor(position))
    expect(processor, order, counts)
    before = draw(sum(counts))
    logits = processor.apply(before.clone(), batch)
    first = {slot: sum(counts[:i]) for i, slot in enumerate(order)}
    groups, steps = [], []
    for expert, amateur in ((3, 5), (9, 2)):
        for nth in range(counts[order.index(expert)]):
            groups.append((first[expert] + nth, first[amateur] + nth))
            steps.append(known[expert] + nth)
    assert_scored(before, logits, groups, grows, steps)


def test_a_rule_s_state_outlives_a_second_prefill() -> None:
    """A request that was preempted has rows amid its own output, one of them held back in front of
    its last token: they are no steps of the past.
    """
    trusts = Contrast((None,), 0.0, rule="grd", slot=0)
    conflict = torch.full((2, VOCAB), -5.0)
    conflict[0, 3], conflict[1, 5] = -4.0, 9.0  # the amateur is sure, and the expert is not
    other = conflict.flip(0)  # here the expert would be
    lengths = [4] * SLOTS

    def steps(*rows: tuple[torch.Tensor, int], prefill: int = 4) -> torch.Tensor:
        processor._lengths.prefill_len.gpu.fill_(prefill)
        for logits, position in rows:
            batch = context([3, 5])
            batch.pos.fill_(position)
            found = processor.apply(logits.clone(), batch)
        return found[0]

    processor = make(prompt_len=lengths, prefill_len=lengths)
    for index, slot in enumerate((3, 5)):
        processor.add_request(slot, params("x", index, trusts))
    agree = conflict[1:].expand(2, -1)
    steps((agree, 3), (agree, 4), (agree, 5))
    # A prefill of 4 + 3 tokens: in front of its last one the rows say something else.
    steps((other, 5), prefill=7)
    assert steps((conflict, 6), prefill=7).argmax() == 5, "the amateur is trusted"


def test_slots_are_recycled() -> None:
    processor = make()
    for index in range(2):
        processor.add_request(index, params("x", index))
    before = draw(3)
    assert_scored(before[:2], processor.apply(before[:2].clone(), context([0, 1])), [(0, 1)])
    # The group has ended; its slots go to a regular request and to another group's amateur.
    processor.add_request(0, REGULAR)
    assert_scored(before[:2], processor.apply(before[:2].clone(), context([0, 1])), [])
    processor.add_request(1, params("y", 1))
    assert_scored(before[:2], processor.apply(before[:2].clone(), context([0, 1])), [])
    processor.add_request(2, params("y", 0))
    assert_scored(before, processor.apply(before.clone(), context([0, 1, 2])), [(2, 1)])
    # A preempted group comes back in other slots; the old ones are stale until recycled.
    processor.add_request(8, params("y", 1))
    processor.add_request(9, params("y", 0))
    assert_scored(before, processor.apply(before.clone(), context([8, 0, 9])), [(2, 0)])


def start(runner: Runner, **additional: Any) -> Any:
    """The processor of a runner, with an engine's ``additional_config``."""
    config = engine_config.config()
    config.additional_config = additional
    states: Any = SimpleNamespace(device=torch.device("cpu"), max_num_reqs=4)
    if runner is Runner.V2:
        return ColdLogitsProcessor(config, states)
    pytest.importorskip("vllm.v1.sample.logits_processor", reason="vLLM 0.34 has no V1")
    from vllm_cold.worker.v1.processor_v1 import ColdLogitsProcessorV1

    return ColdLogitsProcessorV1(config, torch.device("cpu"), False)


@pytest.mark.parametrize("runner", [Runner.V1, Runner.V2])
def test_what_cannot_run_fails_at_the_start(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules that the engine was started with (workers are processes of their own), back ends."""
    start(runner)
    with pytest.raises(ColdError, match="rules='nowhere:Rule': cannot be used as a rule"):
        start(runner, cold={"rules": ["nowhere:Rule"]})
    monkeypatch.setenv("COLD_SCORING", "ascend")
    with pytest.raises(RuntimeError, match="'ascend' was asked for"):
        start(runner)
