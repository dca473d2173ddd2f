# SPDX-License-Identifier: Apache-2.0
"""The self-test: an engine decodes with a tiny model, and its tokens are compared with those of a
reference that does not use vLLM.

The engine runs in a process of its own (``python -m vllm_cold.tools.doctor.self_test FOLDER``): if
it hangs or dies, the doctor goes on. Device, model runner, kernels and environment variables are
those of other engines here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

from vllm_cold.tools.doctor import tiny
from vllm_cold.tools.doctor.cases import CASES
from vllm_cold.tools.doctor.report import Entry, Section, Status, without_home

TITLE = "Self-test"
_RESULT = "tokens.json"
_LOG_LINES = 30
_MIB = 2**20


def main(folder: Path) -> None:
    """The engine's process: decode all cases in one batch, and write what the engine is and its
    tokens to the folder.
    """
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    from vllm_cold import ColdParams
    from vllm_cold.vllm.frontend.config import model_runner

    adapters: dict[str | None, LoRARequest] = {
        name: LoRARequest(name, number, str(folder / name))
        for number, name in enumerate(tiny.ADAPTERS, 1)
    }
    sampling: dict[str, Any] = {
        "temperature": 0.0,
        "max_tokens": len(CASES[0].right),
        "ignore_eos": True,
        "detokenize": False,
    }
    params = [
        SamplingParams(**sampling)
        if case.cold is None
        else ColdParams(**case.cold, amateur=adapters.get(case.amateur), **sampling)
        for case in CASES
    ]
    # Eager, float32, and next to no memory.
    llm = LLM(
        model=str(folder / tiny.MODEL),
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=128,
        max_num_seqs=16,
        enable_lora=True,
        max_loras=2,
        max_lora_rank=tiny.RANK,
        enforce_eager=True,
        kv_cache_memory_bytes=32 * _MIB,
        gpu_memory_utilization=0.05,
        disable_log_stats=True,
    )
    try:
        outputs = llm.generate(
            [{"prompt_token_ids": list(case.prompt)} for case in CASES],
            params,
            lora_request=[adapters.get(case.adapter) for case in CASES],
            use_tqdm=False,
        )
    finally:
        llm.llm_engine.engine_core.shutdown()
    config = llm.llm_engine.vllm_config
    scheduling = "asynchronous" if config.scheduler_config.async_scheduling else "synchronous"
    engine = f"{model_runner(config)} runner, {scheduling} scheduling"
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    (folder / _RESULT).write_text(json.dumps([engine, tokens]))


def compare(got: Sequence[Sequence[int]]) -> list[Entry]:
    """One entry for each case, and the result."""
    entries = []
    for case, ours in zip(CASES, got, strict=True):
        entry = Entry(case.name, f"the reference's {len(ours)} tokens", Status.OK)
        for at, (one, other) in enumerate(zip_longest(ours, case.right, fillvalue="nothing")):
            if one != other:
                said = f"differs first at token {at}: the engine has {one}, the reference {other}"
                entry = Entry(case.name, said, Status.PROBLEM)
                break
        entries.append(entry)
    if wrong := sum(entry.status is Status.PROBLEM for entry in entries):
        said = f"FAIL: {wrong} of {len(entries)} differ"
        return [*entries, Entry("result", said, Status.PROBLEM)]
    return [*entries, Entry("result", "PASS", Status.OK)]


def run(timeout: float = 300.0) -> Section:
    """Decode in an engine of its own process and compare; ``timeout`` is in seconds."""
    with tempfile.TemporaryDirectory(prefix="vllm-cold-doctor-") as name:
        folder = Path(name)
        tiny.write(folder)
        log = folder / "log.txt"
        start = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                # -P: files of the working directory must not stand in for the engine's modules.
                [sys.executable, "-P", "-m", __name__, str(folder)],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=_environment(os.environ),
                start_new_session=True,
            )
            failed = ""
            try:
                if status := process.wait(timeout):
                    failed = f"ended with status {status}; the end of its log is below"
            except subprocess.TimeoutExpired:
                failed = f"had not finished after {timeout:g} s"
            finally:  # of all its processes, whatever state they are in
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds = time.monotonic() - start
        text = without_home(log.read_text(errors="replace"))
        end = "\n".join(text.splitlines()[-_LOG_LINES:])
        if failed:
            result = Entry("result", f"FAIL: the engine {failed}", Status.PROBLEM)
            return Section(TITLE, [result], end)
        engine, tokens = json.loads((folder / _RESULT).read_text())
        told = Entry("engine", f"{engine}, started and decoded in {seconds:.0f} s")
        entries = compare(tokens)
        return Section(TITLE, [told, *entries], "" if entries[-1].status is Status.OK else end)


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The engine's environment: this one, without a hub, with its own small KV cache, and without
    TF32: GPUs would round float32, which could decide about a token.
    """
    changed = {
        **environment,
        "TRITON_F32_DEFAULT": "ieee",
        "VLLM_FLOAT32_MATMUL_PRECISION": "highest",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
    }
    changed.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would win over kv_cache_memory_bytes
    return changed


if __name__ == "__main__":
    main(Path(sys.argv[1]))
