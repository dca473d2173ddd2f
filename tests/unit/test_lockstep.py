# SPDX-License-Identifier: Apache-2.0
"""The rule of a group, on its own: no vLLM, no scheduler."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_cold.scheduler.drafting import AcceptanceStats
from vllm_cold.scheduler.lockstep import Group, Step, is_split, tokens_left

pytestmark = pytest.mark.unit


@dataclass(eq=False)
class Stream:
    request_id: str
    num_tokens: int
    num_computed_tokens: int = 0
    num_output_placeholders: int = 0
    spec_token_ids: list[int] = field(default_factory=list)


def make_group(*left: int, drafts: Sequence[int] = ()) -> Group:
    """The expert "0" and the amateurs "1", "2" and so on, with as many tokens left, and drafts."""
    counts = drafts or [0] * len(left)
    return Group(
        tuple(
            Stream(str(i), 100, 100 - n, spec_token_ids=list(range(k)))
            for i, (n, k) in enumerate(zip(left, counts, strict=True))
        )
    )


def play(
    step: Step,
    group: Group,
    admits: bool = False,
    fits: bool = True,
    order: Sequence[int] = (),
) -> list[int]:
    """What each stream gets in a pass, whose turns come in any order."""
    left = [tokens_left(stream) for stream in group.streams]
    step.decide(group, left, admits, fits)
    granted = [0] * len(left)
    for i in order or range(len(left)):
        offered = left[i] + len(group.streams[i].spec_token_ids)
        granted[i] = step.clip(
            group, group.streams[i], min(offered, step.chunk or offered), left[i]
        )
    return granted


@pytest.mark.parametrize(
    ("asked", "left", "how", "expected"),
    [
        # All sample, or each stops one token short.
        ({"budget": 2}, (1, 1), {}, [1, 1]),
        ({"budget": 1}, (1, 1), {}, [0, 0]),
        ({"budget": 93}, (3, 90), {}, [3, 90]),
        ({"budget": 92}, (3, 90), {}, [2, 89]),
        ({"budget": 64}, (3, 90), {}, [2, 62]),
        ({"budget": 64}, (3, 4), {"fits": False}, [2, 3]),
        # A chunk's limit is each stream's.
        ({"budget": 64, "chunk": 16}, (1, 16), {}, [1, 16]),
        ({"budget": 64, "chunk": 16}, (1, 20), {}, [0, 16]),
        # As many drafts as all have, as the budget, a chunk and the model's length hold.
        ({"budget": 64}, (1, 1, 1), {"drafts": (3, 5, 2)}, [3, 3, 3]),
        ({"budget": 8}, (1, 1, 1), {"drafts": (3, 5, 3)}, [2, 2, 2]),
        ({"budget": 64, "chunk": 8}, (1, 6), {"drafts": (5, 5)}, [3, 8]),
        ({"budget": 64, "longest": 103}, (1, 1), {"drafts": (5, 5)}, [3, 3]),
        ({"budget": 64}, (1, 90), {"drafts": (3, 3)}, [0, 64]),
        # Who is admitted verifies none, whatever is left of before it was preempted.
        ({"budget": 64}, (1, 1), {"drafts": (3, 3), "admits": True}, [1, 1]),
        # Where drafts that count as right fill the model's length, all wait to hear of them.
        ({"budget": 64, "longest": 101}, (1, 1), {}, [1, 1]),
        ({"budget": 64, "longest": 100}, (1, 1), {}, [0, 0]),
        # What a drafter adds counts for each stream.
        ({"budget": 6, "extra": 2}, (1, 1), {}, [1, 1]),
        ({"budget": 5, "extra": 2}, (1, 1), {}, [0, 0]),
        # vLLM admits a request at its last token with room for drafts that it has not, or not.
        ({"budget": 6, "padding": 4}, (1, 1), {"admits": True}, [1, 1]),
        ({"budget": 5, "padding": 4}, (1, 1), {"admits": True}, [0, 0]),
        ({"budget": 2, "padding": 4}, (1, 1), {}, [1, 1]),
    ],
    ids=str,
)
def test_a_pass(
    asked: dict[str, Any], left: Sequence[int], how: dict[str, Any], expected: list[int]
) -> None:
    group = make_group(*left, drafts=how.pop("drafts", ()))
    step = Step(**asked)
    assert play(step, group, **how) == expected
    assert step.budget == asked["budget"] - sum(n + step.extra for n in expected if n)


def test_nobody_takes_what_is_set_aside() -> None:
    step = Step(budget=10)
    group, other, regular = make_group(3, 4), make_group(2, 2), Stream("regular", 9)
    step.decide(group, [3, 4], False, True)
    step.decide(other, [2, 2], False, True)
    assert step.turns[group].goes and not step.turns[other].goes
    assert step.clip(None, regular, 9, 9) == 3
    assert [step.clip(other, each, 2, 2) for each in other.streams] == [0, 0]
    granted = [step.clip(group, s, 9, n) for s, n in zip(group.streams, (3, 4), strict=True)]
    assert granted == [3, 4] and step.budget == 0


def test_what_is_set_aside_for_a_group_that_is_preempted_is_others() -> None:
    step = Step(budget=10)
    group = make_group(3, 4)
    step.decide(group, [3, 4], False, True)
    assert step.budget == 3
    step.preempt(group)
    assert step.clip(None, Stream("regular", 9), 9, 9) == 9


def test_a_part_is_taken_of_what_is_not_all() -> None:
    """Whole blocks, where layers have SSM states."""
    step = Step(budget=64)
    group = make_group(35, 40)
    step.decide(group, [35, 40], False, False)
    got = [
        step.clip(group, s, 64, n, lambda n: n // 16 * 16)
        for s, n in zip(group.streams, (35, 40), strict=True)
    ]
    assert got == [32, 16 * 2] and step.budget == 0


def test_who_finds_less_than_was_found_gets_nothing() -> None:
    """Other streams' blocks pushed its own out of the prefix cache; or a stream was preempted."""
    step = Step(budget=64)
    group = make_group(3, 4)
    step.decide(group, [3, 4], True, True)
    assert step.clip(group, group.streams[0], 3, 3) == 3
    assert step.clip(group, group.streams[1], 20, 62) == 0
    assert is_split(group, {"0": 3})
    step.preempt(group)
    assert step.preempted and step.clip(group, group.streams[1], 4, 4) == 0
    step.begin(make_group(1))
    other = Step(budget=64)
    other.begin(group)
    assert not other.turns[group].is_lost and not other.turns[group].goes


def test_tokens_that_were_not_taken_are_others() -> None:
    """With what a drafter adds, where the request gets none at all."""
    step = Step(64, extra=2)
    for taken, left in ((10, 52), (4, 58), (0, 64)):
        step.budget = 52
        step.take_back(10, taken)
        assert step.budget == left
    step.take_back(0, 0)
    assert step.budget == 64


@pytest.mark.parametrize(
    ("of_group", "each"),
    [
        ({"possible": False}, 1),
        ({"_pays": False, "acceptance": AcceptanceStats(owed=1.0)}, 1),
        ({"_pays": False}, 4),  # a try
        ({}, 4),
    ],
)
def test_who_drafts(of_group: dict[str, Any], each: int) -> None:
    group = make_group(1, 1, drafts=(3, 3))
    for name, value in of_group.items():
        setattr(group.drafting, name, value)
    assert play(Step(budget=64), group) == [each, each]


@pytest.mark.parametrize("num", [2, 4])
def test_a_group_is_split_unless_all_sample_or_none(num: int) -> None:
    group = make_group(*[2] * num)
    names = [s.request_id for s in group.streams]
    for sampling in range(2**num):
        scheduled = {name: 2 if sampling >> i & 1 else i % 2 for i, name in enumerate(names)}
        assert is_split(group, scheduled) is (sampling not in (0, 2**num - 1))
    assert is_split(group, {}) is False
    assert is_split(make_group(1, 1), {"1": 1}) is True  # nothing scheduled is no row


@pytest.mark.parametrize("rows", [(3, 3), (1, 1), (3, 2), (1, 3), (0, 2)])
def test_streams_that_verify_different_drafts_are_split(rows: tuple[int, int]) -> None:
    """However many tokens they have left."""
    for left in ((1, 1), (4, 2)):
        scheduled = {str(i): n - 1 + k for i, (n, k) in enumerate(zip(left, rows, strict=True))}
        assert is_split(make_group(*left, drafts=(5, 5)), scheduled) is (rows[0] != rows[1])


@settings(max_examples=300)
@given(
    budget=st.integers(0, 120),
    groups=st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(1, 30), st.integers(0, 6)), min_size=2, max_size=5),
            st.booleans(),
            st.booleans(),
            st.randoms(use_true_random=False),
        ),
        max_size=6,
    ),
    extra=st.sampled_from([0, 0, 1, 3]),
    padding=st.sampled_from([0, 0, 2, 6]),
    chunk=st.sampled_from([0, 2, 3, 12]),
)
def test_any_pass(budget: int, groups: list[Any], extra: int, padding: int, chunk: int) -> None:
    """Whatever comes, in any order: the budget holds, and no group is split."""
    step = Step(budget, chunk, extra=extra, padding=padding)
    used = 0
    for streams, admits, fits, rng in groups:
        left, drafts = zip(*streams, strict=True)
        group = make_group(*left, drafts=drafts)
        order = rng.sample(range(len(left)), len(left))
        granted = play(step, group, admits, fits, order)
        used += sum(n + extra for n in granted if n)
        assert step.budget == budget - used >= 0
        names = [each.request_id for each in group.streams]
        assert not is_split(group, dict(zip(names, granted, strict=True)))
        assert all(n <= (chunk or n) for n in granted)
