# SPDX-License-Identifier: Apache-2.0
"""The naive reference for prompts with images, videos and sounds; imports no vLLM.

Each step reads a stream's whole prompt, its media and all of its tokens anew, and each stream
alone: transformers keeps what M-RoPE adds to positions in the model, not in a stream's cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor

from tests.naive import Group, NaiveCold, Trace, step

# Of a processor's tensors, those with an entry a token, and what a text token has there.
_OF_TOKENS = {"input_ids": None, "attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": 0}


class NaiveMedia(NaiveCold):
    """``NaiveCold`` for models that also see or hear.

    With `causal`, a medium's tokens attend to what comes before them only, as vLLM's attention on
    CPU does it, also in models that let them attend to all of the medium.
    """

    def __init__(self, model: Path, adapters: dict[str, Path], causal: bool = False) -> None:
        super().__init__(model, adapters)
        self._processor: Any = AutoProcessor.from_pretrained(model)
        self._causal = causal

    def read(self, text: str, media: Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
        """A prompt's tensors.

        Args:
            text: With what stands for the media in their places.
            media: What the processor calls them; none for a text alone.
        """
        if not media:
            return {"input_ids": torch.tensor([self._processor.tokenizer(text).input_ids])}
        found = self._processor(text=[text], **media, return_tensors="pt")
        left_out = {"labels", *(["token_type_ids"] if self._causal else [])}
        return {name: value for name, value in found.items() if name not in left_out}

    @torch.inference_mode()
    def _last(
        self, adapter: str | None, prompt: Mapping[str, Tensor], tokens: Sequence[int]
    ) -> Tensor:
        """Logits [V] float32 after a prompt and the tokens that followed."""
        inputs = dict(prompt)
        for name, value in _OF_TOKENS.items():
            if name in inputs:
                added = [tokens if value is None else [value] * len(tokens)]
                more = torch.tensor(added, dtype=inputs[name].dtype)
                inputs[name] = torch.cat([inputs[name], more], dim=1)
        with self._using(adapter) as model:
            logits: Tensor = model(**inputs, use_cache=False).logits[0, -1]
        return logits.float()

    def decode_media(self, group: Group, prompts: Sequence[Mapping[str, Tensor]]) -> Trace:
        """Greedy decoding of a group with the prompt of each stream."""
        trace, memory = Trace(), dict[str, Any]()
        while len(trace.tokens) < group.max_tokens:
            streams = zip(group.adapters, prompts, strict=True)
            logits = [self._last(adapter, prompt, trace.tokens) for adapter, prompt in streams]
            trace.choose(step(logits, group, len(trace.tokens), memory))
        return trace
