# SPDX-License-Identifier: Apache-2.0
"""The V1 processor follows vLLM's persistent batch, told with vLLM's own BatchUpdate."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import _load_custom_logitsprocs
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor.state import BatchUpdateBuilder

from tests import engine_config
from tests.contrast import Contrast, assert_scored, of_size
from vllm_cold.compat.runner import Runner
from vllm_cold.wire import worker_output
from vllm_cold.wire.step_stats import OTHER_DRAFTS
from vllm_cold.worker.v1.processor_v1 import ColdLogitsProcessorV1

pytestmark = pytest.mark.unit

VOCAB = 23
REGULAR = SamplingParams()
ONE = of_size(1)
MOVE, SWAP = MoveDirectionality.UNIDIRECTIONAL, MoveDirectionality.SWAP


def params(group: str, index: int, num_amateurs: int = 1) -> SamplingParams:
    return of_size(num_amateurs).params(group, index)


def make() -> ColdLogitsProcessorV1:
    return ColdLogitsProcessorV1(engine_config.config(), torch.device("cpu"), False)


def draw(num_rows: int) -> Tensor:
    return 3 * torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(num_rows))


def check(processor: ColdLogitsProcessorV1, size: int, groups: Sequence[tuple[int, ...]]) -> None:
    """Experts of ``groups``, rows that begin with theirs, get the reference's scores, every other
    row stays bit for bit; and amateurs are told what their experts were given.
    """
    before = draw(size)
    logits = before.clone()
    assert processor.apply(logits) is logits
    assert_scored(before, logits, groups)
    sampled = torch.arange(size, dtype=torch.int32).unsqueeze(1)
    processor.tell_amateurs(told := sampled.clone())
    experts = {amateur: expert for expert, *amateurs in groups for amateur in amateurs}
    assert told.flatten().tolist() == [experts.get(row, row) for row in range(size)]


def check_drafts(
    processor: ColdLogitsProcessorV1, counts: Sequence[int], groups: Sequence[tuple[int, ...]]
) -> None:
    """The rows of drafts, ``counts`` for each request: of groups of which all verify as many, the
    experts' get the reference's scores, every other row stays bit for bit.
    """
    before = draw(sum(counts))
    logits = before.clone()
    processor.apply_to_drafts(logits, counts, torch.zeros(sum(counts), dtype=torch.int32))
    assert_scored(
        before,
        logits,
        [
            [sum(counts[:row]) + place for row in streams]
            for streams in groups
            if len({counts[row] for row in streams}) == 1
            for place in range(counts[streams[0]])
        ],
    )


def test_vllm_loads_it() -> None:
    assert _load_custom_logitsprocs([Runner.V1.processor]) == [ColdLogitsProcessorV1]
    assert make().is_argmax_invariant() is False


def test_the_first_output_tells_what_computes() -> None:
    vars(worker_output._pending).clear()
    make()
    assert vars(worker_output._pending).pop("tells_kernels")


def test_other_drafts_are_reported_at_their_place() -> None:
    processor = make()
    requests = [params("x", 0), REGULAR, params("x", 1), params("y", 1)]
    added = [(row, asked, None, []) for row, asked in enumerate(requests)]
    processor.update_state(BatchUpdate(4, [], added, []))
    vars(worker_output._pending).clear()
    processor.apply_to_drafts(draw(6), [3, 0, 3, 0], torch.tensor([5, 6, 7, 5, 6, 8]))
    processor.apply_to_drafts(draw(6), [3, 0, 3, 0], torch.tensor([5, 6, 7, 5, 6, 7]))
    tallies = vars(worker_output._pending).pop("step_stats")
    found = [[figures.nonfinite for _, figures in tally.figures()] for tally in tallies]
    assert found == [[0, 0, 0], [0, 0, OTHER_DRAFTS]]


class Batch:
    """The batch as a list, and vLLM's builder told of the changes in ``InputBatch``'s way."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int, int] | None] = []  # params' arguments, None for regular
        self.builder = BatchUpdateBuilder()

    def step(
        self,
        leave: set[int],
        arrive: list[tuple[str, int, int] | None],
        swaps: list[tuple[int, int]],
    ) -> BatchUpdate | None:
        rows: list[Any] = list(self.rows)
        gone = object()
        for row in leave:
            rows[row] = gone
            self.builder.removed_append(row)
        for request in arrive:
            row = self.builder.pop_removed()
            if row is None:
                row = len(rows)
                rows.append(gone)
            rows[row] = request
            p = REGULAR if request is None else params(*request)
            self.builder.added.append((row, p, None, []))
        while self.builder.removed:  # condense
            while rows and rows[-1] is gone:
                rows.pop()
            hole = self.builder.peek_removed()
            if hole is None or hole >= len(rows):
                break
            self.builder.pop_removed()
            self.builder.moved.append((len(rows) - 1, hole, MOVE))
            rows[hole] = rows.pop()
        self.rows = rows
        for a, b in swaps:
            if a != b and max(a, b) < len(rows):
                rows[a], rows[b] = rows[b], rows[a]
                self.builder.moved.append((a, b, SWAP))
        return self.builder.get_and_reset(len(rows))

    def groups(self) -> set[tuple[int, ...]]:
        at = {request: row for row, request in enumerate(self.rows) if request is not None}
        wanted = {
            tuple(at.get((name, i, num), -1) for i in range(1 + num)) for name, _, num in at
        }  # fmt: skip
        return {rows for rows in wanted if min(rows) >= 0}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_follows_any_history(data: st.DataObject) -> None:
    batch, processor, names = Batch(), make(), iter(range(1000))
    outside: list[tuple[str, int, int]] = []  # streams that may join: fresh or preempted ones
    for _ in range(data.draw(st.integers(1, 8))):
        for _ in range(data.draw(st.integers(0, 2))):
            name = str(next(names))
            num = data.draw(st.integers(1, 3))
            outside += [(name, index, num) for index in range(1 + num)]
        present = range(len(batch.rows))
        leave = data.draw(st.sets(st.sampled_from(present))) if present else set()
        num_streams = data.draw(st.integers(0, len(outside)))
        arrive: list[Any] = list(data.draw(st.permutations(outside))[:num_streams])
        outside = [s for s in outside if s not in arrive]
        outside += [s for row in leave if (s := batch.rows[row]) is not None]
        arrive += [None] * data.draw(st.integers(0, 2))
        arrive = data.draw(st.permutations(arrive))
        row = st.integers(0, 7)
        swaps = data.draw(st.lists(st.tuples(row, row), max_size=3))
        processor.update_state(batch.step(leave, arrive, swaps))
        found = processor._rows.members if processor._rows else ()
        assert set(map(tuple, found)) == batch.groups()
        assert processor.has_groups() == bool(batch.groups())
        size = len(batch.rows)
        counts = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
        check_drafts(processor, counts, sorted(batch.groups()))
    if batch.rows:
        check(processor, len(batch.rows), sorted(batch.groups()))


# Another weight at each step.
GROWS = Contrast((None, None), alpha=0.0, rule="m3id", parameters={"gamma": 0.2, "threshold": 1.0})


def test_a_rule_is_told_how_many_tokens_there_are() -> None:
    """By the list that vLLM adds to, wherever the request's row is by now."""
    processor, tokens = make(), [[7] * 3, [7] * 5]
    rows = [(GROWS, "x", 0), (GROWS, "y", 2), (GROWS, "y", 0), (ONE, "z", 1), (GROWS, "x", 2),
            (GROWS, "y", 1), (ONE, "z", 0), (GROWS, "x", 1)]  # fmt: skip
    added = [
        (row, asked.params(name, index), None, tokens[name == "y"] if index == 0 else [])
        for row, (asked, name, index) in enumerate(rows)
    ]
    processor.update_state(BatchUpdate(8, [], added, []))
    groups = [(0, 7, 4), (2, 5, 1)]
    ruled = [row for rows in groups for row in rows]

    def check_steps(*steps: int) -> None:
        before = draw(8)
        logits = processor.apply(before.clone())
        assert_scored(before[ruled], logits[ruled], [(0, 1, 2), (3, 4, 5)], GROWS, steps)
        assert_scored(before[[6, 3]], logits[[6, 3]], [(0, 1)])

    for _ in range(3):
        check_steps(*map(len, tokens))
        tokens[0].append(7)
        tokens[1] += [7, 7]
    # Drafts: first the rows after all of them, then the rows that verify them.
    counts, known = [2, 3, 3, 0, 2, 3, 0, 2], [len(output) for output in tokens]
    processor.expect_drafts(counts)
    check_steps(known[0] + 2, known[1] + 3)
    before = draw(sum(counts))
    logits = before.clone()
    processor.apply_to_drafts(logits, counts, torch.zeros(sum(counts), dtype=torch.int32))
    places, steps = [], []
    for streams, start in zip(groups, known, strict=True):
        for nth in range(counts[streams[0]]):
            places.append([sum(counts[:row]) + nth for row in streams])
            steps.append(start + nth)
    assert_scored(before, logits, places, GROWS, steps)
    # And none are left for the step after that.
    check_steps(*known)
