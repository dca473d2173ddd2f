# SPDX-License-Identifier: Apache-2.0
"""From the streams of a batch to the tensors that the scoring op takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from tests.contrast import Contrast
from vllm_cold.group.rows import GroupRows

pytestmark = pytest.mark.unit

ONE = Contrast(alpha=0.5)
TWO = Contrast((1.5, -1.5), alpha=0.0)
THREE = Contrast((-1.0, 0.25, -3.0), (False, True, False), alpha=1.0, expert_top_k=4)
ASKED = {"one": ONE, "two": TWO, "three": THREE}


def of(streams: Sequence[tuple[int, str, int]]) -> GroupRows | None:
    """Of rows, with a group's name and an index each."""
    described = [(row, ASKED[name].stream(name, index)) for row, name, index in streams]
    return GroupRows.of(described, torch.device("cpu"))


# Rows in no order, the groups between each other.
MIXED = [
    (7, "three", 2), (3, "one", 1), (0, "three", 0), (9, "two", 1), (4, "three", 1),
    (5, "two", 0), (1, "one", 0), (8, "two", 2), (2, "three", 3),
]  # fmt: skip


def test_groups_of_different_sizes() -> None:
    found = of(MIXED)
    assert found is not None
    assert found.ids == ("one", "two", "three")  # as they become complete
    groups = found.groups
    assert groups.rows.tolist() == [[1, 3, -1, -1], [5, 9, 8, -1], [0, 4, 7, 2]]
    assert groups.weights.tolist() == [[-0.5, 0, 0], [1.5, -1.5, 0], [-1, 0.25, -3]]
    assert groups.log_alpha.tolist() == [pytest.approx(math.log(0.5)), -math.inf, 0.0]
    assert groups.expert_top_k is not None and groups.adaptive is not None
    assert groups.expert_top_k.tolist() == [0, 0, 4] and groups.max_expert_top_k == 4
    assert groups.adaptive.tolist() == [[False] * 3, [False] * 3, [False, True, False]]
    groups.check(torch.empty(10, 5))
    assert found.statistics().shape == (3, 3)


def test_what_no_group_has_is_left_out() -> None:
    found = of([stream for stream in MIXED if stream[1] != "three"])
    assert found is not None
    assert found.groups.rows.tolist() == [[1, 3, -1], [5, 9, 8]]
    assert found.groups.expert_top_k is None and found.groups.max_expert_top_k == 0
    assert found.groups.adaptive is None
    found.groups.check(torch.empty(10, 5))


@pytest.mark.parametrize("absent", range(4))
def test_a_group_without_one_of_its_streams(absent: int) -> None:
    found = of([stream for stream in MIXED if stream[1:] != ("three", absent)])
    assert found is not None and found.ids == ("one", "two")
    assert found.groups.rows.tolist() == [[1, 3, -1], [5, 9, 8]]
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
