# SPDX-License-Identifier: Apache-2.0
"""From the streams of a batch to the tensors that the scoring op takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from tests.contrast import Contrast
from vllm_cold.group.rows import GroupRows
from vllm_cold.group.step_stats import OTHER_DRAFTS

pytestmark = pytest.mark.unit

ONE = Contrast(alpha=0.5)
TWO = Contrast((1.5, -1.5), alpha=0.0)
THREE = Contrast((-1.0, 0.25, -3.0), (False, True, False), alpha=1.0, expert_top_k=4)
ASKED = {"one": ONE, "two": TWO, "three": THREE}


def of(
    streams: Sequence[tuple[int, str, int]], num_rows: Sequence[int] | None = None
) -> GroupRows | None:
    """Of positions, with a group's name and an index each."""
    described = [(position, ASKED[name].stream(name, index)) for position, name, index in streams]
    found = GroupRows.of(described, torch.device("cpu"))
    return found if found is None or num_rows is None else found.spread(num_rows)


def rows_of(found: GroupRows) -> list[list[int]]:
    return [] if found.groups is None else found.groups.rows.tolist()


# Positions in no order, the groups between each other.
MIXED = [
    (7, "three", 2), (3, "one", 1), (0, "three", 0), (9, "two", 1), (4, "three", 1),
    (5, "two", 0), (1, "one", 0), (8, "two", 2), (2, "three", 3),
]  # fmt: skip


def test_groups_of_different_sizes() -> None:
    found = of(MIXED)
    assert found is not None
    assert found.ids == ("one", "two", "three")  # as they become complete
    assert found.members == ([1, 3], [5, 9, 8], [0, 4, 7, 2])
    groups = found.groups
    assert groups is not None
    assert groups.rows.tolist() == [[1, 3, -1, -1], [5, 9, 8, -1], [0, 4, 7, 2]]
    assert groups.weights.tolist() == [[-0.5, 0, 0], [1.5, -1.5, 0], [-1, 0.25, -3]]
    assert groups.log_alpha.tolist() == [pytest.approx(math.log(0.5)), -math.inf, 0.0]
    assert groups.expert_top_k is not None and groups.adaptive is not None
    assert groups.expert_top_k.tolist() == [0, 0, 4] and groups.max_expert_top_k == 4
    assert groups.adaptive.tolist() == [[False] * 3, [False] * 3, [False, True, False]]
    groups.check(torch.empty(10, 5))


def test_what_no_group_has_is_left_out() -> None:
    found = of([stream for stream in MIXED if stream[1] != "three"])
    assert found is not None and found.groups is not None
    assert rows_of(found) == [[1, 3, -1], [5, 9, 8]]
    assert found.groups.expert_top_k is None and found.groups.max_expert_top_k == 0
    assert found.groups.adaptive is None
    found.groups.check(torch.empty(10, 5))


@pytest.mark.parametrize("absent", range(4))
def test_a_group_without_one_of_its_streams(absent: int) -> None:
    found = of([stream for stream in MIXED if stream[1:] != ("three", absent)])
    assert found is not None and found.ids == ("one", "two")
    assert rows_of(found) == [[1, 3, -1], [5, 9, 8]]
    # It waits for nobody else's stream, and no other is complete.
    assert of([s for s in MIXED if s[1] == "three" and s[2] != absent]) is None


def test_no_stream_at_all() -> None:
    assert of([]) is None


def test_amateurs_are_told() -> None:
    found = of(MIXED)
    assert found is not None
    found.tell_amateurs(sampled := torch.arange(100, 110).unsqueeze(1))
    told = [100, 101, 100, 101, 100, 105, 106, 100, 105, 105]
    assert sampled.flatten().tolist() == told
    # One number of each request, or several; on the host, as many as there are.
    found.tell_amateurs(counts := torch.arange(100, 110))
    assert counts.tolist() == told
    found.tell_amateurs(tokens := torch.arange(300).view(10, 30))
    assert torch.equal(tokens[:, 0], 30 * (torch.tensor(told) - 100))
    found.tell_amateurs(drafts := [[*range(i)] for i in range(10)])
    assert drafts == [[*range(i - 100)] for i in told]
    drafts[1].append(7)
    assert drafts[3] == [0], "a list of its own"


# Rows of each position of MIXED; position 6 is a plain request's.
NUM_ROWS = [2, 3, 2, 3, 2, 1, 4, 2, 1, 1]


def test_rows_follow_those_of_the_position_before() -> None:
    found = of(MIXED, NUM_ROWS)
    assert found is not None and found.groups is not None
    assert found.ids == ("one", "one", "one", "two", "three", "three")
    assert rows_of(found) == [
        [2, 7, -1, -1], [3, 8, -1, -1], [4, 9, -1, -1],
        [12, 20, 19, -1],
        [0, 10, 17, 5], [1, 11, 18, 6],
    ]  # fmt: skip
    # Each with its group's settings.
    groups = found.groups
    assert groups.weights[:, 0].tolist() == [-0.5] * 3 + [1.5] + [-1.0] * 2
    assert groups.expert_top_k is not None and groups.expert_top_k.tolist() == [0] * 4 + [4] * 2
    assert (
        groups.adaptive is not None and groups.adaptive[:, 1].tolist() == [False] * 4 + [True] * 2
    )
    groups.check(torch.empty(21, 5))
    # By position as before.
    assert found.members == ([1, 3], [5, 9, 8], [0, 4, 7, 2])
    assert found.experts.tolist() == [1, 5, 5, 0, 0, 0]
    assert found.amateurs.tolist() == [3, 9, 8, 4, 7, 2]


@pytest.mark.parametrize("position", [0, 2, 4, 7])
def test_a_group_with_different_numbers_of_rows_gets_none(position: int) -> None:
    """More or fewer for any of its streams; nothing says which belong together."""
    for num in (1, 3):
        num_rows = list(NUM_ROWS)
        num_rows[position] = num
        found = of(MIXED, num_rows)
        assert found is not None and found.ids == ("one", "one", "one", "two")
        # It is told its tokens nevertheless, and the others' rows are theirs.
        assert found.members[2] == [0, 4, 7, 2]
        shift = (num - 2) * (position < 1)
        assert rows_of(found)[0] == [2 + shift, 7 + (num - 2) * (position in (0, 2)), -1, -1]


@pytest.mark.parametrize("num_rows", [None, NUM_ROWS], ids=["one each", "drafts"])
def test_the_experts_rows_are_scored(num_rows: Sequence[int] | None) -> None:
    found = of(MIXED, num_rows)
    assert found is not None
    before = 3 * torch.randn(21, 11, generator=torch.Generator().manual_seed(0))
    logits = before.clone()
    tally = found.score(logits)
    assert tally is not None
    figures = list(tally.figures())
    assert [name for name, _ in figures] == list(found.ids)
    left = set(range(21))
    for (expert, *amateurs), (name, figure) in zip(rows_of(found), figures, strict=True):
        rows = [expert, *(row for row in amateurs if row >= 0)]
        want = ASKED[name].scores(before[rows])
        torch.testing.assert_close(logits[expert].double(), want, rtol=1e-5, atol=1e-4)
        changed = int(logits[expert].argmax() != before[expert].argmax())
        assert figure == (int((want > -torch.inf).sum()), changed, 0)
        left.remove(expert)
    assert torch.equal(logits[sorted(left)], before[sorted(left)])


@pytest.mark.parametrize("expert", [0, 1])
def test_streams_behind_different_drafts_are_found_out(expert: int) -> None:
    """Whichever rows they are in, the first one too."""
    found = of([(expert, "one", 0), (1 - expert, "one", 1)])
    assert found is not None
    for drafts, same in (([5, 5], True), ([5, 6], False), ([-1, -1], True)):
        tally = found.score(torch.randn(2, 5), torch.tensor(drafts))
        assert tally is not None
        ((_, figures),) = tally.figures()
        assert (figures.nonfinite != OTHER_DRAFTS) is same
