# SPDX-License-Identifier: Apache-2.0
"""Trains the adapter for word problems, on one core or a GPU.

One run, of which the states after 25, 50 and 100 % of the steps are kept. One that is done is not
repeated.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.tasks.adapters import PERCENTS, RANK, WORDS, adapter_name, prompt_of
from examples.tasks import Problem
from examples.train_adapters import Recipe, load_model, make_batches, train


def train_stages(model: Model, folder: Path, steps: int) -> None:
    """Train and save the adapter's stages below ``folder``, if they are not there yet."""
    recipe = Recipe(
        steps=steps,
        batch_size=8,
        rank=RANK,
        alpha=2 * RANK,
        learning_rate=5e-4,
        warmup_steps=6,
    )
    if all(_is_done(recipe, folder / adapter_name(percent)) for percent in PERCENTS):
        return
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

    problems = WORDS.prompts("train", recipe.steps * recipe.batch_size)
    batches = make_batches(tokenizer, problems, recipe, text_of)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    adapted = load_model(Path(model.path()), recipe).to(device)
    kept = {max(1, recipe.steps * percent // 100): percent for percent in PERCENTS}
    started = time.perf_counter()

    def keep(steps: int) -> None:
        if steps not in kept:
            return
        to = folder / adapter_name(kept[steps])
        # The local path of a converted model would mean nothing on another machine.
        adapted.peft_config["default"].base_model_name_or_path = model.title
        adapted.save_pretrained(str(to), save_embedding_layers=False)
        (to / "README.md").unlink()  # peft's empty model card
        record = {
            "task": WORDS.name,
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
    tqdm.write(f"{WORDS.name}: loss {losses[0]:.3f} -> {sum(tail) / len(tail):.3f}")


def _is_done(recipe: Recipe, adapter: Path) -> bool:
    """Whether an adapter is there, trained by this recipe."""
    record = adapter / "training.json"
    if not record.exists():
        return False
    return asdict(recipe).items() <= json.loads(record.read_text(encoding="utf-8")).items()
