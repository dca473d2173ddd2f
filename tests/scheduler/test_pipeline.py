# SPDX-License-Identifier: Apache-2.0
"""Pipeline parallelism, as far as the scheduler goes: several steps are in flight.

With a model, ``tests/engine/test_scale_out.py`` runs the one kind of pipeline that vLLM's CPU
workers can run (docs/scale-out.md); these are the other kinds.
"""

import random
from pathlib import Path

import pytest

from tests.scheduler.harness import IS_0_23, Harness, Setup
from tests.scheduler.storm import storms

pytestmark = [
    pytest.mark.unit,
    pytest.mark.slow,
    pytest.mark.skipif(
        IS_0_23,
        reason="vLLM 0.23's scheduler has no decode cadence, and no steps in flight when sync",
    ),
    pytest.mark.parametrize("is_async", [False, True], ids=["sync-v1", "async-v2"]),
    pytest.mark.parametrize("stages", [2, 4]),
]


def test_storm(stages: int, is_async: bool, tiny: Path) -> None:
    """Engines that are short of blocks, sequence slots or budget."""

    def setup_of(rng: random.Random) -> Setup:
        return Setup(
            num_blocks=rng.randint(13, 40),
            budget=rng.choice((4, 7, 16, 33)),
            max_num_seqs=rng.choice((4, 5, 8)),
            max_loras=3,  # see storm.random_setup
            is_async=is_async,
            v2=is_async,
            policy=rng.choice(("fcfs", "priority")),
            long_prefill=rng.choice((0, 0, 3)),
            stages=stages,
        )

    assert sum(h.group_preemptions for h in storms(tiny / "model", range(6), setup_of)) > 5


def test_the_pipeline_is_filled(stages: int, is_async: bool, tiny: Path) -> None:
    """As many pairs as stages, each in another step: one of them samples in every step, as regular
    requests do.
    """
    steps = {}
    for cold in (False, True):
        setup = Setup(
            num_blocks=257, is_async=is_async, v2=is_async, max_num_seqs=16, stages=stages
        )
        harness = Harness(tiny / "model", setup)
        for number in range(stages):
            # Prompts that fill a step: what follows in the pipeline is the next request's.
            length = 8 if cold else 16
            harness.add([number + 3, *range(100, 99 + length)], 20, adapter=1, cold=cold)
        harness.drain()
        steps[cold] = harness.steps
    assert steps[True] <= steps[False] + stages
