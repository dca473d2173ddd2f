# SPDX-License-Identifier: Apache-2.0
"""A KV cache far too small, requests that come and go at any moment: each gets the tokens that it
gets alone, greedy ones also those of the naive reference, and nothing is left behind.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine.pressure import Engines, drive, engines, preempted_pairs, some
from tests.engine.streams import Job, num_adapters, short_groups
from tests.naive import NaiveCold, assert_same_tokens

__all__ = ["engines"]

pytestmark = pytest.mark.engine


def make_jobs() -> list[Job]:
    """96 requests of all kinds of groups, a third of them sampled. Most grow into further blocks
    after they were admitted, which is what preemption needs.
    """
    lengths = (1, 2, 17, 33, 40, 40)
    jobs = []
    for i, group in enumerate(short_groups(400)[:96]):
        options: dict[str, Any] = {"max_tokens": lengths[i % len(lengths)]}
        if i % 3 == 2:
            options |= {"temperature": 1.3, "seed": i, "top_p": (0.9, 1.0)[i % 2]}
            options["top_k"] = (0, 20)[i % 4 // 2]
        if group.rule == "bound":  # refused there
            options = {name: x for name, x in options.items() if not name.startswith("top_")}
        jobs.append(Job(group, options))
    return jobs


JOBS = make_jobs()

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "async": {"async_scheduling": True, "num_gpu_blocks_override": 21},
    "priority, sync, no prefix cache": {
        "num_gpu_blocks_override": 20,
        "scheduling_policy": "priority",
        "enable_prefix_caching": False,
        "max_num_batched_tokens": 37,
    },
    "small budget": {
        "async_scheduling": True,
        "num_gpu_blocks_override": 20,
        "max_num_batched_tokens": 15,
        "max_num_seqs": 15,
    },
    # Those below only in full.
    "long prefill": {
        "async_scheduling": True,
        "num_gpu_blocks_override": 22,
        "long_prefill_token_threshold": 7,
        "max_num_batched_tokens": 48,
    },
    "one lora slot": {
        "async_scheduling": True,
        "num_gpu_blocks_override": 24,
        "max_loras": 1,
        "scheduling_policy": "priority",
    },
}
RUNS = [
    pytest.param(name, seed, marks=[pytest.mark.full] if seed or i > 2 else [])
    for i, name in enumerate(CONFIGURATIONS)
    for seed in range(3)
]


@pytest.mark.parametrize(("name", "seed"), RUNS)
def test_survivors_get_what_they_get_alone(
    name: str, seed: int, engines: Engines, tiny: Path, runner: str
) -> None:
    slots = CONFIGURATIONS[name].get("max_loras", 2)
    jobs = some([job for job in JOBS if num_adapters(job.group) <= slots], runner)
    llm = engines.get(**CONFIGURATIONS[name])
    with preempted_pairs(llm) as preempted:
        results = drive(llm, tiny, jobs, seed, abort=1 / 3)
    assert len(preempted) >= 3
    engines.check(jobs, results)


def test_alone_is_the_reference(engines: Engines, naive: NaiveCold, runner: str) -> None:
    """What the others compare with."""
    jobs = [job for job in some(JOBS, runner) if job.is_greedy]
    groups = [replace(job.group, max_tokens=job.options["max_tokens"]) for job in jobs]
    got = [engines.alone(job).tokens[0] for job in jobs]
    assert_same_tokens(got, naive.generate_many(groups))
