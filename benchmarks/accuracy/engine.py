# SPDX-License-Identifier: Apache-2.0
"""vLLM decodes: base and adapter greedily, nucleus sampling with a vote, and CoLD."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

from prometheus_client import REGISTRY

from benchmarks.accuracy.methods import SAMPLES, TOP_P, Method
from benchmarks.accuracy.store import ADAPTERS, Adapter, Outcome
from benchmarks.accuracy.tasks import BENCHMARKS, prompt_text
from examples.smollm2 import model_path
from examples.tasks import Problem, Task
from vllm_cold.vllm.frontend.prometheus import PREFIX

MAX_LENGTH = 512


class Engine:
    """One engine for all adapters, in this process."""

    def __init__(self) -> None:
        from vllm import LLM

        self._llm = LLM(
            model=str(model_path()),
            dtype="bfloat16",
            enable_lora=True,
            max_loras=2,
            max_lora_rank=16,
            max_model_len=MAX_LENGTH,
            max_num_seqs=128,
            # All prompts of a cell stay in the cache, for base and adapter: methods after the
            # first need little prefill. Only whole blocks are found again, and the CPU's default
            # of 128 tokens is longer than most prompts.
            kv_cache_memory_bytes=3 << 30,
            block_size=32,
            disable_log_stats=False,  # the share of steps with one candidate comes from there
            use_tqdm_on_load=False,
        )
        self._ids: dict[Adapter, int] = {}

    def run(self, method: Method, adapter: Adapter, task: Task, problems: list[Problem]) -> Outcome:
        """Decode ``problems`` and say which answers are right."""
        lora = self._lora(adapter)
        tokenizer = self._llm.get_tokenizer()
        prompts: list[Any] = [
            {
                "prompt_token_ids": tokenizer.encode(
                    prompt_text(tokenizer, problem), add_special_tokens=False
                )
            }
            for problem in problems
        ]
        before = self._figures()
        started = time.perf_counter()
        outputs = self._llm.generate(
            prompts,
            self._params(method, adapter, task.max_tokens),
            lora_request=None if method.kind == "base" else lora,
            use_tqdm=False,
        )
        seconds = time.perf_counter() - started
        figures = self._figures()
        figures.subtract(before)
        vote = BENCHMARKS[adapter.task].vote
        right = []
        for output, problem in zip(outputs, problems, strict=True):
            texts = [completion.text for completion in output.outputs]
            votes = Counter(map(vote, texts))
            # Of answers with as many votes, the one that came first.
            chosen = next(text for text in texts if votes[vote(text)] == max(votes.values()))
            right.append("01"[task.score(chosen, problem)])
        return Outcome(
            right="".join(right),
            tokens=sum(len(c.token_ids) for output in outputs for c in output.outputs),
            seconds=round(seconds, 1),
            steps=figures["steps"],
            one_valid=figures["one_valid"],
            changed=figures["changed"],
        )

    def _lora(self, adapter: Adapter) -> Any:
        from vllm.lora.request import LoRARequest

        number = self._ids.setdefault(adapter, len(self._ids) + 1)
        return LoRARequest(adapter.name, number, str(ADAPTERS / adapter.name))

    def _params(self, method: Method, adapter: Adapter, max_tokens: int) -> Any:
        from vllm import SamplingParams

        from vllm_cold import ColdParams

        common: dict[str, Any] = {"temperature": 0.0, "max_tokens": max_tokens}
        if method.kind == "vote":
            # Draws come from the engine's seed: a seed of their own costs a generator each.
            return SamplingParams(**common | {"temperature": 1.0}, top_p=TOP_P, n=SAMPLES)
        if method.kind in ("base", "greedy"):
            return SamplingParams(**common)
        amateur = method.amateur and self._lora(replace(adapter, percent=method.amateur))
        return ColdParams(
            alpha=method.alpha,
            beta=method.beta,
            amateur=amateur,
            **dict(method.knobs),
            **common,
        )

    @staticmethod
    def _figures() -> Counter[str]:
        """CoLD's counters since the process started."""
        found: Counter[str] = Counter()
        for metric in REGISTRY.collect():
            for sample in metric.samples:
                name = sample.name.removeprefix(PREFIX)
                if name == "candidates_count":
                    found["steps"] += int(sample.value)
                elif name == "candidates_bucket" and sample.labels["le"] == "1.0":
                    found["one_valid"] += int(sample.value)
                elif name == "changed_tokens_total":
                    found["changed"] += int(sample.value)
        return found
