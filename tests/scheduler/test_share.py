# SPDX-License-Identifier: Apache-2.0
"""The share of the sequence slots that contrastive requests may have: those beyond it wait among
themselves, and regular requests have the rest whatever they do.
"""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.scheduler.cases import prompt
from tests.scheduler.harness import Harness, Setup

pytestmark = pytest.mark.unit

both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
policies = pytest.mark.parametrize("policy", ["fcfs", "priority"])


def roomy(tiny: Path, slots: int, **options: Any) -> Harness:
    """Nothing is scarce but sequence slots."""
    how = {"num_blocks": 2000, "budget": 2000, "max_loras": 4, "max_num_seqs": slots, **options}
    return Harness(tiny / "model", Setup(**how))


def random_load(rng: random.Random, streams: int) -> list[tuple[int, dict[str, Any]]]:
    """What comes, in which step: contrastive requests of at most so many streams, far more than
    their share can have, and regular ones.
    """
    comes: list[tuple[int, dict[str, Any]]] = []
    for step in range(40):
        for _ in range(rng.choice((0, 0, 1, 3))):
            cold = rng.random() < 0.6
            request = {
                "prompt": [rng.randrange(3, 500) for _ in range(rng.randint(1, 30))],
                "max_tokens": rng.randint(1, 20),
                "adapter": 1 if cold else rng.choice((0, 1, 2)),
                "cold": cold,
            }
            if cold:
                others = rng.randint(1, min(streams - 1, 3))
                request["amateurs"] = [(0, prompt(5, 10 * n)) for n in range(others)]
            comes.append((step, request))
    return comes


def first_steps(harness: Harness, comes: list[tuple[int, dict[str, Any]]]) -> list[int]:
    """When the regular ones of these have their first token."""
    left, regular = list(comes), []
    while left or harness.alive():
        while left and left[0][0] <= harness.steps:
            request = left.pop(0)[1]
            name = harness.add(**request)
            regular += [name] * (not request["cold"])
        harness.step()
    harness.drain()
    return [harness.first_step[name] for name in regular]


@both
def test_no_regular_request_starts_later_than_with_the_rest_of_the_slots(
    is_async: bool, tiny: Path
) -> None:
    """Than in an engine of its own that has so many, to the step."""
    sooner = waited = 0
    for seed in range(3):
        rng = random.Random(seed)
        slots = rng.choice((5, 8))
        of_share = rng.randint(2, slots - 1)
        comes = random_load(rng, of_share)
        shared = roomy(tiny, slots, share=of_share / slots, is_async=is_async)
        alone = roomy(tiny, slots - of_share, is_async=is_async)
        here = first_steps(shared, comes)
        there = first_steps(alone, [each for each in comes if not each[1]["cold"]])
        assert all(mine <= other for mine, other in zip(here, there, strict=True)), seed
        sooner += sum(mine < other for mine, other in zip(here, there, strict=True))
        waited += sum(report.requests_waiting_for_share > 3 for report in shared.reports)
    assert sooner > 5 and waited > 10


@both
def test_who_waits_for_it_is_in_nobodys_way(is_async: bool, tiny: Path) -> None:
    """Regular requests overtake a group that has too little room. Groups beyond the share, of which
    more wait than a pass looks past, are not among those that it does.
    """
    harness = roomy(tiny, 8, share=0.5, is_async=is_async)
    harness.add(prompt(5, 200), 40, adapter=1, cold=True)
    for number in range(6):
        harness.add(prompt(4, 10 * number), 6 + 20 * (number > 0))
    harness.step()
    within = harness.add(prompt(5), 3, adapter=1, cold=True)
    beyond = [
        harness.add(prompt(5, 50 + number), 3, adapter=1, cold=True,
                    amateurs=[(0, None), (0, prompt(3))])
        for number in range(5)
    ]  # fmt: skip
    overtakes = harness.add(prompt(4, 90), 30)
    harness.drain()
    first = harness.first_step
    assert first[overtakes] == 7 + is_async < first[within] < min(first[name] for name in beyond)


@both
@policies
def test_those_beyond_it_wait_in_their_order(policy: str, is_async: bool, tiny: Path) -> None:
    """Also one that would fit, behind one that does not."""
    harness = roomy(tiny, 8, share=0.5, policy=policy, is_async=is_async)
    first = harness.add(prompt(5), 10, adapter=1, cold=True)
    large = harness.add(prompt(5), 4, adapter=1, cold=True, amateurs=[(0, None), (0, prompt(3)),
                        (0, prompt(4))])  # fmt: skip
    small = harness.add(prompt(5), 4, adapter=1, cold=True)
    regular = [harness.add(prompt(4, 10 * number), 3) for number in range(6)]
    harness.step()
    assert all(harness.first_step[name] == 1 for name in (first, *regular))
    harness.step()
    assert harness.sched._share.num_waiting() == 2
    assert harness.sched.get_request_counts() == (7, 2)
    harness.drain()
    assert harness.first_step[first] < harness.first_step[large] < harness.first_step[small]


@policies
def test_a_more_urgent_one_waits_for_it_too(policy: str, tiny: Path) -> None:
    """With priorities the most urgent of them is first."""
    harness = roomy(tiny, 6, share=0.34, policy=policy)
    names = [harness.add(prompt(5), 9, adapter=1, cold=True, priority=n) for n in (2, 2, 1, 0)]
    regular = harness.add(prompt(4), 3, priority=2)
    harness.step()
    assert harness.first_step[regular] == 1
    harness.drain()
    order = sorted(names, key=harness.first_step.__getitem__)
    wanted = {"fcfs": names, "priority": [names[n] for n in (3, 2, 0, 1)]}
    assert order == wanted[policy]


def test_within_the_share_they_are_in_line_with_regular_ones(tiny: Path) -> None:
    """A contrastive request that came first gets slots first."""
    harness = roomy(tiny, 4, share=0.5)
    for number, tokens in enumerate((6, 6, 8, 9)):
        harness.add(prompt(4, 10 * number), tokens)
    harness.step()
    cold = harness.add(prompt(5), 3, adapter=1, cold=True)
    after = harness.add(prompt(4, 90), 3)
    harness.drain()
    assert harness.first_step[cold] == 1 + 6  # both slots are free when the first two have ended
    assert harness.first_step[after] > harness.first_step[cold]


def test_a_preempted_one_has_its_share_again(tiny: Path) -> None:
    """It gives it back when it waits, and comes before those that waited for it."""
    harness = roomy(tiny, 6, share=0.34)
    first, second = (harness.add(prompt(5), 9, adapter=1, cold=True) for _ in range(2))
    for _ in range(4):
        harness.step()
    harness.reset(running=True)
    assert harness.sched._share.num_waiting() == 0
    harness.step()
    assert {request.request_id for request in harness.sched.running} == {
        first, f"{first}-amateur-1"
    }  # fmt: skip
    assert harness.sched._share.num_waiting() == 1
    harness.drain()
    # In the first's last step: it had 9 tokens to give, and the reset cost it a step at most.
    assert 9 < harness.first_step[second] <= 11


def test_an_expert_whose_amateurs_have_ended_still_counts(tiny: Path) -> None:
    harness = roomy(tiny, 6, share=0.5)
    names = [
        harness.add(prompt(5, n), 20, adapter=1, cold=True, lives=(2,), rule_keeps_state=True)
        for n in (1, 2, 3)
    ]
    while len(harness.got[names[0]]) < 6:
        harness.step()
    # The first is alone, the second has the other two slots, the third waits.
    assert names[1] in harness.first_step and names[2] not in harness.first_step
    assert harness.sched._share.num_waiting() == 1
    harness.drain()


def test_an_aborted_one_leaves_the_queue(tiny: Path) -> None:
    harness = roomy(tiny, 6, share=0.34)
    names = [harness.add(prompt(5), 9, adapter=1, cold=True) for _ in range(4)]
    harness.step()
    harness.abort(names[1:3])
    assert harness.sched._share.num_waiting() == 1
    harness.abort(names[:1])
    assert harness.sched._share.num_waiting() == 0
    harness.drain()
    assert harness.ended[names[3]] == "length"
