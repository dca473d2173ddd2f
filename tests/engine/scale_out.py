# SPDX-License-Identifier: Apache-2.0
"""SmolLM2 on several processes against one process: the same tokens, or an exit status of 1.

``python -m tests.engine.scale_out --tensor-parallel-size 3`` (SmolLM2 has 9 heads, which 2 does
not divide). float32, all kinds of requests in one batch. Minutes on two cores.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ADAPTERS = Path(__file__).parents[2] / "examples" / "adapters"
NAMES = ("sorting", "orders")


def requests(count: int, max_tokens: int, tokenizer: Any) -> tuple[list[str], list[Any], list[Any]]:
    """Prompts, parameters and adapters, for ``count`` prompts of each task: against the base model;
    against the other adapter; against both that adapter and the problem without the template;
    plain with the adapter and without.
    """
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    from examples.tasks import TASKS, chat_prompt
    from vllm_cold import Amateur, ColdParams

    loras = {n: LoRARequest(n, i, str(ADAPTERS / n)) for i, n in enumerate(NAMES, start=1)}
    greedy: dict[str, Any] = {"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True}
    texts: list[str] = []
    params: list[Any] = []
    adapters: list[Any] = []
    for name, other in (NAMES, NAMES[::-1]):
        for problem in TASKS[name].prompts("test", count):
            two = [
                Amateur(lora_request=loras[other], weight=-0.5),
                Amateur(prompt=problem.prompt, weight=-0.5),
            ]
            texts += [chat_prompt(tokenizer, problem)] * 5
            params += [
                ColdParams(alpha=0.1, beta=0.5, **greedy),
                ColdParams(alpha=0.05, beta=1.0, amateur=loras[other], **greedy),
                ColdParams(alpha=0.05, amateurs=two, **greedy),
                SamplingParams(**greedy),
                SamplingParams(**greedy),
            ]
            adapters += [loras[name]] * 4 + [None]
    return texts, params, adapters


def decode(model: Path, count: int, max_tokens: int, **options: Any) -> list[list[int]]:
    """All requests in one batch of a new engine; their tokens."""
    from vllm import LLM

    started = time.perf_counter()
    llm = LLM(
        model=str(model),
        dtype="float32",
        enable_lora=True,
        max_loras=2,
        max_lora_rank=16,
        max_model_len=512,
        enforce_eager=True,
        disable_log_stats=True,
        **options,
    )
    ready = time.perf_counter()
    texts, params, adapters = requests(count, max_tokens, llm.get_tokenizer())
    outputs = llm.generate(texts, params, lora_request=adapters, use_tqdm=False)
    done = time.perf_counter()
    llm.llm_engine.engine_core.shutdown()
    print(
        f"{options or 'one process'}: started in {ready - started:.0f} s, ran {done - ready:.0f} s"
    )
    return [list(o.outputs[0].token_ids) for o in outputs]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tensor-parallel-size", type=int, default=3)
    parser.add_argument("--fully-sharded-loras", action="store_true")
    parser.add_argument("--prompts", type=int, default=2, help="of each of the two tasks")
    parser.add_argument("--max-tokens", type=int, default=24)
    options = parser.parse_args(arguments)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else a NUMA node a process

    from examples.smollm2 import model_path

    size = (model_path(), options.prompts, options.max_tokens)
    alone = decode(*size)
    several = decode(
        *size,
        tensor_parallel_size=options.tensor_parallel_size,
        fully_sharded_loras=options.fully_sharded_loras,
    )
    different = [i for i, (a, b) in enumerate(zip(alone, several, strict=True)) if a != b]
    tokens = sum(map(len, alone))
    if different:
        print(f"requests {different} differ, of {len(alone)}")
        return 1
    print(f"{len(alone)} requests, {tokens} tokens: all equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
