# SPDX-License-Identifier: Apache-2.0
"""The engine's tokens equal the naive reference's, in any mix and under any configuration."""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import free_blocks
from tests.engine.pressure import assert_idle, preempted_pairs
from tests.engine.streams import (
    LONGEST,
    MAX_TOKENS,
    RULES,
    SHORT,
    decode,
    length,
    make_groups,
    num_adapters,
    short_rules,
)
from tests.naive import Group, NaiveCold, Trace, assert_same_tokens

pytestmark = pytest.mark.engine

GROUPS = [*make_groups(), *short_rules()]


def is_short(group: Group) -> bool:
    return length(group) <= SHORT


@pytest.fixture(scope="module")
def expected(naive: NaiveCold) -> list[Trace]:
    return naive.generate_many(GROUPS)


def test_amateurs_and_rules_make_a_difference(naive: NaiveCold, expected: list[Trace]) -> None:
    """Or an engine that leaves them out would pass."""
    unlike: dict[str | None, list[bool]] = {}
    for group, trace in zip(GROUPS, expected, strict=True):
        if is_short(group) or group.rule:
            alone = naive.greedy(group.prompt_ids, group.expert, MAX_TOKENS)
            name = group.rule if group.amateurs else "none"
            unlike.setdefault(name, []).append(trace.tokens != alone.tokens)
    assert not any(unlike.pop("none"))
    assert unlike.keys() >= {None, *dict(RULES)}
    assert all(map(any, unlike.values())), unlike
    every = [one for found in unlike.values() for one in found]
    assert sum(every) > len(every) / 2


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "chunks": {"async_scheduling": True, "max_num_batched_tokens": 48, "max_num_seqs": 7},
    "tiny-budget": {
        "async_scheduling": True,
        "max_num_batched_tokens": 5,
        "max_num_seqs": 5,
        "block_size": 128,  # vLLM's default
    },
    "no-prefix-cache": {"enable_prefix_caching": False, "max_num_batched_tokens": 48},
    "pressure-sync": {
        "num_gpu_blocks_override": 20,
        "max_num_batched_tokens": 64,
        "scheduling_policy": "priority",
    },
    "compiled-pressure": {
        "enforce_eager": False,
        "num_gpu_blocks_override": 20,
        "async_scheduling": True,
        "max_num_batched_tokens": 64,
        "max_loras": 4,
    },
    # Those below only in full.
    "long-prefill": {"long_prefill_token_threshold": 16},
    "one-lora": {"max_loras": 1, "async_scheduling": True, "block_size": 128},
}
EVERY_RUN = tuple(CONFIGURATIONS)[:6]
# With prompts that are longer than the tiny model says that it takes.
LONG = ("chunks", "one-lora")
ROOM = LONGEST + MAX_TOKENS
FOR_LONG = {"max_model_len": ROOM, "hf_overrides": {"max_position_embeddings": ROOM}}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in EVERY_RUN else pytest.mark.full) for n in CONFIGURATIONS],
)
def test_tokens_equal_the_reference(
    name: str, shared_llm: Any, tiny: Path, expected: list[Trace], runner: str
) -> None:
    """The second time prompts are in the prefix cache, in another order."""
    options = CONFIGURATIONS[name]
    long = name in LONG and runner == "v1"  # V2's steps take long in the interpreter
    llm = shared_llm(**options, **(FOR_LONG if long else {}))
    before = free_blocks(llm)
    first = [
        i
        for i, group in enumerate(GROUPS)
        if num_adapters(group) <= options.get("max_loras", 2) and (long or is_short(group))
    ]
    assert {GROUPS[i].rule for i in first} >= dict(RULES).keys()
    again = random.Random(3).sample(first, 8)
    with preempted_pairs(llm) as preempted:
        for chosen in (first, again):
            got = decode(llm, tiny, [GROUPS[i] for i in chosen])
            assert_same_tokens(got, [expected[i] for i in chosen])
    assert_idle(llm)
    assert free_blocks(llm) == before
    assert bool(preempted) == ("pressure" in name)
    mode = llm.llm_engine.vllm_config.compilation_config.mode
    assert (mode.name != "NONE") == name.startswith("compiled")


def test_an_engine_without_lora(shared_llm: Any, tiny: Path, expected: list[Trace]) -> None:
    """The base model is guided by its own prompts, where the engine was asked for it."""
    chosen = [i for i, g in enumerate(GROUPS) if not num_adapters(g) and is_short(g)]
    assert len({len(GROUPS[i].amateurs) for i in chosen}) == 3
    llm = shared_llm(enable_lora=False, additional_config={"cold": True}, max_num_batched_tokens=64)
    got = decode(llm, tiny, [GROUPS[i] for i in chosen])
    assert_same_tokens(got, [expected[i] for i in chosen])
    assert_idle(llm)
