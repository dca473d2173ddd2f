# SPDX-License-Identifier: Apache-2.0
"""The engine's tokens equal the naive reference's, in any mix and under any configuration."""

import dataclasses
import itertools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import free_blocks, lora
from tests.engine.pressure import assert_idle, preempted_pairs
from tests.naive import NaiveCold, Trace, assert_same_tokens, pair

pytestmark = pytest.mark.engine

ALPHAS = (0.05, 0.1, 0.5, 1.0)
BETAS = (0.0, 0.5, 2.0)
MAX_TOKENS = 16


@dataclass(frozen=True)
class Case:
    """One request: CoLD with one of two adapters, or plain with or without an adapter."""

    prompt: tuple[int, ...]
    adapter: str | None
    alpha: float | None = None  # None: plain
    beta: float = 0.0  # with the rule, the most that it reaches
    amateur: str | None = None
    expert_top_k: int | None = None
    adaptive: bool = False  # the rule

    def params(self, tiny: Path) -> Any:
        from vllm import SamplingParams

        from vllm_cold import ColdParams

        common: dict[str, Any] = {"temperature": 0.0, "max_tokens": MAX_TOKENS, "ignore_eos": True}
        if self.alpha is None:
            return SamplingParams(**common)
        return ColdParams(
            alpha=self.alpha,
            beta="adaptive" if self.adaptive else self.beta,
            beta_max=self.beta if self.adaptive else None,
            expert_top_k=self.expert_top_k,
            amateur=lora(tiny, self.amateur) if self.amateur else None,
            **common,
        )


def make_cases() -> list[Case]:
    """96 requests: 72 CoLD over every (alpha, beta), some with a cap on the candidates or another
    adapter as amateur, 24 plain; lengths around block and chunk borders; half of the prompts share
    a prefix, so that prefix caching has hits.
    """
    rng = random.Random(7)
    shared = tuple(rng.randrange(4, 512) for _ in range(64))
    lengths = (1, 2, 7, 15, 31, 32, 33, 40, 63, 64, 65, 90)
    cases = []
    combinations = list(itertools.product(("one", "two"), ALPHAS, BETAS)) * 3
    for i in range(96):
        tail = tuple(rng.randrange(4, 512) for _ in range(lengths[i % len(lengths)]))
        prompt = shared[: rng.choice((32, 64))] + tail if i % 2 else tail
        if i % 4 == 3:
            cases.append(Case(prompt, (None, "one", "two")[i // 4 % 3]))
        else:
            adapter, alpha, beta = combinations.pop()
            amateur = {"one": "two", "two": "one"}[adapter] if i % 5 == 1 else None
            cap = (1, 2, 5, 1000)[i // 4 % 4] if i % 4 == 1 else None
            cases.append(Case(prompt, adapter, alpha, beta, amateur, cap))
    assert not combinations
    return cases


CASES = make_cases()


def traces(naive: NaiveCold, cases: list[Case]) -> list[Trace]:
    """The reference for each case; plain requests are greedy."""
    results: dict[int, Trace] = {}
    cold = [i for i, c in enumerate(cases) if c.alpha is not None]
    requests = [
        pair(
            prompt_ids=cases[i].prompt,
            expert=str(cases[i].adapter),
            alpha=cases[i].alpha or 0.0,
            beta=cases[i].beta,
            max_tokens=MAX_TOKENS,
            amateur=cases[i].amateur,
            expert_top_k=cases[i].expert_top_k,
            rule="adaptive" if cases[i].adaptive else None,
            rule_parameters={"beta_max": cases[i].beta} if cases[i].adaptive else {},
        )
        for i in cold
    ]
    results.update(zip(cold, naive.generate_many(requests), strict=True))
    for i, case in enumerate(cases):
        if case.alpha is None:
            results[i] = naive.greedy(list(case.prompt), case.adapter, MAX_TOKENS)
    return [results[i] for i in range(len(cases))]


@pytest.fixture(scope="module")
def expected(naive: NaiveCold) -> list[Trace]:
    return traces(naive, CASES)


def decode(llm: Any, tiny: Path, cases: list[Case]) -> list[list[int]]:
    outputs = llm.generate(
        [{"prompt_token_ids": list(c.prompt)} for c in cases],
        [c.params(tiny) for c in cases],
        lora_request=[lora(tiny, c.adapter) if c.adapter else None for c in cases],
        use_tqdm=False,
    )
    return [list(o.outputs[0].token_ids) for o in outputs]


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


def test_lora_by_torch_operations(
    make_llm: Any, tiny: Path, expected: list[Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the C++ library is missing."""
    monkeypatch.setenv("COLD_LORA", "torch")
    llm = make_llm(enforce_eager=False)
    assert llm.llm_engine.vllm_config.compilation_config.mode.name == "NONE"
    assert_same_tokens(decode(llm, tiny, CASES), expected)


# The amateur often prefers tokens that are no candidates: it takes a large most for an effect.
ADAPTIVE = [
    Case(c.prompt, c.adapter or "one", alpha, beta_max, expert_top_k=cap, adaptive=True)
    for c, (alpha, beta_max, cap) in zip(
        CASES, itertools.cycle(itertools.product((0.02, 0.1, 0.5), (0.5, 8.0, 500.0), (None, 4)))
    )
]


def test_adaptive_beta(shared_llm: Any, tiny: Path, naive: NaiveCold) -> None:
    """Alone of its kind in a batch, and beside requests with a fixed beta and plain ones."""
    llm = shared_llm(**CONFIGURATIONS["chunks"])
    mixed = [case for pair in zip(ADAPTIVE, CASES, strict=True) for case in pair]
    for cases in (ADAPTIVE[:18], mixed[:36]):
        assert_same_tokens(decode(llm, tiny, cases), traces(naive, cases))


def test_an_adaptive_beta_is_neither_of_its_ends(naive: NaiveCold) -> None:
    """Or the tests above would not tell it from a fixed one."""
    cases = [case for case in ADAPTIVE if case.beta > 1.0 and case.alpha == 0.02][:12]
    adaptive = traces(naive, cases)
    for beta in (0.0, None):
        fixed = [
            dataclasses.replace(c, adaptive=False, beta=c.beta if beta is None else beta)
            for c in cases
        ]
        pairs = zip(adaptive, traces(naive, fixed), strict=True)
        assert sum(a.tokens != b.tokens for a, b in pairs) > len(cases) / 4
