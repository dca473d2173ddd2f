# SPDX-License-Identifier: Apache-2.0
"""What pairs cost in the scheduler: its own time per decoding step, without a model.

``python -m benchmarks.bench_scheduler [--pairs 64] [--waiting 2000] [--policy priority] ...``. Real
scheduler classes decode made-up tokens: vLLM's own with twice as many plain requests as there are
pairs, CoLD's with pairs, and with plain requests. A step's time is the CPU time of ``schedule()``
and ``update_from_output()``; the step that admits all of them is timed by itself, with others
that go on waiting behind them. All systems run in each round, in an order that is shuffled anew,
and are compared within the round.

Ratios are printed only if every step of every system gave every request exactly one token.
"""

import argparse
import gc
import logging
import os
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rounds import in_rounds, positive, ratios, show_if_right, spread_text, table

PROMPT, WARM_UP = 16, 20
STOCK = "stock vLLM, plain requests"


class WrongError(Exception):
    """A step that did not give every sequence one token."""


@dataclass
class System:
    """A scheduler class with its load.

    Attributes:
        name: As printed.
        classes: Synchronous and asynchronous scheduler class.
        pairs: Whether its requests are CoLD requests.
        rows: Sequences that run, two for a CoLD request.
        seconds: CPU time per step, one value for each round.
        admitting: CPU time of the step that admits all, likewise.
    """

    name: str
    classes: Sequence[type]
    pairs: bool
    rows: int
    seconds: list[float] = field(default_factory=list)
    admitting: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Load:
    """What all systems have to do.

    Attributes:
        steps: That are timed.
        waiting: Requests that wait behind those that run.
        policy: vLLM's scheduling policy.
    """

    steps: int
    waiting: int = 0
    policy: str = "fcfs"


def make_systems(rows: int) -> list[System]:
    """What is compared; the first is what the others are compared with."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    from vllm_cold.vllm.scheduler.scheduler import ColdAsyncScheduler, ColdScheduler

    ours = (ColdScheduler, ColdAsyncScheduler)
    return [
        System(STOCK, (Scheduler, AsyncScheduler), False, rows),
        System("CoLD's, plain requests", ours, False, rows),
        System("CoLD's, pairs", ours, True, rows),
    ]


def decode(model: Path, system: System, load: Load, is_async: bool) -> tuple[float, float]:
    """CPU seconds per decoding step, and of the step that admits all.

    Raises:
        WrongError: a step did not give every sequence one token.
    """
    from vllm.v1.outputs import ModelRunnerOutput

    from tests.scheduler.harness import Asked, Setup, make_hasher, make_request, make_scheduler
    from vllm_cold.group.step_stats import StepStats

    total = PROMPT + WARM_UP + load.steps + 2
    setup = Setup(
        num_blocks=1 + system.rows * -(-total // 16),
        block_size=16,
        budget=system.rows * PROMPT,
        max_num_seqs=system.rows,
        max_model_len=total,
        is_async=is_async,
        policy=load.policy,
    )
    scheduler: Any = make_scheduler(model, setup, system.classes)
    hasher = make_hasher(setup.block_size)
    pairs: list[str] = []
    running = system.rows // 2 if system.pairs else system.rows
    for number in range(running + load.waiting):
        prompt = [3 + number % 200] * PROMPT
        waits = number >= running
        cold = system.pairs and not waits
        tokens = load.steps + WARM_UP + 2
        asked = Asked(prompt, tokens, adapter=1, cold=cold, priority=int(waits))
        request = make_request(f"r{number}", asked, hasher, float(number))
        scheduler.add_request(request)
        if cold:
            pairs.append(scheduler._group_id(request))
    figures = [[10] * len(pairs), [0] * len(pairs), [0] * len(pairs)]
    in_flight: deque[tuple[Any, Any]] = deque()
    seconds = admitting = 0.0
    gc.collect()
    gc.disable()
    try:
        for step in range(WARM_UP + load.steps):
            started = time.process_time()
            output = scheduler.schedule()
            spent = time.process_time() - started
            ids = list(output.num_scheduled_tokens)
            expected = system.rows * (PROMPT if step == 0 else 1)
            if len(ids) != system.rows or output.total_num_scheduled_tokens != expected:
                raise WrongError(f"{system.name}: step {step} left requests out")
            admitting = admitting if step else spent
            result = ModelRunnerOutput(
                req_ids=ids,
                req_id_to_index={r: i for i, r in enumerate(ids)},
                sampled_token_ids=[[7] for _ in ids],
                logprobs=None,
                prompt_logprobs_dict={},
                pooler_output=[],
            )
            if pairs:  # what the worker tells of each
                result.cold = [StepStats(tuple(pairs), figures, (1,) * len(pairs))]
            in_flight.append((output, result))
            if len(in_flight) > is_async:
                started = time.process_time()
                scheduler.update_from_output(*in_flight.popleft())
                spent += time.process_time() - started
            if step >= WARM_UP:
                seconds += spent
    finally:
        gc.enable()
    return seconds / load.steps, admitting


def rows(systems: Sequence[System]) -> list[list[str]]:
    """Microseconds of a step that decodes and of the one that admits, with ratios to stock."""

    def texts(found: Sequence[float], stock: Sequence[float]) -> tuple[str, str]:
        return (
            spread_text(found, "{:.0f}".format, 1e6),
            spread_text(ratios(found, stock), "{:.3f}".format),
        )

    return [
        [
            f"{system.name} ({system.rows // 2 if system.pairs else system.rows})",
            *texts(system.seconds, systems[0].seconds),
            *texts(system.admitting, systems[0].admitting),
        ]
        for system in systems
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print one table for each scheduler; the exit status is 1 if a step was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pairs", type=positive, default=64, help="CoLD requests (default: 64)")
    parser.add_argument("--waiting", type=int, default=0, help="that wait behind (default: none)")
    parser.add_argument("--policy", choices=("fcfs", "priority"), default="fcfs")
    parser.add_argument("--steps", type=positive, default=200, help="timed steps (default: 200)")
    parser.add_argument("--rounds", type=positive, default=9, help="rounds (default: 9)")
    args = parser.parse_args(arguments)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from tests.tiny import make_tiny_model

    logging.disable(logging.WARNING)
    rng = random.Random(0)
    load = Load(args.steps, args.waiting, args.policy)
    measured = {is_async: make_systems(2 * args.pairs) for is_async in (False, True)}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(Path(folder) / "model")
        for is_async, systems in measured.items():
            for _, system in in_rounds(systems, args.rounds, rng):
                try:
                    spent, admitting = decode(model, system, load, is_async)
                    system.seconds.append(spent)
                    system.admitting.append(admitting)
                except WrongError as error:
                    wrong.append(str(error))

    def tables() -> None:
        for is_async, systems in measured.items():
            head = f"{'asynchronous' if is_async else 'synchronous'} scheduler and load"
            columns = ("microseconds a step", "to stock", "microseconds to admit", "to stock")
            print(table([head, *columns], rows(systems)) + "\n")
        print("median (20th-80th percentile) over the rounds; ratios within a round")

    return show_if_right(wrong, tables)


if __name__ == "__main__":
    sys.exit(main())
