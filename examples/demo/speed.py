# SPDX-License-Identifier: Apache-2.0
"""The plugin's speed beside stock vLLM's, with the same adapter and the same code that measures.

Stock vLLM is a process of its own, a worker of ``benchmarks.e2e``, which checks that it has nothing
of the plugin. The two take turns; the one that waits computes nothing.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.e2e.pool import Worker, environment
from benchmarks.e2e.worker import Engine
from examples.tasks import SORTING, chat_prompt

ROUNDS = 3
REQUESTS = 4
TOKENS = 24


class Here(Engine):
    """The engine of this process, as what a worker measures."""

    def __init__(self, llm: Any, adapter: str) -> None:
        self.llm, self.adapter = llm, adapter
        self.core = llm.llm_engine.engine_core.engine_core
        self.check(with_plugin=True)


def start_stock(model: str, adapter: Path, options: dict[str, Any], log: Path) -> Worker:
    """Start stock vLLM beside this process.

    Args:
        model: Its folder.
        adapter: Its folder.
        options: Of both engines: ``dtype``, ``max_model_len`` and ``max_num_seqs``.
        log: A file for what vLLM prints.

    Raises:
        RuntimeError: it does not start, or is not stock.
    """
    settings = {
        "family": "stock-lora",
        "model": model,
        "adapter": str(adapter),
        "max_loras": 2,
        "rank": 8,
        **options,
    }
    return Worker(settings, environment("stock-lora", 1, os.environ), log)


def compare(llm: Any, stock: Worker, adapter: Path) -> str:
    """Time both in turns, after a run of each that does not count.

    Args:
        llm: The engine with the plugin.
        stock: The one without.
        adapter: The sorting adapter's folder.

    Returns:
        What came out, in a sentence.
    """
    here, tokenizer = Here(llm, str(adapter)), llm.get_tokenizer()
    texts = [chat_prompt(tokenizer, one) for one in SORTING.prompts("test", REQUESTS)]
    prompts = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    asked: dict[str, Any] = {"mode": "adapter", "prompts": prompts, "tokens": TOKENS}
    runs = {"plugin": lambda: here.run(**asked), "stock": lambda: stock.ask("run", **asked)}
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            seconds[name].append(run()["seconds"])
    return sentence(seconds["plugin"], seconds["stock"], REQUESTS * TOKENS)


def sentence(plugin: Sequence[float], stock: Sequence[float], tokens: int) -> str:
    """What came out, of the seconds of each round.

    Args:
        plugin: The plugin's.
        stock: Stock vLLM's in the same rounds.
        tokens: Generated in a round.
    """
    with_plugin, without = statistics.median(plugin), statistics.median(stock)
    return (
        f"{tokens / with_plugin:.0f} tokens/s with the plugin, {tokens / without:.0f} in stock "
        f"vLLM: {without / with_plugin:.1f} times as fast.\n"
        f"[dim]{REQUESTS} requests of {TOKENS} tokens with their prompts, uncompiled; median of "
        f"{len(plugin)} rounds, in turns.[/]"
    )
