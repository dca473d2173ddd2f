# SPDX-License-Identifier: Apache-2.0
"""Groups of streams on models of other families: the engine's tokens equal those of transformers
and peft. They are tiny and random, with random adapters.

What they differ by is what could go wrong with streams of their own length: positions, sliding
windows (the prompts are longer), biases, fused layers, caps on logits. Of two adapters for a
mixture of experts one changes the experts.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.engine.families import FAMILIES, GROUPS, RANK
from tests.engine.streams import decode
from tests.naive import Group, Trace, assert_same_tokens

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
# A bias, caps on logits and sliding windows, fused layers, experts; a quarter of a minute each.
IN_EVERY_RUN = ("qwen2", "gemma2", "phi3", "qwen3_moe")


@pytest.fixture(scope="module")
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one for each family of this run."""
    folder = tmp_path_factory.mktemp("families")
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    wanted = {spec.params["family"] for spec in specs if spec and "family" in spec.params}
    # In a process without vLLM.
    command = [sys.executable, "-m", "tests.engine.families", str(folder), *sorted(wanted)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def options(folder: Path) -> dict[str, Any]:
    """Of an engine for a family."""
    return {
        "model": str(folder / "model"),
        "max_lora_rank": RANK,
        "max_loras": 2,
        "max_num_batched_tokens": 64,
        "async_scheduling": True,
        "skip_tokenizer_init": True,
    }


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
    check(make_llm(**options(folders / family)), folders / family, GROUPS)


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", ["qwen3_moe"])
def test_experts_of_a_compiled_model(family: str, folders: Path, make_llm: Any) -> None:
    """Which rows have an adapter on them is looked at in each step."""
    llm = make_llm(**options(folders / family), enforce_eager=False)
    check(llm, folders / family, GROUPS)


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_experts_shared_by_two_processes(
    family: str, folders: Path, make_llm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a half of every expert."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # vLLM wants a NUMA node each
    llm = make_llm(**options(folders / family), tensor_parallel_size=2, kv_cache_memory_bytes=2**26)
    check(llm, folders / family, GROUPS)
