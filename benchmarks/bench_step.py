# SPDX-License-Identifier: Apache-2.0
"""Where a decoding step goes on a CPU: ``python -m benchmarks.bench_step --json FILE [--eager]``.

SmolLM2-135M-Instruct in bfloat16 with the sorting adapter at rank 16, in one engine with LoRA and
the plugin: the base model, the adapter and CoLD, at batch 1 and 8, by torch's profiler, after the
prompts' steps. An operator's own time counts for its part; what is not in an operator belongs to
the function of vLLM's that runs. The profiler makes a step some tenths longer, so the whole stands
beside it as the clock has it without.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

# Parts, and what they are made of: operators, or functions that ``MARKED`` names; the compiled
# graph has norms, rotary embeddings and activations, and the Python between its operators.
PARTS = {
    "products, LoRA within": ("vllm_cold::linear_lora", "vllm_cold::lora_linear"),
    "logits": ("vllm_cold::linear",),
    "attention": ("_C::cpu_attention_with_kv_cache", "_C::cpu_attn_reshape_and_cache"),
    "attention, Python": (
        "vllm::unified_kv_cache_update", "vllm::unified_attention_with_output", "metadata",
    ),
    "norms, rotary, activations": (),  # and all other operators
    "model runner": ("execute", "prepare", "forward"),
    "sampling, scoring": ("sample",),
    "scheduler": ("schedule", "update"),
    "engine": ("step",),
}  # fmt: skip
REST = "norms, rotary, activations"
TOKENS, ROUNDS = 48, 5


def marked(owner: Any, method: str, label: str) -> None:
    """Have the profiler see a method."""
    from torch.profiler import record_function

    original = getattr(owner, method)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with record_function(label):
            return original(*args, **kwargs)

    setattr(owner, method, wrapped)


def decode(
    engine: Any, requests: Sequence[tuple[Any, Any, Any]], look: Callable[[], Any] = nullcontext
) -> tuple[float, int]:
    """Decode ``requests`` (prompt, parameters, adapter) after their first tokens within ``look``;
    return its seconds and steps.
    """
    for index, (prompt, params, lora) in enumerate(requests):
        engine.add_request(str(index), {"prompt_token_ids": prompt}, params, lora_request=lora)
    begun: set[str] = set()
    while len(begun) < len(requests):
        begun |= {output.request_id for output in engine.step()}
    within: AbstractContextManager[Any] = look()
    with within:
        steps, start = 0, time.perf_counter()
        while engine.has_unfinished_requests():
            engine.step()
            steps += 1
        return time.perf_counter() - start, steps


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--eager", action="store_true", help="without compiling the model")
    options = parser.parse_args(arguments)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

    from torch.profiler import ProfilerActivity, profile
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    from benchmarks import machine
    from benchmarks.e2e.run import TASK, read_prompts, widen
    from examples.demo import ADAPTERS
    from examples.smollm2 import model_path
    from vllm_cold import ColdParams
    from vllm_cold.compat import hardware

    facts, runs = machine.look(), []
    with tempfile.TemporaryDirectory() as folder:
        widen(ADAPTERS / TASK, adapter := Path(folder, "adapter"), 16)
        llm = LLM(
            str(model_path()), dtype="bfloat16", enable_lora=True, max_lora_rank=16,
            max_model_len=512, max_num_seqs=32, enforce_eager=options.eager,
        )  # fmt: skip
        engine, core = llm.llm_engine, llm.llm_engine.engine_core.engine_core
        runner = core.model_executor.driver_worker.worker.model_runner
        for owner, method, label in (
            (core.scheduler, "schedule", "schedule"),
            (core.scheduler, "update_from_output", "update"),
            (runner, "execute_model", "execute"), (runner, "_prepare_inputs", "prepare"),
            (runner, "_build_attention_metadata", "metadata"),
            (runner, "_model_forward", "forward"),
            (runner, "sample_tokens", "sample"), (engine, "step", "step"),
        ):  # fmt: skip
            marked(owner, method, label)
        part_of = {name: part for part, names in PARTS.items() for name in names}
        prompts = read_prompts(llm.get_tokenizer(), 8)
        lora = LoRARequest("adapter", 1, str(adapter))
        greedy: dict[str, Any] = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
        for batch in (1, 8):
            for name, params, loras in (
                ("base", SamplingParams(**greedy), None),
                ("adapter", SamplingParams(**greedy), lora),
                ("CoLD", ColdParams(alpha=0.1, beta=0.5, **greedy), lora),
            ):
                requests = [(prompt, params, loras) for prompt in prompts[:batch]]
                decode(engine, requests)
                timed = [decode(engine, requests) for _ in range(ROUNDS)]
                seen = profile(activities=[ProfilerActivity.CPU])
                _, steps = decode(engine, requests, lambda seen=seen: seen)
                parts: Counter[str] = Counter()
                for event in seen.key_averages():
                    parts[part_of.get(event.key, REST)] += event.self_cpu_time_total / 1e3 / steps
                milliseconds = [1e3 * seconds / count for seconds, count in timed]
                by_part = {part: round(parts[part], 3) for part in PARTS}
                run = {"system": name, "batch": batch, "ms a step": milliseconds}
                runs.append(run | {"parts, ms": by_part})
                print(name, batch, round(median(milliseconds), 2), by_part, flush=True)
    machine.look_again(facts)
    kernels = hardware.kernels
    measured = {"machine": facts, "eager": options.eager, "kernels": kernels, "runs": runs}
    options.json.write_text(json.dumps(measured, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
