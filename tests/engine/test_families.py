# SPDX-License-Identifier: Apache-2.0
"""Groups of streams on models of other families: the engine's tokens equal those of transformers
and peft. Tiny ones are random, with random adapters; Gemma 3 270M has its real weights.

What they differ by is what could go wrong with streams of their own length: positions, sliding
windows (the prompts are longer), biases, fused layers, caps on logits. A mixture of experts is
missing: with LoRA it does not run in stock vLLM on a CPU.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from examples import gemma3
from tests.engine import gemma
from tests.engine.families import FAMILIES, GROUPS, RANK
from tests.engine.streams import decode, length
from tests.naive import Group, Trace, assert_same_tokens

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
# A bias, caps on logits and sliding windows, fused layers; a quarter of a minute each.
IN_EVERY_RUN = ("qwen2", "gemma2", "phi3")


def reference(module: str, *arguments: str) -> None:
    """Make models and decode with them, in a process without vLLM."""
    command = [sys.executable, "-m", f"tests.engine.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one for each family of this run."""
    folder = tmp_path_factory.mktemp("families")
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    wanted = {spec.params["family"] for spec in specs if spec and "family" in spec.params}
    reference("families", str(folder), *sorted(wanted))
    return folder


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


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    importlib.util.find_spec(gemma3.PACKAGE) is None,
    reason=f"the weights of Gemma 3 270M are not installed (240 MB): {gemma3.INSTALL}",
)
def test_real_weights(make_llm: Any, tmp_path: Path) -> None:
    """Documents longer than the sliding window and shorter, a large vocabulary, no LoRA."""
    reference("gemma", str(tmp_path))
    groups = gemma.make_groups(AutoTokenizer.from_pretrained(gemma3.model_path()))
    assert min(map(length, groups)) < gemma.WINDOW < max(map(length, groups))
    llm = make_llm(
        model=str(gemma3.model_path()),
        enable_lora=False,
        additional_config={"cold": True},
        max_model_len=2048,
        max_num_batched_tokens=256,
        async_scheduling=True,
    )
    assert llm.llm_engine.model_config.get_vocab_size() == 262_144
    check(llm, tmp_path, groups)
