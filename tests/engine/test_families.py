# SPDX-License-Identifier: Apache-2.0
"""Groups of streams on models of other families: the engine's tokens equal those of transformers
and peft. They are tiny and random, with random adapters.

What they differ by is what could go wrong with streams of their own length: positions, sliding
windows (the prompts are longer), biases, fused layers, caps on logits. A mixture of experts is
missing: with LoRA it does not run in stock vLLM on a CPU.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.engine.families import FAMILIES, GROUPS, RANK
from tests.engine.pressure import preempted_pairs
from tests.engine.streams import decode
from tests.naive import Group, Trace, assert_same_tokens
from vllm_cold.vllm import versions

pytestmark = pytest.mark.engine

# A bias, caps on logits and sliding windows, fused layers; a quarter of a minute each.
IN_EVERY_RUN = ("qwen2", "gemma2", "phi3")


def check(llm: Any, folder: Path, groups: Sequence[Group]) -> None:
    """The engine's tokens equal the reference's, in which the amateurs count."""
    read = json.loads((folder / "traces.json").read_text())
    traces = {name: [Trace(**trace) for trace in many] for name, many in read.items()}
    pairs = zip(traces["groups"], traces["experts"], groups, strict=True)
    unlike = [cold.tokens != plain.tokens for cold, plain, group in pairs if group.amateurs]
    assert sum(unlike) > len(unlike) / 2, "the amateurs make no difference"
    assert_same_tokens(decode(llm, folder, groups), traces["groups"])


@pytest.mark.timeout(600)  # the first one waits for the reference of all
@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in IN_EVERY_RUN else pytest.mark.full) for f in FAMILIES],
)
def test_tokens_equal_the_reference(family: str, folders: Path, make_llm: Any) -> None:
    folder = folders / family
    llm = make_llm(
        model=str(folder / "model"),
        max_lora_rank=RANK,
        max_loras=2,
        max_num_batched_tokens=64,
        async_scheduling=True,
        skip_tokenizer_init=True,
    )
    check(llm, folder, GROUPS)


@pytest.mark.timeout(900)
@pytest.mark.skipif(versions.is_before(0, 32), reason="CoLD takes such models since vLLM 0.32")
@pytest.mark.parametrize("family", ["granite-4-hybrid"])
def test_states(family: str, folders: Path, make_llm: Any) -> None:
    """With state-space layers, in small steps and a tight cache, which the prompts are in the
    second time. In full, ``test_states.py`` has others.
    """
    folder = folders / family
    llm = make_llm(
        model=str(folder / "model"),
        max_lora_rank=RANK,
        max_loras=2,
        enable_prefix_caching=True,
        max_num_batched_tokens=64,
        num_gpu_blocks_override=48,
        skip_tokenizer_init=True,
    )
    assert llm.llm_engine.vllm_config.cache_config.mamba_cache_mode == "align"
    with preempted_pairs(llm) as preempted:
        for _ in range(2):
            check(llm, folder, GROUPS)
    assert preempted
