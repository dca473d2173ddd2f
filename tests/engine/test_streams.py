# SPDX-License-Identifier: Apache-2.0
"""What vLLM's parameters and its prefix cache mean for groups of streams with adapters, prompts and
weights of their own. (``test_reference`` compares their tokens.)
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.conftest import BLOCK
from tests.engine.draws import check_distribution
from tests.engine.pressure import scheduled
from tests.engine.streams import MAX_TOKENS, decode, generate, short_groups
from tests.naive import Amateur, Group, NaiveCold

pytestmark = pytest.mark.engine

GROUPS = short_groups(72)
PROMPT, OTHER = tuple(range(20, 60)), tuple(range(41, 48))


def test_a_prompt_is_cached_for_whoever_has_it(shared_llm: Any, tiny: Path) -> None:
    """An amateur's finds what another group's amateur or a regular request computed."""
    llm = shared_llm()

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


def test_logprobs_are_the_experts(shared_llm: Any, naive: NaiveCold, tiny: Path) -> None:
    """Of prompt and answer, and the amateurs' prompts are nowhere."""
    for expert in (None, "one"):
        (output,) = generate(shared_llm(), tiny, [guided(expert)], logprobs=0, prompt_logprobs=0)
        (completion,) = output.outputs
        given = [*output.prompt_logprobs[1:], *completion.logprobs]
        tokens = [*PROMPT, *completion.token_ids]
        assert len(given) == len(tokens) - 1
        for at, entry in enumerate(given, 1):
            logits, _ = naive._forward(expert, [tokens[:at]], None)
            wanted = float(logits[0].log_softmax(0)[tokens[at]])
            assert entry[tokens[at]].logprob == pytest.approx(wanted, abs=1e-3), at


def test_sampling_follows_the_scores(shared_llm: Any, naive: NaiveCold, tiny: Path) -> None:
    """Samples of the first token follow softmax(s / T), and n > 1 gives n completions; with prompts
    in chunks (where stock vLLM's CPU runner dies on seeded requests).
    """
    draws, group = 1000, guided("one", alpha=0.05)
    llm = shared_llm(max_num_batched_tokens=48, max_num_seqs=48)
    (output,) = generate(llm, tiny, [group], n=draws, temperature=2.0, max_tokens=1, seed=5)
    assert [c.index for c in output.outputs] == list(range(draws))
    drawn = [completion.token_ids[0] for completion in output.outputs]
    check_distribution(drawn, naive.distribution(group, 2.0).double())


def test_a_seed_reproduces(shared_llm: Any, tiny: Path) -> None:
    """Alone, repeated, in other company, in chunks and with prompts cached or not."""
    groups = [guided("one"), guided(None, alpha=0.02)]

    def run(llm: Any, groups: list[Group], seed: int, **options: Any) -> list[list[list[int]]]:
        options = {"temperature": 1.5, "seed": seed, **options}
        outputs = generate(llm, tiny, groups, **options)
        return [[list(c.token_ids) for c in output.outputs] for output in outputs]

    llm = shared_llm()
    first = [run(llm, [group], 11)[0] for group in groups]
    assert run(llm, [*GROUPS[:20], *groups, groups[0]], 11)[20:] == [*first, first[0]]
    assert [run(llm, [group], 12)[0] for group in groups] != first
    several = run(llm, groups, 11, n=3)
    assert all(len({tuple(tokens) for tokens in one}) == 3 for one in several)
    assert run(llm, groups[::-1], 11, n=3) == several[::-1]
    unseeded = run(llm, [groups[0]] * 3, None)  # type: ignore[arg-type]
    assert len({tuple(tokens) for (tokens,) in unseeded}) == 3  # they do not share their samples


def test_structured_output(shared_llm: Any, naive: NaiveCold, tiny: Path) -> None:
    """A grammar narrows the expert's candidates; the amateurs are compared on those."""
    from vllm.sampling_params import StructuredOutputsParams

    llm = shared_llm()
    pattern = "([a-f]{3}-)+[0-9]{2}"
    outputs = generate(
        llm,
        tiny,
        GROUPS[:6],
        structured_outputs=StructuredOutputsParams(regex=pattern),
        max_tokens=40,
        ignore_eos=False,
    )
    for output in outputs:
        (completion,) = output.outputs
        if completion.finish_reason == "stop":
            assert re.fullmatch(pattern, completion.text), completion.text
        else:
            assert re.fullmatch(r"([a-f]{3}-)*[a-f]{0,3}", completion.text), completion.text

    text = llm.get_tokenizer().decode
    choices = [f" w{number}" for number in range(10, 40)]
    allowed = [any(c.startswith(text([i])) for c in choices) for i in range(4, 512)]
    unmasked = [group for group in GROUPS if group.alpha == 0 and group.rule is None]
    for group in (guided(None), guided("one"), *unmasked[:2]):
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
