# SPDX-License-Identifier: Apache-2.0
"""The source that runs an engine in this process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_cold.group.results import weights_in
from vllm_cold.tools.adapters import engine_arguments, read_adapters, read_model
from vllm_cold.tools.contrast import Content, Stream, media_in
from vllm_cold.tools.engine import (
    cold_params,
    engine_errors,
    engine_prompt,
    prepare_environment,
    prompt_maker,
    start_llm,
)
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain.prompts import Asked
from vllm_cold.tools.explain.source import Decoded, Row, make_row
from vllm_cold.tools.pictures import without_data

# Enough for any valid set that a page can show.
LARGEST_TOP = 1024


def _plain(**more: Any) -> Any:
    """Parameters without CoLD, whatever the engine's default is."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, extra_args={"cold": 0}, **more)


class OfflineSource:
    """An engine in this process; see ``Source`` for what it can be asked.

    Args:
        model: A model's folder or hub name; also what an amateur calls the base model.
        adapter: ``[NAME=]PATH`` of the expert, None for the base model.
        amateurs: ``[NAME=]PATH`` of the other adapters.
        rules: Those of ``--rule``.
        engine: More arguments of ``vllm.LLM``; those that are None are left out.

    Attributes:
        llm: The engine.

    Raises:
        ToolError: a path or an option is wrong, or vLLM does not start.
    """

    def __init__(
        self,
        model: str,
        adapter: str | None = None,
        amateurs: Sequence[str] = (),
        rules: Sequence[str] | None = None,
        **engine: Any,
    ) -> None:
        self.base = model
        model = read_model(model)
        adapters = read_adapters(adapter, amateurs)
        prepare_environment()
        if engine.get("gpu_memory_utilization") is None:  # which it would win over
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB: a few prompts
        options: dict[str, Any] = {
            "enforce_eager": True,
            "max_num_seqs": 64,  # a prompt with 32 amateurs has 33
            **{key: value for key, value in engine.items() if value is not None},
        }
        self.llm = start_llm(
            model,
            **engine_arguments(adapters, rules),
            max_logprobs=LARGEST_TOP,
            **options,
        )
        self._stance = "force_eager" if options["enforce_eager"] else "default"
        from vllm.lora.request import LoRARequest

        from vllm_cold.vllm.versions import vllm_version

        self._adapters = {
            a.name: LoRARequest(a.name, i, a.folder) for i, a in enumerate(adapters, 1)
        }
        config = self.llm.llm_engine.model_config
        dtype = str(config.dtype).removeprefix("torch.")
        self.model = Path(model).name
        self.expert = None if adapter is None else adapters[0].name
        self.loaded = [one.name for one in adapters]
        self._make = prompt_maker(self.llm)
        self.about = f"vLLM {vllm_version()} in one process, {dtype}"
        self.max_model_len: int | None = int(config.max_model_len)
        self.vocab_size: int | None = int(config.get_vocab_size())

    def close(self) -> None:
        """End the engine."""
        self.llm.llm_engine.engine_core.shutdown()

    async def tokens(self, field: str, reads: Content) -> list[int]:
        """See ``Source``. How many tokens an image takes, a request of one token tells."""
        if (media := media_in(reads)) is None:
            return self._make(field, reads)
        self._make(field, reads)  # which names the field where it cannot be made
        (found,) = self._generate([Stream(self.expert, (), media)], _plain(max_tokens=1))
        return list(found.prompt_token_ids)

    async def decode(
        self, prompts: Sequence[Asked], greedy: bool, max_tokens: int
    ) -> list[Decoded]:
        """See ``Source``."""
        params = [
            _plain(max_tokens=max_tokens)
            if greedy
            else cold_params(
                self.llm,
                one.contrast,
                one.streams,
                self._adapters,
                explain=True,
                temperature=0.0,
                max_tokens=max_tokens,
            )
            for one in prompts
        ]
        found = self._generate([one.streams[0] for one in prompts], params)
        decoded = []
        for one in found:
            answer, weights = one.outputs[0], weights_in(one.kv_transfer_params) or ()
            if answer.finish_reason not in ("stop", "length"):
                raise ToolError(f"vLLM ended an answer early: {answer.stop_reason}")
            ids, rows = tuple(answer.token_ids), tuple(map(tuple, weights))
            decoded.append(Decoded(ids, answer.text, answer.finish_reason, rows))
        return decoded

    async def score(self, texts: Sequence[Stream], top: int) -> list[list[Row]]:
        """See ``Source``."""
        outputs = self._generate(texts, _plain(max_tokens=1, prompt_logprobs=top))
        return [
            [
                make_row({t: (one.logprob, one.decoded_token) for t, one in row.items()})
                for row in output.prompt_logprobs[1:]
            ]
            for output in outputs
        ]

    async def largest_top(self) -> int:
        """See ``Source``."""
        return min(LARGEST_TOP, self.vocab_size or LARGEST_TOP)

    async def look_up(
        self, asked: Sequence[tuple[Stream, Sequence[int]]]
    ) -> list[Mapping[int, float]]:
        """See ``Source``."""
        params = [_plain(max_tokens=1, logprob_token_ids=list(ids)) for _, ids in asked]
        outputs = self._generate([text for text, _ in asked], params)
        return [
            {token: entry.logprob for token, entry in output.outputs[0].logprobs[0].items()}
            for output in outputs
        ]

    def _generate(self, texts: Sequence[Stream], params: Any) -> list[Any]:
        import torch

        if not texts:
            return []
        loras = [text.adapter and self._adapters[text.adapter] for text in texts]
        try:
            prompts = [engine_prompt(self.llm, text) for text in texts]
            # vLLM counts ranks by compiled code in eager engines, too: ten seconds, once, and g++.
            with engine_errors(), torch.compiler.set_stance(self._stance):
                found = self.llm.generate(prompts, params, lora_request=loras, use_tqdm=False)
        except ValueError as error:  # CoLD or vLLM refuses the request and says why
            raise ToolError(without_data(str(error))) from error
        for text, one in zip(texts, found, strict=True):
            if text.media is not None and text.ids not in ((), tuple(one.prompt_token_ids)):
                raise ToolError(
                    "vLLM reads the prompt's images in another way beside the answer's tokens, so "
                    "its probabilities cannot be asked for"
                )
        return list(found)
