# SPDX-License-Identifier: Apache-2.0
"""One process of ``benchmarks.bench_e2e``: an engine, or the naive loop, that runs when asked to.

``python -m benchmarks.e2e.worker FD`` reads JSON lines from stdin, the settings first and then
commands, and writes one JSON line for each to the file descriptor FD, which nothing else writes
to. Between commands it waits for its pipe and computes nothing. It ends with its stdin.

The families: ``stock-base`` is vLLM without LoRA and ``stock-lora`` with, both without the plugin;
``plugin`` is vLLM with LoRA and the plugin, ``plugin-base`` without LoRA, prepared for CoLD between
prompts, ``plugin-ngram`` as ``plugin`` with drafts; ``naive`` is ``benchmarks.e2e.naive``. That a
process has the plugin, or has not, is checked before it says "ready".
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.e2e.jobs import ALPHA, MODES, stamped

FAMILIES = ("stock-base", "stock-lora", "plugin", "plugin-base", "plugin-ngram", "naive")


class CountersByKind:
    """What streams did after their first tokens, all of them together.

    Attributes:
        steps: In which one emitted tokens.
        emitted: Tokens of these.
        drafted: Drafts of these.
        accepted: Of the drafts.
    """

    def __init__(self) -> None:
        self.steps = self.emitted = self.drafted = self.accepted = 0
        self._seen: set[str] = set()

    def add(self, scheduled: Any, result: Any) -> None:
        """Count a step: what was scheduled, and what the model runner gave."""
        drafts = scheduled.scheduled_spec_decode_tokens
        for request_id in scheduled.num_scheduled_tokens:
            row = result.req_id_to_index.get(request_id)
            tokens = result.sampled_token_ids[row] if result.sampled_token_ids else ()
            if not len(tokens):
                continue
            if request_id in self._seen:
                self.steps += 1
                self.emitted += len(tokens)
                self.drafted += len(drafts.get(request_id, ()))
                self.accepted += len(tokens) - 1
            self._seen.add(request_id)

    def reply(self) -> dict[str, int]:
        """The attributes."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


@contextmanager
def counting(scheduler: Any) -> Iterator[CountersByKind]:
    """Count a scheduler's steps."""
    counts, original = CountersByKind(), scheduler.update_from_output

    def update_from_output(scheduled: Any, result: Any) -> Any:
        counts.add(scheduled, result)
        return original(scheduled, result)

    scheduler.update_from_output = update_from_output
    try:
        yield counts
    finally:
        scheduler.update_from_output = original


class Engine:
    """A vLLM engine in this process: all prompts are queued before its first step."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from vllm import LLM

        self.adapter = settings["adapter"]
        family = settings["family"]
        options: dict[str, Any] = {}
        if family == "plugin-base":
            options = {"additional_config": {"cold": True}}
        elif family != "stock-base":
            options = {
                "enable_lora": True,
                "max_loras": settings["max_loras"],
                "max_lora_rank": settings["rank"],
            }
        options |= settings.get("options", {})
        options |= settings.get("own_options", {}).get(family, {})
        self.llm = LLM(
            model=settings["model"],
            dtype=settings["dtype"],
            max_model_len=settings["max_model_len"],
            max_num_seqs=settings["max_num_seqs"],
            disable_log_stats=True,
            **options,
        )
        self.core = self.llm.llm_engine.engine_core.engine_core
        self.check(with_plugin=family.startswith("plugin"))

    def check(self, with_plugin: bool) -> None:
        """Raise RuntimeError unless the plugin is active here, or not even imported."""
        from vllm.platforms import current_platform

        scheduler = type(self.core.scheduler).__module__
        wrapper = current_platform.get_punica_wrapper()
        plugin = sys.modules.get("vllm_cold.compat.active")
        if with_plugin:
            if plugin is None:
                raise RuntimeError("vLLM did not load the plugin: is vllm-cold installed?")
            plugin.require()
            wrong = [] if scheduler.startswith("vllm_cold.") else [f"scheduler of {scheduler}"]
            # Only the CPU's wrapper is replaced.
            if current_platform.is_cpu() and not wrapper.startswith("vllm_cold."):
                wrong.append(f"LoRA wrapper {wrapper}")
            if wrong:
                raise RuntimeError(f"the plugin is loaded but not in use: {', '.join(wrong)}")
            return
        ours = tuple(f"vllm_cold.{folder}" for folder in ("frontend", "scheduler", "worker", "cpu"))
        found = [name for name in sys.modules if name.startswith(ours)]
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
            "async scheduling": scheduler.async_scheduling,
        }
        if config.lora_config is not None:
            facts["lora wrapper"] = current_platform.get_punica_wrapper().rpartition(".")[2]
        return facts

    def run(
        self,
        mode: str,
        prompts: list[list[int]],
        tokens: int,
        own: Sequence[list[list[int]]] = (),
        stops: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """Decode a batch greedily with an empty prefix cache.

        Args:
            mode: One of ``MODES``.
            prompts: Token ids.
            tokens: How many each request generates.
            own: The prompts of each request's amateurs; empty if they read the request's.
            stops: Tokens that end a request, as the model's end of text does; None: nothing does.

        Returns:
            Times (see ``stamped``), ``tokens``, ``blocks``: the most KV blocks in use, and
            ``counts``: see ``CountersByKind``.
        """
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind

        options: dict[str, Any] = {
            "temperature": 0.0,
            "max_tokens": tokens,
            "ignore_eos": stops is None,
            "stop_token_ids": list(stops or ()),
            # An output in each step, with what is new: when a token came must be seen.
            "output_kind": RequestOutputKind.DELTA,
        }
        expert, amateurs, beta = MODES[mode]
        if amateurs:
            from vllm_cold import Amateur, ColdParams

            params = [
                ColdParams(
                    alpha=ALPHA,
                    beta=beta,
                    amateurs=[Amateur(prompt=ids, lora_request=None) for ids in texts],
                    **options,
                )
                for texts in own or [[None] * amateurs] * len(prompts)
            ]
        else:
            params = [SamplingParams(**options)] * len(prompts)
        lora = LoRARequest("adapter", 1, self.adapter) if expert else None
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be reset: requests are still running")
        gc.collect()
        engine = self.llm.llm_engine
        pool = self.core.scheduler.kv_cache_manager.block_pool
        free = least = pool.get_num_free_blocks()
        got: list[list[int]] = [[] for _ in prompts]
        stamps: list[list[float]] = [[] for _ in prompts]
        started = time.perf_counter()
        for index, (prompt, how) in enumerate(zip(prompts, params, strict=True)):
            engine.add_request(str(index), {"prompt_token_ids": prompt}, how, lora_request=lora)
        with counting(self.core.scheduler) as counts:
            while engine.has_unfinished_requests():
                outputs = engine.step()
                now = time.perf_counter()
                least = min(least, pool.get_num_free_blocks())
                for output in outputs:
                    new = output.outputs[0].token_ids
                    if new:
                        got[int(output.request_id)] += new
                        stamps[int(output.request_id)].append(now)
        return {
            **stamped(started, stamps),
            "tokens": got,
            "blocks": free - least,
            "counts": counts.reply(),
        }


def peak_memory() -> int | None:
    """The most memory that this process had resident (VmHWM), in bytes; None if not told."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return next((int(kib) * 1024 for kib in found), None)


def make(settings: dict[str, Any]) -> Any:
    """The worker of a family, ``FAMILIES``."""
    if settings["family"] not in FAMILIES:
        raise ValueError(f"family={settings['family']!r}: must be one of {', '.join(FAMILIES)}")
    if settings["family"] == "naive":
        from benchmarks.e2e.naive import Naive

        return Naive(settings)
    return Engine(settings)


def main(make: Callable[[dict[str, Any]], Any] = make) -> None:
    """Serve commands until stdin ends, with what ``make`` makes of the settings."""
    replies = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8")
    idle_since: tuple[float, float] | None = None

    def reply(content: dict[str, Any]) -> None:
        nonlocal idle_since
        replies.write(json.dumps(content) + "\n")
        replies.flush()
        idle_since = time.monotonic(), time.process_time()

    try:
        worker = make(json.loads(sys.stdin.readline()))
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
