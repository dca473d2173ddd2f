# SPDX-License-Identifier: Apache-2.0
"""The engine's tokens equal the naive reference's, in any mix and under any configuration. (Pairs;
``test_streams`` has other groups.)
"""

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import free_blocks
from tests.engine.pressure import assert_idle, preempted_pairs
from tests.engine.streams import decode
from tests.naive import Amateur, Group, NaiveCold, Trace, assert_same_tokens, pair

pytestmark = pytest.mark.engine

ALPHAS = (0.05, 0.1, 0.5, 1.0)
BETAS = (0.0, 0.5, 2.0)
MAX_TOKENS = 16
# The amateur often prefers tokens that are no candidates: it takes a large most for an effect.
ADAPTIVE = list(itertools.product((0.02, 0.1, 0.5), (0.5, 8.0, 500.0), (None, 4)))


def make_cases() -> list[Group]:
    """114 requests: 72 contrastive decoding over every (alpha, beta), some with a cap on the
    candidates or another adapter as amateur; 24 plain; 18 with an adaptive beta. Lengths around
    block and chunk borders; half of the prompts share a prefix, so that prefix caching has hits.
    """
    rng = random.Random(7)
    shared = tuple(rng.randrange(4, 512) for _ in range(64))
    lengths = (1, 2, 7, 15, 31, 32, 33, 40, 63, 64, 65, 90)
    cases: list[Group] = []
    combinations = list(itertools.product(("one", "two"), ALPHAS, BETAS)) * 3
    for i in range(96):
        tail = tuple(rng.randrange(4, 512) for _ in range(lengths[i % len(lengths)]))
        prompt = shared[: rng.choice((32, 64))] + tail if i % 2 else tail
        if i % 4 == 3:
            cases.append(Group(prompt, (None, "one", "two")[i // 4 % 3], (), 0.0, MAX_TOKENS))
        else:
            adapter, alpha, beta = combinations.pop()
            amateur = {"one": "two", "two": "one"}[adapter] if i % 5 == 1 else None
            cap = (1, 2, 5, 1000)[i // 4 % 4] if i % 4 == 1 else None
            cases.append(pair(prompt, adapter, alpha, beta, MAX_TOKENS, amateur, cap))
        if i % 5 == 4 and i < 90:
            alpha, most, cap = ADAPTIVE[i // 5]
            own = {"rule": "adaptive", "rule_parameters": {"beta_max": most}}
            adapter = ("one", "two")[i % 2]
            cases.append(
                pair(prompt, adapter, alpha, 0.0, MAX_TOKENS, expert_top_k=cap, **own)  # type: ignore[arg-type]
            )
    assert not combinations
    return cases


CASES = make_cases()


@pytest.fixture(scope="module")
def expected(naive: NaiveCold) -> list[Trace]:
    return naive.generate_many(CASES)


def test_plain_requests_and_adaptive_ones_are_neither_of_the_ends(
    naive: NaiveCold, expected: list[Trace]
) -> None:
    """What decodes plain requests knows groups; and a rule would be told from a fixed beta."""
    plain = [(c, t) for c, t in zip(CASES, expected, strict=True) if not c.amateurs]
    greedy = [naive.greedy(c.prompt_ids, c.expert, MAX_TOKENS) for c, _ in plain]
    assert [trace.tokens for _, trace in plain] == [trace.tokens for trace in greedy]
    cases = [(c, t) for c, t in zip(CASES, expected, strict=True) if c.rule]
    for share in (0.0, 1.0):
        fixed = [
            replace(c, rule=None, amateurs=[Amateur(-share * c.rule_parameters["beta_max"])])
            for c, _ in cases
        ]
        pairs = zip(cases, naive.generate_many(fixed), strict=True)
        assert sum(a.tokens != b.tokens for (_, a), b in pairs) > len(cases) / 4


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "chunks": {"async_scheduling": True, "max_num_batched_tokens": 32, "max_loras": 4},
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
    # Each of the following is near to two of those.
    "async": {"async_scheduling": True, "block_size": 128},
    "pressure": {"num_gpu_blocks_override": 20, "async_scheduling": True},
    "long-prefill": {"long_prefill_token_threshold": 16},
    "compiled": {"enforce_eager": False, "block_size": 128},
}
EVERY_RUN = tuple(CONFIGURATIONS)[:6]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in EVERY_RUN else pytest.mark.full) for n in CONFIGURATIONS],
)
def test_tokens_equal_the_reference(
    name: str, shared_llm: Any, tiny: Path, expected: list[Trace], runner: str
) -> None:
    """The second time all prompts are in the prefix cache, in another order."""
    llm = shared_llm(**CONFIGURATIONS[name])
    before = free_blocks(llm)
    # That one takes many steps, and V2 in the interpreter long for each.
    few = name == "tiny-budget" or runner == "v2"
    first = range(32 if few else len(CASES))
    again = random.Random(3).sample(first, 8 if few else 24)
    with preempted_pairs(llm) as preempted:
        for chosen in (first, again):
            got = decode(llm, tiny, [CASES[i] for i in chosen])
            assert_same_tokens(got, [expected[i] for i in chosen])
    assert_idle(llm)
    assert free_blocks(llm) == before
    assert bool(preempted) == ("pressure" in name)
    mode = llm.llm_engine.vllm_config.compilation_config.mode
    assert (mode.name != "NONE") == name.startswith("compiled")


@pytest.mark.full
def test_lora_by_torch_operations(
    make_llm: Any, tiny: Path, expected: list[Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the C++ library is missing."""
    monkeypatch.setenv("COLD_LORA", "torch")
    llm = make_llm(enforce_eager=False)
    assert llm.llm_engine.vllm_config.compilation_config.mode.name == "NONE"
    assert_same_tokens(decode(llm, tiny, CASES), expected)
