# SPDX-License-Identifier: Apache-2.0
"""transformers decodes: beam search, and the methods that not every release of it offers."""

from __future__ import annotations

import time
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.accuracy.methods import BEAMS, Method
from benchmarks.accuracy.store import ADAPTERS, Adapter, Outcome
from benchmarks.accuracy.tasks import prompt_text
from examples.smollm2 import model_path
from examples.tasks import Problem, Task

BATCH = 32

# (vLLM's beam search goes on to max_tokens, even when no beam can win any more.)
OPTIONS: dict[str, dict[str, Any]] = {
    "beam": {"num_beams": BEAMS, "early_stopping": False},
    "dola": {"dola_layers": "high"},
    "contrastive-search": {"penalty_alpha": 0.6, "top_k": 4},
}


class Search:
    """One adapter in transformers, in bfloat16."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model_path())
        model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.bfloat16)
        self._model: Any = PeftModel.from_pretrained(
            model, str(ADAPTERS / adapter.name), autocast_adapter_dtype=False
        ).merge_and_unload()

    def why_not(self, method: Method) -> str | None:
        """Why the installed transformers cannot decode with ``method`` here; None if it can."""
        try:
            self._generate(["1 + 1"], method, 2)
        # What a release raises for a method that it has moved elsewhere is not documented.
        except Exception as error:
            said = " ".join(str(error).split()).replace("https://hf.co/", "the hub's ")
            return f"{type(error).__name__}: {said}"[:300]
        return None

    def run(self, method: Method, task: Task, problems: list[Problem], advance: Any) -> Outcome:
        """Decode ``problems``; ``advance`` is called with how many more are done."""
        texts = [prompt_text(self._tokenizer, problem) for problem in problems]
        order = sorted(range(len(problems)), key=lambda number: len(texts[number]))
        right = ["0"] * len(problems)
        tokens = 0
        started = time.perf_counter()
        for start in range(0, len(order), BATCH):
            chunk = order[start : start + BATCH]
            answers = self._generate([texts[number] for number in chunk], method, task.max_tokens)
            for number, answer in zip(chunk, answers, strict=True):
                tokens += len(answer)
                text = self._tokenizer.decode(answer, skip_special_tokens=True)
                right[number] = "01"[task.score(text, problems[number])]
            advance(len(chunk))
        return Outcome("".join(right), tokens, round(time.perf_counter() - started, 1))

    def _generate(self, prompts: list[str], method: Method, max_tokens: int) -> list[list[int]]:
        """The answers' tokens, without padding."""
        inputs = self._tokenizer(
            prompts, add_special_tokens=False, padding=True, padding_side="left",
            return_tensors="pt",
        )  # fmt: skip
        with torch.inference_mode():
            output = self._model.generate(
                **inputs, do_sample=False, max_new_tokens=max_tokens, **OPTIONS[method.kind]
            )
        end = self._tokenizer.eos_token_id
        answers = []
        for row in output[:, inputs.input_ids.shape[1] :].tolist():
            length = row.index(end) + 1 if end in row else len(row)
            answers.append(row[:length])
        return answers
