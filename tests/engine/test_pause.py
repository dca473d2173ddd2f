# SPDX-License-Identifier: Apache-2.0
"""Sleep, wake-up and cache resets under running groups. (Other pauses, aborts and what statistics
count: ``tests/scheduler``.)

The workers of vLLM's CPU backend ignore sleep and wake-up, so no memory is given back here: what
is tested is all that the scheduler does for them.
"""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.engine import test_pressure
from tests.engine.conftest import scheduler
from tests.engine.pressure import (
    Engines,
    drive,
    engines,
    preempted_pairs,
)

__all__ = ["engines"]

pytestmark = pytest.mark.engine


JOBS = [job for job in test_pressure.JOBS if job.is_greedy][:18]

PRESSURE: dict[str, Any] = {
    "async_scheduling": True,
    "num_gpu_blocks_override": 21,
}


class Pauses:
    """Pauses the engine again and again for a few steps, in which nothing may come out."""

    def __init__(self, llm: Any, level: int) -> None:
        self._llm, self._level, self._rng = llm, level, random.Random(level)
        self._left = 0
        self._tokens = 0
        self.count = 0

    def _num_tokens(self) -> int:
        return sum(r.num_output_tokens for r in scheduler(self._llm).requests.values())

    def __call__(self, step: int) -> None:
        if self._left:
            assert self._llm.llm_engine.is_sleeping()
            # The step that was under way may still have come back in the first one.
            if self._left < 5:
                assert self._num_tokens() == self._tokens
            self._tokens = self._num_tokens()
            self._left -= 1
            if not self._left:
                self._llm.wake_up(tags=["scheduling"] if self._level == 0 else None)
                assert not self._llm.llm_engine.is_sleeping()
        elif self._rng.random() < 0.15:
            self._llm.sleep(level=self._level, mode="keep")
            self._left = 5
            self.count += 1


@pytest.mark.parametrize("level", [0, 1])
def test_sleep_and_wake_up(level: int, engines: Engines, tiny: Path) -> None:
    """mode="keep": the requests go on where they were. Level 1 takes their KV cache away."""
    llm = engines.get(**PRESSURE)
    pauses = Pauses(llm, level)
    with preempted_pairs(llm) as preempted:
        results = drive(llm, tiny, JOBS, seed=level, disturb=pauses)
    assert pauses.count >= 5
    assert len(preempted) >= (20 if level else 1)
    engines.check(JOBS, results)


def test_reset_of_the_prefix_cache(engines: Engines, tiny: Path) -> None:
    """With running requests, at random moments, twice in a row too."""
    llm = engines.get(**PRESSURE)
    rng = random.Random(7)

    def reset(step: int) -> None:
        for _ in range(rng.choice((0, 0, 0, 0, 0, 1, 2))):
            assert llm.reset_prefix_cache(reset_running_requests=True)

    with preempted_pairs(llm) as preempted:
        results = drive(llm, tiny, JOBS, seed=3, disturb=reset)
    assert len(preempted) >= 20
    engines.check(JOBS, results)
