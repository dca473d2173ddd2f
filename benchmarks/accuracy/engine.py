# SPDX-License-Identifier: Apache-2.0
"""vLLM decodes requests, through the API that users have."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.methods import Request, Stream
from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Prompt


class Engine:
    """One engine of one model, in this process.

    Args:
        model: Which.
        adapters: Whether requests may wear adapters.

    Attributes:
        versions: Of what decodes.
    """

    def __init__(self, model: Model, *, adapters: bool) -> None:
        from vllm import LLM

        self._llm = LLM(
            model=model.path(),
            dtype=model.dtype,
            max_model_len=model.max_length,
            max_num_seqs=128,
            # Prompts stay in the cache from one method to the next.
            kv_cache_memory_bytes=int(model.cache_gib * 2**30),
            block_size=32,  # what all of vLLM's attention on CPU takes
            disable_log_stats=True,
            use_tqdm_on_load=False,
            enable_lora=adapters,
            max_loras=2,
            max_lora_rank=16,
            # Possible, and no default: an adapter's greedy requests would be contrasted, too.
            additional_config={"cold": {"enabled": False}},
        )
        self._adapters: dict[str, int] = {}
        self.versions = ", ".join(
            f"{name} {importlib.metadata.version(name)}" for name in ("vllm", "vllm-cold")
        )

    def run(self, requests: Sequence[Request]) -> list[tuple[str, int]]:
        """Decode requests of one method: the answers' texts, and how many tokens were decoded."""
        prompts = [_read(each.expert.prompt) for each in requests]
        # All prompts are documents, or all are chat messages.
        decode: Any = self._llm.generate if isinstance(prompts[0], str) else self._llm.chat
        outputs = decode(
            prompts,
            [self._params(each) for each in requests],
            lora_request=[self._lora(each.expert.adapter) for each in requests],
            use_tqdm=False,
        )
        return [
            (
                voted([completion.text for completion in output.outputs]),
                sum(len(completion.token_ids) for completion in output.outputs),
            )
            for output in outputs
        ]

    def _params(self, request: Request) -> Any:
        from vllm import SamplingParams

        from vllm_cold import ColdParams

        if not request.amateurs:
            return SamplingParams(**request.sampling)
        amateurs = [self._amateur(each, request.expert) for each in request.amateurs]
        return ColdParams(amateurs=amateurs, **request.knobs, **request.sampling)

    def _amateur(self, stream: Stream, expert: Stream) -> Any:
        from vllm_cold import Amateur

        return Amateur(
            prompt=None if stream.prompt == expert.prompt else _read(stream.prompt),
            lora_request=self._lora(stream.adapter),
            weight=stream.weight,
        )

    def _lora(self, adapter: str | None) -> Any:
        from vllm.lora.request import LoRARequest

        if adapter is None:
            return None
        number = self._adapters.setdefault(adapter, len(self._adapters) + 1)
        return LoRARequest(Path(adapter).name, number, adapter)


def voted(texts: Sequence[str]) -> str:
    """The first of those that most agree with, whatever their case and full stop."""
    said = [text.strip().casefold().rstrip(".") for text in texts]
    votes = Counter(said)
    return texts[max(range(len(said)), key=lambda place: votes[said[place]])]


def _read(prompt: Prompt) -> Any:
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
