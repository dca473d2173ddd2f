# SPDX-License-Identifier: Apache-2.0
"""Groups of streams with adapters, prompts and weights of their own: the engine's tokens equal the
naive reference's, in any mix and under any configuration.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.conftest import BLOCK, Pool, free_blocks
from tests.engine.draws import check_distribution
from tests.engine.pressure import (
    Engines,
    assert_idle,
    preempted_pairs,
    scheduled,
)
from tests.engine.streams import (
    LONGEST,
    MAX_TOKENS,
    RULES,
    SHORT,
    decode,
    generate,
    length,
    make_groups,
    num_adapters,
    short_groups,
    short_rules,
)
from tests.naive import Amateur, Group, NaiveCold, Trace, assert_same_tokens

pytestmark = pytest.mark.engine

GROUPS = [*make_groups(), *short_rules()]
PROMPT, OTHER = tuple(range(20, 60)), tuple(range(41, 48))


@pytest.fixture(scope="module")
def engines(tiny: Path, pool: Pool) -> Engines:
    """For prompts that are longer than the tiny model says that it takes."""
    longest = LONGEST + MAX_TOKENS
    config = {"max_position_embeddings": longest}
    return Engines(tiny, pool, max_model_len=longest, hf_overrides=config)


@pytest.fixture(scope="module")
def expected(naive: NaiveCold) -> list[Trace]:
    return naive.generate_many(GROUPS)


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "chunks": {"async_scheduling": True, "max_num_batched_tokens": 48, "max_num_seqs": 7},
    "pressure-sync": {
        "num_gpu_blocks_override": 100,
        "max_num_batched_tokens": 64,
        "scheduling_policy": "priority",
    },
    # Only in full; ``test_reference`` has more.
    "one-lora": {"max_loras": 1, "async_scheduling": True, "block_size": 128},
}
EVERY_RUN = tuple(CONFIGURATIONS)[:2]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in EVERY_RUN else pytest.mark.full) for n in CONFIGURATIONS],
)
def test_tokens_equal_the_reference(
    name: str, engines: Engines, tiny: Path, expected: list[Trace], runner: str
) -> None:
    options = CONFIGURATIONS[name]
    few = runner == "v2"  # whose steps are long
    if few and "pressure" in name:
        options = options | {"num_gpu_blocks_override": 40}  # which short groups fill
    chosen = [
        (group, trace)
        for group, trace in zip(GROUPS, expected, strict=True)
        if num_adapters(group) <= options.get("max_loras", 2)
        and (not few or length(group) <= SHORT)
    ]
    assert len(chosen) >= len(GROUPS) / 3
    llm = engines.get(**options)
    before = free_blocks(llm)
    with preempted_pairs(llm) as preempted:
        got = decode(llm, tiny, [group for group, _ in chosen])
    assert_same_tokens(got, [trace for _, trace in chosen])
    assert free_blocks(llm) == before
    assert_idle(llm)
    assert bool(preempted) == ("pressure" in name)
    assert {group.rule for group, _ in chosen} >= dict(RULES).keys()


def test_an_engine_without_lora(engines: Engines, naive: NaiveCold, tiny: Path) -> None:
    """The base model is guided by its own prompts, where the engine was asked for it."""
    groups = [group for group in GROUPS if not num_adapters(group)]
    assert len({*map(len, (g.amateurs for g in groups))}) == 3
    llm = engines.get(
        enable_lora=False, additional_config={"cold": True}, max_num_batched_tokens=64
    )
    assert_same_tokens(decode(llm, tiny, groups), naive.generate_many(groups))
    assert_idle(llm)


def test_a_prompt_is_cached_for_whoever_has_it(engines: Engines, tiny: Path) -> None:
    """An amateur's finds what another group's amateur or a plain request computed."""
    llm = engines.get()

    def first_step(group: Group) -> list[int]:
        with scheduled(llm) as steps:
            decode(llm, tiny, [group])
        return steps[0]

    def prompt(seed: int, count: int) -> tuple[int, ...]:
        return tuple((7 * i + seed) % 500 + 4 for i in range(count))

    shared = prompt(1, 2 * BLOCK + 1)
    one = Group(prompt(2, 97), "one", [Amateur(-0.5, None, shared)], 0.0, 2)
    assert first_step(one) == [65, 97]  # both streams sample in the first step
    assert first_step(replace(one, prompt_ids=prompt(3, 99), expert="two")) == [1, 99]
    assert first_step(Group(shared, None, (), 0.0, 2)) == [1]
    assert first_step(Group(shared, "one", (), 0.0, 2)) == [65]  # another adapter's
    swapped = Group(shared, "one", [Amateur(-0.5, "two", prompt(3, 99))], 0.0, 2)
    assert first_step(swapped) == [1, 3]
    # Of a judge, whose prompt goes on where its expert's ends, the expert reads all.
    new = prompt(4, 2 * BLOCK + 1)
    judged = [Amateur(-0.5, None, OTHER), Amateur(0.0, None, (*new, 7))]
    assert first_step(Group(new, None, judged, 0.0, 2)) == [2, len(OTHER), len(new)]


def guided(expert: str | None, **changes: Any) -> Group:
    """Three streams, of which two have a prompt of their own."""
    amateurs = [Amateur(-0.5, expert, OTHER), Amateur(0.4, "two", PROMPT[:20])]
    return replace(Group(PROMPT, expert, amateurs, 0.0, MAX_TOKENS), **changes)


def test_logprobs_are_the_experts(engines: Engines, naive: NaiveCold, tiny: Path) -> None:
    """Of prompt and answer, and the amateurs' prompts are nowhere."""
    for expert in (None, "one"):
        (output,) = generate(engines.get(), tiny, [guided(expert)], logprobs=0, prompt_logprobs=0)
        (completion,) = output.outputs
        given = [*output.prompt_logprobs[1:], *completion.logprobs]
        tokens = [*PROMPT, *completion.token_ids]
        assert len(given) == len(tokens) - 1
        for at, entry in enumerate(given, 1):
            logits, _ = naive._forward(expert, [tokens[:at]], None)
            wanted = float(logits[0].log_softmax(0)[tokens[at]])
            assert entry[tokens[at]].logprob == pytest.approx(wanted, abs=1e-3), at


def test_sampling_follows_the_scores(engines: Engines, naive: NaiveCold, tiny: Path) -> None:
    """Draws of the first token follow softmax(s / T), and n > 1 gives n completions; with prompts
    in chunks (where stock vLLM's CPU runner dies on seeded requests).
    """
    draws, group = 1000, guided("one", alpha=0.05)
    llm = engines.get(max_num_batched_tokens=48, max_num_seqs=48)
    (output,) = generate(llm, tiny, [group], n=draws, temperature=2.0, max_tokens=1, seed=5)
    assert [c.index for c in output.outputs] == list(range(draws))
    drawn = [completion.token_ids[0] for completion in output.outputs]
    check_distribution(drawn, naive.distribution(group, 2.0).double())


def test_a_seed_reproduces(engines: Engines, tiny: Path) -> None:
    """Alone, repeated, in other company, in chunks and with prompts cached or not."""
    groups = [guided("one"), guided(None, alpha=0.02)]

    def run(llm: Any, groups: list[Group], seed: int, **options: Any) -> list[list[list[int]]]:
        options = {"temperature": 1.5, "seed": seed, **options}
        outputs = generate(llm, tiny, groups, **options)
        return [[list(c.token_ids) for c in output.outputs] for output in outputs]

    llm = engines.get()
    first = [run(llm, [group], 11)[0] for group in groups]
    assert run(llm, [*GROUPS[:20], *groups, groups[0]], 11)[20:] == [*first, first[0]]
    assert [run(llm, [group], 12)[0] for group in groups] != first
    several = run(llm, groups, 11, n=3)
    assert all(len({tuple(tokens) for tokens in one}) == 3 for one in several)
    assert run(llm, groups[::-1], 11, n=3) == several[::-1]
    unseeded = run(llm, [groups[0]] * 3, None)  # type: ignore[arg-type]
    assert len({tuple(tokens) for (tokens,) in unseeded}) == 3  # they do not share their draws


def test_structured_output(engines: Engines, naive: NaiveCold, tiny: Path) -> None:
    """A grammar narrows the expert's candidates; the amateurs are compared on those."""
    from vllm.sampling_params import StructuredOutputsParams

    llm = engines.get()
    pattern = "([a-f]{3}-)+[0-9]{2}"
    outputs = generate(
        llm,
        tiny,
        short_groups(18),
        structured_outputs=StructuredOutputsParams(regex=pattern),
        max_tokens=40,
        ignore_eos=False,
    )
    assert len(outputs) >= 6
    for output in outputs:
        (completion,) = output.outputs
        if completion.finish_reason == "stop":
            assert re.fullmatch(pattern, completion.text), completion.text
        else:
            assert re.fullmatch(r"([a-f]{3}-)*[a-f]{0,3}", completion.text), completion.text

    text = llm.get_tokenizer().decode
    choices = [f" w{number}" for number in range(10, 40)]
    allowed = [any(c.startswith(text([i])) for c in choices) for i in range(4, 512)]
    for group in (guided(None), guided("one"), GROUPS[0], GROUPS[3]):
        scores = naive.distribution(group, 1.0).log()
        scores[:4] = scores[4:][~torch.tensor(allowed)] = -torch.inf
        (output,) = generate(
            llm,
            tiny,
            [group],
            structured_outputs=StructuredOutputsParams(choice=choices),
            max_tokens=1,
        )
        assert list(output.outputs[0].token_ids) == [int(scores.argmax())]
