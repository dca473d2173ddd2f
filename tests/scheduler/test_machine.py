# SPDX-License-Identifier: Apache-2.0
"""Hypothesis drives the real scheduler: whatever happens to an engine, in any order.

Engines and requests are those of storms, but Hypothesis draws them, so it finds the least that
fails. ``Harness`` checks every invariant after each call; at the end everything must finish with
the right tokens and leave nothing behind. ``--hypothesis-profile=fuzz`` looks further.
"""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import assume, note
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from vllm.v1.core.sched.interface import PauseState

from tests.scheduler.harness import IS_0_23, MAX_MODEL_LEN, Harness, Setup
from tests.scheduler.states import supported
from tests.scheduler.storm import (
    IMAGES,
    random_request,
    random_setup,
    random_states,
    with_connector,
    with_images,
)

pytestmark = [pytest.mark.unit, pytest.mark.slow]

# One prompt that many requests share a part of.
PREFIX = [3 + (i * i) % 400 for i in range(MAX_MODEL_LEN)]

ENGINES: list[Callable[[random.Random], Setup]] = [random_setup]
if not IS_0_23:
    ENGINES += [with_connector, lambda rng: with_images(rng, rng.choice([*IMAGES]))]
if supported():
    ENGINES += [partial(random_states, mode=mode) for mode in ("align", "none")]

DRAWN = st.randoms(use_true_random=False)


class Engine(RuleBasedStateMachine):
    """An engine's life, as its scheduler sees it."""

    model: ClassVar[Path]
    harness: Harness

    @initialize(setup_of=st.sampled_from(ENGINES), rng=DRAWN)
    def start(self, setup_of: Callable[[random.Random], Setup], rng: random.Random) -> None:
        setup = setup_of(rng)
        note(f"{setup}")
        harness = Harness(self.model, setup)
        assume(harness.capacity_of(2) >= 2)
        self.harness = harness

    @precondition(lambda self: len(self.harness.sched.requests) <= 16)
    @rule(rng=DRAWN, together=st.booleans())
    def add(self, rng: random.Random, together: bool) -> None:
        """``together``: as one of a body with many prompts."""
        request = random_request(rng, self.harness, PREFIX)
        note(f"{request}")
        arrival = float(len(self.harness.asked) // 4) if together else None
        self.harness.add(**request, arrival=arrival)

    @rule(count=st.integers(1, 12))
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
    @rule(rng=DRAWN, most=st.integers(1, 3))
    def abort(self, rng: random.Random, most: int) -> None:
        alive = self.harness.alive()
        self.harness.abort(rng.sample(alive, min(most, len(alive))))

    @rule()
    def abort_all(self) -> None:
        self.harness.abort(None)

    @precondition(lambda self: self.harness.may_reset())
    @rule(running=st.booleans())
    def reset(self, running: bool) -> None:
        self.harness.reset(running)

    @rule(state=st.sampled_from(PauseState))
    def pause(self, state: PauseState) -> None:
        self.harness.pause(state)

    @rule()
    def wait(self) -> None:
        self.harness.wait()

    @precondition(lambda self: self.harness.compiling())
    @rule(rng=DRAWN)
    def compiled(self, rng: random.Random) -> None:
        self.harness.compiled(rng.choice(self.harness.compiling()))

    def teardown(self) -> None:
        if hasattr(self, "harness"):
            self.harness.drain()


def test_machine(tiny: Path) -> None:
    Engine.model = tiny / "model"
    run_state_machine_as_test(Engine)
