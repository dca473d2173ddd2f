# SPDX-License-Identifier: Apache-2.0
"""The rules of a group, on their own: no vLLM, no scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_cold.group.lockstep import Capacity, Group, Step, is_split, tokens_left

pytestmark = pytest.mark.unit


@dataclass
class Stream:
    request_id: str
    num_tokens: int
    num_computed_tokens: int = 0
    num_output_placeholders: int = 0
    spec_token_ids: list[int] = field(default_factory=list)


def make_group(*left: int, total: int = 100, drafts: Sequence[int] = ()) -> Group[Stream]:
    """The expert "0" and the amateurs "1", "2" and so on, with as many tokens left, and drafts."""
    counts = drafts or [0] * len(left)
    return Group(
        tuple(
            Stream(str(i), total, total - n, spec_token_ids=list(range(k)))
            for i, (n, k) in enumerate(zip(left, counts, strict=True))
        )
    )


def fresh(*sizes: int) -> Group[Stream]:
    """The same of prompts of these sizes, nothing of them computed."""
    return Group(tuple(Stream(str(i), size) for i, size in enumerate(sizes)))


def running(num: int = 1, chunk: int = 0) -> Capacity:
    return Capacity([0] * num, [False] * num, chunk=chunk)


def missing(
    *num_cached: int, admissible: bool = True, other: bool = False, can_finish: bool = True
) -> Capacity:
    """A follower for each number of cached tokens."""
    away = [True] * len(num_cached)
    return Capacity(num_cached, away, admissible, other_incomplete=other, can_finish=can_finish)


def play(
    step: Step[Stream],
    group: Group[Stream],
    capacity: Capacity,
    waiting: bool = False,
    block: int = 1,
) -> dict[str, int]:
    """What each stream gets in a pass in vLLM's order: the leader, followers that run, and those
    that start; each is offered what it can take, as far as the budget goes. With a state for each
    ``block`` tokens, what is less than all that it is offered is whole blocks, or within one.
    """

    def part(num_tokens: int) -> int:
        return num_tokens // block * block or num_tokens

    granted = dict.fromkeys((s.request_id for s in group.streams), 0)
    cached = dict(zip((f.request_id for f in group.followers), capacity.num_cached, strict=True))

    def offer(stream: Stream, starts: bool) -> int:
        """vLLM's; 0 if it does not ask."""
        n = tokens_left(stream, cached.get(stream.request_id, 0)) + len(stream.spec_token_ids)
        spare = step.budget - step.extra
        if starts and n == 1 and step.padding:
            # Padded, or not asked for. (vLLM dies of a chunk that is smaller.)
            return 1 + step.padding if spare > step.padding else 0
        return max(min(n, spare, capacity.chunk or n), 0)

    leader = group.leader.request_id
    if not (offered := offer(group.leader, waiting)):
        return granted
    granted[leader] = step.clip_leader(group, offered, 0, capacity, waiting, part)
    admitted = step.admits(group, capacity) if granted[leader] or not waiting else ()
    present = zip(group.followers, capacity.missing, strict=True)
    for follower in (*(f for f, away in present if not away), *admitted):
        starts, name = follower in admitted, follower.request_id
        if offered := offer(follower, starts):
            granted[name] = step.clip_follower(group, follower, offered, cached[name], starts, part)
        assert granted[name] or not (waiting and starts), "a follower that can start does not"
    return granted


def pair(*left: int, **capacity: Any) -> tuple[Group[Stream], Capacity, bool]:
    """A group that runs."""
    drafts = capacity.pop("drafts", ())
    away = capacity.pop("away", [False] * (len(left) - 1))
    found = Capacity([0] * len(away), away, **capacity)
    return make_group(*left, drafts=drafts), found, False


def start(*sizes: int, cached: Sequence[int] = (), **capacity: Any) -> Any:
    """A group that waits."""
    return fresh(*sizes), missing(*(cached or [0] * (len(sizes) - 1)), **capacity), True


# The pass, the group, and what each of its streams gets.
PASSES: list[tuple[dict[str, Any], Any, list[int]]] = [
    # All sample, or each stops one token short.
    ({"budget": 2}, pair(1, 1), [1, 1]),
    ({"budget": 1}, pair(1, 1), [0, 0]),
    ({"budget": 64}, pair(3, 90), [2, 62]),
    ({"budget": 64}, pair(90, 3, chunk=60), [60, 2]),
    ({"budget": 14}, pair(4, 1, 7, 2), [4, 1, 7, 2]),
    ({"budget": 13}, pair(4, 1, 7, 2), [3, 0, 6, 1]),
    # A chunk's limit is each stream's.
    ({"budget": 64}, pair(1, 20, chunk=16), [0, 16]),
    ({"budget": 64}, pair(1, 16, chunk=16), [1, 16]),
    ({"budget": 64}, pair(2, 2, 2, 16, chunk=16), [2, 2, 2, 16]),
    ({"budget": 64}, pair(2, 2, 2, 17, chunk=16), [1, 1, 1, 16]),
    # A leader starts with its followers or not at all; cached prompts count as computed.
    ({"budget": 500}, start(50, 50, admissible=False), [0, 0]),
    ({"budget": 20}, start(50, 50), [19, 1]),
    ({"budget": 60}, start(50, 50, cached=[48]), [50, 2]),
    ({"budget": 66}, start(50, 30, 20, 10, cached=[29, 8, 7]), [50, 1, 12, 3]),
    ({"budget": 65}, start(50, 30, 20, 10, cached=[29, 8, 7]), [49, 0, 11, 2]),
    # A token is kept for each that starts; the first one takes what is not kept.
    ({"budget": 20}, start(50, 40, 30, 20), [17, 1, 1, 1]),
    ({"budget": 64}, start(50, 40, 30), [49, 14, 1]),
    ({"budget": 3}, start(50, 40, 30, 20), [0, 0, 0, 0]),
    ({"budget": 4}, start(50, 40, 30, 20), [1, 1, 1, 1]),
    ({"budget": 50}, pair(30, 40, 100, 100, away=[False, True, True]), [29, 19, 1, 1]),
    # None for one at its last token, which is admitted when all get there. Only one group's
    # followers may be left behind so.
    ({"budget": 20}, start(50, 50, cached=[49]), [20, 0]),
    ({"budget": 20}, start(50, 50, cached=[49], other=True), [0, 0]),
    ({"budget": 20}, start(50, 40, 30, cached=[39, 0]), [19, 0, 1]),
    ({"budget": 20}, start(50, 40, 30, cached=[39, 0], other=True), [0, 0, 0]),
    ({"budget": 20}, start(50, 40, 30, cached=[38, 0], other=True), [18, 1, 1]),
    # One that is missing keeps all from the sampling position.
    ({"budget": 64}, pair(1, 1, 30, 1, away=[False, True, False]), [1, 1, 30, 1]),
    ({"budget": 64}, pair(1, 1, 30, 1, away=[False, True, False], admissible=False), [0] * 4),
    ({"budget": 64, "preempted": True}, pair(1, 1, 30, 1, away=[False, True, False]), [0] * 4),
    ({"budget": 64, "preempted": True}, pair(9, 30, away=[True]), [8, 0]),
    # As many drafts as all have, also behind a prompt's last tokens.
    ({"budget": 64}, pair(1, 1, 1, drafts=(3, 5, 2)), [3, 3, 3]),
    ({"budget": 64}, pair(1, 1, 1, drafts=(2, 5, 9)), [3, 3, 3]),
    ({"budget": 64}, pair(1, 1, 1, drafts=(3, 0, 3)), [1, 1, 1]),
    ({"budget": 64}, pair(7, 2, drafts=(3, 3)), [10, 5]),
    # What the budget holds is shared.
    *(
        ({"budget": budget}, pair(1, 1, 1, drafts=(3, 3, 3)), [each] * 3)
        for budget, each in ((12, 4), (11, 3), (9, 3), (8, 2), (6, 2), (5, 1), (3, 1), (2, 0))
    ),
    ({"budget": 12, "promised": 5}, pair(1, 1, drafts=(9, 9)), [3, 3]),
    # A chunk holds drafts too: a follower with more tokens left has room for fewer.
    *(
        ({"budget": 64}, pair(1, 1, drafts=(5, 5), chunk=chunk), [each] * 2)
        for chunk, each in ((16, 6), (6, 6), (4, 4), (1, 1))
    ),
    ({"budget": 64}, pair(1, 6, 1, drafts=(5, 5, 5), chunk=8), [3, 8, 3]),
    # None beside a follower that is missing (a preempted one has none), or where nobody samples.
    ({"budget": 64}, pair(1, 1, 30, drafts=(3, 3, 0), away=[False, True]), [1, 1, 30]),
    ({"budget": 64}, pair(1, 90, drafts=(3, 3)), [0, 64]),
    # What a drafter adds counts for each stream, and is kept for those that start.
    *(
        ({"budget": budget, "extra": 2}, pair(1, 1, drafts=(9, 9)), [each] * 2)
        for budget, each in ((5, 0), (6, 1), (7, 1), (8, 2), (9, 2), (10, 3))
    ),
    ({"budget": 20, "extra": 2}, start(50, 40, 30), [12, 1, 1]),
    ({"budget": 8, "extra": 2}, start(50, 40, 30), [0, 0, 0]),
    ({"budget": 7, "extra": 2}, pair(2, 40, 40, 40, away=[True] * 3), [1, 2, 0, 0]),
    # vLLM admits a request at its last token with room for drafts that it has not, or not at all.
    ({"budget": 6, "padding": 4}, pair(1, 1, away=[True]), [1, 1]),
    ({"budget": 5, "padding": 4}, pair(1, 1, away=[True]), [0, 0]),
    ({"budget": 2, "padding": 4}, pair(1, 1), [1, 1]),
    ({"budget": 7, "padding": 4}, pair(1, 1, 1, away=[False, True]), [1, 1, 1]),
    ({"budget": 6, "padding": 4}, pair(1, 1, 1, away=[False, True]), [0, 0, 0]),
    # And a follower may get there by what its leader computes.
    ({"budget": 20, "padding": 4}, start(50, 50, other=True), [15, 5]),
    # Where a follower's prompt has to be split for its states, nobody samples.
    ({"budget": 64}, pair(1, 9, 1, can_finish=False), [0, 8, 0]),
    ({"budget": 64}, pair(1, 1, 9, away=[False, True], can_finish=False), [0, 0, 8]),
    ({"budget": 64}, start(9, 9, can_finish=False), [8, 8]),
    ({"budget": 64}, start(9, 9, cached=[8], can_finish=False), [8, 0]),
]


@pytest.mark.parametrize(("asked", "case", "expected"), PASSES)
def test_a_pass(asked: dict[str, Any], case: Any, expected: list[int]) -> None:
    step: Step[Stream] = Step(**asked)
    group, capacity, waiting = case
    granted = play(step, group, capacity, waiting)
    assert list(granted.values()) == expected
    used = sum(expected) + step.extra * sum(n > 0 for n in expected)
    assert step.budget == asked["budget"] - used
    assert step.reserved == 0 and step.promised == asked.get("promised", 0)


def test_followers_get_nothing_without_their_leader() -> None:
    """One that was passed over, or preempted when it had its tokens."""
    group, capacity, waiting = pair(1, 1)
    step: Step[Stream] = Step(64)
    assert step.clip_follower(group, group.followers[0], 1, 0, waiting) == 0 and step.budget == 64
    assert step.clip_leader(group, 1, 0, capacity, waiting) == 1
    step.preempt(group)
    assert step.clip_follower(group, group.followers[0], 1, 0, waiting) == 0 and step.budget == 63


def test_tokens_that_were_not_taken_are_others() -> None:
    """With what a drafter adds, where the request gets none at all."""
    step: Step[Stream] = Step(64, extra=2)
    assert (step.clip_plain(10), step.budget) == (10, 52)
    for taken, left in ((10, 52), (4, 58), (0, 64)):
        step.budget = 52
        step.take_back(10, taken)
        assert step.budget == left
    step.take_back(0, 0)
    assert step.budget == 64


@pytest.mark.parametrize(
    ("budget", "case", "expected"),
    [
        # Less than a stream is offered: whole blocks; without any, within the block.
        (20, start(50, 50), [16, 4]),
        (33, start(50, 50), [32, 1]),
        (10, start(50, 50), [9, 1]),
        (66, start(50, 40, 30), [48, 16, 2]),
        (64, pair(3, 90), [2, 62]),
        (70, pair(90, 90, 3), [70, 0, 0]),
        # One short of the last token, too.
        (200, pair(34, 35, 20, can_finish=False), [32, 32, 16]),
        (200, pair(34, 35, 15, can_finish=False), [32, 32, 14]),
        # All that is left is all that is left.
        (200, pair(34, 35, 15), [34, 35, 15]),
        (48, start(50, 30, cached=[10]), [32, 16]),
    ],
)
def test_a_pass_with_states(budget: int, case: Any, expected: list[int]) -> None:
    step: Step[Stream] = Step(budget)
    group, capacity, waiting = case
    assert list(play(step, group, capacity, waiting, block=16).values()) == expected
    assert step.budget == budget - sum(expected)


@pytest.mark.parametrize(
    ("sizes", "leader", "followers"),
    [((5, 5), "0", "1"), ((5, 6), "1", "0"), ((5, 9, 9, 2), "1", "023"), ((5, 2, 9), "2", "01")],
)
def test_the_longest_leads(sizes: Sequence[int], leader: str, followers: str) -> None:
    group = fresh(*sizes)
    assert group.leader.request_id == leader
    assert "".join(s.request_id for s in group.followers) == followers
    # The client knows the expert, whoever leads.
    assert group.request_id == group.expert.request_id == "0"
    assert group.amateurs == group.streams[1:]


def test_nobody_is_admitted_in_front_of_a_leader_without_room_for_its_follower() -> None:
    step: Step[Stream] = Step(budget=20)
    assert step.may_admit(0)
    for priority in (3, 1, 2):
        step.block(priority)
    assert [step.may_admit(priority) for priority in (0, 1, 2)] == [True, False, False]


def test_what_the_scheduler_offers_is_not_exceeded() -> None:
    """It offers the longest stream no position beyond the model's length; and a follower that is
    offered less than that, or finds less in the cache than was promised, gets nothing.
    """
    for offers, granted in (((3, 6), [3, 3]), ((6, 5), [6, 0])):
        step: Step[Stream] = Step(budget=64)
        group = make_group(1, 1, drafts=(5, 5))
        got = [step.clip_leader(group, offers[0], 0, running(), False)]
        got.append(step.clip_follower(group, group.followers[0], offers[1], 0, False))
        assert got == granted
        assert is_split(group, {"0": got[0], "1": got[1]}) == (got[1] == 0)
    group, step = fresh(50, 30, 20), Step(budget=64)
    assert step.clip_leader(group, 50, 0, missing(28, 10), True) == 50
    assert step.clip_follower(group, group.followers[0], 14, 0, True) == 0
    assert step.clip_follower(group, group.followers[1], 10, 10, True) == 10


def test_what_one_group_keeps_is_not_kept_from_the_next() -> None:
    """The first one's followers were not admitted after all (no block, no slot)."""
    first, second = fresh(50, 40), make_group(8, 2)
    step: Step[Stream] = Step(budget=20)
    assert step.clip_leader(first, 10, 0, missing(0), True) == 10
    step.admits(first, missing(0))
    assert step.reserved == 1
    assert play(step, second, running()) == {"0": 8, "1": 2}


def test_what_is_promised_has_what_a_drafter_adds() -> None:
    step: Step[Stream] = Step(budget=9, extra=2)
    group = make_group(1, 1)
    assert step.clip_leader(group, 1, 0, missing(0), False) == 1
    assert step.admits(group, missing(0)) == group.followers
    assert step.promised == 3
    assert step.clip_leader(make_group(9, 9), 6, 0, running(), False) == 1
    assert step.clip_follower(group, group.followers[0], 1, 0, True) == 1
    assert (step.promised, step.budget) == (0, 0)


@pytest.mark.parametrize(
    ("drafting", "of_group", "each"),
    [
        (True, {"possible": False}, 1),
        (True, {"pause": 1}, 1),
        (True, {}, 4),
        (False, {}, 1),
        (False, {"seeded": True}, 4),  # its tokens must not depend on time
    ],
)
def test_who_drafts(drafting: bool, of_group: dict[str, Any], each: int) -> None:
    group = make_group(1, 1, drafts=(3, 3))
    for name, value in of_group.items():
        setattr(group.drafting, name, value)
    step: Step[Stream] = Step(budget=64, drafting=drafting)
    assert play(step, group, running()) == {"0": each, "1": each}


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


LEFT = st.integers(1, 4) | st.integers(1, 30)
DRAFTS = st.integers(0, 6)
GROUPS = st.tuples(
    # Of each stream, the tokens left, whether it does not run yet, and its drafts if it does.
    st.integers(2, 5).flatmap(lambda n: st.tuples(*[st.tuples(LEFT, st.booleans(), DRAFTS)] * n)),
    st.integers(0, 4),  # the leader
    st.sampled_from([0, 2, 3, 12]),  # chunk
    st.booleans(),  # admissible
    st.booleans(),  # can_finish
    st.booleans(),  # whether the leader does not run yet, nor does anybody else
)


@settings(max_examples=300)
@given(
    budget=st.integers(0, 40) | st.integers(40, 120),
    groups=st.lists(GROUPS, max_size=6),
    plain=st.lists(st.integers(1, 10), max_size=6),
    extra=st.sampled_from([0, 0, 1, 3]),
    padding=st.sampled_from([0, 0, 2, 6]),
    drafting=st.booleans(),
    block=st.sampled_from([1, 1, 4, 16]),
)
def test_any_pass(
    budget: int,
    groups: list[tuple[tuple[tuple[int, bool, int], ...], int, int, bool, bool, bool]],
    plain: list[int],
    extra: int,
    padding: int,
    drafting: bool,
    block: int,
) -> None:
    """Whatever comes: the budget holds, no group is split, all verify as many drafts, and all that
    start start together.
    """
    step: Step[Stream] = Step(budget, extra, padding)
    used = 0
    everyone = []
    for number, (streams, longest, chunk, *can, waiting) in enumerate(groups):
        if plain and (spare := budget - used - extra) > 0:
            used += step.clip_plain(min(plain.pop(), spare)) + extra
        sizes = [100 + (i == longest) for i in range(len(streams))]
        group = Group(
            tuple(
                Stream(f"{i}of{number}", size, size - n)
                for i, (size, (n, _, _)) in enumerate(zip(sizes, streams, strict=True))
            )
        )
        group.drafting.possible = drafting
        absent = set()
        for stream, (_, away, drafts) in zip(group.streams, streams, strict=True):
            if away or waiting:
                absent.add(stream.request_id)
            else:
                stream.spec_token_ids = [-1] * drafts
        away = [f.request_id in absent for f in group.followers]
        admissible, can_finish = can
        capacity = Capacity([0] * len(away), away, admissible, chunk, can_finish=can_finish)
        scheduled = play(step, group, capacity, waiting, block)
        used += sum(n + extra * (n > 0) for n in scheduled.values())
        everyone.append((group, scheduled))
        assert 0 <= used <= budget
        assert step.budget == budget - used
    for group, scheduled in everyone:
        assert not is_split(group, scheduled)
        rows = {
            max(n - tokens_left(s) + 1, 0) if n else 0
            for s, n in zip(group.streams, scheduled.values(), strict=True)
        }
        assert len(rows) == 1
        most = min(len(s.spec_token_ids) for s in group.streams) if drafting else 0
        assert rows.pop() <= 1 + most
