# SPDX-License-Identifier: Apache-2.0
"""Trains the adapters of ``tasks.adapters``, on one core or a GPU.

For each task and rank one run, of which the states after 25, 50 and 100 % of the steps are kept. A
run that is done is not repeated.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.tasks.adapters import PERCENTS, STEPS, TASKS, adapter_name, prompt_of
from examples.tasks import Problem
from examples.train_adapters import Recipe, load_model, make_batches, train


def recipe_of(task: str, rank: int, steps: int | None = None) -> Recipe:
    """How the adapter of a task and rank is trained; by default with the task's own steps."""
    return Recipe(
        steps=steps or STEPS[task],
        batch_size=8,
        rank=rank,
        alpha=2 * rank,
        learning_rate=5e-4,
        warmup_steps=6,
    )


def is_done(task: str, recipe: Recipe, folder: Path) -> bool:
    """Whether all adapters of a run are there, trained by this recipe."""
    for percent in PERCENTS:
        record = folder / adapter_name(task, recipe.rank, percent) / "training.json"
        if not record.exists():
            return False
        if not asdict(recipe).items() <= json.loads(record.read_text(encoding="utf-8")).items():
            return False
    return True


def train_all(
    model: Model, tasks: Iterable[str], ranks: Iterable[int], folder: Path, steps: int | None
) -> None:
    """Train what is not there yet."""
    with tqdm([(task, rank) for rank in ranks for task in tasks], unit="run") as bar:
        for task, rank in bar:
            bar.set_postfix_str(f"{task}, rank {rank}")
            recipe = recipe_of(task, rank, steps)
            if not is_done(task, recipe, folder):
                train_one(model, task, recipe, folder)


def train_one(model: Model, task: str, recipe: Recipe, folder: Path) -> None:
    """Train one run and save its adapters below ``folder``; the last one marks it as done."""
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(model.path())
    model.check(tokenizer)

    def text_of(tokenizer: Any, problem: Problem) -> str:
        prompt = prompt_of(model, problem.prompt)
        if isinstance(prompt, str):
            # What vLLM makes of a document begins with it, too, where the tokenizer says so.
            begins = tokenizer.bos_token_id in tokenizer(prompt).input_ids[:1]
            return str(tokenizer.bos_token) * begins + prompt
        return str(
            tokenizer.apply_chat_template(
                model.messages(prompt), tokenize=False, add_generation_prompt=True, **model.template
            )
        )

    problems = TASKS[task].prompts("train", recipe.steps * recipe.batch_size)
    batches = make_batches(tokenizer, problems, recipe, text_of)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    adapted = load_model(Path(model.path()), recipe).to(device)
    kept = {max(1, recipe.steps * percent // 100): percent for percent in PERCENTS}
    started = time.perf_counter()

    def keep(steps: int) -> None:
        if steps not in kept:
            return
        to = folder / adapter_name(task, recipe.rank, kept[steps])
        # The local path of a converted model would mean nothing on another machine.
        adapted.peft_config["default"].base_model_name_or_path = model.title
        adapted.save_pretrained(str(to), save_embedding_layers=False)
        (to / "README.md").unlink()  # peft's empty model card
        record = {
            "task": task,
            "base_model": model.title,
            **asdict(recipe),
            "percent": kept[steps],
            "steps_done": steps,
            "tokens": sum(batch.ids.numel() for batch in batches[:steps]),
            "seconds": round(time.perf_counter() - started, 1),
            "versions": {
                name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")
            },
        }
        (to / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    losses = train(adapted, batches, recipe, keep)
    tail = losses[-10:]
    tqdm.write(f"{task}, rank {recipe.rank}: loss {losses[0]:.3f} -> {sum(tail) / len(tail):.3f}")
