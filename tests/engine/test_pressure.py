# SPDX-License-Identifier: Apache-2.0
"""A KV cache far too small, requests that come and go at any moment: each gets the tokens that it
gets alone, greedy CoLD also those of the naive reference, and nothing is left behind.
"""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.engine.pressure import Engines, Job, drive, engines, preempted_pairs, some
from tests.naive import NaiveCold, assert_same_tokens, pair

__all__ = ["engines"]

pytestmark = pytest.mark.engine

ADAPTERS = ("one", "two", "zero")


def make_jobs(two_adapters: bool) -> list[Job]:
    """64 requests, three quarters of them CoLD. Half of the prompts share a prefix, so that
    streams find different parts of their prompts cached.
    """
    rng = random.Random(11)
    shared = tuple(rng.randrange(4, 512) for _ in range(64))
    jobs = []
    for i in range(64):
        tail = tuple(
            rng.randrange(4, 512) for _ in range(rng.choice((1, 2, 24, 27, 30, 31, 31, 32, 33)))
        )
        prompt = shared[: rng.choice((32, 32, 64))] + tail if i % 3 == 1 else tail
        # Most grow into further blocks after they were admitted, which is what preemption needs.
        options: dict[str, Any] = {"max_tokens": rng.choice((1, 2, 17, 33, 40, 40))}
        if i % 3 == 2:
            sampling = {"temperature": 1.3, "seed": i, "top_p": rng.choice((0.9, 1.0))}
            options |= {**sampling, "top_k": rng.choice((0, 20))}
        if i % 4 == 3:
            jobs.append(Job(prompt, (None, *ADAPTERS)[i // 4 % 4], options=options))
            continue
        expert = rng.choice(ADAPTERS)
        others = [name for name in ADAPTERS if name != expert]
        cold = {
            "alpha": rng.choice((0.01, 0.1, 0.5, 1.0)),
            "beta": rng.choice((0.0, 0.5, 2.0)),
            "expert_top_k": rng.choice((None, None, 1, 3, 1000)),
        }
        amateur = rng.choice(others) if two_adapters and i % 8 in (0, 5) else None
        jobs.append(Job(prompt, expert, cold, amateur, options))
    return jobs


JOBS = {"two adapters": make_jobs(True), "one adapter": make_jobs(False)}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "async": {"async_scheduling": True, "num_gpu_blocks_override": 14},
    "priority, sync, no prefix cache": {
        "async_scheduling": False,
        "num_gpu_blocks_override": 13,
        "scheduling_policy": "priority",
        "enable_prefix_caching": False,
        "max_num_batched_tokens": 37,
    },
    "small budget": {
        "async_scheduling": True,
        "num_gpu_blocks_override": 14,
        "max_num_batched_tokens": 9,
        "max_num_seqs": 9,
    },
    "long prefill": {
        "async_scheduling": True,
        "num_gpu_blocks_override": 13,
        "long_prefill_token_threshold": 7,
        "max_num_batched_tokens": 48,
    },
    "one lora slot": {
        "async_scheduling": True,
        "num_gpu_blocks_override": 14,
        "max_loras": 1,
    },
}
SEEDS = {"async": (0, 1, 2), "priority, sync, no prefix cache": (0, 1, 2)}
EVERY_RUN = ("async", "priority, sync, no prefix cache", "small budget")
RUNS = [
    pytest.param(name, seed, marks=pytest.mark.full if seed or name not in EVERY_RUN else ())
    for name in CONFIGURATIONS
    for seed in SEEDS.get(name, (0,))
]


@pytest.mark.parametrize(("name", "seed"), RUNS)
def test_survivors_get_what_they_get_alone(
    name: str, seed: int, engines: Engines, tiny: Path, runner: str
) -> None:
    kind = "one adapter" if CONFIGURATIONS[name].get("max_loras") == 1 else "two adapters"
    jobs = some(JOBS[kind], runner)
    llm = engines.get(**CONFIGURATIONS[name])
    with preempted_pairs(llm) as preempted:
        results = drive(llm, tiny, jobs, seed, abort=1 / 3)
    assert len(preempted) >= 3
    engines.check(jobs, results)


@pytest.mark.parametrize(
    "kind", ["two adapters", pytest.param("one adapter", marks=pytest.mark.full)]
)
def test_alone_is_the_reference(kind: str, engines: Engines, naive: NaiveCold, runner: str) -> None:
    """What the other tests compare with: greedy requests alone equal the naive reference."""
    jobs = some(JOBS[kind], runner)
    cold = [job for job in jobs if job.cold is not None and job.is_greedy]
    plain = [job for job in jobs if job.cold is None and job.is_greedy]
    assert len(cold) >= len(jobs) * 0.4
    requests = [
        pair(
            prompt_ids=job.prompt,
            expert=str(job.adapter),
            amateur=job.amateur,
            max_tokens=job.options["max_tokens"],
            **(job.cold or {}),
        )
        for job in cold
    ]
    assert_same_tokens(
        [engines.alone(job).tokens[0] for job in cold], naive.generate_many(requests)
    )
    greedy = [naive.greedy(job.prompt, job.adapter, job.options["max_tokens"]) for job in plain]
    assert_same_tokens([engines.alone(job).tokens[0] for job in plain], greedy)
