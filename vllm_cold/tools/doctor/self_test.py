# SPDX-License-Identifier: Apache-2.0
"""The self-test: an engine decodes with a tiny model, and its tokens are compared with those of a
reference that does not use vLLM.

The engine runs in a process of its own (``python -m vllm_cold.tools.doctor.self_test FOLDER``): if
it hangs or dies, the doctor goes on. Device, model runner, kernels and environment variables are
those of other engines here.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_cold.tools.doctor import tiny
from vllm_cold.tools.doctor.doctor_report import Entry, Status, without_home

_RESULT = "tokens.json"
_LOG_LINES = 30


@dataclass(frozen=True, slots=True)
class Case:
    """One request of the self-test, decoded greedily."""

    name: str  # what it shows
    prompt: list[int]  # token ids
    right: list[int]  # the token ids that it must give
    adapter: str | None = None  # the request's adapter, None for the base model
    cold: Mapping[str, Any] | None = None  # the settings of a contrastive request
    amateur: str | None = None  # adapter to contrast with, None for the base model


# The right tokens are those of ``tests/naive.py``: through transformers and peft in float32 and
# without vLLM, and a test compares. No choice is so close that rounding decides it.
CASES = [Case(**row) for row in json.loads(Path(__file__).with_name("cases.json").read_bytes())]


def main(folder: Path) -> None:
    """Decode all cases in one batch, in the engine's process, and write what the engine is and
    its tokens to the folder.
    """
    # Without a hub, with its own small KV cache (the variable would win over the argument), and
    # without TF32: GPUs would round float32, which could decide about a token.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    os.environ |= {
        "TRITON_F32_DEFAULT": "ieee",
        "VLLM_FLOAT32_MATMUL_PRECISION": "highest",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
    }
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    from vllm_cold import ColdParams
    from vllm_cold.compat.runner import runner_of

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
        kv_cache_memory_bytes=32 * 2**20,
        gpu_memory_utilization=0.05,
        disable_log_stats=True,
    )
    try:
        outputs = llm.generate(
            [{"prompt_token_ids": case.prompt} for case in CASES],
            params,
            lora_request=[adapters.get(case.adapter) for case in CASES],
            use_tqdm=False,
        )
    finally:
        llm.llm_engine.engine_core.shutdown()
    config = llm.llm_engine.vllm_config
    scheduling = "asynchronous" if config.scheduler_config.async_scheduling else "synchronous"
    engine = f"{runner_of(config).value} runner, {scheduling} scheduling"
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    (folder / _RESULT).write_text(json.dumps([engine, tokens]))


def run(timeout: float = 300.0) -> Iterator[Entry]:
    """Decode in an engine of its own process and compare; ``timeout`` is in seconds."""
    print("vllm-cold doctor: self-test, about half a minute ...", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="vllm-cold-doctor-") as name:
        folder = Path(name)
        tiny.write(folder)
        log = folder / "log.txt"
        start = time.monotonic()
        if failed := _run_engine(folder, log, timeout):
            entries = [Entry("engine", failed, Status.PROBLEM)]
        else:
            engine, tokens = json.loads((folder / _RESULT).read_text())
            engine += f", started and decoded in {time.monotonic() - start:.0f} s"
            entries = [Entry("engine", engine)]
            for case, decoded in zip(CASES, tokens, strict=True):
                entry = Entry(case.name, f"the reference's {len(decoded)} tokens")
                if decoded != case.right:
                    text = f"differs: the engine has {decoded}, the reference {case.right}"
                    entry = Entry(case.name, text, Status.PROBLEM)
                entries.append(entry)
        yield from entries
        if any(entry.status is Status.PROBLEM for entry in entries):
            lines = without_home(log.read_text(errors="replace")).splitlines()
            yield Entry("log", "\n".join(lines[-_LOG_LINES:]), Status.LOG)


def _run_engine(folder: Path, log: Path, timeout: float) -> str:
    """Run the engine's process to its end; return why it failed, "" if it did not."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            # -P: files of the working directory must not stand in for the engine's modules.
            [sys.executable, "-P", "-m", __name__, str(folder)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        status = process.wait(timeout)
        return f"ended with status {status}; the end of its log is below" if status else ""
    except subprocess.TimeoutExpired:
        return f"had not finished after {timeout:g} s"
    finally:  # of all its processes, whatever state they are in
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
