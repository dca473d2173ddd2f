# SPDX-License-Identifier: Apache-2.0
"""Compiled models with our C++ LoRA operators come from vLLM's cache without harm.

torch does not look into these operators, so a change in them changes no key of the cache. It need
not: a compiled model calls them by name, and whoever is registered under it answers.

(What is reused on CPU are inductor's kernels. Each process adds an entry of its own for the graph,
and the whole model, which vLLM 0.32 saves beside it, it cannot load: "'function' object has no
attribute 'finalize_loading'".)
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.full]

SOURCES = Path(__file__).parents[2] / "csrc" / "cpu"

CHILD = """
import gc, json, sys
from pathlib import Path
from vllm_cold.ops import cpu_library
cpu_library.PATH = Path(sys.argv[2])
from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
from vllm.lora.request import LoRARequest
from vllm_cold import ColdParams

tiny = Path(sys.argv[1])
inputs = [{"prompt_token_ids": [(13 * i + 7 * j) % 500 + 4 for j in range(5 + 11 * i)]}
          for i in range(4)]
common = {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True}
adapter = LoRARequest("one", 1, str(tiny / "one"))
found = {}
for name in ("compiled", "eager"):
    llm = LLM(str(tiny / "model"), dtype="float32", enable_lora=True, max_lora_rank=8,
              max_model_len=128, max_num_seqs=16, enforce_eager=name == "eager")
    found[name] = {
        kind: [list(o.outputs[0].token_ids)
               for o in llm.generate(inputs, params, lora_request=lora, use_tqdm=False)]
        for kind, params, lora in (
            ("base", SamplingParams(**common), None),
            ("adapter", SamplingParams(**common), adapter),
            ("cold", ColdParams(beta=2.0, **common), adapter),
        )
    }
    mode = llm.llm_engine.vllm_config.compilation_config.mode
    found[name]["mode"] = int(mode)
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library whose LoRA has twice the effect."""
    folder = tmp_path_factory.mktemp("doubled")
    for path in SOURCES.iterdir():
        text = path.read_text()
        if path.name == "lora_torch.cpp":
            linear = "vllm_cold_lora_linear(layer, &y, &x, float_of(scale)"
            assert text.count(linear) == 1
            text = text.replace(linear, linear.replace("float_of", "2 * float_of"))
        (folder / path.name).write_text(text)
    command = ["g++", "-shared", "-fPIC", "-std=c++17", "-O1", "-fno-exceptions", "-fno-rtti"]
    command += ["-ffp-contract=off", "-fvisibility=hidden", "-o", "_cpu.so"]
    sources = sorted(path.name for path in folder.glob("*.cpp"))
    subprocess.run([*command, *sources], cwd=folder, check=True, timeout=280)
    return folder / "_cpu.so"


def run(tiny: Path, library: Path, cache: Path, **environment: str) -> dict[str, Any]:
    """Tokens of a compiled and an uncompiled engine of one process."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tiny), str(library)],
        env={
            **os.environ,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CACHE_ROOT": str(cache / "vllm"),
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    line = next((x for x in done.stdout.splitlines() if x.startswith("FOUND")), None)
    assert line is not None, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(line.removeprefix("FOUND"))
    return found


def kernels(cache: Path) -> dict[str, int]:
    """What inductor has compiled, and when."""
    return {path.name: path.stat().st_mtime_ns for path in cache.rglob("*.so")}


@pytest.mark.timeout(1500)
def test_each_run_has_the_tokens_of_its_own_operators(
    tiny: Path, doubled: Path, tmp_path: Path
) -> None:
    from vllm_cold.ops import cpu_library

    ours = cpu_library.PATH
    first = run(tiny, ours, tmp_path)
    made = kernels(tmp_path)
    other = run(tiny, doubled, tmp_path)
    again = run(tiny, ours, tmp_path)
    torch = run(tiny, ours, tmp_path, COLD_LORA="torch")
    last = run(tiny, ours, tmp_path)
    # Without that nothing would be shown here.
    assert made and kernels(tmp_path) == made, "the cache was not used"

    for found in (first, other, again, torch, last):
        modes = found["compiled"].pop("mode"), found["eager"].pop("mode")
        assert modes[1] == 0 and (modes[0] == 0) == (found is torch)
        assert found["compiled"] == found["eager"]
    assert first == again == last == torch
    assert other["eager"]["base"] == first["eager"]["base"]
    for kind in ("adapter", "cold"):
        assert other["eager"][kind] != first["eager"][kind]
