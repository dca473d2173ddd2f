# SPDX-License-Identifier: Apache-2.0
"""Groups of streams on models with state-space layers: the engine's tokens equal those of
transformers and peft. The models are tiny and random, with random adapters.

What is special: a state is of one position. It is kept at the ends of blocks only, where prompts
are split, and found again only there; and it takes room however short a stream is.
"""

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.contracts.source import since
from tests.engine.conftest import free_blocks
from tests.engine.families import LONG_GROUPS, RANK, WITH_SSM
from tests.engine.pressure import assert_idle, preempted_pairs
from tests.engine.streams import LONGEST, MAX_TOKENS, decode, generate, length, tokens_of
from tests.engine.test_families import traces_of
from tests.naive import Amateur, Group, Trace, assert_same_tokens, pair
from tests.tiny import copy_adapter
from vllm_cold.ops.interface import NOT_FINITE

pytestmark = [
    pytest.mark.engine,
    pytest.mark.full,  # one of them is in test_families.py in every run
    pytest.mark.timeout(1200),
    since("0.32"),
]

SMALL_STEPS = {"max_num_batched_tokens": 64}
TIGHT = {**SMALL_STEPS, "max_model_len": 256}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "align-tight": {**TIGHT, "num_gpu_blocks_override": 60},
    "align": {},
    "align-chunks": {**SMALL_STEPS, "async_scheduling": True},
    # Sequence slots for an odd number of streams: the last one is no pair's.
    "align-compiled": {
        **SMALL_STEPS,
        "async_scheduling": True,
        "enforce_eager": False,
        "max_num_seqs": 5,
    },
    "none-chunks": {**SMALL_STEPS},
    "none-tight": {**TIGHT, "num_gpu_blocks_override": 40, "async_scheduling": True},
}
LONG_PROMPTS = True


def engine_of(make_llm: Any, folder: Path, name: str, **options: Any) -> Any:
    """A configuration's engine on a family's model."""
    cached = name.startswith("align")
    chosen: dict[str, Any] = {
        "model": str(folder / "model"),
        "max_lora_rank": RANK,
        "max_loras": 2,
        "max_model_len": LONGEST + MAX_TOKENS,
        "enable_prefix_caching": cached,
        "skip_tokenizer_init": True,
    }
    llm = make_llm(**chosen | CONFIGURATIONS[name] | options)
    cache = llm.llm_engine.vllm_config.cache_config
    assert cache.mamba_cache_mode == ("align" if cached else "none")
    return llm


def cases(folder: Path, name: str) -> tuple[list[Group], list[Trace]]:
    """What is asked of a family in a configuration, and the reference's answers."""
    longest = CONFIGURATIONS[name].get("max_model_len", LONGEST + MAX_TOKENS) - MAX_TOKENS
    pairs = zip(LONG_GROUPS, traces_of(folder, LONG_GROUPS), strict=True)
    chosen = [pair for pair in pairs if length(pair[0]) <= longest]
    return [group for group, _ in chosen], [trace for _, trace in chosen]


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("family", WITH_SSM)
def test_tokens_equal_the_reference(family: str, name: str, folders: Path, make_llm: Any) -> None:
    """The second time the prompts are in the prefix cache, in another order."""
    folder = folders / family
    groups, expected = cases(folder, name)
    llm = engine_of(make_llm, folder, name)
    before, cached = free_blocks(llm), 0
    with preempted_pairs(llm) as preempted:
        for seed in (0, 1):
            order = random.Random(seed).sample(range(len(groups)), len(groups))
            outputs = generate(llm, folder, [groups[i] for i in order])
            got = [list(output.outputs[0].token_ids) for output in outputs]
            assert_same_tokens(got, [expected[i] for i in order])
            cached += sum(output.num_cached_tokens or 0 for output in outputs)
    assert_idle(llm)
    assert free_blocks(llm) == before
    assert bool(preempted) == name.endswith("tight")
    assert bool(cached) == name.startswith("align")


@pytest.mark.parametrize(("name", "is_async"), [("none-tight", True), ("align-tight", False)])
@pytest.mark.parametrize("family", ["granite-4-hybrid"])
def test_what_never_fits_ends_with_a_sentence(
    family: str, name: str, is_async: bool, folders: Path, make_llm: Any
) -> None:
    """Its tokens alone would fit, and are not refused: the states take the rest. Others go on."""
    options = {"async_scheduling": is_async, "num_gpu_blocks_override": 1 + 20}
    llm = engine_of(make_llm, folders / family, name, **options)
    before = free_blocks(llm)
    prompt = tuple(range(20, 60))
    fits = Group(prompt, None, [Amateur(-0.5, None, (7, 8, 9, 10))], 0.1, MAX_TOKENS)
    (expected,) = decode(llm, folders / family, [fits])
    # Tokens take 8 + 7 blocks at the end, states at least one for each of three groups and stream.
    both = generate(llm, folders / family, [replace(fits, max_tokens=210), fits])
    (never, regular) = (output.outputs[0] for output in both)
    assert never.finish_reason == "error"
    assert "most likely they do not fit the KV cache of 21 blocks" in str(never.stop_reason)
    assert list(regular.token_ids) == expected
    assert_idle(llm)
    assert free_blocks(llm) == before


@pytest.mark.parametrize("name", ["align-tight", "none-tight"])
@pytest.mark.parametrize("family", ["granite-4-hybrid"])
def test_states_that_are_no_numbers(family: str, name: str, folders: Path, make_llm: Any) -> None:
    """Requests that have such end with an error, and whoever gets their blocks does not notice."""
    folder = folders / family

    def spoil(name: str, weight: torch.Tensor) -> None:
        if "0.mamba.in_proj.lora_B" in name:
            weight.fill_(math.nan)

    if not (folder / "nan").exists():
        copy_adapter(folder / "one", folder / "nan", spoil)
    groups, expected = cases(folder, name)
    llm = engine_of(make_llm, folder, name, max_loras=3)
    before = free_blocks(llm)
    sick = [pair(group.prompt_ids, "nan", 0.1, 0.5, MAX_TOKENS) for group in groups]
    asked = [one for both in zip(sick, groups, strict=True) for one in both]
    for _ in range(2):
        outputs = generate(llm, folder, asked)
        ends = {(o.outputs[0].finish_reason, o.outputs[0].stop_reason) for o in outputs[::2]}
        assert ends == {("error", NOT_FINITE)}
        assert_same_tokens(tokens_of(groups, outputs[1::2]), expected)
    assert_idle(llm)
    assert free_blocks(llm) == before
