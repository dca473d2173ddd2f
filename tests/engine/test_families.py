# SPDX-License-Identifier: Apache-2.0
"""Groups of streams on models of other families: the engine's tokens equal those of transformers
and peft. They are tiny and random, with random adapters.

What they differ by is what could go wrong with streams of their own length: sliding windows (the
prompts are longer), fused layers, caps on logits. Of two adapters for a mixture of experts one
changes the experts. ``test_images`` has models that see, with other positions (M-RoPE) or
embeddings in place of token ids in every step.
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
from vllm_cold.compat import versions

pytestmark = pytest.mark.engine

# Caps on logits and sliding windows, fused layers, experts.
IN_EVERY_RUN = ("gemma2", "phi3", "qwen3_moe")


def start(make_llm: Any, folders: Path, family: str, **options: Any) -> Any:
    """An engine for a family."""
    defaults = {
        "max_num_batched_tokens": 64,
        "async_scheduling": True,
        "skip_tokenizer_init": True,
    }
    model = str(folders / family / "model")
    return make_llm(model=model, max_lora_rank=RANK, max_loras=2, **defaults | options)


def traces_of(folder: Path, groups: Sequence[Group]) -> list[Trace]:
    """The reference's, in which the amateurs count."""
    read = json.loads((folder / "traces.json").read_text())
    pairs = zip(read["groups"], read["experts"], groups, strict=True)
    unlike = [
        cold["tokens"] != regular["tokens"] for cold, regular, group in pairs if group.amateurs
    ]
    assert sum(unlike) > len(unlike) / 2, "the amateurs make no difference"
    return [Trace(**trace) for trace in read["groups"]]


def check(llm: Any, folder: Path, groups: Sequence[Group]) -> None:
    """The engine's tokens equal the reference's."""
    assert_same_tokens(decode(llm, folder, groups), traces_of(folder, groups))


@pytest.mark.timeout(600)  # the first one waits for the reference of all
@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in IN_EVERY_RUN else pytest.mark.full) for f in FAMILIES],
)
def test_tokens_equal_the_reference(family: str, folders: Path, make_llm: Any) -> None:
    llm = start(make_llm, folders, family)
    check(llm, folders / family, GROUPS)


TWO = {"tensor_parallel_size": 2, "kv_cache_memory_bytes": 2**26}  # each has half of every expert


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("family", "options"),
    [
        # Which rows have an adapter on experts is looked at in each step.
        ("qwen3_moe", {"enforce_eager": False}),
        ("qwen3_moe", TWO),
        ("gpt_oss", TWO),
    ],
)
def test_engines_of_other_kinds(
    family: str, options: dict[str, Any], folders: Path, make_llm: Any
) -> None:
    check(start(make_llm, folders, family, **options), folders / family, GROUPS)


@pytest.mark.timeout(900)
@pytest.mark.skipif(versions.is_before("0.32"), reason="vllm-cold takes these since vLLM 0.32")
@pytest.mark.parametrize(
    ("family", "mode", "count"),
    [("granite-4-hybrid", "align", 99), ("granite-4-hybrid", "none", 6), ("lfm2", "align", 6)],
)
def test_ssm(family: str, mode: str, count: int, folders: Path, make_llm: Any) -> None:
    """With state-space layers, in small steps and a tight cache, which the prompts are in the
    second time if prefixes are cached: all groups once, and a few of them in other engines. In
    full, ``test_ssm.py`` has others.
    """
    folder, caches = folders / family, mode == "align"
    settings = {"enable_prefix_caching": caches, "num_gpu_blocks_override": 48}
    llm = start(make_llm, folders, family, async_scheduling=False, **settings)
    assert llm.llm_engine.vllm_config.cache_config.mamba_cache_mode == mode
    groups, expected = GROUPS[:count], traces_of(folder, GROUPS)[:count]
    with preempted_pairs(llm) as preempted:
        for _ in range(1 + caches):
            assert_same_tokens(decode(llm, folder, groups), expected)
    assert preempted or count < len(GROUPS)
