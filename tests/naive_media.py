# SPDX-License-Identifier: Apache-2.0
"""The naive reference for prompts with images and videos; imports no vLLM.

Each stream is read alone, its whole prompt with its media at once, and then token by token.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor

from tests.naive import NaiveCold


class NaiveMedia(NaiveCold):
    """``NaiveCold`` for models that also see or hear."""

    def __init__(self, model: Path, adapters: dict[str, Path]) -> None:
        super().__init__(model, adapters)
        self._processor: Any = AutoProcessor.from_pretrained(model)
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
        return {name: value for name, value in found.items() if name != "labels"}

    @torch.inference_mode()
    def _forward(self, adapter: str | None, ids: Any, cache: Any) -> tuple[Tensor, Any]:
        """Logits [1, V] float32 after a prompt's tensors, or after more tokens; and what
        transformers remembers of the stream: the KV cache, and what M-RoPE adds to the positions of
        tokens, which it keeps in the model.
        """
        past, self._keeper.rope_deltas = cache or (None, None)
        inputs = ids if isinstance(ids, dict) else {"input_ids": torch.tensor(ids)}
        with self._using(adapter) as model:
            out = model(**inputs, past_key_values=past, use_cache=True)
        return out.logits[:, -1].float(), (out.past_key_values, self._keeper.rope_deltas)
