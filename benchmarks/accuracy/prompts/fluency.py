# SPDX-License-Identifier: Apache-2.0
"""Whether an answer is language at all: how much of it is new, and how likely a model finds it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from pathlib import Path


def distinct(items: Sequence[Hashable], n: int = 3) -> float:
    """The share of n-grams that are no repetition of an earlier one; 1 where there are none."""
    grams = list(zip(*(items[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


def log_likelihoods(
    model_folder: Path | str, prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> list[float]:
    """How unlikely a model finds answers to prompts, decoding without a contrast.

    Args:
        model_folder: The model, in transformers' form.
        prompts: What it reads, as token ids.
        answers: As token ids.

    Returns:
        An answer's mean negative log-likelihood per token, in nats (its exponential is the
        perplexity); nan for an empty answer.

    Raises:
        ValueError: a prompt is empty, or there are more of ones than of the others.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if not all(prompts):
        raise ValueError("an empty prompt: its answer's first token has no likelihood")
    # One at a time: a prompt has as many rows as a batch would, and nothing is padded.
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="auto")
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
