# SPDX-License-Identifier: Apache-2.0
"""The V1 processor follows vLLM's persistent batch, told with vLLM's own BatchUpdate."""

from __future__ import annotations

import math
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

from tests.knobs import knobs
from vllm_cold.group.stream import Role, Stream
from vllm_cold.ops.scoring_reference import pair_scores
from vllm_cold.vllm.frontend.config import PROCESSOR_V1
from vllm_cold.vllm.worker.processor_v1 import ColdLogitsProcessorV1

pytestmark = pytest.mark.unit

VOCAB = 23
PLAIN = SamplingParams()
MOVE, SWAP = MoveDirectionality.UNIDIRECTIONAL, MoveDirectionality.SWAP


def params(pair: str, role: Role, **changed: Any) -> SamplingParams:
    stream = Stream(knobs(**changed), pair=pair, role=role)
    return SamplingParams(extra_args=stream.to_extra_args(None))


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


def check(processor: ColdLogitsProcessorV1, size: int, pairs: Sequence[tuple[int, int]]) -> None:
    """Experts of ``pairs`` get the reference's scores, every other row stays bit for bit; and
    amateurs are told what their experts drew.
    """
    before = draw(size)
    logits = before.clone()
    assert processor.apply(logits) is logits
    left = set(range(size))
    for expert, amateur in pairs:
        want = pair_scores(before[expert], before[amateur], math.log(0.1), 0.5)
        torch.testing.assert_close(logits[expert].double(), want, rtol=1e-5, atol=1e-4)
        left.remove(expert)
    for row in left:
        assert torch.equal(logits[row], before[row]), f"row {row} was changed"
    drawn = torch.arange(size, dtype=torch.int32).unsqueeze(1)
    processor.tell_followers(told := drawn.clone())
    experts = {amateur: expert for expert, amateur in pairs}
    assert told.flatten().tolist() == [experts.get(row, row) for row in range(size)]


@pytest.fixture
def processor() -> ColdLogitsProcessorV1:
    """Rows: expert x, plain, amateur x, amateur y."""
    made = make()
    requests = [params("x", "expert"), PLAIN, params("x", "amateur"), params("y", "amateur")]
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
    processor.update_state(update(5, added=[(4, params("y", "expert"))]))
    check(processor, 5, [(0, 2), (4, 3)])


def test_an_adaptive_pair_beside_others() -> None:
    settings = [
        {"alpha": 0.01, "beta": 40.0, "adaptive": True},
        {"alpha": 0.01, "beta": 40.0},
        {"alpha": 0.05, "beta": 9.0, "adaptive": True, "expert_top_k": 3},
    ]
    processor = make()
    requests = [
        params(str(i), role, **knobs)
        for i, knobs in enumerate(settings)
        for role in ("expert", "amateur")
    ]
    processor.update_state(update(6, added=list(enumerate(requests))))
    before = draw(6)
    logits = processor.apply(before.clone())
    for i, wanted in enumerate(settings):
        want = pair_scores(
            *before[2 * i : 2 * i + 2],
            math.log(wanted["alpha"]),
            wanted["beta"],
            int(wanted.get("expert_top_k", 0)),
            bool(wanted.get("adaptive")),
        )
        torch.testing.assert_close(logits[2 * i].double(), want, rtol=1e-5, atol=1e-4)
        assert torch.equal(logits[2 * i + 1], before[2 * i + 1])
    # The last adaptive pair leaves: the op is not told of any.
    processor.update_state(update(2, removed=[0, 1, 4, 5], moved=[(2, 0, MOVE), (3, 1, MOVE)]))
    assert processor._rows is not None and processor._rows.pairs.adaptive is None


def test_added_replaces(processor: ColdLogitsProcessorV1) -> None:
    processor.update_state(update(4, added=[(0, PLAIN), (2, params("y", "expert"))]))
    check(processor, 4, [(2, 3)])


def test_removed(processor: ColdLogitsProcessorV1) -> None:
    processor.update_state(update(3, removed=[3]))
    check(processor, 3, [(0, 2)])
    processor.update_state(update(2, removed=[2]))
    check(processor, 2, [])


def test_removed_then_added_to_the_same_row(processor: ColdLogitsProcessorV1) -> None:
    processor.update_state(update(4, removed=[1], added=[(1, params("y", "expert"))]))
    check(processor, 4, [(0, 2), (1, 3)])


def test_moved_one_way(processor: ColdLogitsProcessorV1) -> None:
    processor.update_state(update(3, removed=[1], moved=[(3, 1, MOVE)]))
    check(processor, 3, [(0, 2)])
    processor.update_state(update(4, added=[(3, params("y", "expert"))]))
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
        self.rows: list[tuple[str, Role] | None] = []  # (pair, role), None for plain
        self.builder = BatchUpdateBuilder()

    def step(
        self,
        leave: set[int],
        arrive: list[tuple[str, Role] | None],
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

    def pairs(self) -> set[tuple[int, int]]:
        at = {request: row for row, request in enumerate(self.rows) if request is not None}
        return {
            (row, at[pair, "amateur"])
            for (pair, role), row in at.items()
            if role == "expert" and (pair, "amateur") in at
        }


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_follows_any_history(data: st.DataObject) -> None:
    batch, processor, names = Batch(), make(), iter(range(1000))
    outside: list[tuple[str, Role]] = []  # streams that may join: fresh or preempted ones
    for _ in range(data.draw(st.integers(1, 8))):
        for _ in range(data.draw(st.integers(0, 2))):
            name = str(next(names))
            outside += [(name, "expert"), (name, "amateur")]
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
        rows = processor._rows and processor._rows.pairs
        got = (
            zip(rows.expert_rows.tolist(), rows.amateur_rows.tolist(), strict=True) if rows else ()
        )
        assert set(got) == batch.pairs()
    if batch.rows:
        check(processor, len(batch.rows), sorted(batch.pairs()))
