# SPDX-License-Identifier: Apache-2.0
"""Pause, sleep, wake-up, cache resets and adapters that are taken away, under running groups; and
what vLLM's statistics count in the meantime.

The workers of vLLM's CPU backend ignore sleep and wake-up, so no memory is given back here: what
is tested is all that the scheduler does for them.
"""

import asyncio
import random
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine import test_pressure
from tests.engine.conftest import free_blocks, lora, scheduler
from tests.engine.pressure import (
    Engines,
    Receiver,
    Result,
    add,
    assert_idle,
    drive,
    engines,
    preempted_pairs,
)

__all__ = ["engines"]

pytestmark = pytest.mark.engine


JOBS = [job for job in test_pressure.JOBS if job.is_greedy][:18]
SEEDED = [replace(j, options={**j.options, "temperature": 1.2, "seed": 4}) for j in JOBS]

PRESSURE: dict[str, Any] = {
    "async_scheduling": True,
    "num_gpu_blocks_override": 21,
    "disable_log_stats": False,
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


def test_sleep_can_abort(engines: Engines, tiny: Path) -> None:
    """mode="abort": everything ends at once, what comes meanwhile waits for the wake-up."""
    llm = engines.get(**PRESSURE)
    engine, before, receiver = llm.llm_engine, free_blocks(llm), Receiver()
    for steps in (0, 1, 2, 3, 7):
        ids = []
        for i, job in enumerate(JOBS):
            receiver.expect(f"{steps}-{i}", job)
            ids.append(add(llm, tiny, job, f"{steps}-{i}"))
        for _ in range(steps):
            receiver.take(engine.step())
        llm.sleep(level=steps % 2, mode="abort")
        assert not scheduler(llm).requests
        assert not scheduler(llm)._groups
        # In one process vLLM does not tell its own front end of these aborts.
        engine.abort_request(ids, internal=True)
        receiver.expect(f"{steps}-late", JOBS[0])
        add(llm, tiny, JOBS[0], f"{steps}-late")
        for _ in range(4):
            assert not engine.step()
        assert free_blocks(llm) == before
        assert scheduler(llm).get_request_counts() == (0, 1)
        llm.wake_up()
        while engine.has_unfinished_requests():
            receiver.take(engine.step())
        engines.check(JOBS, {0: receiver.results[f"{steps}-late"]})
        assert_idle(llm)


@pytest.mark.parametrize("kind", ["greedy", "seeded"])
def test_reset_of_the_prefix_cache(kind: str, engines: Engines, tiny: Path) -> None:
    """With running requests, at random moments, twice in a row too."""
    llm = engines.get(**PRESSURE)
    rng = random.Random(7)

    def reset(step: int) -> None:
        for _ in range(rng.choice((0, 0, 0, 0, 0, 1, 2))):
            assert llm.reset_prefix_cache(reset_running_requests=True)

    jobs = JOBS if kind == "greedy" else SEEDED
    with preempted_pairs(llm) as preempted:
        results = drive(llm, tiny, jobs, seed=3, disturb=reset)
    assert len(preempted) >= 20
    if kind == "seeded":
        # vLLM drops the token under way but keeps the generator that drew it, for every request
        # with a seed: the draws go on from there. The streams must still agree.
        for i, result in results.items():
            assert [c.finish_reason for c in result.completions.values()] == ["length"]
            assert len(result.tokens[0]) == jobs[i].options["max_tokens"]
    else:
        engines.check(jobs, results)


def test_adapters_are_removed_under_running_pairs(engines: Engines, tiny: Path) -> None:
    """vLLM loads an adapter again when a request needs it: the result stays right."""
    llm = engines.get(**PRESSURE)
    rng, removed = random.Random(8), []

    def remove(step: int) -> None:
        if step % 3 == 0:
            removed.append(llm.llm_engine.remove_lora(rng.choice((1, 2, 3))))

    results = drive(llm, tiny, JOBS, seed=4, abort=0.2, disturb=remove)
    assert sum(removed) >= 10
    engines.check(JOBS, results)


def test_statistics_count_a_request_once(engines: Engines, tiny: Path) -> None:
    """Running, waiting, preempted: in what vLLM's engine reports and in what the LLM class logs."""
    llm = engines.get(**PRESSURE)
    sched, manager = scheduler(llm), llm.llm_engine.logger_manager
    seen: list[tuple[int, int, int]] = []
    record = manager.record

    def look(*args: Any, **kwargs: Any) -> None:
        stats = kwargs["scheduler_stats"]
        record(*args, **kwargs)
        if stats is None:
            return
        clients = [r for r in sched.requests.values() if "-amateur-" not in r.request_id]
        # vLLM's counts are those before the outputs of this step end requests.
        running = sum(r.status.name == "RUNNING" for r in clients)
        waiting = stats.num_waiting_reqs + stats.num_skipped_waiting_reqs
        preempted = sum(r.status.name == "PREEMPTED" for r in clients)
        assert stats.num_running_reqs == running
        assert waiting == len(clients) - running
        assert stats.num_waiting_reqs >= 0
        seen.append((running, waiting, preempted))

    tokens, ended = counter(llm, "vllm:generation_tokens"), counter(llm, "vllm:request_success")
    manager.record = look
    try:
        with preempted_pairs(llm) as pairs:
            results = drive(llm, tiny, JOBS, seed=5, abort=0.2)
    finally:
        del manager.record
    for column in zip(*seen, strict=True):
        assert max(column) >= 1
    assert pairs
    assert seen[-1] == (0, 0, 0)
    engines.check(JOBS, results)
    survivors = sum(len(r.tokens[0]) for r in results.values())
    assert survivors <= counter(llm, "vllm:generation_tokens") - tokens
    assert counter(llm, "vllm:generation_tokens") - tokens <= sum(
        job.options["max_tokens"] for job in JOBS
    )
    assert len(results) <= counter(llm, "vllm:request_success") - ended <= len(JOBS)


def counter(llm: Any, name: str) -> int:
    """A counter of vLLM's metrics, which lives as long as the process."""
    return sum(m.value for m in llm.get_metrics() if m.name == name)


async def collect(outputs: AsyncGenerator[Any, None], into: Result) -> Result:
    async for output in outputs:
        into.add(output, is_delta=False)
    return into


def test_pause_generation(engines: Engines, tiny: Path) -> None:
    """AsyncLLM, in whose engine process "wait" can be used too: it lets running requests end and
    holds new ones back, "keep" freezes, "abort" ends, each with and without the caches' loss.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    options = engines.options | PRESSURE | {"async_scheduling": False}

    async def run() -> None:
        llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**options))
        try:
            for round_, (mode, clear) in enumerate(
                (mode, clear) for mode in ("keep", "wait", "abort") for clear in (False, True)
            ):
                results = [Result() for _ in JOBS]
                tasks = [
                    asyncio.create_task(
                        collect(
                            llm.generate(
                                job.asked(),
                                job.params(tiny),
                                f"{round_}-{i}",
                                lora_request=lora(tiny, job.group.expert),
                            ),
                            results[i],
                        )
                    )
                    for i, job in enumerate(JOBS)
                ]
                while sum(len(t) for r in results for t in r.tokens) < 30:
                    await asyncio.sleep(0.005)
                await llm.pause_generation(mode=mode, clear_cache=clear)
                assert await llm.is_paused()
                frozen = [r.tokens for r in results]
                late = asyncio.create_task(
                    collect(
                        llm.generate(
                            JOBS[0].asked(),
                            JOBS[0].params(tiny),
                            f"{round_}-late",
                            lora_request=lora(tiny, JOBS[0].group.expert),
                        ),
                        Result(),
                    )
                )
                await asyncio.sleep(0.1)
                assert [r.tokens for r in results] == frozen
                assert not late.done()
                if mode == "abort":
                    assert all(task.done() for task in tasks)
                await llm.resume_generation()
                everything = await asyncio.wait_for(asyncio.gather(*tasks, late), 120)
                engines.check([JOBS[0]], {0: everything.pop()})
                reasons = [r.completions[0].finish_reason for r in everything if r.completions]
                if mode == "abort":
                    assert "abort" in reasons
                else:
                    assert set(reasons) == {"length"}
                    engines.check(JOBS, dict(enumerate(everything)), mode)
        finally:
            llm.shutdown()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
        asyncio.run(run())
