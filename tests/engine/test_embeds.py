# SPDX-License-Identifier: Apache-2.0
"""Prompts that are embeddings, of experts and of amateurs: the engine's tokens equal those of a
naive loop that computes with the same embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.conftest import BLOCK, free_blocks
from tests.engine.pressure import assert_idle, preempted_pairs, scheduled
from tests.engine.streams import MAX_TOKENS, Job, decode, generate
from tests.naive import Amateur, Group, NaiveCold, Trace, assert_same_tokens

pytestmark = pytest.mark.engine

HIDDEN, STD = 64, 0.3  # of the tiny model's embeddings


@dataclass(frozen=True)
class Mixed:
    """A prompt of token ids; None stands for a row of the embeddings."""

    ids: tuple[int | None, ...]
    embeds: Tensor

    @property
    def is_token_ids(self) -> list[bool]:
        return [i is not None for i in self.ids]


Prompt = tuple[int, ...] | Tensor | Mixed


def draw(num: int, seed: int) -> Tensor:
    """Embeddings of no token."""
    return STD * torch.randn(num, HIDDEN, generator=torch.Generator().manual_seed(seed))


def words(num: int, seed: int) -> tuple[int, ...]:
    return tuple((7 * i * i + 13 * seed + i) % 500 + 4 for i in range(num))


@dataclass(frozen=True, eq=False)
class Case(Job):
    """A request, with the prompt of each stream; None for the expert's."""

    prompts: tuple[Prompt | None, ...] = ()

    @property
    def all_prompts(self) -> list[Prompt]:
        return [self.prompts[0] if p is None else p for p in self.prompts]  # type: ignore[misc]

    def asked(self) -> dict[str, Any]:
        return of_vllm(self.all_prompts[0])

    def own_prompt(self, index: int) -> dict[str, Any]:
        own = self.prompts[index + 1]
        if own is None:
            return {}
        return {"prompt": list(own) if isinstance(own, tuple) else of_vllm(own)}


def case(expert: str | None, prompt: Prompt, *amateurs: Any, alpha: float = 0.0) -> Case:
    """An amateur is its weight, its adapter and its prompt."""
    found = [Amateur(weight, adapter) for weight, adapter, _ in amateurs]
    group = Group((), expert, found, alpha, MAX_TOKENS)
    return Case(group, prompts=(prompt, *(own for *_, own in amateurs)))


def mix(ids: Sequence[int], embeds: Tensor, every: int) -> Mixed:
    """Each so many-th token is one of ``ids``; those are zeros in the embeddings, as vLLM has
    them.
    """
    own = embeds.clone()
    own[::every] = 0
    return Mixed(tuple(i if at % every == 0 else None for at, i in enumerate(ids)), own)


def make_cases() -> list[Case]:
    """Of each kind some, with lengths around blocks and chunks; embeddings begin alike or are
    those of others.
    """
    cases = []
    for seed, (long, short) in enumerate(((65, 5), (33, 1), (32, 31), (97, 40), (7, 64))):
        rows, ids = draw(long, seed), words(long, seed)
        own = torch.cat([rows[: long // 2], draw(short, 100 + seed)])
        both = mix(ids, rows, 3)
        cases += [
            case(None, ids, (-1.5, None, own)),
            case(None, rows, (-1.5, None, words(short, seed))),
            case("one", rows, (-1.0, "one", own), alpha=0.1),
            case("one", rows, (-1.0, None, None), alpha=0.05),
            case(None, own, (0.7, "one", None), (-0.7, "two", rows)),
            case("two", both, (-1.0, "two", own)),
            case(None, own, (-2.0, None, both)),
            case("one", rows),
            case(None, (0,) * long, (-1.0, None, rows * 0 + rows[:1])),
        ]
    return cases


CASES = make_cases()


def of_naive(prompt: Prompt, naive: NaiveCold) -> Any:
    if not isinstance(prompt, Mixed):
        return prompt
    known = naive.embed([i or 0 for i in prompt.ids])
    return torch.where(torch.tensor(prompt.is_token_ids)[:, None], known, prompt.embeds)


def of_vllm(prompt: Prompt) -> dict[str, Any]:
    if isinstance(prompt, Tensor):
        return {"prompt_embeds": prompt}
    if isinstance(prompt, Mixed):
        return {
            "prompt_embeds": prompt.embeds,
            "prompt_token_ids": [511 if i is None else i for i in prompt.ids],
            "prompt_is_token_ids": prompt.is_token_ids,
        }
    return {"prompt_token_ids": list(prompt)}


@pytest.fixture(scope="module")
def expected(naive: NaiveCold) -> list[Trace]:
    return [
        naive.decode(one.group, [of_naive(prompt, naive) for prompt in one.all_prompts])
        for one in CASES
    ]


def test_every_prompt_counts(naive: NaiveCold, expected: list[Trace]) -> None:
    """Or an engine that mixes them up would pass the tests below."""
    unlike = []
    for one, trace in zip(CASES, expected, strict=True):
        if not one.group.amateurs:
            continue
        expert = replace(one.group, amateurs=())
        alone = naive.decode(expert, [of_naive(one.all_prompts[0], naive)])
        unlike.append(alone.tokens != trace.tokens)
    assert sum(unlike) > 0.7 * len(unlike)
    tokens = [tuple(trace.tokens) for trace in expected]
    assert len(set(tokens)) > 0.8 * len(tokens)


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "chunks": {"async_scheduling": True, "max_num_batched_tokens": 48, "max_num_seqs": 7},
    # Those below only in full.
    "pressure": {"num_gpu_blocks_override": 24, "max_num_batched_tokens": 64},
    "compiled, no prefix cache": {
        "enforce_eager": False,
        "enable_prefix_caching": False,
        "max_num_batched_tokens": 64,
    },
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "chunks" else pytest.mark.full) for n in CONFIGURATIONS],
)
def test_tokens_equal_the_reference(
    name: str, shared_llm: Any, tiny: Path, expected: list[Trace], runner: str
) -> None:
    llm = shared_llm(enable_prompt_embeds=True, **CONFIGURATIONS[name])
    before = free_blocks(llm)
    num = len(CASES) if runner == "v1" else 18  # in the interpreter
    # The second time the prompts are cached.
    for _ in range(2):
        with preempted_pairs(llm) as preempted:
            got = decode(llm, tiny, CASES[:num])
        assert_same_tokens(got, expected[:num])
        assert bool(preempted) == ("pressure" in name)
    # Alone, each finds what it left itself.
    assert_same_tokens([decode(llm, tiny, [one])[0] for one in CASES[:9]], expected[:9])
    assert free_blocks(llm) == before
    assert_idle(llm)


def test_several_answers(shared_llm: Any, tiny: Path, expected: list[Trace]) -> None:
    llm = shared_llm(enable_prompt_embeds=True, **CONFIGURATIONS["chunks"])
    outputs = generate(llm, tiny, CASES[:9], n=2, temperature=1.0, top_k=1)
    for at in range(2):
        assert_same_tokens([list(o.outputs[at].token_ids) for o in outputs], expected[:9])


def test_embeddings_are_cached_by_what_they_are(shared_llm: Any, tiny: Path) -> None:
    """An amateur's, whoever had them before; others of the same length are computed."""
    llm = shared_llm(enable_prompt_embeds=True, **CONFIGURATIONS["chunks"])
    llm.reset_prefix_cache()
    rows, others = draw(BLOCK + 2, 71), draw(BLOCK + 2, 72)

    def num_computed(one: Case) -> int:
        short = replace(one, group=replace(one.group, max_tokens=1))
        with scheduled(llm) as steps:
            decode(llm, tiny, [short])
        return sum(map(sum, steps))

    assert num_computed(case(None, (5,), (-1.0, None, rows))) == 1 + BLOCK + 2
    assert num_computed(case(None, rows)) == 2
    assert num_computed(case(None, rows, (-1.0, None, others))) == 2 + BLOCK + 2
    assert num_computed(case(None, (6,), (-1.0, None, others))) == 1 + 2
    # vLLM takes token 0 for each row.
    assert num_computed(case(None, (0,) * (BLOCK + 2))) == BLOCK + 2
