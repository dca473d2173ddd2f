# SPDX-License-Identifier: Apache-2.0
"""The V2 processor on CPU tensors: V2 itself runs on GPUs only, its interface imports anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

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
    build_custom_logits_processors,
    build_custom_logits_processors_params_validator,
)

from tests.knobs import knobs
from vllm_cold.group import rows as rows_module
from vllm_cold.group.stream import Role, Stream
from vllm_cold.ops.scoring_reference import pair_scores
from vllm_cold.vllm.frontend.config import PROCESSOR_V2
from vllm_cold.vllm.worker import outputs
from vllm_cold.vllm.worker.processor_v2 import ColdLogitsProcessorV2

pytestmark = pytest.mark.unit

VOCAB = 37
SLOTS = 16
PLAIN = SamplingParams()


def params(pair: str, role: Role, **settings: Any) -> SamplingParams:
    stream = Stream(knobs(**settings), pair=pair, role=role)
    return SamplingParams(extra_args=stream.to_extra_args({"other": 1}))


def make(device: str = "cpu", num_drafts: int = 0) -> ColdLogitsProcessorV2:
    buffers: Any = None  # the processor reads none of them
    state = LogitsProcRequestState(
        torch.device(device), SLOTS, VOCAB, buffers, buffers, buffers, buffers
    )
    speculative = SimpleNamespace(num_speculative_tokens=num_drafts) if num_drafts else None
    return ColdLogitsProcessorV2(SimpleNamespace(speculative_config=speculative), state)


def test_a_backend_that_cannot_run_fails_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLD_SCORING", "ascend")
    with pytest.raises(RuntimeError, match="'ascend' was asked for"):
        make()


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


def check(
    before: Tensor,
    after: Tensor,
    pairs: Sequence[tuple[int, int]],
    alpha: float = 0.1,
    beta: float = 0.5,
    top_k: int = 0,
    adaptive: bool = False,
) -> None:
    """Experts of ``pairs`` hold the reference's scores, other rows are bit for bit as before."""
    left = set(range(len(before)))
    for expert, amateur in pairs:
        want = pair_scores(before[expert], before[amateur], math.log(alpha), beta, top_k, adaptive)
        torch.testing.assert_close(after[expert].double(), want, rtol=1e-5, atol=1e-4)
        left.remove(expert)
    for row in left:
        assert torch.equal(before[row], after[row]), f"row {row} was changed"


def test_loader_accepts_it() -> None:
    assert _load_v2_logitsprocs_by_fqcns([PROCESSOR_V2]) == [ColdLogitsProcessorV2]
    assert build_custom_logits_processors_params_validator([PROCESSOR_V2])(PLAIN) is None
    names = ("device", "max_num_reqs", "vocab_size")
    values = (torch.device("cpu"), SLOTS, VOCAB)
    buffers = ("all_token_ids", "prompt_len", "prefill_len", "total_len")
    states = SimpleNamespace(**dict(zip(names, values, strict=True)), **dict.fromkeys(buffers))
    config = SimpleNamespace(speculative_config=None)
    built = build_custom_logits_processors(config, states, False, [PROCESSOR_V2])
    assert [type(p) for p in built] == [ColdLogitsProcessorV2]


def test_only_streams_are_claimed() -> None:
    processor = make()
    assert processor.add_request(0, params("x", "expert")) is True
    assert processor.add_request(1, params("x", "amateur")) is False
    assert processor.add_request(2, PLAIN) is False
    assert processor.add_request(3, SamplingParams(extra_args={"cold": 0})) is False


@pytest.mark.parametrize("slots", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 4, 0, 3, 1]])
def test_rows_in_any_order(slots: list[int]) -> None:
    processor = make()
    processor.add_request(0, params("x", "expert"))
    processor.add_request(1, PLAIN)
    processor.add_request(2, params("y", "amateur"))
    processor.add_request(3, params("x", "amateur"))
    processor.add_request(4, params("y", "expert"))
    processor.apply_staged_writes()
    before = draw(5)
    logits = before.clone()
    assert processor.apply(logits, context(slots)) is logits
    at = slots.index
    check(before, logits, [(at(0), at(3)), (at(4), at(2))])


def test_each_pair_has_its_settings() -> None:
    processor = make()
    wanted = [
        (0.5, 2.0, 0, False), (0.01, 0.0, 3, False), (1.0, 0.5, 0, False), (0.01, 40.0, 9, True)
    ]  # fmt: skip
    for i, (alpha, beta, top_k, adaptive) in enumerate(wanted):
        for j, role in enumerate(("expert", "amateur")):
            p = params(f"{i}", role, alpha=alpha, beta=beta, expert_top_k=top_k, adaptive=adaptive)
            processor.add_request(2 * i + j, p)
    before = draw(8)
    logits = processor.apply(before.clone(), context(range(8)))
    for i, settings in enumerate(wanted):
        rows = [2 * i, 2 * i + 1]
        check(before[rows], logits[rows], [(0, 1)], *settings)


@pytest.mark.parametrize("slots", [[1], [0, 1], [0, 2], [2, 0], [3]])
def test_without_a_complete_pair_logits_are_not_looked_at(slots: list[int]) -> None:
    """Not even their length: everything is decided on the host."""
    processor = make()
    logits: Any = object()
    assert processor.apply(logits, context(slots)) is logits
    processor.add_request(0, params("x", "expert"))
    processor.add_request(1, PLAIN)
    processor.add_request(2, params("y", "amateur"))
    assert processor.apply(logits, context(slots)) is logits


def test_half_a_pair_is_untouched_beside_a_whole_one() -> None:
    processor = make()
    processor.add_request(5, params("x", "expert"))
    processor.add_request(6, params("y", "expert"))
    processor.add_request(7, params("y", "amateur"))
    before = draw(3)
    check(before, processor.apply(before.clone(), context([5, 6, 7])), [(1, 2)])


def test_slots_are_recycled() -> None:
    processor = make()
    for slot, role in enumerate(("expert", "amateur")):
        processor.add_request(slot, params("x", role))
    before = draw(3)
    check(before[:2], processor.apply(before[:2].clone(), context([0, 1])), [(0, 1)])
    # The pair has ended; its slots go to a plain request and to another pair's amateur.
    processor.add_request(0, PLAIN)
    check(before[:2], processor.apply(before[:2].clone(), context([0, 1])), [])
    processor.add_request(1, params("y", "amateur"))
    check(before[:2], processor.apply(before[:2].clone(), context([0, 1])), [])
    processor.add_request(2, params("y", "expert"))
    check(before, processor.apply(before.clone(), context([0, 1, 2])), [(2, 1)])
    # A preempted pair comes back in other slots; the old ones are stale until recycled.
    processor.add_request(8, params("y", "amateur"))
    processor.add_request(9, params("y", "expert"))
    check(before, processor.apply(before.clone(), context([8, 0, 9])), [(2, 0)])


def test_the_same_batch_is_matched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = rows_module.PairRows.of

    def of(*args: Any) -> Any:
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(rows_module.PairRows, "of", staticmethod(of))
    processor = make()
    for slot, role in enumerate(("expert", "amateur")):
        processor.add_request(slot, params("x", role))
    order = np.array([0, 1], dtype=np.intp)
    batch = context([0, 1])
    object.__setattr__(batch, "idx_mapping_np", order)
    before = draw(2)
    for _ in range(3):
        check(before, processor.apply(before.clone(), batch), [(0, 1)])
    assert len(calls) == 1
    # Not fooled by an array that is filled anew in place.
    order[:] = [1, 0]
    check(before, processor.apply(before.clone(), batch), [(1, 0)])
    assert len(calls) == 2
    # Same batch, new occupant.
    processor.add_request(0, params("x", "expert", beta=2.0))
    check(before, processor.apply(before.clone(), batch), [(1, 0)], beta=2.0)


SPECULATIVE = [
    # slots, rows of each, pairs of rows: x = (0, 3), y = (4, 2), slot 1 is plain
    ([0, 3], [4, 4], [(0, 4), (1, 5), (2, 6), (3, 7)]),
    ([3, 1, 0], [2, 3, 2], [(5, 0), (6, 1)]),
    ([0, 1, 3], [1, 4, 1], [(0, 5)]),
    # fewer drafts for one stream: what has no counterpart stays
    ([0, 3], [3, 2], [(0, 3), (1, 4)]),
    ([0, 3, 1], [1, 3, 1], [(0, 1)]),
    # pairs with different numbers of drafts
    ([0, 4, 2, 3], [4, 1, 1, 4], [(0, 6), (1, 7), (2, 8), (3, 9), (4, 5)]),
    ([4, 1, 3], [2, 2, 2], []),
]


@pytest.mark.parametrize(("slots", "counts", "pairs"), SPECULATIVE)
@pytest.mark.parametrize(("top_k", "adaptive"), [(0, False), (2, False), (0, True)])
def test_a_row_for_each_draft(
    slots: list[int], counts: list[int], pairs: list[tuple[int, int]], top_k: int, adaptive: bool
) -> None:
    processor = make(num_drafts=3)
    # Each pair has its own settings: they must go with all of its rows.
    knobs = {"x": (0.1, 40.0 if adaptive else 0.5, top_k, adaptive), "y": (0.9, 3.0, 0, False)}
    for slot, (pair, role) in {
        0: ("x", "expert"),
        2: ("y", "amateur"),
        3: ("x", "amateur"),
        4: ("y", "expert"),
    }.items():
        alpha, beta, k, own = knobs[pair]
        p = params(
            pair, role, alpha=alpha, beta=beta, expert_top_k=k, adaptive=own  # type: ignore[arg-type]
        )  # fmt: skip
        processor.add_request(slot, p)
    processor.add_request(1, PLAIN)
    batch = context(slots, counts)
    before = draw(sum(counts))
    logits = before.clone()
    assert processor.apply(logits, batch) is logits
    scored = {expert for expert, _ in pairs}
    rest = [row for row in range(len(before)) if row not in scored]
    check(before[rest], logits[rest], [])
    for expert, amateur in pairs:
        name = "x" if batch.expanded_idx_mapping[expert] == 0 else "y"
        rows = [expert, amateur]
        check(before[rows], logits[rows], [(0, 1)], *knobs[name])


def test_masked_rows_harm_nobody() -> None:
    """vLLM marks rows that are nobody's with slot -1, which would wrap to the last slot."""
    processor = make(num_drafts=3)
    processor.add_request(SLOTS - 1, params("x", "expert"))
    processor.add_request(0, params("x", "amateur"))
    batch = context([SLOTS - 1, 0], [2, 3])
    batch.expanded_idx_mapping[-1] = -1
    batch.expanded_local_pos[-1] = 0
    before = draw(5)
    check(before, processor.apply(before.clone(), batch), [(0, 2), (1, 3)])


def test_rows_that_nobody_explains_are_refused() -> None:
    processor = make()
    for slot, role in enumerate(("expert", "amateur")):
        processor.add_request(slot, params("x", role))
    with pytest.raises(RuntimeError, match="4 rows of logits for 2 requests"):
        processor.apply(draw(4), context([0, 1], [2, 2]))


def test_followers_are_told() -> None:
    """By slot; also in a batch whose logits nobody asked it to look at."""
    processor = make()
    for slot, (pair, role) in {
        0: ("x", "expert"), 2: ("y", "amateur"), 3: ("x", "amateur"), 4: ("y", "expert"),
    }.items():  # fmt: skip
        processor.add_request(slot, params(pair, role))  # type: ignore[arg-type]
    sampled = torch.arange(5).unsqueeze(1)
    processor.tell_followers(sampled, np.array([2, 3, 1, 0, 4]))
    assert sampled.flatten().tolist() == [4, 3, 2, 3, 4]
    processor.tell_followers(half := torch.arange(2).unsqueeze(1), np.array([3, 1]))
    assert half.flatten().tolist() == [0, 1]


@pytest.mark.parametrize("counts", [[1, 1, 1], [3, 1, 4]])
def test_no_sync(counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors have shapes only: whatever needs their values raises."""
    # Statistics are copied to the host behind an event, which needs a device.
    monkeypatch.setattr("vllm_cold.group.tally.Tally", lambda ids, statistics: None)
    processor = make("meta", num_drafts=3)
    processor.add_request(0, params("x", "expert", expert_top_k=2, adaptive=True))
    processor.add_request(1, PLAIN)
    processor.add_request(2, params("x", "amateur", expert_top_k=2, adaptive=True))
    logits = torch.empty(sum(counts), VOCAB, device="meta")
    assert processor.apply(logits, context([0, 1, 2], counts, "meta")) is logits


@pytest.mark.parametrize("counts", [[1, 1, 1, 1], [3, 1, 3, 1]], ids=["plain", "drafts"])
def test_nan_is_reported_of_its_pair(counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is raised: the scheduler ends that request."""
    processor = make(num_drafts=max(counts) - 1)
    for slot, pair in enumerate("xyxy"):
        processor.add_request(slot, params(pair, "expert" if slot < 2 else "amateur"))
    logits = draw(sum(counts))
    logits[sum(counts[:3]) - 1, 3] = torch.nan  # the last row of x's amateur
    carried: list[Any] = []
    monkeypatch.setattr(outputs, "carry", carried.append)
    processor.apply(logits, context([0, 1, 2, 3], counts))
    (tally,) = carried
    assert {pair: found.bad for pair, found in tally.figures().items()} == {"x": 1, "y": 0}
    assert not logits.isnan().any()
