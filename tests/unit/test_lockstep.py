# SPDX-License-Identifier: Apache-2.0
"""The rules of a pair, on their own: no vLLM, no scheduler."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_cold.group.lockstep import Pair, Room, Step, Verdict, tokens_left, torn

pytestmark = pytest.mark.unit


@dataclass
class Stream:
    request_id: str
    num_tokens: int
    num_computed_tokens: int = 0
    num_output_placeholders: int = 0


def make_pair(expert_left: int, amateur_left: int, total: int = 100) -> Pair[Stream]:
    return Pair(Stream("e", total, total - expert_left), Stream("a", total, total - amateur_left))


RUNNING = Room(running=True)


def test_both_finish_when_the_budget_holds_both() -> None:
    step: Step[Stream] = Step(budget=2)
    pair = make_pair(1, 1)
    assert step.clip_expert(pair, 1, 0, RUNNING, waiting=False) == 1
    assert step.clip_amateur(pair, 1, 0) == 1
    assert step.budget == 0


def test_neither_samples_when_the_budget_ends_between_them() -> None:
    step: Step[Stream] = Step(budget=1)
    pair = make_pair(1, 1)
    assert step.clip_expert(pair, 1, 0, RUNNING, waiting=False) == 0
    assert step.clip_amateur(pair, 1, 0) == 0
    assert step.clip_plain(1) == 1


def test_the_faster_stream_stops_one_token_short() -> None:
    step: Step[Stream] = Step(budget=64)
    pair = make_pair(3, 90)
    assert step.clip_expert(pair, 3, 0, RUNNING, waiting=False) == 2
    assert step.clip_amateur(pair, 62, 0) == 62
    step = Step(budget=64)
    pair = make_pair(90, 3)
    assert step.clip_expert(pair, 60, 0, RUNNING, waiting=False) == 60
    assert step.clip_amateur(pair, 3, 0) == 2


def test_the_limit_on_a_chunk_counts_for_the_amateur() -> None:
    step: Step[Stream] = Step(budget=64)
    assert step.clip_expert(make_pair(1, 20), 1, 0, Room(True, chunk=16), waiting=False) == 0
    step = Step(budget=64)
    assert step.clip_expert(make_pair(1, 16), 1, 0, Room(True, chunk=16), waiting=False) == 1


def test_admission_needs_room_for_both() -> None:
    pair = make_pair(50, 50, total=50)
    step: Step[Stream] = Step(budget=500)
    assert step.clip_expert(pair, 50, 0, Room(False, admissible=False), waiting=True) == 0
    assert not step.admits_amateur(pair, Room(False, admissible=False))
    step = Step(budget=20)
    assert step.clip_expert(pair, 20, 0, Room(False), waiting=True) == 19  # one for the amateur
    assert step.admits_amateur(pair, Room(False))


def test_cached_prompts_count_as_computed() -> None:
    pair = make_pair(50, 50, total=50)
    step: Step[Stream] = Step(budget=60)
    assert step.clip_expert(pair, 50, 0, Room(False, num_cached=48), waiting=True) == 50
    assert step.verdicts["e"] is Verdict.FINISH
    assert step.clip_amateur(pair, 2, 48) == 2


def test_a_passed_over_expert_takes_its_amateur_along() -> None:
    assert Step[Stream](budget=9).clip_amateur(make_pair(1, 1), 1, 0) == 0


def test_nobody_is_admitted_after_a_preemption() -> None:
    step: Step[Stream] = Step(budget=64, preempted=True)
    pair = make_pair(1, 30)
    assert step.clip_expert(pair, 1, 0, Room(False), waiting=False) == 0
    assert not step.admits_amateur(pair, Room(False))


def test_one_expert_at_most_waits_for_its_amateur() -> None:
    pair = make_pair(50, 1, total=50)  # the amateur's prompt is cached
    step: Step[Stream] = Step(budget=20)
    assert step.clip_expert(pair, 20, 0, Room(False, lonely=True), waiting=True) == 0
    step = Step(budget=20)
    assert step.clip_expert(pair, 20, 0, Room(False), waiting=True) == 20
    assert not step.admits_amateur(pair, Room(False))


def test_nobody_is_admitted_in_front_of_an_expert_without_room_for_its_amateur() -> None:
    step: Step[Stream] = Step(budget=20)
    assert step.may_admit(0)
    step.wanting = 1
    assert [step.may_admit(urgency) for urgency in (0, 1, 2)] == [True, False, False]


def test_a_preempted_stream_takes_its_pair_along() -> None:
    step: Step[Stream] = Step(budget=20)
    pair = make_pair(1, 1)
    assert step.clip_expert(pair, 1, 0, RUNNING, waiting=False) == 1
    step.preempt(pair)
    assert step.clip_expert(pair, 1, 0, RUNNING, waiting=False) == 0
    assert torn(pair, step, {})


@pytest.mark.parametrize(
    ("scheduled", "lost", "expected"),
    [
        ({"e": 1, "a": 1}, False, False),
        ({"e": 1}, False, True),
        ({"a": 1}, False, True),
        ({}, False, False),
        ({}, True, True),
    ],
)
def test_torn(scheduled: dict[str, int], lost: bool, expected: bool) -> None:
    step: Step[Stream] = Step(budget=9, lost={"e"} if lost else set())
    assert torn(make_pair(1, 1), step, scheduled) is expected


@given(
    budget=st.integers(0, 40),
    pairs=st.lists(
        st.tuples(
            st.integers(1, 30), st.integers(1, 30), st.booleans(), st.integers(0, 12), st.booleans()
        ),
        max_size=6,
    ),
    plain=st.lists(st.integers(1, 10), max_size=6),
)
def test_any_pass(
    budget: int, pairs: list[tuple[int, int, bool, int, bool]], plain: list[int]
) -> None:
    """Whatever comes: the budget holds and no pair is torn."""
    step: Step[Stream] = Step(budget=budget)
    given_out = 0
    everyone = []
    for number, (expert_left, amateur_left, running, chunk, other) in enumerate(pairs):
        if plain and given_out < budget:
            given_out += step.clip_plain(min(plain.pop(), budget - given_out))
        pair = make_pair(expert_left, amateur_left)
        pair.expert.request_id, pair.amateur.request_id = f"e{number}", f"a{number}"
        offer = min(expert_left, budget - given_out, chunk or expert_left)
        if offer == 0:
            continue  # vLLM asks for nobody then
        room = Room(running=running, admissible=other, chunk=chunk)
        scheduled = {pair.expert.request_id: 0, pair.amateur.request_id: 0}
        scheduled[pair.expert.request_id] = step.clip_expert(pair, offer, 0, room, waiting=False)
        given_out += scheduled[pair.expert.request_id]
        if running or step.admits_amateur(pair, room):
            offer = min(amateur_left, budget - given_out, chunk or amateur_left)
            granted = step.clip_amateur(pair, offer, 0) if offer > 0 else 0
            scheduled[pair.amateur.request_id] = granted
            given_out += granted
        everyone.append((pair, scheduled))
        assert 0 <= given_out <= budget
        assert step.budget == budget - given_out
    for pair, scheduled in everyone:
        assert not torn(pair, step, scheduled)
        assert all(
            n <= tokens_left(r)
            for n, r in zip(scheduled.values(), (pair.expert, pair.amateur), strict=True)
        )
