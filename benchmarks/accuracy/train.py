# SPDX-License-Identifier: Apache-2.0
"""Trains the adapters: ``python -m benchmarks.accuracy.train``.

For each task and rank one run, of which the state after 25, 50 and 100 % of the steps is kept: an
adapter that has learnt a little, one half-way, and one that is done. A run that is done is not
repeated, so the command goes on where it was stopped; two processes with other ``--tasks`` may run
side by side, each on one core.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from benchmarks.accuracy.store import ADAPTERS, Adapter
from benchmarks.accuracy.tasks import BENCHMARKS, prompt_text
from examples.smollm2 import MODEL_NAME, model_path
from examples.tasks import Problem
from examples.train_adapters import Recipe, load_model, make_batches, save, train

RANKS = (16, 4)
PERCENTS = (25, 50, 100)
# Steps of 8 examples. Long answers cost more, and words are learnt more slowly.
STEPS = {
    "sums": 96, "sorting": 96, "phonemes": 192, "dates": 64,
    "feelings": 72, "verdicts": 72, "people": 64,
}  # fmt: skip


def recipe_of(task: str, rank: int) -> Recipe:
    """How the adapter of a task and rank is trained."""
    return Recipe(
        steps=STEPS[task],
        batch_size=8,
        rank=rank,
        alpha=2 * rank,
        learning_rate=1e-3 if rank > 8 else 2e-3,
        warmup_steps=6,
    )


def train_one(task: str, recipe: Recipe, root: Path = ADAPTERS) -> None:
    """Train one run and save its adapters; the last one marks the run as done."""
    problems = BENCHMARKS[task].ordinary.prompts("train", recipe.steps * recipe.batch_size)
    train_on(problems, prompt_text, task, recipe, PERCENTS, root)


def train_on(
    problems: list[Problem],
    text_of: Callable[[Any, Problem], str],
    task: str,
    recipe: Recipe,
    percents: Sequence[int],
    root: Path = ADAPTERS,
) -> None:
    """Train on ``problems`` and save the adapters that there are after ``percents`` of the steps.

    Args:
        problems: As many as the steps take.
        text_of: Gives the prompt of one, with a tokenizer.
        task: What the adapters are called.
        recipe: How they are trained.
        percents: In rising order, the last one 100.
        root: The folder of their folders.
    """
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    model = load_model(model_path(), recipe)
    batches = make_batches(tokenizer, problems, recipe, text_of)
    kept = {max(1, recipe.steps * percent // 100): percent for percent in percents}
    started = time.perf_counter()
    losses: list[float] = []

    def keep(steps: int) -> None:
        if steps not in kept:
            return
        folder = root / Adapter(task, recipe.rank, kept[steps]).name
        save(model, folder)
        record: dict[str, Any] = {
            "task": task,
            "base_model": MODEL_NAME,
            **asdict(recipe),
            "percent": kept[steps],
            "steps_done": steps,
            "tokens": sum(batch.ids.numel() for batch in batches[:steps]),
            "seconds": round(time.perf_counter() - started, 1),
            "versions": {
                name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")
            },
        }
        (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")

    losses += train(model, batches, recipe, keep)
    tail = losses[-10:]
    tqdm.write(f"{task}, rank {recipe.rank}: loss {losses[0]:.3f} -> {sum(tail) / len(tail):.3f}")


def is_done(
    task: str, recipe: Recipe, percents: Sequence[int] = PERCENTS, root: Path = ADAPTERS
) -> bool:
    """Whether all adapters of a run are there, trained by this recipe."""
    for percent in percents:
        record = root / Adapter(task, recipe.rank, percent).name / "training.json"
        if not record.exists():
            return False
        if not asdict(recipe).items() <= json.loads(record.read_text(encoding="utf-8")).items():
            return False
    return True


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train the adapters of the accuracy benchmark.")
    parser.add_argument("--tasks", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--ranks", nargs="+", type=int, choices=RANKS, default=RANKS)
    parser.add_argument("--steps", type=int, help="for all tasks (default: each has its own)")
    arguments = parser.parse_args()

    runs = [(task, rank) for rank in arguments.ranks for task in arguments.tasks]
    with tqdm(runs, desc="runs", unit="run") as bar:
        for task, rank in bar:
            bar.set_postfix_str(f"{task}, rank {rank}")
            recipe = recipe_of(task, rank)
            if arguments.steps:
                recipe = replace(recipe, steps=arguments.steps)
            if not is_done(task, recipe):
                train_one(task, recipe)


if __name__ == "__main__":
    main()
