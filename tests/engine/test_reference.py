# SPDX-License-Identifier: Apache-2.0
"""The engine's tokens equal the naive reference's, in any mix and under any configuration."""

import dataclasses
import itertools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import free_blocks, lora, scheduler
from tests.naive import NaiveCold, Request, Trace, assert_same_tokens

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
    beta: float = 0.0  # if adaptive, the most that it reaches
    amateur: str | None = None
    expert_top_k: int | None = None
    adaptive: bool = False

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
    """96 requests: 72 CoLD over every (alpha, beta), 24 plain; lengths around block and chunk
    borders; half of the prompts share a prefix, so that prefix caching has hits.
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
            cases.append(Case(prompt, *combinations.pop()))
    assert not combinations
    return cases


CASES = make_cases()


def traces(naive: NaiveCold, cases: list[Case]) -> list[Trace]:
    """The reference for each case; plain requests are greedy."""
    results: dict[int, Trace] = {}
    cold = [i for i, c in enumerate(cases) if c.alpha is not None]
    requests = [
        Request(
            prompt_ids=cases[i].prompt,
            expert=str(cases[i].adapter),
            alpha=cases[i].alpha or 0.0,
            beta=cases[i].beta,
            max_tokens=MAX_TOKENS,
            amateur=cases[i].amateur,
            expert_top_k=cases[i].expert_top_k,
            adaptive=cases[i].adaptive,
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


def count_preemptions(sched: Any) -> list[str]:
    """The ids of preempted requests, filled while the engine runs."""
    preempted: list[str] = []
    original = sched._preempt_request

    def record(request: Any, *args: Any, **kwargs: Any) -> None:
        preempted.append(request.request_id)
        original(request, *args, **kwargs)

    sched._preempt_request = record
    return preempted


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "alone": {"max_num_seqs": 2},
    "three": {"max_num_seqs": 6, "async_scheduling": True, "max_num_batched_tokens": 64},
    "thirty-two": {"max_num_seqs": 64, "async_scheduling": True},
    "odd": {"max_num_seqs": 3, "async_scheduling": True, "max_num_batched_tokens": 64},
    "async": {"async_scheduling": True},
    "sync": {"async_scheduling": False},
    "chunks": {"async_scheduling": True, "max_num_batched_tokens": 32, "max_loras": 4},
    "chunks-sync": {"async_scheduling": False, "max_num_batched_tokens": 33, "max_num_seqs": 9},
    "tiny-budget": {"async_scheduling": True, "max_num_batched_tokens": 5, "max_num_seqs": 5},
    "no-prefix-cache": {"enable_prefix_caching": False, "max_num_batched_tokens": 48},
    "four-loras": {"max_loras": 4, "async_scheduling": True},
    "pressure": {"num_gpu_blocks_override": 20, "block_size": 32, "async_scheduling": True},
    "pressure-sync": {
        "num_gpu_blocks_override": 20,
        "block_size": 32,
        "async_scheduling": False,
        "max_num_batched_tokens": 64,
        "scheduling_policy": "priority",
    },
    "long-prefill": {"long_prefill_token_threshold": 16},
    "compiled": {"enforce_eager": False},
    "compiled-pressure": {
        "enforce_eager": False,
        "num_gpu_blocks_override": 20,
        "block_size": 32,
        "async_scheduling": True,
        "max_num_batched_tokens": 64,
        "max_loras": 4,
    },
}


# Each is near to two of the others.
IN_FULL = ("alone", "three", "thirty-two", "sync", "four-loras")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.full if n in IN_FULL else []) for n in CONFIGURATIONS],
)
def test_tokens_equal_the_reference(
    name: str, make_llm: Any, tiny: Path, expected: list[Trace]
) -> None:
    llm = make_llm(**CONFIGURATIONS[name])
    before = free_blocks(llm)
    preemptions = count_preemptions(scheduler(llm))
    got = decode(llm, tiny, CASES)
    assert_same_tokens(got, expected)
    assert free_blocks(llm) == before
    assert not scheduler(llm)._groups
    assert not scheduler(llm).requests
    assert bool(preemptions) == name.endswith(("pressure", "pressure-sync"))
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


def test_again_with_everything_cached(make_llm: Any, tiny: Path, expected: list[Trace]) -> None:
    """The second time all prompts are in the prefix cache, in another order."""
    llm = make_llm(async_scheduling=True)
    decode(llm, tiny, CASES)
    order = random.Random(3).sample(range(len(CASES)), len(CASES))
    got = decode(llm, tiny, [CASES[i] for i in order])
    assert_same_tokens(got, [expected[i] for i in order])


def test_amateur_prompt_is_cached_across_adapters(make_llm: Any, tiny: Path) -> None:
    """A second adapter's request finds the amateur's prompt computed, and the expert's not."""
    llm = make_llm(block_size=32)
    prompt = tuple(range(4, 4 + 97))
    steps: list[list[int]] = []
    sched = scheduler(llm)
    original = sched.schedule

    def record(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        steps.append(sorted(output.num_scheduled_tokens.values()))
        return output

    sched.schedule = record
    decode(llm, tiny, [Case(prompt, "one", 0.1, 0.5)])
    assert steps[0] == [97, 97]  # both streams sample in the first step
    steps.clear()
    decode(llm, tiny, [Case(prompt, "two", 0.1, 0.5)])
    assert steps[0] == [1, 97]


def test_another_adapter_as_amateur(make_llm: Any, tiny: Path, naive: NaiveCold) -> None:
    cases = [
        Case(c.prompt, "one", c.alpha, 0.5, amateur="two")
        for c in CASES[:24]
        if c.alpha is not None
    ]
    got = decode(make_llm(max_loras=2), tiny, cases)
    assert_same_tokens(got, traces(naive, cases))


def test_cap_on_the_candidates(make_llm: Any, tiny: Path, naive: NaiveCold) -> None:
    cases = [
        Case(c.prompt, "one", 0.05, 2.0, expert_top_k=(1, 2, 5, 1000)[i % 4])
        for i, c in enumerate(CASES[:24])
    ]
    got = decode(make_llm(), tiny, cases)
    assert_same_tokens(got, traces(naive, cases))


# The amateur often prefers tokens that are no candidates: it takes a large most for an effect.
ADAPTIVE = [
    Case(c.prompt, c.adapter or "one", alpha, beta_max, expert_top_k=cap, adaptive=True)
    for c, (alpha, beta_max, cap) in zip(
        CASES, itertools.cycle(itertools.product((0.02, 0.1, 0.5), (0.5, 8.0, 500.0), (None, 4)))
    )
]


@pytest.mark.parametrize("name", ["defaults", "chunks", "pressure"])
def test_adaptive_beta(name: str, make_llm: Any, tiny: Path, naive: NaiveCold) -> None:
    """Alone of its kind in a batch, and beside requests with a fixed beta and plain ones."""
    mixed = [case for pair in zip(ADAPTIVE, CASES, strict=True) for case in pair]
    cases = ADAPTIVE if name == "defaults" else mixed[:96]
    got = decode(make_llm(**CONFIGURATIONS[name]), tiny, cases)
    assert_same_tokens(got, traces(naive, cases))


def test_adaptive_beta_against_another_adapter(make_llm: Any, tiny: Path, naive: NaiveCold) -> None:
    cases = [
        dataclasses.replace(case, adapter="one", amateur="two") for case in ADAPTIVE[:24]
    ] + CASES[:8]
    got = decode(make_llm(max_loras=2), tiny, cases)
    assert_same_tokens(got, traces(naive, cases))


def test_an_adaptive_beta_is_neither_of_its_ends(naive: NaiveCold) -> None:
    """Or the tests above would not tell it from a fixed one."""
    cases = [case for case in ADAPTIVE if case.beta > 1.0 and case.alpha == 0.02]
    adaptive = traces(naive, cases)
    for beta in (0.0, None):
        fixed = [
            dataclasses.replace(c, adaptive=False, beta=c.beta if beta is None else beta)
            for c in cases
        ]
        pairs = zip(adaptive, traces(naive, fixed), strict=True)
        assert sum(a.tokens != b.tokens for a, b in pairs) > len(cases) / 4


def test_the_engines_default_is_adaptive(make_llm: Any, tiny: Path, naive: NaiveCold) -> None:
    """Its most is used where a request says nothing, and not by one with a number."""
    from vllm import SamplingParams

    default = {"cold": {"alpha": 0.02, "beta": "adaptive", "beta_max": 500.0}}
    llm = make_llm(additional_config=default)
    said: list[tuple[dict[str, Any], float, bool]] = [
        ({}, 500.0, True),
        ({"cold_beta": 0.5}, 0.5, False),
        ({"cold_beta_max": 8.0}, 8.0, True),
        ({"cold_beta": "adaptive"}, 500.0, True),
    ]
    prompt = CASES[9].prompt
    outputs = llm.generate(
        [{"prompt_token_ids": list(prompt)}] * len(said),
        [
            SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True, extra_args=args)
            for args, _, _ in said
        ],
        lora_request=lora(tiny, "one"),
        use_tqdm=False,
    )
    cases = [Case(prompt, "one", 0.02, beta, adaptive=adaptive) for _, beta, adaptive in said]
    expected = traces(naive, cases)
    assert_same_tokens([list(o.outputs[0].token_ids) for o in outputs], expected)
    assert len({tuple(trace.tokens) for trace in expected}) == 3
    with pytest.raises(ValueError, match="cold_beta_max=2.0: is for an adaptive beta, and beta is"):
        llm.generate(
            [{"prompt_token_ids": list(prompt)}],
            SamplingParams(extra_args={"cold_beta": 0.5, "cold_beta_max": 2.0}),
            lora_request=lora(tiny, "one"),
            use_tqdm=False,
        )
