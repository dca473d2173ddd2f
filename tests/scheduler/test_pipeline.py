# SPDX-License-Identifier: Apache-2.0
"""Pipeline parallelism, as far as the scheduler goes: several steps are in flight, and the stages
before the last one know sampled tokens from the scheduler alone.

With a model, ``tests/engine/test_scale_out.py`` runs the one kind of pipeline that vLLM's CPU
workers can run (docs/scale-out.md); these are the other kinds.
"""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.scheduler.harness import IS_0_23, Harness, Setup
from tests.scheduler.storm import random_request
from tests.scheduler.workers import Workers

pytestmark = [pytest.mark.unit, pytest.mark.slow]

needs_batch_queue = pytest.mark.skipif(
    IS_0_23, reason="vLLM 0.23's scheduler has no decode cadence, and no steps in flight when sync"
)


class FirstStage(Workers):
    """The first stage of the V1 runner without asynchronous scheduling: it samples nothing and
    appends what ``new_token_ids`` brings.
    """

    def _update(self, cached: Any) -> dict[str, int]:
        assert len(cached.new_token_ids) == len(cached.req_ids)
        # What the last stage does with num_output_tokens is not done here.
        known = {i: list(self.rows[i].tokens) for i in cached.req_ids}
        computed = super()._update(cached)
        for request_id, new in zip(cached.req_ids, cached.new_token_ids, strict=True):
            row, tokens = self.rows[request_id], known[request_id]
            count = computed[request_id] + len(new) - len(tokens)
            row.set_tokens(tokens + (list(new[-count:]) if count > 0 else []))
        return computed

    def _sample(self, *args: Any) -> dict[str, list[int]]:
        return {}


class Pipeline(Harness):
    """An engine of ``stages`` stages, driven as vLLM's core drives its batch queue."""

    def __init__(self, model: Path, stages: int, setup: Setup) -> None:
        super().__init__(model, setup)
        self.sched.use_pp = True
        self.first = None
        if setup.is_async:
            self.sched.pp_size = self.sched.decode_stagger = stages
        else:
            self.first = FirstStage(Setup(block_size=setup.block_size, max_loras=setup.max_loras))
            last = self.workers.execute

            def execute(output: Any) -> Any:
                assert self.first is not None
                self.first.execute(output)
                return last(output)

            self.workers.execute = execute  # type: ignore[method-assign]
        # VllmConfig.max_concurrent_batches
        self.depth = stages + 1 if setup.is_async else stages
        self.most_in_flight = 0

    def step(self, **how: Any) -> int:
        """``EngineCore.step_with_batch_queue``: results are waited for when the queue is full."""
        count = self.schedule(**how)
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
        if len(self.in_flight) >= self.depth:
            self.deliver()
        return count


def make_setup(rng: random.Random, is_async: bool) -> Setup:
    """An engine that is short of blocks, sequence slots or budget."""
    return Setup(
        num_blocks=rng.randint(13, 40),
        block_size=4,
        budget=rng.choice((4, 7, 16, 33)),
        max_num_seqs=rng.choice((4, 5, 8)),
        max_loras=3,  # see storm.random_setup
        is_async=is_async,
        v2=is_async,
        policy=rng.choice(("fcfs", "priority")),
        long_prefill=rng.choice((0, 0, 3)),
    )


@needs_batch_queue
@pytest.mark.parametrize("is_async", [False, True], ids=["sync-v1", "async-v2"])
@pytest.mark.parametrize("stages", [2, 4])
def test_storm(stages: int, is_async: bool, tiny: Path) -> None:
    """Arrivals, aborts and preemptions; every invariant of the harness in every step."""
    preemptions = steps = 0
    for seed in range(6):
        rng = random.Random(seed)
        harness = Pipeline(tiny / "model", stages, make_setup(rng, is_async))
        prefix = [rng.randrange(3, 500) for _ in range(harness.capacity_of(2))]
        while harness.steps < 150:
            if rng.random() < 0.3 and len(harness.sched.requests) < 24:
                harness.add(**random_request(rng, harness, prefix) | {"grammar": False})
            if rng.random() < 0.04 and (alive := harness.alive()):
                harness.abort(rng.sample(alive, 1))
            squeeze = rng.randint(1, 30) if rng.random() < 0.05 else 0
            harness.step(squeeze=squeeze * harness.may_squeeze())
        harness.drain()
        assert harness.most_in_flight == harness.depth
        preemptions += harness.group_preemptions
        steps += harness.steps
    assert steps >= 6 * 150
    assert preemptions > 5


@needs_batch_queue
@pytest.mark.parametrize("is_async", [False, True], ids=["sync-v1", "async-v2"])
@pytest.mark.parametrize("stages", [2, 4])
def test_the_pipeline_is_filled(stages: int, is_async: bool, tiny: Path) -> None:
    """As many pairs as stages, each in another step: one of them samples in every step, as regular
    requests do.
    """
    steps = {}
    for cold in (False, True):
        setup = Setup(num_blocks=257, budget=16, is_async=is_async, v2=is_async, max_num_seqs=16)
        harness = Pipeline(tiny / "model", stages, setup)
        for number in range(stages):
            # Prompts that fill a step: what follows in the pipeline is the next request's.
            length = 8 if cold else 16
            prompt = [number + 3, *range(100, 99 + length)]
            harness.add(prompt, 20, adapter=1, cold=cold)
        harness.drain()
        steps[cold] = harness.steps
    assert steps[True] <= steps[False] + stages
