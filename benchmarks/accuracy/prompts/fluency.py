# SPDX-License-Identifier: Apache-2.0
"""Whether answers are language at all: how much of them is new, and how likely a model finds them.

``python -m benchmarks.accuracy.prompts.fluency`` reads the answers that ``run`` has kept and asks
the model that reads the same prompts without a contrast. What it has judged already it does not
judge again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.accuracy.prompts.problem import ModelName, Prompt
from benchmarks.accuracy.prompts.run import CELLS, KEYS, MODELS, PROBLEMS
from benchmarks.accuracy.prompts.store import MEASURED, Store, answers, mark_of
from benchmarks.accuracy.prompts.text import distinct
from benchmarks.accuracy.store import write_json
from examples import gemma3, smollm2


def log_likelihoods(
    model: Any, prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> list[float]:
    """How unlikely a model finds answers to prompts, decoding without a contrast.

    Args:
        model: Of transformers.
        prompts: What it reads, as token ids.
        answers: As token ids.

    Returns:
        An answer's mean negative log-likelihood per token, in nats (its exponential is the
        perplexity); nan for an empty answer.

    Raises:
        ValueError: a prompt is empty, or there are more of ones than of the others.
    """
    if not all(prompts):
        raise ValueError("an empty prompt: its answer's first token has no likelihood")
    # One at a time: a prompt has as many rows as a batch would, and nothing is padded.
    found = []
    with torch.inference_mode():
        for prompt, answer in zip(prompts, answers, strict=True):
            if not answer:
                found.append(math.nan)
                continue
            ids = torch.tensor([prompt + answer], device=model.device)
            # The last token's own logits say nothing about the answer.
            logits = model(ids, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
            found.append(float(torch.nn.functional.cross_entropy(logits, ids[0, -len(answer) :])))
    return found


def summary(nats: list[float], kept: list[list[int]], fluent: str | None) -> dict[str, Any]:
    """A method's figures on a cell.

    Args:
        nats: By answer, from ``log_likelihoods``.
        kept: The answers, as token ids.
        fluent: The measure that ``run`` has kept; None if the cell has none.

    Returns:
        The number of answers, their median perplexity (None if all are empty), the mean share of
        new 3-grams, and the share of fluent answers, or None.
    """
    told = [value for value in nats if not math.isnan(value)]
    return {
        "answers": len(kept),
        "perplexity": round(math.exp(np.median(told)), 3) if told else None,
        "distinct": round(float(np.mean([distinct(answer) for answer in kept])), 4),
        "fluent": round(fluent.count("1") / len(fluent), 4) if fluent else None,
    }


class _Reader:
    """The model and its tokenizer."""

    def __init__(self, name: ModelName) -> None:
        folder = {"smollm2": smollm2, "gemma": gemma3}[name].model_path()
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(self, prompt: Prompt) -> list[int]:
        """The tokens that vLLM reads, too."""
        if isinstance(prompt, str):
            return list(self._tokenizer(prompt).input_ids)
        text = self._tokenizer.apply_chat_template(
            [dict(each) for each in prompt], tokenize=False, add_generation_prompt=True
        )
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)


def main() -> None:
    """Run the command line."""
    # With an adapter it would not be the model that has answered.
    cells = [name for name, cell in CELLS.items() if cell.adapter is None]
    parser = argparse.ArgumentParser(description="Measure how fluent the kept answers are.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--cells", nargs="+", choices=cells, default=cells)
    parser.add_argument("--splits", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", choices=KEYS, default=KEYS)
    arguments = parser.parse_args()

    for name in arguments.models:
        reader: _Reader | None = None
        for split in arguments.splits:
            path = MEASURED / f"fluency-{name}-{split}.json"
            data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            pairs = [(cell, method) for cell in arguments.cells for method in arguments.methods]
            for key, method in tqdm(pairs, desc=f"{name}, {split}"):
                found = answers(name, key, split, method)
                if found is None:
                    continue
                problems = CELLS[key].make(name, split, len(found.texts))
                mark = mark_of(name, CELLS[key], problems)
                outcome = Store(name, key, split, mark).outcomes[method]
                judged = hashlib.sha256(repr((mark, found.token_ids)).encode()).hexdigest()
                if data.setdefault(key, {}).get(method, {}).get("mark") == judged:
                    continue
                reader = reader or _Reader(name)
                nats = log_likelihoods(
                    reader.model, [reader.ids(each.prompt) for each in problems], found.token_ids
                )
                figures = summary(nats, found.token_ids, outcome.measures.get("fluent"))
                data[key][method] = {"mark": judged, **figures}
                write_json(path, data)


if __name__ == "__main__":
    main()
