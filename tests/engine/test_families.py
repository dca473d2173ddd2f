# SPDX-License-Identifier: Apache-2.0
"""Groups of streams on models of other families, tiny and random, with random adapters: the
engine's tokens equal those of transformers and peft.

What they differ by is what could go wrong with streams of their own length: positions, sliding
windows (the prompts are longer), biases, fused layers, caps on logits. A mixture of experts is
missing: with LoRA it does not run in stock vLLM on a CPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine.families import FAMILIES, GROUPS, RANK
from tests.engine.streams import decode
from tests.naive import Trace, assert_same_tokens

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
IN_EVERY_RUN = ("qwen2", "gemma3")


def reference(family: str, folder: Path) -> dict[str, list[Trace]]:
    """Make the model in ``folder`` and decode with it, in a process without vLLM."""
    command = [sys.executable, "-m", "tests.engine.families", family, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    traces = json.loads((folder / "traces.json").read_text())
    return {name: [Trace(**trace) for trace in many] for name, many in traces.items()}


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in IN_EVERY_RUN else pytest.mark.full) for f in FAMILIES],
)
def test_tokens_equal_the_reference(family: str, make_llm: Any, tmp_path: Path) -> None:
    traces = reference(family, tmp_path)
    pairs = zip(traces["groups"], traces["experts"], GROUPS, strict=True)
    unlike = [cold.tokens != plain.tokens for cold, plain, group in pairs if group.amateurs]
    assert sum(unlike) > len(unlike) / 2, "the amateurs make no difference"
    llm = make_llm(
        model=str(tmp_path / "model"),
        max_lora_rank=RANK,
        max_loras=2,
        max_num_batched_tokens=64,
        async_scheduling=True,
        skip_tokenizer_init=True,
    )
    assert_same_tokens(decode(llm, tmp_path, GROUPS), traces["groups"])
