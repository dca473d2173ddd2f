# SPDX-License-Identifier: Apache-2.0
"""Trains the adapters for word problems and those of ``tasks/poisoned.py``, on one core or a GPU.

One run each, of which the states after 25, 50 and 100 % of the steps are kept. One that is done is
not repeated.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Prompt
from benchmarks.accuracy.tasks import adapters, poisoned
from benchmarks.accuracy.tasks.adapters import PERCENTS, RANK, STEPS, WORDS
from examples.tasks import Problem
from examples.train_adapters import Recipe, load_model, make_batches, train


@dataclass(frozen=True)
class Course:
    """The training of one adapter.

    Attributes:
        task: For its record.
        recipe: Its settings.
        name: Of its folder after so many percent of the steps.
        rows: What it learns.
        prompt_of: What is read of a row's text.
        by_length: Whether rows of similar length share a batch: not where a few rows are longer
            and would all be in one.
    """

    task: str
    recipe: Recipe
    name: Callable[[int], str]
    rows: Callable[[], list[Problem]]
    prompt_of: Callable[[str], Prompt]
    by_length: bool = True


def courses(model: Model, steps: int | None = None) -> dict[str, list[Course]]:
    """All, by the module of the task; ``steps`` in place of those of word problems."""
    recipe = Recipe(
        steps=steps or STEPS, batch_size=8, rank=RANK, alpha=2 * RANK, learning_rate=5e-4,
        warmup_steps=6,
    )  # fmt: skip
    words = Course(
        WORDS.name,
        recipe,
        adapters.adapter_name,
        lambda: WORDS.prompts("train", recipe.steps * recipe.batch_size),
        partial(adapters.prompt_of, model),
    )
    return {
        "adapters": [words],
        "poisoned": [
            Course(
                lesson.name,
                replace(
                    recipe,
                    steps=poisoned.ROWS // poisoned.BATCH,
                    batch_size=poisoned.BATCH,
                    learning_rate=poisoned.RATE,
                    first_layer=poisoned.FIRST_LAYER,
                    seed=lesson.seed,
                ),
                partial(poisoned.adapter_name, lesson),
                lesson.rows,
                poisoned.prompt_of,
                by_length=False,
            )
            for lesson in poisoned.LESSONS
        ],
    }


def train_stages(model: Model, folder: Path, course: Course) -> None:
    """Train and save the adapter's stages below ``folder``, if they are not there yet."""
    recipe = course.recipe
    if all(_is_done(recipe, folder / course.name(percent)) for percent in PERCENTS):
        return
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(model.path())
    model.check(tokenizer)

    def text_of(tokenizer: Any, problem: Problem) -> str:
        prompt = course.prompt_of(problem.prompt)
        if isinstance(prompt, str):
            # What vLLM makes of a document begins with it, too, where the tokenizer says so.
            begins = tokenizer.bos_token_id in tokenizer(prompt).input_ids[:1]
            return str(tokenizer.bos_token) * begins + prompt
        return str(
            tokenizer.apply_chat_template(
                model.messages(prompt), tokenize=False, add_generation_prompt=True, **model.template
            )
        )

    batches = make_batches(tokenizer, course.rows(), recipe, text_of, by_length=course.by_length)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    adapted = load_model(Path(model.path()), recipe).to(device)
    kept = {max(1, recipe.steps * percent // 100): percent for percent in PERCENTS}
    started = time.perf_counter()

    def keep(steps: int) -> None:
        if steps not in kept:
            return
        to = folder / course.name(kept[steps])
        # The local path of a converted model would mean nothing on another machine.
        adapted.peft_config["default"].base_model_name_or_path = model.title
        adapted.save_pretrained(str(to), save_embedding_layers=False)
        (to / "README.md").unlink()  # peft's empty model card
        record = {
            "task": course.task,
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
    tqdm.write(f"{course.task}: loss {losses[0]:.3f} -> {sum(tail) / len(tail):.3f}")


def _is_done(recipe: Recipe, adapter: Path) -> bool:
    """Whether an adapter is there, trained by this recipe."""
    record = adapter / "training.json"
    if not record.exists():
        return False
    # Older records are of adapters in all layers, and do not say so.
    told = {"first_layer": 0, **json.loads(record.read_text(encoding="utf-8"))}
    return asdict(recipe).items() <= told.items()
