# SPDX-License-Identifier: Apache-2.0
"""Whether drafts pay: the line through the steps' times, and who goes without."""

import random
from collections.abc import Iterable

import pytest

from vllm_cold.scheduler.drafting import AcceptanceStats, DraftController, Drafting

pytestmark = pytest.mark.unit


def engine_of(a: float, b: float) -> DraftController:
    """After steps of 2 to 18 rows that took ``a + b * rows``."""
    rng, engine = random.Random(1), DraftController()
    for _ in range(200):
        rows = rng.choice((2, 4, 10, 18))
        engine.add(rows, a + b * rows)
    return engine


@pytest.mark.parametrize(("a", "b"), [(0.02, 0.0), (0.02, 0.001), (0.0, 0.005)])
def test_how_many_drafts_must_be_right(a: float, b: float) -> None:
    """Alone, a token is a step's worth; of eight pairs an eighth of it."""
    engine = engine_of(a, b)
    assert engine.break_even(2, 1) == pytest.approx(b / (a + 2 * b), abs=1e-9)
    assert engine.break_even(16, 8) == pytest.approx(8 * b / (a + 16 * b), abs=1e-9)


def test_what_is_not_known() -> None:
    engine = DraftController()
    for _ in range(64):
        assert engine.break_even(2, 1) is None and engine.may_draft()
        engine.end_step([5, 5], 5)  # always as many, which nobody said had begun
    assert not engine.may_draft()  # two steps without, to see
    engine.end_step([], 5)
    assert not engine.may_draft()
    engine.add(2, 0.02)
    assert engine.may_draft()
    assert engine_of(-0.01, 0.006).break_even(1, 1) == 1.0  # by the line the step takes no time


def test_how_long_a_step_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """From when it was scheduled, or the one before it was over, to its results: of steps without
    prompts.
    """
    engine, now, times = DraftController(), [0.0], list[tuple[int, float]]()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(DraftController, "add", lambda _, *step: times.append(step))

    def happens(at: float, *tokens: int) -> None:
        now[0] = at
        engine.end_step(tokens, most=3) if tokens else engine.begin_step()

    happens(0.0)
    happens(5.0, 9, 1)  # a prompt
    happens(100.0)
    happens(101.0)  # a second one before the first one's results
    happens(103.0, 3, 1)
    happens(107.0, 3, 2)
    assert times == [(4, 3.0), (5, 4.0)] and engine.age == 3


def play(drafting: Drafting, right: Iterable[int], least: float, ahead: int = 0) -> list[int]:
    """The drafts of 4 that were verified in each step, of which so many are planned ahead of the
    results of the one before; ``right``: how many would be.
    """
    drafting.observe(0, 0, least)  # the prompt's step
    verified, planned = [], [4 * drafting.is_on for _ in range(ahead)]
    for accepted in right:
        planned.append(4 * drafting.is_on)
        verified.append(planned.pop(0))
        drafting.observe(verified[-1], min(accepted, verified[-1]), least)
    return verified


def test_drafts_that_pay_go_on() -> None:
    assert play(Drafting(), [2] * 100, 0.4) == [4] * 100
    assert play(Drafting(), [0] * 100, 0.0) == [4] * 100
    # Those of a seeded request in any case, or its tokens would depend on time.
    assert play(Drafting(seeded=True), [0] * 50, 0.9) == [4] * 50


@pytest.mark.parametrize("ahead", [0, 1], ids=["sync", "async"])
@pytest.mark.parametrize("least", [1.0, 0.3, 0.06])
def test_tries_cost_a_fixed_share(least: float, ahead: int) -> None:
    """A step with four wrong drafts costs ``4 * least`` steps more: 1.5 % of the time."""
    drafting = Drafting()
    play(drafting, [0] * 2000, least, ahead)
    verified = play(drafting, [0] * 40000, least, ahead)
    assert sum(verified) * least / len(verified) == pytest.approx(0.015, rel=0.05)
    # One that begins to copy drafts is found at its next try; with the load, tries get fewer.
    found = sum(map(bool, play(drafting, [4] * 1000, least)))
    assert found > 700 or least == 1
    play(drafting, [0] * 600, 1.0)
    assert 4 in play(drafting, [0] * 40, 0.06)


def test_requests_like_each_other_learn_together() -> None:
    """Of new ones each begins as the last ones did, and all together pay for their tries."""
    kind = AcceptanceStats()
    for _ in range(20):
        play(Drafting(kind), [0] * 20, 0.3)
    assert not kind.pays and Drafting(kind, seeded=True).is_on
    tries = [sum(map(bool, play(Drafting(kind), [0] * 20, 0.3))) for _ in range(400)]
    assert sum(tries) * 4 * 0.3 / (400 * 20) == pytest.approx(0.015, rel=0.1)
    for _ in range(60):
        play(Drafting(kind), [3] * 60, 0.3)
    assert play(Drafting(kind), [3], 0.3) == [4]


@pytest.mark.parametrize("right", [0.0, 0.9])
@pytest.mark.parametrize("pairs", [1, 4, 32])
@pytest.mark.parametrize(("offered", "length"), [(1.0, 40), (0.5, 40), (1.0, 200)])
def test_an_engine_at_steady_load(pairs: int, offered: float, right: float, length: int) -> None:
    """Pairs of so many steps, one after the other, drafts of 4 in all steps or in half of them:
    time a token against that without drafts, where rows cost much.
    """
    rng, draft_controller = random.Random(pairs), DraftController()
    a, b, tokens, seconds = 0.1, 0.006, 0, 0.0
    groups = [
        [Drafting(draft_controller.kinds["cold"]), rng.randrange(length)] for _ in range(pairs)
    ]
    for group in groups:
        group[0].observe(0, 0, None)
    for step in range(3000):
        may = draft_controller.may_draft()
        counts = [4 if may and g.is_on and rng.random() < offered else 0 for g, _ in groups]
        rows = 2 * (pairs + sum(counts))
        time = (a + b * rows) * rng.uniform(0.95, 1.05)
        draft_controller.age += 1  # as end_step counts
        draft_controller.add(rows, time)
        each = draft_controller.break_even(2 * pairs, pairs)
        for group, count in zip(groups, counts, strict=True):
            accepted = 0
            while accepted < count and rng.random() < right:
                accepted += 1
            group[0].observe(count, accepted, None if each is None else 2 * each)
            group[1] += 1
            if group[1] == length:
                group[:] = [Drafting(draft_controller.kinds["cold"]), 0]
                group[0].observe(0, 0, None if each is None else 2 * each)
            tokens += (1 + accepted) if step >= 500 else 0
        seconds += time if step >= 500 else 0.0
    without = (a + b * 2 * pairs) / pairs
    share = seconds / tokens / without
    # Of 32 pairs more than 79 % must be right, which is not quite so.
    assert share < (0.95 if right and pairs < 32 else 1.05), share
