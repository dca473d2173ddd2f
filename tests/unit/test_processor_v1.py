# SPDX-License-Identifier: Apache-2.0
"""The V1 processor follows vLLM's persistent batch, told with vLLM's own BatchUpdate."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
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

from tests.contrast import Contrast
from vllm_cold.group.tally import OTHER_DRAFTS
from vllm_cold.vllm.frontend.config import PROCESSOR_V1
from vllm_cold.vllm.worker import outputs
from vllm_cold.vllm.worker.processor_v1 import ColdLogitsProcessorV1

pytestmark = pytest.mark.unit

VOCAB = 23
PLAIN = SamplingParams()
MOVE, SWAP = MoveDirectionality.UNIDIRECTIONAL, MoveDirectionality.SWAP


def of_size(num_amateurs: int) -> Contrast:
    """Of these tests' groups, with another weight for each amateur."""
    return Contrast((-0.5, 1.5, -0.75)[:num_amateurs])


def params(group: str, index: int, num_amateurs: int = 1) -> SamplingParams:
    return of_size(num_amateurs).params(group, index)


def make() -> ColdLogitsProcessorV1:
    return ColdLogitsProcessorV1(SimpleNamespace(), torch.device("cpu"), False)


def update(
    size: int,
    removed: Sequence[int] = (),
    added: Sequence[tuple[int, SamplingParams]] = (),
    moved: Sequence[tuple[int, int, MoveDirectionality]] = (),
) -> BatchUpdate:
    return BatchUpdate(size, removed, [(row, p, None, []) for row, p in added], moved)


def draw(num_rows: int) -> Tensor:
    return 3 * torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(num_rows))


def check(processor: ColdLogitsProcessorV1, size: int, groups: Sequence[tuple[int, ...]]) -> None:
    """Experts of ``groups``, rows that begin with theirs, get the reference's scores, every other
    row stays bit for bit; and amateurs are told what their experts drew.
    """
    before = draw(size)
    logits = before.clone()
    assert processor.apply(logits) is logits
    left = set(range(size))
    for expert, *amateurs in groups:
        want = of_size(len(amateurs)).scores(before[[expert, *amateurs]])
        torch.testing.assert_close(logits[expert].double(), want, rtol=1e-5, atol=1e-4)
        left.remove(expert)
    for row in left:
        assert torch.equal(logits[row], before[row]), f"row {row} was changed"
    drawn = torch.arange(size, dtype=torch.int32).unsqueeze(1)
    processor.tell_amateurs(told := drawn.clone())
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
    left = set(range(len(before)))
    for streams in groups:
        if len({counts[row] for row in streams}) > 1:
            continue
        for place in range(counts[streams[0]]):
            rows = [sum(counts[:row]) + place for row in streams]
            want = of_size(len(streams) - 1).scores(before[rows])
            torch.testing.assert_close(logits[rows[0]].double(), want, rtol=1e-5, atol=1e-4)
            left.remove(rows[0])
    for row in left:
        assert torch.equal(logits[row], before[row]), f"row {row} was changed"


@pytest.fixture
def processor() -> ColdLogitsProcessorV1:
    """Rows: expert x, plain, amateur x, amateur y."""
    made = make()
    requests = [params("x", 0), PLAIN, params("x", 1), params("y", 1)]
    made.update_state(update(4, added=list(enumerate(requests))))
    return made


def test_vllm_loads_it() -> None:
    assert _load_custom_logitsprocs([PROCESSOR_V1]) == [ColdLogitsProcessorV1]
    assert make().is_argmax_invariant() is False


def test_a_backend_that_cannot_run_fails_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLD_SCORING", "ascend")
    with pytest.raises(RuntimeError, match="'ascend' was asked for"):
        make()


def test_empty() -> None:
    processor = make()
    processor.update_state(None)
    check(processor, 3, [])
    processor.update_state(update(0))
    check(processor, 3, [])


def test_added(processor: ColdLogitsProcessorV1) -> None:
    check(processor, 4, [(0, 2)])
    processor.update_state(None)  # nothing changed
    check(processor, 4, [(0, 2)])
    processor.update_state(update(5, added=[(4, params("y", 0))]))
    check(processor, 5, [(0, 2), (4, 3)])


def test_groups_of_different_sizes() -> None:
    """Rows: amateur 2 of x, expert y, amateur 1 of z, plain, expert x, amateur 3 of z, amateur of
    y, amateur 1 of x, expert z; then amateur 2 of z.
    """
    processor = make()
    requests = [
        params("x", 2, 2), params("y", 0), params("z", 1, 3), PLAIN, params("x", 0, 2),
        params("z", 3, 3), params("y", 1), params("x", 1, 2), params("z", 0, 3),
    ]  # fmt: skip
    processor.update_state(update(9, added=list(enumerate(requests))))
    check(processor, 9, [(4, 7, 0), (1, 6)])
    processor.update_state(update(10, added=[(9, params("z", 2, 3))]))
    check(processor, 10, [(4, 7, 0), (1, 6), (8, 2, 9, 5)])
    # An amateur's place is its own: two that change it change their weights.
    processor.update_state(update(10, moved=[(7, 0, SWAP), (2, 5, SWAP)]))
    check(processor, 10, [(4, 0, 7), (1, 6), (8, 5, 9, 2)])
    processor.update_state(update(9, removed=[7], moved=[(9, 7, MOVE)]))
    check(processor, 9, [(1, 6), (8, 5, 7, 2)])


@pytest.mark.parametrize(
    "counts", [[2, 3, 2, 1], [0, 4, 0, 0], [3, 0, 3, 2], [2, 1, 1, 2], [1, 1, 2, 1], [0, 0, 0, 0]]
)
def test_rows_of_drafts(processor: ColdLogitsProcessorV1, counts: list[int]) -> None:
    assert processor.has_groups()
    check_drafts(processor, counts, [(0, 2)])
    processor.update_state(update(5, added=[(4, params("y", 0))]))
    check_drafts(processor, [*counts, counts[3]], [(0, 2), (4, 3)])
    processor.update_state(update(3, removed=[0, 4], moved=[(3, 0, MOVE)]))
    assert not processor.has_groups()
    check_drafts(processor, counts[:3], [])


def test_figures_of_drafts_come_first() -> None:
    """vLLM asks about the row behind them before it asks about theirs."""
    processor = make()
    requests = [params("x", 1), params("y", 0), params("x", 0), params("y", 1)]
    processor.update_state(update(4, added=list(enumerate(requests))))
    outputs._pending.tallies.clear()
    last, drafts = draw(4), draw(6)
    processor.apply(last)
    processor.apply_to_drafts(drafts, [2, 1, 2, 1], torch.zeros(6))
    (first, second), outputs._pending.tallies = outputs._pending.tallies, []
    assert [name for name, _ in second.figures()] == ["x", "y"]
    assert [name for name, _ in first.figures()] == ["x", "x", "y"]
    scored = [*drafts[[3, 4]], drafts[2]]
    for (_, figures), row in zip(first.figures(), scored, strict=True):
        assert figures.candidates == int((row > -torch.inf).sum())
    # Without drafts, or with other numbers of them, there are the last row's.
    processor.apply(last)
    for counts in ([0, 0, 0, 0], [1, 0, 2, 3]):
        processor.apply_to_drafts(draw(sum(counts)), counts, torch.zeros(sum(counts)))
    (only,), outputs._pending.tallies = outputs._pending.tallies, []
    assert [name for name, _ in only.figures()] == ["x", "y"]


def test_nan_in_a_draft_is_reported_at_its_place(processor: ColdLogitsProcessorV1) -> None:
    outputs._pending.tallies.clear()
    logits = draw(6)
    logits[4, 3] = torch.nan  # the amateur's second draft
    processor.apply_to_drafts(logits, [3, 0, 3, 0], torch.zeros(6))
    (tally,), outputs._pending.tallies = outputs._pending.tallies, []
    assert [figures.nonfinite for _, figures in tally.figures()] == [0, 1, 0]
    assert not logits[:3].isnan().any()


def test_other_drafts_are_reported_at_their_place(processor: ColdLogitsProcessorV1) -> None:
    outputs._pending.tallies.clear()
    processor.apply_to_drafts(draw(6), [3, 0, 3, 0], torch.tensor([5, 6, 7, 5, 6, 8]))
    processor.apply_to_drafts(draw(6), [3, 0, 3, 0], torch.tensor([5, 6, 7, 5, 6, 7]))
    tallies, outputs._pending.tallies = outputs._pending.tallies, []
    found = [[figures.nonfinite for _, figures in tally.figures()] for tally in tallies]
    assert found == [[0, 0, 0], [0, 0, OTHER_DRAFTS]]


def test_each_group_has_its_settings() -> None:
    asked = [
        Contrast((-40.0,), (True,), alpha=0.01),
        Contrast((-40.0,), alpha=0.01),
        Contrast((-9.0,), (True,), alpha=0.05, expert_top_k=3),
        Contrast((1.0, -40.0, -2.0), (False, True, False), alpha=0.01),
        Contrast((30.0, -40.0), (True, True), alpha=0.0),
    ]
    processor = make()
    requests: list[SamplingParams] = []
    groups: list[list[int]] = []
    for i, contrast in enumerate(asked):
        streams = range(1 + len(contrast.weights))
        groups.append([len(requests) + index for index in streams])
        requests += [contrast.params(str(i), index) for index in streams]
    size = len(requests)
    processor.update_state(update(size, added=list(enumerate(requests))))
    before = draw(size)
    logits = processor.apply(before.clone())
    for contrast, rows in zip(asked, groups, strict=True):
        want = contrast.scores(before[rows])
        torch.testing.assert_close(logits[rows[0]].double(), want, rtol=1e-5, atol=1e-4)
        assert torch.equal(logits[rows[1:]], before[rows[1:]])
    # The last group with an adaptive weight leaves: the op is not told of any.
    gone = [row for i in (0, 2, 3, 4) for row in groups[i]]
    processor.update_state(update(2, removed=gone, moved=[(2, 0, MOVE), (3, 1, MOVE)]))
    rows = processor._rows
    assert rows is not None and rows.groups is not None and rows.groups.adaptive is None


def test_added_replaces(processor: ColdLogitsProcessorV1) -> None:
    processor.update_state(update(4, added=[(0, PLAIN), (2, params("y", 0))]))
    check(processor, 4, [(2, 3)])


def test_removed(processor: ColdLogitsProcessorV1) -> None:
    processor.update_state(update(3, removed=[3]))
    check(processor, 3, [(0, 2)])
    processor.update_state(update(2, removed=[2]))
    check(processor, 2, [])


def test_removed_then_added_to_the_same_row(processor: ColdLogitsProcessorV1) -> None:
    processor.update_state(update(4, removed=[1], added=[(1, params("y", 0))]))
    check(processor, 4, [(0, 2), (1, 3)])


def test_moved_one_way(processor: ColdLogitsProcessorV1) -> None:
    processor.update_state(update(3, removed=[1], moved=[(3, 1, MOVE)]))
    check(processor, 3, [(0, 2)])
    processor.update_state(update(4, added=[(3, params("y", 0))]))
    check(processor, 4, [(0, 2), (3, 1)])


def test_a_plain_request_moved_over_a_stream_replaces_it(
    processor: ColdLogitsProcessorV1,
) -> None:
    processor.update_state(update(4, moved=[(1, 2, MOVE)]))
    check(processor, 4, [])


def test_swapped(processor: ColdLogitsProcessorV1) -> None:
    processor.update_state(update(4, moved=[(0, 2, SWAP)]))
    check(processor, 4, [(2, 0)])
    processor.update_state(update(4, moved=[(1, 2, SWAP)]))  # with a plain request
    check(processor, 4, [(1, 0)])


def test_moves_are_done_in_order(processor: ColdLogitsProcessorV1) -> None:
    processor.update_state(update(4, moved=[(0, 1, SWAP), (1, 3, SWAP)]))
    check(processor, 4, [(3, 2)])


class Batch:
    """The batch as a list, and vLLM's builder told of the changes in ``InputBatch``'s way."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int, int] | None] = []  # params' arguments, None for plain
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
            p = PLAIN if request is None else params(*request)
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


@settings(max_examples=150, deadline=None)
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
