# SPDX-License-Identifier: Apache-2.0
"""Engines with a KV connector: requests get the tokens of the naive reference, whether their KV is
computed or loaded, in time, late, or in vain, with a KV cache that is far too small.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import scheduler
from tests.engine.memory_connector import COUNTS, STORES
from tests.engine.pressure import drive, preempted_pairs
from tests.engine.streams import Job, short_groups
from tests.naive import Group, NaiveCold, assert_same_tokens

pytestmark = pytest.mark.engine

MODULE = "tests.engine.memory_connector"
PRESSURE: dict[str, Any] = {
    "async_scheduling": True,
    "num_gpu_blocks_override": 18,
    "max_num_batched_tokens": 64,
}


def memory(**ways: Any) -> dict[str, Any]:
    """The configuration of a connector in memory; see ``tests.scheduler.connector.Ways``."""
    return {
        "kv_connector": "MemoryConnector",
        "kv_connector_module_path": MODULE,
        "kv_role": "kv_both",
        "kv_load_failure_policy": ways.get("policy", "recompute"),
        "kv_connector_extra_config": ways,
    }


def transfer(config: dict[str, Any], engine: str) -> Any:
    from vllm.config import KVTransferConfig

    for known in (STORES, COUNTS):
        for name in [name for name in known if name.startswith(f"{engine} ")]:
            del known[name]
    COUNTS[engine] = Counter()
    return KVTransferConfig(**config, engine_id=engine)


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    """Groups of two to four streams, and regular requests, with prompts that begin alike."""
    return short_groups(40)


@pytest.fixture(scope="module")
def right(groups: list[Group], naive: NaiveCold) -> list[Any]:
    """The reference's traces."""
    return list(naive.generate_many(groups))


def tokens_of(jobs: list[Job], results: dict[int, Any]) -> list[list[int]]:
    assert len(results) == len(jobs)
    return [results[i].tokens[0] for i in range(len(jobs))]


def check(llm: Any, tiny: Path, groups: list[Group], right: list[Any], rounds: int = 2) -> int:
    """Several times, with an empty prefix cache: from the second on KV is loaded.

    Returns:
        How many requests ended with an error; what they were given before is right too.
    """
    jobs, num_failed = list(map(Job, groups)), 0
    for seed in range(rounds):
        results = drive(llm, tiny, jobs, seed)
        tokens = tokens_of(jobs, results)
        for i, result in results.items():
            if result.completions[0].finish_reason == "error":
                num_failed += 1
                tokens[i] += right[i].tokens[len(tokens[i]) :]
        assert_same_tokens(tokens, right)
        # Some are aborted at any time, so also amid their loads.
        drive(llm, tiny, jobs[:24], seed, abort=0.5)
        assert scheduler(llm).reset_prefix_cache()
    return num_failed


WAYS: dict[str, dict[str, Any]] = {
    "late": {"late": 1.0, "delay": 3, "unknown": 0.1, "fails": 0.3, "saves": 0.3},
    "in time": {"fails": 0.3},
    "both": {"late": 0.5, "delay": 2, "unknown": 0.1},
    "requests fail late": {
        "late": 1.0,
        "delay": 5,
        "fails": 0.3,
        "by_request": True,
        "delivers": True,
    },
    "fail": {"late": 1.0, "fails": 0.3, "policy": "fail"},
}
SYNC = ("in time",)  # stock vLLM mistakes such a failure if the next step is under way
EVERY_RUN = ("late",)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in EVERY_RUN else pytest.mark.full) for n in WAYS]
)
def test_tokens_equal_the_reference(
    name: str, make_llm: Any, tiny: Path, groups: list[Group], right: list[Any]
) -> None:
    options = {**PRESSURE, "async_scheduling": name not in SYNC}
    llm = make_llm(**options, kv_transfer_config=transfer(memory(**WAYS[name]), name))
    with preempted_pairs(llm) as preempted:
        num_failed = check(llm, tiny, groups, right)
    counts = COUNTS[f"{name} 0"]
    assert bool(num_failed) == (WAYS[name].get("policy") == "fail")
    assert preempted and counts["stores"] > 20
    assert counts["loads"] + counts["late"] > 30
    assert bool(counts["failed"]) == bool(WAYS[name].get("fails"))


@pytest.mark.full
def test_of_several_connectors(
    make_llm: Any, tiny: Path, groups: list[Group], right: list[Any]
) -> None:
    """One that loads late and one that loads in time."""
    config: dict[str, Any] = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "connectors": [memory(late=1.0, delay=2), memory(seed=1)],
        },
    }
    llm = make_llm(**PRESSURE, kv_transfer_config=transfer(config, "several"))
    assert not check(llm, tiny, groups, right)
    assert COUNTS["several 0"]["late"] > 20


@pytest.mark.full
def test_of_vllms_own(make_llm: Any, tiny: Path, groups: list[Group], right: list[Any]) -> None:
    """All of it but the copies."""
    config: dict[str, Any] = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "OnCPU",
            "spec_module_path": "tests.engine.offloading",
            "cpu_bytes_to_use": 1 << 26,
            "offload_prompt_only": False,
        },
    }
    llm = make_llm(**PRESSURE, kv_transfer_config=transfer(config, "offload"))
    assert not check(llm, tiny, groups, right)
    assert COUNTS["offload"]["loads"] > 20 and COUNTS["offload"]["stores"] > 20
