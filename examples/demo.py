# SPDX-License-Identifier: Apache-2.0
"""The demo: held-out prompts, decoded greedily and with CoLD in one vLLM engine, side by side.

``python -m examples.demo`` (or ``make demo``). Needs no accelerator and no network: the model is
SmolLM2-135M-Instruct from PyPI, converted once, and the two adapters lie beside this file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vllm_cold.method.settings import read

ADAPTERS = Path(__file__).parent / "adapters"
PROMPTS = {"sorting": 4, "orders": 2}
ROUNDS = 2


def quiet() -> None:
    """Leave the screen to the demo: only vLLM's errors, and the engine in this process."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")


@dataclass
class Item:
    """One prompt with its task's adapter, and what the two methods made of it."""

    task: Any
    problem: Any
    text: str
    greedy: Any = None
    cold: Any = None

    def parting(self) -> int | None:
        """The first token at which the answers differ, None if they do not."""
        a, b = self.greedy.token_ids, self.cold.token_ids
        if list(a) == list(b):
            return None
        pairs = zip(a, b, strict=False)
        return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def load_items(tokenizer: Any) -> list[Item]:
    """Held-out prompts of both tasks, as chat text."""
    from examples.tasks import TASKS, chat_prompt

    return [
        Item(TASKS[name], problem, chat_prompt(tokenizer, problem))
        for name, count in PROMPTS.items()
        for problem in TASKS[name].prompts("test", count)
    ]


def decode(llm: Any, items: list[Item], make_params: Any) -> tuple[list[Any], float]:
    """All prompts in one batch, nothing cached; the outputs and the seconds it took."""
    from vllm.lora.request import LoRARequest

    names = sorted(PROMPTS)
    llm.reset_prefix_cache()
    started = time.perf_counter()
    outputs = llm.generate(
        [item.text for item in items],
        [make_params(item.task.max_tokens) for item in items],
        lora_request=[
            LoRARequest(
                item.task.name, 1 + names.index(item.task.name), str(ADAPTERS / item.task.name)
            )
            for item in items
        ],
        use_tqdm=False,
    )
    return [output.outputs[0] for output in outputs], time.perf_counter() - started


def show(console: Any, items: list[Item], tokenizer: Any) -> None:
    """The answers side by side; bold red from where they part."""
    from rich.table import Table
    from rich.text import Text

    def cell(item: Item, output: Any) -> Any:
        right = item.task.score(output.text, item.problem)
        parting = item.parting()
        ids = list(output.token_ids)
        head = tokenizer.decode(ids[:parting], skip_special_tokens=True)
        tail = "" if parting is None else tokenizer.decode(ids[parting:], skip_special_tokens=True)
        return Text.assemble(
            ("right  " if right else "wrong  ", "green" if right else "red"),
            head.lstrip(),
            (tail, "bold magenta"),
        )

    table = Table(show_lines=True, expand=True)
    for title, ratio in (("prompt", 4), ("adapter, greedy", 4), ("adapter, CoLD", 4)):
        table.add_column(title, ratio=ratio, overflow="fold")
    table.add_column("they part at", justify="right", min_width=8)
    for item in items:
        parting = item.parting()
        prompt = item.problem.prompt.splitlines()[0]  # the rest says how to format the answer
        table.add_row(
            Text.assemble(
                (item.task.name + "  ", "cyan"),
                prompt,
                "\n",
                ("= ", "dim"),
                (item.problem.answer, "dim"),
            ),
            cell(item, item.greedy),
            cell(item, item.cold),
            "never" if parting is None else f"token {parting + 1}",
        )
    console.print(table)


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alpha", type=float, default=0.1, help="plausibility threshold [0, 1]")
    parser.add_argument(
        "--beta",
        type=partial(read, "beta"),
        default=0.5,
        help="contrast strength, >= 0, or adaptive",
    )
    arguments = parser.parse_args()
    quiet()

    from rich.console import Console

    console = Console()
    from examples.smollm2 import model_path

    path = model_path()
    console.print("Starting vLLM on this machine (some seconds) ...")
    from vllm import LLM, SamplingParams

    from vllm_cold import ColdParams

    def greedy(max_tokens: int) -> Any:
        return SamplingParams(temperature=0.0, max_tokens=max_tokens)

    def cold(max_tokens: int) -> Any:
        return ColdParams(
            alpha=arguments.alpha, beta=arguments.beta, temperature=0.0, max_tokens=max_tokens
        )

    try:
        cold(1)
    except ValueError as error:
        parser.error(str(error))
    llm = LLM(
        model=str(path),
        dtype="bfloat16",
        enable_lora=True,
        max_loras=len(PROMPTS),
        max_lora_rank=8,
        max_model_len=1024,
        max_num_seqs=32,
        disable_log_stats=True,
        enforce_eager=True,  # compiling takes longer than the demo
    )
    tokenizer = llm.get_tokenizer()
    items = load_items(tokenizer)
    console.print(
        f"Decoding {len(items)} held-out prompts, greedily and with CoLD "
        f"(alpha {arguments.alpha}, beta {arguments.beta}), {ROUNDS} rounds each ..."
    )
    decode(llm, items[:1], cold)  # loads and warms up
    speeds: dict[str, list[float]] = {"greedy": [], "cold": []}
    for _ in range(ROUNDS):
        for name, make_params in (("greedy", greedy), ("cold", cold)):
            outputs, seconds = decode(llm, items, make_params)
            speeds[name].append(sum(len(o.token_ids) for o in outputs) / seconds)
            for item, output in zip(items, outputs, strict=True):
                setattr(item, name, output)
    show(console, items, tokenizer)
    for name, label in (("greedy", "adapter, greedy"), ("cold", "adapter, CoLD  ")):
        right = sum(i.task.score(getattr(i, name).text, i.problem) for i in items)
        median, low, high = statistics.median(speeds[name]), min(speeds[name]), max(speeds[name])
        console.print(
            f"{label}  {median:6.1f} tokens/s (from {low:.1f} to {high:.1f})   "
            f"{right} of {len(items)} right"
        )
    console.print(
        "A handful of prompts shows how the answers part, not which method is better; CoLD "
        "computes two streams for each token.",
        style="dim",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
