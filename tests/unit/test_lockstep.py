# SPDX-License-Identifier: Apache-2.0
"""The rules of a group, on their own: no vLLM, no scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_cold.group.lockstep import Capacity, Group, Step, Verdict, is_split, tokens_left

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


def missing(*num_cached: int, admissible: bool = True, other: bool = False) -> Capacity:
    """A follower for each number of cached tokens."""
    away = [True] * len(num_cached)
    return Capacity(num_cached, away, admissible, other_incomplete=other)


MISSING = missing(0)


def lead(
    step: Step[Stream], group: Group[Stream], offer: int, capacity: Capacity, waiting: bool = False
) -> int:
    return step.clip_leader(group, offer, 0, capacity, waiting)


def follow(
    step: Step[Stream],
    group: Group[Stream],
    offer: int,
    num_cached: int = 0,
    at: int = 0,
    waiting: bool = False,
) -> int:
    return step.clip_follower(group, group.followers[at], offer, num_cached, waiting)


# ---- one amateur ---------------------------------------------------------------------------------


def test_both_finish_when_the_budget_holds_both() -> None:
    step: Step[Stream] = Step(budget=2)
    group = make_group(1, 1)
    assert lead(step, group, 1, running()) == 1
    assert follow(step, group, 1) == 1
    assert step.budget == 0


def test_neither_samples_when_the_budget_ends_between_them() -> None:
    step: Step[Stream] = Step(budget=1)
    group = make_group(1, 1)
    assert lead(step, group, 1, running()) == 0
    assert follow(step, group, 1) == 0
    assert step.clip_plain(1) == 1


def test_the_faster_stream_stops_one_token_short() -> None:
    step: Step[Stream] = Step(budget=64)
    group = make_group(3, 90)
    assert lead(step, group, 3, running()) == 2
    assert follow(step, group, 62) == 62
    step = Step(budget=64)
    group = make_group(90, 3)
    assert lead(step, group, 60, running()) == 60
    assert follow(step, group, 3) == 2


def test_the_limit_on_a_chunk_counts_for_the_follower() -> None:
    step: Step[Stream] = Step(budget=64)
    assert lead(step, make_group(1, 20), 1, running(chunk=16)) == 0
    step = Step(budget=64)
    assert lead(step, make_group(1, 16), 1, running(chunk=16)) == 1


def test_admission_needs_room_for_both() -> None:
    group = fresh(50, 50)
    step: Step[Stream] = Step(budget=500)
    full = missing(0, admissible=False)
    assert lead(step, group, 50, full, waiting=True) == 0
    assert not step.admits(group, full)
    step = Step(budget=20)
    assert lead(step, group, 20, MISSING, waiting=True) == 19  # one for the follower
    assert step.admits(group, MISSING) == group.followers


def test_cached_prompts_count_as_computed() -> None:
    group = fresh(50, 50)
    step: Step[Stream] = Step(budget=60)
    assert lead(step, group, 50, missing(48), waiting=True) == 50
    assert group.turn.verdict is Verdict.FINISH
    assert follow(step, group, 2, 48, waiting=True) == 2


def test_a_passed_over_leader_takes_its_follower_along() -> None:
    assert follow(Step(budget=9), make_group(1, 1), 1) == 0


def test_nobody_is_admitted_after_a_preemption() -> None:
    step: Step[Stream] = Step(budget=64, preempted=True)
    group = make_group(1, 30)
    assert lead(step, group, 1, MISSING) == 0
    assert not step.admits(group, MISSING)


def test_one_leader_at_most_waits_for_its_follower() -> None:
    group = make_group(50, 1, total=50)  # the amateur's prompt is cached
    step: Step[Stream] = Step(budget=20)
    assert lead(step, group, 20, missing(0, other=True), waiting=True) == 0
    step = Step(budget=20)
    assert lead(step, group, 20, MISSING, waiting=True) == 20
    assert not step.admits(group, MISSING)


def test_nobody_is_admitted_in_front_of_a_leader_without_room_for_its_follower() -> None:
    step: Step[Stream] = Step(budget=20)
    assert step.may_admit(0)
    step.blocked_priority = 1
    assert [step.may_admit(priority) for priority in (0, 1, 2)] == [True, False, False]


def test_a_preempted_stream_takes_its_group_along() -> None:
    step: Step[Stream] = Step(budget=20)
    group = make_group(1, 1)
    assert lead(step, group, 1, running()) == 1
    step.preempt(group)
    assert lead(step, group, 1, running()) == 0
    assert follow(step, group, 1) == 0
    assert is_split(group, {})


@pytest.mark.parametrize(
    ("scheduled", "preempted", "expected"),
    [
        ({"0": 1, "1": 1}, False, False),
        ({"0": 1}, False, True),
        ({"1": 1}, False, True),
        ({}, False, False),
        ({}, True, True),
    ],
)
def test_is_split(scheduled: dict[str, int], preempted: bool, expected: bool) -> None:
    step: Step[Stream] = Step(budget=9)
    group = make_group(1, 1)
    if preempted:
        step.preempt(group)
    assert is_split(group, scheduled) is expected


# ---- several -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "leader", "followers"),
    [
        ((5, 5), "0", "1"),
        ((5, 6), "1", "0"),
        ((9, 5, 7), "0", "12"),
        ((5, 9, 9, 2), "1", "023"),
        ((5, 7, 2, 9), "3", "012"),
    ],
)
def test_the_longest_leads(sizes: Sequence[int], leader: str, followers: str) -> None:
    group = fresh(*sizes)
    assert group.leader.request_id == leader
    assert "".join(s.request_id for s in group.followers) == followers
    # The client knows the expert, whoever leads.
    assert group.request_id == group.expert.request_id == "0"
    assert group.amateurs == group.streams[1:]
    step: Step[Stream] = Step(budget=99)
    capacity = missing(*(0 for _ in followers))
    assert lead(step, group, max(sizes), capacity, waiting=True) == max(sizes)
    assert group.turn.verdict is Verdict.FINISH
    step.preempt(group)
    assert group.turn.preempted
    assert follow(step, group, 5, waiting=True) == 0


def test_all_sample_or_none() -> None:
    group = make_group(4, 1, 7, 2)
    step: Step[Stream] = Step(budget=14)
    assert lead(step, group, 4, running(3)) == 4
    assert [follow(step, group, n, at=at) for at, n in enumerate((1, 7, 2))] == [1, 7, 2]
    assert step.budget == 0
    # A token less, and each stops one short.
    step = Step(budget=13)
    assert lead(step, group, 4, running(3)) == 3
    assert [follow(step, group, n, at=at) for at, n in enumerate((1, 7, 2))] == [0, 6, 1]
    assert step.budget == 3


def test_a_leader_of_which_the_scheduler_offers_a_part_does_not_finish() -> None:
    step: Step[Stream] = Step(budget=99)
    group = make_group(9, 1, 1)
    assert lead(step, group, 8, running(2)) == 8
    assert [follow(step, group, 1, at=at) for at in (0, 1)] == [0, 0]


def test_the_limit_on_a_chunk_counts_for_each_follower() -> None:
    for at in range(3):
        left = [2, 2, 2]
        for left[at], verdict in ((16, Verdict.FINISH), (17, Verdict.HOLD)):
            step: Step[Stream] = Step(budget=64)
            group = make_group(2, *left)
            lead(step, group, 2, running(3, chunk=16))
            assert group.turn.verdict is verdict


@pytest.mark.parametrize(
    ("admissible", "preempted", "verdict", "admitted"),
    [
        (True, False, Verdict.FINISH, "2"),
        (False, False, Verdict.HOLD, ""),
        (True, True, Verdict.HOLD, ""),
    ],
)
def test_one_missing_follower_keeps_all_from_the_sampling_position(
    admissible: bool, preempted: bool, verdict: Verdict, admitted: str
) -> None:
    group = make_group(1, 1, 30, 1)
    step: Step[Stream] = Step(budget=64, preempted=preempted)
    capacity = Capacity([0, 0, 0], [False, True, False], admissible)
    lead(step, group, 1, capacity)
    assert group.turn.verdict is verdict
    assert "".join(s.request_id for s in step.admits(group, capacity)) == admitted
    assert step.reserved == 0


def test_cached_prompts_count_for_each_follower() -> None:
    group = fresh(50, 30, 20, 10)
    step: Step[Stream] = Step(budget=50 + 1 + 12 + 3)
    assert lead(step, group, 50, missing(29, 8, 7), waiting=True) == 50
    assert step.admits(group, missing(29, 8, 7)) == group.followers
    granted = [
        follow(step, group, left, cached, at, waiting=True)
        for at, (left, cached) in enumerate([(1, 29), (12, 8), (3, 7)])
    ]
    assert granted == [1, 12, 3] and step.budget == 0
    step = Step(budget=50 + 1 + 12 + 2)
    assert lead(step, group, 50, missing(29, 8, 7), waiting=True) == 49


def test_a_follower_that_finds_less_in_the_cache_than_was_promised_gets_nothing() -> None:
    group = fresh(50, 30, 20)
    step: Step[Stream] = Step(budget=64)
    assert lead(step, group, 50, missing(28, 10), waiting=True) == 50
    # The scheduler offers no more than the budget, of which 14 tokens are left.
    assert follow(step, group, 14, 0, waiting=True) == 0
    assert follow(step, group, 10, 10, at=1, waiting=True) == 10
    assert is_split(group, {"0": 50, "1": 0, "2": 20})


def test_each_follower_that_starts_has_a_token_kept() -> None:
    group = fresh(50, 40, 30, 20)
    step: Step[Stream] = Step(budget=20)
    assert lead(step, group, 20, missing(0, 0, 0), waiting=True) == 17
    assert step.admits(group, missing(0, 0, 0)) == group.followers
    assert step.reserved == 3
    # Each is offered the rest, and takes one.
    assert [follow(step, group, 3 - at, at=at, waiting=True) for at in range(3)] == [1, 1, 1]
    assert (step.budget, step.reserved) == (0, 0)


def test_the_first_that_starts_takes_what_is_not_kept() -> None:
    group = fresh(50, 40, 30)
    step: Step[Stream] = Step(budget=64)
    assert lead(step, group, 50, missing(0, 0), waiting=True) == 49
    assert step.admits(group, missing(0, 0)) == group.followers
    assert follow(step, group, 15, waiting=True) == 14
    assert follow(step, group, 1, at=1, waiting=True) == 1


def test_no_leader_starts_where_a_follower_cannot() -> None:
    step: Step[Stream] = Step(budget=3)
    assert lead(step, fresh(50, 40, 30, 20), 3, missing(0, 0, 0), waiting=True) == 0
    step = Step(budget=4)
    assert lead(step, fresh(50, 40, 30, 20), 4, missing(0, 0, 0), waiting=True) == 1


def test_nothing_is_kept_for_a_follower_at_its_last_token() -> None:
    group = fresh(50, 40, 30)
    capacity = missing(39, 0)
    step: Step[Stream] = Step(budget=20)
    assert lead(step, group, 20, capacity, waiting=True) == 19
    # It is admitted when all get to the last token.
    assert step.admits(group, capacity) == group.followers[1:]
    assert step.reserved == 1
    # Only one group's followers may be left behind so; it makes no difference to one that has none.
    step = Step(budget=20)
    assert lead(step, group, 20, missing(39, 0, other=True), waiting=True) == 0
    step = Step(budget=20)
    assert lead(step, group, 20, missing(38, 0, other=True), waiting=True) == 18


def test_a_running_follower_leaves_the_tokens_that_are_kept() -> None:
    """The leader and a follower run; two were preempted or are not admitted yet."""
    group = make_group(30, 40, 100, 100)
    capacity = Capacity([0, 0, 0], [False, True, True])
    step: Step[Stream] = Step(budget=50)
    assert lead(step, group, 30, capacity) == 29
    assert step.admits(group, capacity) == group.followers[1:]
    assert follow(step, group, 21) == 19
    assert step.reserved == 2
    assert follow(step, group, 2, at=1, waiting=True) == 1
    assert follow(step, group, 1, at=2, waiting=True) == 1
    assert step.budget == 0


def test_what_one_group_keeps_is_not_kept_from_the_next() -> None:
    """The first one's followers were not admitted after all (no block, no slot)."""
    first, second = fresh(50, 40), make_group(9, 9)
    step: Step[Stream] = Step(budget=20)
    assert lead(step, first, 10, MISSING, waiting=True) == 10
    step.admits(first, MISSING)
    assert step.reserved == 1
    second.streams[0].request_id = "other"
    assert lead(step, second, 8, running()) == 8
    assert follow(step, second, 2) == 2


@pytest.mark.parametrize("num", [3, 4])
def test_a_group_is_split_unless_all_sample_or_none(num: int) -> None:
    group = make_group(*[2] * num)
    names = [s.request_id for s in group.streams]
    for sampling in range(2**num):
        scheduled = {name: 2 if sampling >> i & 1 else i % 2 for i, name in enumerate(names)}
        split = sampling not in (0, 2**num - 1)
        assert is_split(group, scheduled) is split


# ---- drafts --------------------------------------------------------------------------------------


def grants(
    step: Step[Stream], group: Group[Stream], capacity: Capacity | None = None, most: int = 99
) -> list[int]:
    """What running streams get that are offered their drafts, too, as far as the budget goes."""

    def offer(stream: Stream) -> int:
        return min(tokens_left(stream) + len(stream.spec_token_ids), step.budget - step.extra, most)

    capacity = capacity or running(len(group.followers))
    granted = [lead(step, group, offer(group.leader), capacity)]
    for at, follower in enumerate(group.followers):
        n = offer(follower)
        granted.append(follow(step, group, n, at=at) if n > 0 else 0)
    return granted


def test_all_verify_as_many_drafts() -> None:
    for drafts, most in (((3, 5, 2), 2), ((2, 5, 9), 2), ((4, 4, 4), 4), ((3, 0, 3), 0)):
        step: Step[Stream] = Step(budget=64)
        group = make_group(1, 1, 1, drafts=drafts)
        assert grants(step, group) == [1 + most] * 3
        assert group.turn.drafts == most
        assert step.budget == 64 - 3 * (1 + most)
        assert not is_split(group, dict.fromkeys("012", 1 + most))


def test_drafts_come_behind_a_prompts_last_tokens() -> None:
    """After a preemption, say; the streams may have different numbers of tokens left."""
    step: Step[Stream] = Step(budget=64)
    group = make_group(7, 2, drafts=(3, 3))
    assert grants(step, group) == [10, 5]
    assert not is_split(group, {"0": 10, "1": 5})


@pytest.mark.parametrize(
    ("budget", "granted"),
    [(12, 4), (11, 3), (9, 3), (8, 2), (6, 2), (5, 1), (3, 1), (2, 0)],
)
def test_what_the_budget_holds_is_shared(budget: int, granted: int) -> None:
    """Three drafts for each of three streams; a budget between gives all the same."""
    step: Step[Stream] = Step(budget=budget)
    assert grants(step, make_group(1, 1, 1, drafts=(3, 3, 3))) == [granted] * 3
    assert step.budget == budget - 3 * granted


def test_drafts_leave_what_is_promised() -> None:
    step: Step[Stream] = Step(budget=12, promised=5)
    assert grants(step, make_group(1, 1, drafts=(9, 9))) == [3, 3]


def test_a_chunk_holds_drafts_too() -> None:
    """vLLM limits what it offers the leader, and would limit a follower in the same way."""
    for chunk, granted in ((16, [6, 6]), (6, [6, 6]), (4, [4, 4]), (2, [2, 2]), (1, [1, 1])):
        step: Step[Stream] = Step(budget=64)
        group = make_group(1, 1, drafts=(5, 5))
        assert grants(step, group, running(chunk=chunk), chunk) == granted
    # A follower with more tokens left has room for fewer.
    step = Step(budget=64)
    assert grants(step, make_group(1, 6, drafts=(5, 5)), running(chunk=8), 8) == [3, 8]


def test_what_the_scheduler_offers_is_not_exceeded() -> None:
    """vLLM offers the longest stream no position beyond the model's length."""
    step: Step[Stream] = Step(budget=64)
    group = make_group(1, 1, drafts=(5, 5))
    assert lead(step, group, 3, running()) == 3
    assert follow(step, group, 6) == 3


def test_a_follower_that_is_offered_fewer_gets_nothing() -> None:
    step: Step[Stream] = Step(budget=64)
    group = make_group(1, 1, drafts=(5, 5))
    assert lead(step, group, 6, running()) == 6
    assert follow(step, group, 5) == 0
    assert is_split(group, {"0": 6, "1": 0})


def test_with_a_missing_follower_nothing_is_verified() -> None:
    """Whatever the others have: one that was preempted has no drafts."""
    step: Step[Stream] = Step(budget=64)
    group = make_group(1, 1, 30, drafts=(3, 3, 0))
    capacity = Capacity([0, 0], [False, True])
    assert lead(step, group, 4, capacity) == 1
    assert step.admits(group, capacity) == group.followers[1:]
    assert follow(step, group, 4) == 1
    assert follow(step, group, 30, at=1, waiting=True) == 30
    assert group.turn.drafts == 0 and step.promised == 0


def test_a_group_that_does_not_draft() -> None:
    step: Step[Stream] = Step(budget=64)
    group = make_group(1, 1, drafts=(3, 3))
    group.drafting.possible = False
    assert grants(step, group) == [1, 1]
    step = Step(budget=64)
    group = make_group(1, 1, drafts=(3, 3))
    group.drafting.pause = 1
    assert grants(step, group) == [1, 1]
    step = Step(budget=64)
    group.drafting.pause = 0
    assert grants(step, group) == [4, 4]


def test_no_draft_is_verified_where_nothing_is_sampled() -> None:
    step: Step[Stream] = Step(budget=64)
    group = make_group(1, 90, drafts=(3, 3))
    assert lead(step, group, 4, running()) == 0
    assert follow(step, group, 60) == 60
    assert group.turn.verdict is Verdict.HOLD and group.turn.drafts == 0


def test_what_a_drafter_adds_counts_for_each_stream() -> None:
    step: Step[Stream] = Step(budget=2 * 3, extra=2)
    assert grants(step, make_group(1, 1)) == [1, 1]
    assert step.budget == 0
    step = Step(budget=2 * 3 - 1, extra=2)
    assert grants(step, make_group(1, 1)) == [0, 0]
    assert step.budget == 5, "nobody was scheduled"
    assert step.clip_plain(3) == 3 and step.budget == 0
    # Between: a draft for each wants two tokens more.
    for budget, granted in ((6, 1), (7, 1), (8, 2), (9, 2), (10, 3)):
        step = Step(budget=budget, extra=2)
        assert grants(step, make_group(1, 1, drafts=(9, 9))) == [granted, granted]


def test_what_a_drafter_adds_is_kept_for_followers() -> None:
    group = fresh(50, 40, 30)
    step: Step[Stream] = Step(budget=20, extra=2)
    assert lead(step, group, 18, missing(0, 0), waiting=True) == 12
    assert step.admits(group, missing(0, 0)) == group.followers
    assert follow(step, group, 4, waiting=True) == 1
    assert follow(step, group, 1, at=1, waiting=True) == 1
    assert step.budget == 0
    # With less nobody starts.
    step = Step(budget=8, extra=2)
    assert lead(step, group, 6, missing(0, 0), waiting=True) == 0
    # A running leader leaves two of them what it can, and no more are queued.
    step = Step(budget=7, extra=2)
    group = make_group(2, 40, 40, 40)
    capacity = missing(0, 0, 0)
    assert lead(step, group, 2, capacity) == 1
    assert step.admits(group, capacity) == group.followers[:1]


def test_what_is_promised_has_what_a_drafter_adds() -> None:
    step: Step[Stream] = Step(budget=9, extra=2)
    group = make_group(1, 1)
    capacity = Capacity([0], [True])
    assert lead(step, group, 1, capacity) == 1
    assert step.admits(group, capacity) == group.followers
    assert step.promised == 3
    other = make_group(9, 9)
    other.streams[0].request_id = "other"
    assert lead(step, other, 6, running()) == 1, "what is promised, and its own"
    assert follow(step, group, 1, waiting=True) == 1
    assert (step.promised, step.budget) == (0, 0)


def test_an_admission_leaves_room_for_padding() -> None:
    """vLLM admits a request at its last token with room for drafts that it has not, or not."""
    for budget, padding, verdict in (
        (6, 4, Verdict.FINISH), (5, 4, Verdict.HOLD), (5, 3, Verdict.FINISH), (2, 0, Verdict.FINISH)
    ):  # fmt: skip
        step: Step[Stream] = Step(budget=budget, padding=padding)
        group = make_group(1, 1)
        assert lead(step, group, 1, MISSING) == (verdict is Verdict.FINISH)
        assert group.turn.verdict is verdict
        if verdict is Verdict.FINISH:
            # What is offered for drafts is not taken.
            assert step.admits(group, MISSING) == group.followers
            assert follow(step, group, 1 + padding, waiting=True) == 1
    # Those that run need none.
    step = Step(budget=2, padding=4)
    assert grants(step, make_group(1, 1)) == [1, 1]


@pytest.mark.parametrize(
    ("rows", "split"),
    [((3, 3), False), ((1, 1), False), ((3, 2), True), ((1, 3), True), ((0, 2), True)],
)
def test_streams_that_verify_different_drafts_are_split(rows: tuple[int, int], split: bool) -> None:
    """However many tokens they have left. Nothing scheduled is no row."""
    for left in ((1, 1), (4, 2)):
        group = make_group(*left, drafts=(5, 5))
        scheduled = {
            str(i): n - 1 + k for i, (n, k) in enumerate(zip(left, rows, strict=True))
        }  # fmt: skip
        assert is_split(group, scheduled) is split


# ---- any -----------------------------------------------------------------------------------------

LEFT = st.integers(1, 4) | st.integers(1, 30)
DRAFTS = st.integers(0, 6)
GROUPS = st.tuples(
    # Of each stream, the tokens left, whether it does not run yet, and its drafts if it does.
    st.integers(2, 5).flatmap(lambda n: st.tuples(*[st.tuples(LEFT, st.booleans(), DRAFTS)] * n)),
    st.integers(0, 4),  # the leader
    st.sampled_from([0, 2, 3, 12]),  # chunk
    st.booleans(),  # admissible
    st.booleans(),  # whether the leader does not run yet, nor does anybody else
)


def rows_of(stream: Stream, scheduled: int) -> int:
    """Rows of logits of which vLLM's workers sample."""
    return max(scheduled - tokens_left(stream) + 1, 0) if scheduled else 0


@settings(max_examples=300)
@given(
    budget=st.integers(0, 40) | st.integers(40, 120),
    groups=st.lists(GROUPS, max_size=6),
    plain=st.lists(st.integers(1, 10), max_size=6),
    extra=st.sampled_from([0, 0, 1, 3]),
    padding=st.sampled_from([0, 0, 2, 6]),
    drafting=st.booleans(),
)
def test_any_pass(
    budget: int,
    groups: list[tuple[tuple[tuple[int, bool, int], ...], int, int, bool, bool]],
    plain: list[int],
    extra: int,
    padding: int,
    drafting: bool,
) -> None:
    """Whatever comes: the budget holds, no group is split, all verify as many drafts, and all that
    start start together.
    """
    step: Step[Stream] = Step(budget, extra, padding)
    used = 0

    def spare() -> int:
        return budget - used - extra

    everyone = []
    for number, (streams, longest, chunk, admissible, waiting) in enumerate(groups):
        if plain and spare() > 0:
            used += step.clip_plain(min(plain.pop(), spare())) + extra
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

        def offer(stream: Stream, starts: bool, limit: int = chunk) -> int:
            """vLLM's; 0 if it does not ask."""
            n = tokens_left(stream) + len(stream.spec_token_ids)
            if starts and n == 1 and padding:
                # Padded, or not asked for. (vLLM dies of a chunk that is smaller.)
                return 1 + padding if spare() > padding else 0
            return max(min(n, spare(), limit or n), 0)

        if offer(group.leader, waiting) == 0:
            continue  # vLLM asks for nobody then
        away = [f.request_id in absent for f in group.followers]
        capacity = Capacity([0] * len(away), away, admissible, chunk)
        scheduled = dict.fromkeys((s.request_id for s in group.streams), 0)
        granted = lead(step, group, offer(group.leader, waiting), capacity, waiting)
        scheduled[group.leader.request_id] = granted
        used += granted + extra * (granted > 0)
        admitted = step.admits(group, capacity) if granted or not waiting else ()
        # vLLM's order: those that run before those that start.
        asked = [f for f in group.followers if f.request_id not in absent]
        for follower in (*asked, *admitted):
            starts = follower in admitted
            n = offer(follower, starts)
            got = step.clip_follower(group, follower, n, 0, starts) if n else 0
            scheduled[follower.request_id] = got
            used += got + extra * (got > 0)
            if waiting:
                assert got > 0, "the leader is admitted, a follower that can start is not"
        everyone.append((group, scheduled))
        assert 0 <= used <= budget
        assert step.budget == budget - used
    for group, scheduled in everyone:
        assert not is_split(group, scheduled)
        rows = {rows_of(s, n) for s, n in zip(group.streams, scheduled.values(), strict=True)}
        assert len(rows) == 1
        most = min(len(s.spec_token_ids) for s in group.streams) if drafting else 0
        assert rows.pop() <= 1 + most


def test_any_pass_with_room_verifies_all_drafts() -> None:
    """Not fewer than there are without a reason."""
    for drafts in range(7):
        for num in (1, 2, 4):
            group = make_group(*[1] * (1 + num), drafts=[drafts] * (1 + num))
            step: Step[Stream] = Step((1 + num) * (1 + drafts + 2), 2, 6)
            assert grants(step, group) == [1 + drafts] * (1 + num)
