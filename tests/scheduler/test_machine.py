# SPDX-License-Identifier: Apache-2.0
"""Hypothesis drives the real scheduler: whatever happens to an engine, in any order.

``Harness`` checks every invariant after each call; at the end everything must finish with the
right tokens and leave nothing behind. ``--hypothesis-profile=fuzz`` looks further.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from vllm.v1.core.sched.interface import PauseState

from tests.scheduler.harness import MAX_MODEL_LEN, Harness, Setup
from tests.scheduler.storm import can_draft
from tests.scheduler.workers import FIRST_TOKEN, NUM_TOKENS

pytestmark = pytest.mark.unit

# One prompt that many requests share a part of, and what follows it.
PREFIX = [3 + (i * i) % 400 for i in range(MAX_MODEL_LEN)]


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    is_async = draw(st.booleans())
    v2 = draw(st.booleans())
    depth = draw(st.integers(1, 3 if v2 or not is_async else 2))
    drafts = draw(st.integers(0, 8)) if can_draft(is_async, depth) else 0
    slots = draw(st.sampled_from((0, 1, drafts))) if drafts else 0
    return Setup(
        num_blocks=draw(st.integers(8, 64)),
        block_size=draw(st.integers(1, 16)),
        # See storm.random_setup.
        budget=draw(st.integers(1, 64)) + drafts + 2 * slots,
        max_num_seqs=draw(st.integers(1, 8)),
        max_loras=draw(st.integers(1, 3)) if is_async or depth == 1 else 3,
        caching=draw(st.booleans()),
        is_async=is_async,
        policy=draw(st.sampled_from(("fcfs", "priority"))),
        long_prefill=draw(st.sampled_from((0, 0, 9, 12) if drafts else (0, 0, 3, 8))),
        v2=v2,
        drafts=drafts,
        right=draw(st.sampled_from((0.0, 0.5, 0.9, 1.0))),
        draft_slots=slots,
        lookahead=draw(st.sampled_from((0, drafts))),
        depth=depth,
    )


class Engine(RuleBasedStateMachine):
    """An engine's life, as its scheduler sees it."""

    model: ClassVar[Path]
    harness: Harness

    @initialize(setup=setups())
    def start(self, setup: Setup) -> None:
        self.harness = Harness(self.model, setup)
        # The most streams that a request may have; with less than two the engine is refused.
        of_budget = (setup.budget - setup.drafts) // (1 + setup.draft_slots)
        self.most_streams = min(of_budget, setup.max_num_seqs)
        self.takes_cold = self.most_streams >= 2

    def prompt(self, data: Any, most: int) -> list[int]:
        length = data.draw(st.integers(1, most - 1), label="prompt tokens")
        shared = data.draw(st.integers(0, length), label="of them shared")
        own = data.draw(st.integers(0, 2), label="continuation")
        return PREFIX[:shared] + [450 + own] * (length - shared)

    def add(self, data: Any, others: Sequence[int] = (0,), **rest: Any) -> None:
        """``others``: the adapters of amateurs."""
        harness = self.harness
        if len(harness.sched.requests) > 16:
            return
        most = harness.capacity_of(1 + len(others))
        if most < 2:
            return
        prompt = self.prompt(data, most)
        amateurs: list[tuple[int, list[int] | None]] = [
            (number, self.prompt(data, most) if data.draw(st.booleans()) else None)
            for number in others
        ]
        longest = max(len(own) for own in (prompt, *(own for _, own in amateurs)) if own)
        harness.add(
            prompt,
            data.draw(st.integers(1, most - longest), label="max_tokens"),
            amateurs=amateurs,
            priority=data.draw(st.integers(0, 2), label="priority"),
            stop=data.draw(
                st.none() | st.integers(FIRST_TOKEN, FIRST_TOKEN + NUM_TOKENS - 1), label="stop"
            ),
            grammar=data.draw(st.sampled_from((False, False, False, True)), label="grammar"),
            **rest,
        )

    @precondition(lambda self: self.takes_cold)
    @rule(data=st.data(), adapter=st.integers(1, 3), amateur=st.integers(0, 3))
    def add_cold(self, data: Any, adapter: int, amateur: int) -> None:
        allowed = amateur != adapter and self.harness.setup.max_loras > 1
        self.add(data, (amateur if allowed else 0,), cold=True, adapter=adapter)

    @precondition(lambda self: self.takes_cold)
    @rule(data=st.data(), adapter=st.integers(1, 3))
    def add_another_cold(self, data: Any, adapter: int) -> None:
        self.add(data, cold=True, adapter=adapter)

    @precondition(lambda self: self.takes_cold)
    @rule(data=st.data(), adapter=st.integers(0, 3), others=st.lists(st.booleans(), max_size=3))
    def add_group(self, data: Any, adapter: int, others: list[bool]) -> None:
        """Amateurs with the expert's adapter or none."""
        if len(others) < self.most_streams:
            amateurs = [adapter * same for same in others]
            self.add(data, amateurs or (0,), cold=True, adapter=adapter)

    @rule(data=st.data(), adapter=st.integers(0, 3))
    def add_plain(self, data: Any, adapter: int) -> None:
        self.add(data, adapter=adapter)

    @rule()
    def step(self) -> None:
        self.harness.step()

    @rule(count=st.integers(2, 12))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.harness.step()

    @precondition(lambda self: len(self.harness.in_flight) < self.harness.depth)
    @rule()
    def schedule_ahead(self) -> None:
        self.harness.schedule()

    @precondition(lambda self: self.harness.in_flight)
    @rule()
    def deliver(self) -> None:
        self.harness.deliver()

    @precondition(lambda self: self.harness.may_squeeze())
    @rule(blocks=st.integers(1, 64))
    def preempt(self, blocks: int) -> None:
        """Others take blocks, so that running requests are preempted."""
        self.harness.step(squeeze=blocks)

    # See storm.storm.
    @precondition(lambda self: self.harness.setup.max_loras >= 3)
    @rule()
    def throttle(self) -> None:
        self.harness.step(throttle=True)

    @precondition(lambda self: self.harness.alive())
    @rule(data=st.data())
    def abort(self, data: Any) -> None:
        alive = self.harness.alive()
        self.harness.abort(data.draw(st.lists(st.sampled_from(alive), min_size=1, unique=True)))

    @rule()
    def abort_all(self) -> None:
        self.harness.abort_all()

    @rule(running=st.booleans())
    def reset(self, running: bool) -> None:
        self.harness.reset(running)

    @rule(state=st.sampled_from([s for s in PauseState if s != PauseState.UNPAUSED]))
    def pause(self, state: PauseState) -> None:
        self.harness.pause(state)

    @precondition(lambda self: self.harness.paused != PauseState.UNPAUSED)
    @rule()
    def resume(self) -> None:
        self.harness.pause(PauseState.UNPAUSED)

    @precondition(lambda self: self.harness.compiling())
    @rule(data=st.data())
    def compiled(self, data: Any) -> None:
        self.harness.compiled(data.draw(st.sampled_from(self.harness.compiling())))

    def teardown(self) -> None:
        if hasattr(self, "harness"):
            self.harness.drain()


def test_machine(tiny: Path) -> None:
    Engine.model = tiny / "model"
    run_state_machine_as_test(Engine)
