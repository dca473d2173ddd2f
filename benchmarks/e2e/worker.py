# SPDX-License-Identifier: Apache-2.0
"""One process of ``benchmarks.bench_e2e``: an engine, or the naive loop, that runs when asked to.

``python -m benchmarks.e2e.worker FD`` reads JSON lines from stdin, the settings first and then
commands, and writes one JSON line for each to the file descriptor FD, which nothing else writes
to. Between commands it waits for its pipe and computes nothing. It ends with its stdin.

The families: ``stock-base`` is vLLM without LoRA and ``stock-lora`` with, both without the plugin;
``plugin`` is vLLM with LoRA and the plugin; ``naive`` is transformers and peft, two forward passes
for each token. That a process has the plugin, or has not, is checked before it says "ready".
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FAMILIES = ("stock-base", "stock-lora", "plugin", "naive")
MODES = ("base", "adapter", "cold", "beta-0")
ALPHA, BETA = 0.1, 0.5


def stamped(started: float, stamps: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The times of a run in seconds from its start.

    Args:
        started: When the batch was handed over, by ``time.perf_counter``.
        stamps: For each request the time at which each of its tokens was there.

    Returns:
        ``seconds``: until the last token of all; ``first`` and ``last``: of each request.
    """
    return {
        "seconds": max(times[-1] for times in stamps) - started,
        "first": [times[0] - started for times in stamps],
        "last": [times[-1] - started for times in stamps],
    }


class Engine:
    """A vLLM engine in this process: all prompts are queued before its first step."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from vllm import LLM

        self.adapter = settings["adapter"]
        options: dict[str, Any] = {}
        if settings["family"] != "stock-base":
            options = {
                "enable_lora": True,
                "max_loras": settings["max_loras"],
                "max_lora_rank": settings["rank"],
            }
        self.llm = LLM(
            model=settings["model"],
            dtype=settings["dtype"],
            max_model_len=settings["max_model_len"],
            max_num_seqs=settings["max_num_seqs"],
            disable_log_stats=True,
            **options,
        )
        self.core = self.llm.llm_engine.engine_core.engine_core
        self.check(with_plugin=settings["family"] == "plugin")

    def check(self, with_plugin: bool) -> None:
        """Raise RuntimeError unless the plugin is active here, or not even imported."""
        from vllm.platforms import current_platform

        scheduler = type(self.core.scheduler).__module__
        wrapper = current_platform.get_punica_wrapper()
        plugin = sys.modules.get("vllm_cold.vllm.availability")
        if with_plugin:
            if plugin is None:
                raise RuntimeError("vLLM did not load the plugin: is vllm-cold installed?")
            plugin.require_active()
            wrong = [] if scheduler.startswith("vllm_cold.") else [f"scheduler of {scheduler}"]
            # Only the CPU's wrapper is replaced.
            if current_platform.is_cpu() and not wrapper.startswith("vllm_cold."):
                wrong.append(f"LoRA wrapper {wrapper}")
            if wrong:
                raise RuntimeError(f"the plugin is loaded but not in use: {', '.join(wrong)}")
            return
        found = [name for name in sys.modules if name.startswith("vllm_cold.vllm")]
        found += [name for name in (scheduler, wrapper) if not name.startswith("vllm.")]
        if found:
            raise RuntimeError(f"this engine is not stock, it has {', '.join(sorted(found))}")

    def facts(self) -> dict[str, Any]:
        """What the engine is, as far as it matters for speed."""
        import torch
        from vllm.platforms import current_platform

        config = self.llm.llm_engine.vllm_config
        scheduler, compilation = config.scheduler_config, config.compilation_config
        facts = {
            "compilation": compilation.mode.name,
            "scheduler": type(self.core.scheduler).__qualname__,
            "lora wrapper": "none",
            "device": config.device_config.device_type,
            "threads": torch.get_num_threads(),
            "block size": config.cache_config.block_size,
            "blocks": config.cache_config.num_gpu_blocks,
            "max_num_seqs": scheduler.max_num_seqs,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        }
        if config.lora_config is not None:
            facts["lora wrapper"] = current_platform.get_punica_wrapper().rpartition(".")[2]
        return facts

    def run(
        self, mode: str, prompts: list[list[int]], tokens: int, adapters: int = 1
    ) -> dict[str, Any]:
        """Decode a batch greedily with an empty prefix cache.

        Args:
            mode: One of ``MODES``.
            prompts: Token ids.
            tokens: How many each request generates.
            adapters: How many different adapters the requests have, in turn.

        Returns:
            Times (see ``stamped``), ``tokens``, and ``blocks``: the most KV blocks in use.
        """
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind

        options: dict[str, Any] = {
            "temperature": 0.0,
            "max_tokens": tokens,
            "ignore_eos": True,
            # An output in each step, with what is new: when a token came must be seen.
            "output_kind": RequestOutputKind.DELTA,
        }
        if mode in ("cold", "beta-0"):
            from vllm_cold import ColdParams

            params = ColdParams(alpha=ALPHA, beta=BETA if mode == "cold" else 0.0, **options)
        else:
            params = SamplingParams(**options)
        names = [1 + i % adapters for i in range(len(prompts))]
        loras = [
            None if mode == "base" else LoRARequest(f"adapter-{i}", i, self.adapter) for i in names
        ]
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be reset: requests are still running")
        gc.collect()
        engine = self.llm.llm_engine
        pool = self.core.scheduler.kv_cache_manager.block_pool
        free = least = pool.get_num_free_blocks()
        got: list[list[int]] = [[] for _ in prompts]
        stamps: list[list[float]] = [[] for _ in prompts]
        started = time.perf_counter()
        for index, (prompt, lora) in enumerate(zip(prompts, loras, strict=True)):
            engine.add_request(str(index), {"prompt_token_ids": prompt}, params, lora_request=lora)
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now = time.perf_counter()
            least = min(least, pool.get_num_free_blocks())
            for output in outputs:
                new = output.outputs[0].token_ids
                if new:
                    got[int(output.request_id)] += new
                    stamps[int(output.request_id)].append(now)
        return {**stamped(started, stamps), "tokens": got, "blocks": free - least}


class Naive:
    """The base model, and a second copy with the adapter: two passes and two KV caches.

    Each of the two could do without the other's weights, but switching an adapter off and on
    for each token would cost time.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        def load() -> Any:
            return AutoModelForCausalLM.from_pretrained(
                settings["model"], dtype=getattr(torch, settings["dtype"])
            )

        self.base = load().eval()
        self.adapted = PeftModel.from_pretrained(
            load(), settings["adapter"], autocast_adapter_dtype=False
        ).eval()

    def facts(self) -> dict[str, Any]:
        """What the naive process is, as far as it matters for speed."""
        import peft
        import torch
        import transformers

        return {
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "attention": self.base.config._attn_implementation,
            "threads": torch.get_num_threads(),
        }

    def _streams(self, mode: str) -> list[Any]:
        """The models of a mode, expert first."""
        return {
            "base": [self.base],
            "adapter": [self.adapted],
            "cold": [self.adapted, self.base],
        }[mode]

    def run(
        self, mode: str, prompts: list[list[int]], tokens: int, adapters: int = 1
    ) -> dict[str, Any]:
        """``Engine.run`` as a plain loop over a left-padded batch, with one adapter."""
        import torch

        if adapters != 1:
            raise ValueError(f"adapters={adapters}: the naive loop has 1")
        gc.collect()
        started = time.perf_counter()  # padding is part of the work
        models = self._streams(mode)
        caches: list[Any] = [None for _ in models]
        width = max(map(len, prompts))
        padding = [width - len(prompt) for prompt in prompts]
        ids = torch.tensor([[0] * n + p for n, p in zip(padding, prompts, strict=True)])
        mask = torch.ones(len(prompts), width + tokens, dtype=torch.long)
        for row, n in enumerate(padding):
            mask[row, :n] = 0
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        seen, got, times = 0, [], []
        with torch.inference_mode():
            for _ in range(tokens):
                end = seen + ids.shape[1]
                logits = []
                for i, model in enumerate(models):
                    out = model(
                        input_ids=ids,
                        attention_mask=mask[:, :end],
                        position_ids=positions[:, seen:end],
                        past_key_values=caches[i],
                        use_cache=True,
                        logits_to_keep=1,
                    )
                    caches[i] = out.past_key_values
                    logits.append(out.logits[:, -1].float())
                ids = scores(*logits).argmax(-1, keepdim=True)
                got.append(ids[:, 0].tolist())
                times.append(time.perf_counter())
                seen = end
        return {
            **stamped(started, [times] * len(prompts)),
            "tokens": [list(row) for row in zip(*got, strict=True)],
            "blocks": None,
        }

    def gap(self, mode: str, prompt: list[int], choices: list[int]) -> dict[str, float]:
        """How far the worst of ``choices`` is behind the best next token after ``prompt``.

        ``gap`` is in units of the scores (logits); infinite for a token that is no candidate.
        """
        import torch

        with torch.inference_mode():
            logits = [
                model(input_ids=torch.tensor([prompt]), logits_to_keep=1).logits[:, -1].float()
                for model in self._streams(mode)
            ]
        row = scores(*logits)[0]
        return {"gap": float(row.max() - row[choices].min())}


def scores(expert: Any, amateur: Any = None) -> Any:
    """The scores of docs/method.md for logits [B, V] in float32; without amateur the logits."""
    import torch

    if amateur is None:
        return expert
    bar = expert.max(-1, keepdim=True).values + math.log(ALPHA)
    return torch.where(expert >= bar, expert + BETA * (expert - amateur), -math.inf)


def peak_memory() -> int | None:
    """The most memory that this process had resident (VmHWM), in bytes; None if not told."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return next((int(kib) * 1024 for kib in found), None)


def main() -> None:
    """Serve commands until stdin ends."""
    replies = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8")
    idle_since: tuple[float, float] | None = None

    def reply(content: dict[str, Any]) -> None:
        nonlocal idle_since
        replies.write(json.dumps(content) + "\n")
        replies.flush()
        idle_since = time.monotonic(), time.process_time()

    try:
        settings = json.loads(sys.stdin.readline())
        if settings["family"] not in FAMILIES:
            raise ValueError(f"family={settings['family']!r}: must be one of {', '.join(FAMILIES)}")
        worker: Any = Naive(settings) if settings["family"] == "naive" else Engine(settings)
        reply({"facts": worker.facts()})
        for line in iter(sys.stdin.readline, ""):
            # An idle process whose threads spin would take the cores from the one that runs.
            assert idle_since is not None
            waited = time.monotonic() - idle_since[0]
            burnt = time.process_time() - idle_since[1]
            command = json.loads(line)
            result = getattr(worker, command.pop("do"))(**command)
            reply({**result, "peak": peak_memory(), "idle": [waited, burnt]})
    except Exception:
        reply({"error": traceback.format_exc()})
        sys.exit(1)


if __name__ == "__main__":
    from examples.demo import quiet

    quiet()
    main()
