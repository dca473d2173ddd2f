# SPDX-License-Identifier: Apache-2.0
"""The naive reference for prompts with images and videos; imports no vLLM.

Each stream is read alone, its whole prompt with its media at once, and then token by token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor

from tests.naive import Group, NaiveCold, Trace, step


@dataclass
class _Stream:
    """A prompt's tensors, and what transformers remembers of it: the KV cache, and what M-RoPE adds
    to the positions of tokens, which it keeps in the model.
    """

    prompt: Mapping[str, Tensor]
    cache: Any = None
    rope_deltas: Tensor | None = None


class NaiveMedia(NaiveCold):
    """``NaiveCold`` for models that also see.

    With `causal`, a medium's tokens attend to what comes before them only, as vLLM's attention on
    CPU does it, also in models that let them attend to all of the medium.
    """

    def __init__(self, model: Path, adapters: dict[str, Path], causal: bool = False) -> None:
        super().__init__(model, adapters)
        self._processor: Any = AutoProcessor.from_pretrained(model)
        self._causal = causal
        base = self._model.get_base_model() if adapters else self._model
        self._keeper: Any = base.model

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
    def _next(self, adapter: str | None, stream: _Stream, token: int | None) -> Tensor:
        """Logits [V] float32 after a stream's prompt, or after one more token."""
        inputs: dict[str, Any] = dict(stream.prompt)
        if token is not None:
            inputs = {"input_ids": torch.tensor([[token]]), "past_key_values": stream.cache}
        self._keeper.rope_deltas = stream.rope_deltas
        with self._using(adapter) as model:
            out = model(**inputs, use_cache=True)
        stream.cache, stream.rope_deltas = out.past_key_values, self._keeper.rope_deltas
        logits: Tensor = out.logits[0, -1].float()
        return logits

    def decode_media(self, group: Group, prompts: Sequence[Mapping[str, Tensor]]) -> Trace:
        """Greedy decoding of a group with the prompt of each stream."""
        trace, memory = Trace(), dict[str, Any]()
        streams = [_Stream(prompt) for prompt in prompts]
        token: int | None = None
        while len(trace.tokens) < group.max_tokens:
            pairs = zip(group.adapters, streams, strict=True)
            logits = [self._next(adapter, stream, token) for adapter, stream in pairs]
            token = trace.choose(step(logits, group, len(trace.tokens), memory))
        return trace
