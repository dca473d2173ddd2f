# SPDX-License-Identifier: Apache-2.0
"""The naive loop: transformers and peft, a forward pass for each stream and token."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.e2e.jobs import ALPHA, BETA, MODES, stamped


class Padded:
    """One stream of each request of a batch, padded on the left, on one model with its KV cache."""

    def __init__(self, model: Any, prompts: Sequence[list[int]], tokens: int) -> None:
        import torch

        width = max(map(len, prompts))
        padding = [width - len(prompt) for prompt in prompts]
        self.model, self.cache, self.seen = model, None, 0
        self.ids = torch.tensor([[0] * n + p for n, p in zip(padding, prompts, strict=True)])
        self.mask = torch.ones(len(prompts), width + tokens, dtype=torch.long)
        for row, n in enumerate(padding):
            self.mask[row, :n] = 0
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)

    def logits(self) -> Any:
        """Of the next tokens, [B, V] in float32; ``ids`` must then be what was chosen."""
        end = self.seen + self.ids.shape[1]
        out = self.model(
            input_ids=self.ids,
            attention_mask=self.mask[:, :end],
            position_ids=self.positions[:, self.seen : end],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache, self.seen = out.past_key_values, end
        return out.logits[:, -1].float()


class Naive:
    """The base model, and a second copy with the adapter: a pass and a KV cache for each stream.

    Each of the two could do without the other's weights, but switching an adapter off and on
    for each token would cost time.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        def load() -> Any:
            return AutoModelForCausalLM.from_pretrained(
                settings["model"], dtype=getattr(torch, settings["dtype"])
            )

        self.base = load().eval()
        self.adapted = self.base
        if settings["adapter"] is not None:
            self.adapted = PeftModel.from_pretrained(
                load(), settings["adapter"], autocast_adapter_dtype=False
            ).eval()

    def facts(self) -> dict[str, Any]:
        """What the naive process is, as far as it matters for speed."""
        import peft
        import torch
        import transformers

        return {
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "attention": self.base.config._attn_implementation,
            "threads": torch.get_num_threads(),
        }

    def _models(self, mode: str) -> list[Any]:
        """The model of each stream, the expert's first."""
        expert, amateurs, *_ = MODES[mode]
        return [self.adapted if expert else self.base] + [self.base] * amateurs

    def run(self, mode: str, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """``Engine.run`` as a plain loop over left-padded batches."""
        import torch

        gc.collect()
        started = time.perf_counter()  # padding is part of the work
        streams = [Padded(model, prompts, tokens) for model in self._models(mode)]
        got, times = [], []
        with torch.inference_mode():
            for _ in range(tokens):
                logits = [stream.logits() for stream in streams]
                ids = scores(*logits, beta=float(MODES[mode].beta)).argmax(-1, keepdim=True)
                got.append(ids[:, 0].tolist())
                times.append(time.perf_counter())
                for stream in streams:
                    stream.ids = ids
        return {
            **stamped(started, [times] * len(prompts)),
            "tokens": [list(row) for row in zip(*got, strict=True)],
            "blocks": None,
        }

    def gap(self, mode: str, texts: list[list[int]], choices: list[int]) -> dict[str, float]:
        """How far the worst of ``choices`` is behind the best next token.

        Args:
            mode: One of ``MODES``.
            texts: What each stream has read so far; one text if all have read the same.
            choices: Token ids.

        Returns:
            ``gap``, in units of the scores (logits); infinite for a token that is no candidate.
        """
        import torch

        models = self._models(mode)
        if len(texts) == 1:
            texts = texts * len(models)
        with torch.inference_mode():
            logits = [
                model(input_ids=torch.tensor([ids]), logits_to_keep=1).logits[:, -1].float()
                for model, ids in zip(models, texts, strict=True)
            ]
        row = scores(*logits, beta=float(MODES[mode].beta))[0]
        return {"gap": float(row.max() - row[choices].min())}


def scores(expert: Any, *amateurs: Any, beta: float = BETA) -> Any:
    """The scores of docs/how-it-works.md for logits [B, V] in float32, with the weight -beta for
    each amateur; without amateurs the logits.
    """
    import torch

    if not amateurs:
        return expert
    bar = expert.max(-1, keepdim=True).values + math.log(ALPHA)
    contrast = sum(beta * (expert - amateur) for amateur in amateurs)
    return torch.where(expert >= bar, expert + contrast, -math.inf)
