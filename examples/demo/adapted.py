# SPDX-License-Identifier: Apache-2.0
"""Two LoRA adapters, decoded greedily and against the base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from examples.demo import ADAPTERS
from examples.tasks import TASKS, Problem, Task, messages

PROMPTS = {"sorting": 3, "orders": 1}

NOTE = (
    "[dim]Coloured from where the two part. So few do not say which is better: over many, a "
    "contrast with the base model costs this model's adapters some accuracy (docs/accuracy.md).[/]"
)


@dataclass
class Item:
    """A held-out problem of an adapter's task, and what was decoded for it (vLLM's outputs)."""

    task: Task
    problem: Problem
    greedy: Any = None
    cold: Any = None

    @property
    def parting(self) -> int | None:
        """The first token at which the answers differ, None if they do not."""
        a, b = list(self.greedy.token_ids), list(self.cold.token_ids)
        if a == b:
            return None
        pairs = zip(a, b, strict=False)
        return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def items() -> list[Item]:
    """The first held-out problems of both tasks."""
    return [
        Item(TASKS[name], problem)
        for name, count in PROMPTS.items()
        for problem in TASKS[name].prompts("test", count)
    ]


def adapters() -> dict[str, Any]:
    """The adapters as vLLM's requests name them."""
    from vllm.lora.request import LoRARequest

    return {name: LoRARequest(name, i, str(ADAPTERS / name)) for i, name in enumerate(PROMPTS, 1)}


def answer(llm: Any, items: Sequence[Item]) -> None:
    """Let an engine answer all items, greedily and with CoLD, in one batch."""
    from vllm import SamplingParams

    from vllm_cold import ColdParams

    loaded = adapters()
    chats, params, loras = [], [], []
    for item in items:
        options: dict[str, Any] = {"temperature": 0.0, "max_tokens": item.task.max_tokens}
        chats += 2 * [messages(item.problem)]
        params += [SamplingParams(**options), ColdParams(alpha=0.1, beta=0.5, **options)]
        loras += 2 * [loaded[item.task.name]]
    outputs = llm.chat(chats, params, lora_request=loras, use_tqdm=False)
    for i, item in enumerate(items):
        item.greedy, item.cold = (one.outputs[0] for one in outputs[2 * i : 2 * i + 2])


def table(items: Sequence[Item], tokenizer: Any) -> Table:
    """The answers side by side, and how many are right."""

    def cell(item: Item, output: Any) -> Text:
        mark = ("✓ ", "green") if right(item, output) else ("✗ ", "red")
        parting, ids = item.parting, list(output.token_ids)
        if output is item.cold and parting is None:
            return Text.assemble(mark, ("the same", "dim"))
        head = tokenizer.decode(ids[:parting], skip_special_tokens=True)
        tail = "" if parting is None else tokenizer.decode(ids[parting:], skip_special_tokens=True)
        return Text.assemble(mark, head.lstrip(), (tail, "bold magenta"))

    found = Table(show_lines=True, expand=True)
    for title in ("held-out problem", "adapter, greedy", "adapter, CoLD"):
        found.add_column(title, ratio=1, overflow="fold")
    for item in items:
        problem = item.problem.prompt.splitlines()[0]  # the rest says how to format the answer
        found.add_row(problem, cell(item, item.greedy), cell(item, item.cold))
    found.add_row(
        Text("right", "bold"),
        *(
            Text(
                f"{sum(right(item, getattr(item, name)) for item in items)} of {len(items)}", "bold"
            )
            for name in ("greedy", "cold")
        ),
    )
    return found


def right(item: Item, output: Any) -> bool:
    """Whether an output solves its problem."""
    return item.task.score(output.text, item.problem)
