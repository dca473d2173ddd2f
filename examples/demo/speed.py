# SPDX-License-Identifier: Apache-2.0
"""Two requests in one batch, and an adapter: measured here, and in a process without the plugin.

``python -m examples.demo.speed FOLDER`` is that process, for a folder of ``vllm-cold example``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from examples.demo import quiet
from examples.demo.questions import user
from examples.engine import start_llm
from vllm_cold.tools.adapters import engine_arguments, read_adapters
from vllm_cold.tools.command_error import ToolError

TOKENS = 32  # of each of the two requests
ADAPTER_TOKENS = 16  # of each request with the adapter
ROUNDS = 3  # the first warms up, the fastest counts
# Without compilation, which LoRA of vLLM's own on CPU cannot have, and which takes a minute.
ENGINE: dict[str, Any] = {
    "dtype": "bfloat16",
    "max_model_len": 1024,
    "max_num_seqs": 128,
    "block_size": 32,  # requests for the same text share more of its KV cache
    "enforce_eager": True,
}
_REGULAR = "Write a short story about a lighthouse."
_OTHER = "Alder Lamps, a lamp shop. We sell lamps of glass and of paper.", "What do you sell?"


class Batch(NamedTuple):
    """Two requests in one batch: tokens of the first, milliseconds a token of either."""

    tokens: list[int]
    ms: float


def adapter_engine(folder: Path) -> dict[str, Any]:
    """Arguments of an engine for the folder's adapter."""
    return {**ENGINE, **engine_arguments(read_adapters(None, [str(folder / "sorting")]))}


def _timed(
    llm: Any, chats: Sequence[Any], params: Any, lora: Any = None
) -> tuple[list[int], float]:
    """Decode a batch; the first request's tokens, and seconds."""
    seconds, tokens = [], list[int]()
    for _ in range(ROUNDS):
        llm.reset_prefix_cache()  # each round computes the prompts
        start = time.perf_counter()
        outputs = llm.chat(chats, params, lora_request=lora, use_tqdm=False)
        seconds.append(time.perf_counter() - start)
        tokens = list(outputs[0].outputs[0].token_ids)
    return tokens, min(seconds[1:])


def one_batch(llm: Any, contrast: bool) -> Batch:
    """Decode a regular request and another one, with a contrast or as a regular one, too."""
    from vllm import SamplingParams

    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": TOKENS, "ignore_eos": True}
    params = [SamplingParams(**options)] * 2
    if contrast:
        from vllm_cold import Amateur, ColdParams

        params[1] = ColdParams.preset("cad", amateur=Amateur(without="tool"), **options)
    text, question = _OTHER
    other = [{"role": "tool", "tool_call_id": "0", "content": text}, *user(question)]
    tokens, seconds = _timed(llm, [user(_REGULAR), other], params)
    return Batch(tokens, 1000 * seconds / TOKENS)


def adapter_rate(llm: Any, folder: Path, requests: int) -> float:
    """Decode problems with the folder's adapter, in one batch; tokens a second of all together."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    rows = (folder / "numbers.jsonl").read_text(encoding="utf-8").splitlines()[:requests]
    chats = [user(json.loads(row)["prompt"]) for row in rows]
    params = SamplingParams(temperature=0.0, max_tokens=ADAPTER_TOKENS, ignore_eos=True)
    sorting = LoRARequest("sorting", 1, str((folder / "sorting").resolve()))
    return requests * ADAPTER_TOKENS / _timed(llm, chats, params, sorting)[1]


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens are the same before the first that differs."""
    pairs = enumerate(zip(a, b, strict=True))
    return next((i for i, (one, other) in pairs if one != other), len(b))


def without_plugin(folder: Path, requests: int) -> tuple[Batch, float]:
    """Measure the same in a process in which vLLM loads no plugin.

    Raises:
        ToolError: it fails.
    """
    command = [sys.executable, "-m", "examples.demo.speed", str(folder), str(requests)]
    env = {**os.environ, "VLLM_PLUGINS": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(f"vLLM without the plugin fails:\n{done.stderr.strip()[-2000:]}")
    batch, rate = json.loads(done.stdout.splitlines()[-1])
    return Batch(*batch), rate


def _main(folder: Path, requests: int) -> None:
    """Print it as JSON. The base model is measured without LoRA, so that it has no cost of it."""
    quiet()
    model = str(folder / "model")
    llm = start_llm(model, **ENGINE)
    batch = one_batch(llm, contrast=False)
    llm.llm_engine.engine_core.shutdown()
    llm = start_llm(model, **adapter_engine(folder))
    print(json.dumps([batch, adapter_rate(llm, folder, requests)]))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]))
