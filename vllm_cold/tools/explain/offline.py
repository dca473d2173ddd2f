# SPDX-License-Identifier: Apache-2.0
"""The source that runs an engine in this process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_cold.method.settings import ColdSettings
from vllm_cold.tools.adapters import lora_rank, read_adapters, read_model
from vllm_cold.tools.engine import engine_errors, prepare_environment, start_llm
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain.sources import (
    EXPERT,
    Decoded,
    Description,
    read_rows,
)
from vllm_cold.tools.explain.trace import Row

# Enough for any valid set that a page can show.
LARGEST_TOP = 1024

# Off whatever the engine's default is; ColdParams ask for themselves.
_PLAIN = {"cold": 0}


class OfflineSource:
    """An engine in this process; see ``Source`` for what it can be asked.

    Args:
        model: A model's folder or hub name.
        adapter: ``[NAME=]PATH`` of the expert.
        amateur: ``[NAME=]PATH`` of another adapter, None for the base model.
        engine: More arguments of ``vllm.LLM``; those that are None are left out.

    Raises:
        ToolError: a path or an option is wrong, or vLLM does not start.
    """

    def __init__(self, model: str, adapter: str, amateur: str | None = None, **engine: Any) -> None:
        model = read_model(model)
        adapters = read_adapters(adapter, amateur)
        prepare_environment()
        if engine.get("gpu_memory_utilization") is None:  # which it would win over
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB: a few prompts
        options: dict[str, Any] = {
            "enforce_eager": True,
            "max_num_seqs": 32,
            **{key: value for key, value in engine.items() if value is not None},
        }
        self._llm = start_llm(
            model,
            max_loras=len(adapters),
            max_lora_rank=lora_rank(adapters),
            max_logprobs=LARGEST_TOP,
            **options,
        )
        from vllm.lora.request import LoRARequest

        requests = [LoRARequest(a.name, i, a.folder) for i, a in enumerate(adapters, 1)]
        self._expert = requests[0]
        self._amateur = requests[1] if amateur is not None else None
        config = self._llm.llm_engine.model_config
        self.max_model_len: int | None = int(config.max_model_len)
        self.vocab_size: int | None = int(config.get_vocab_size())
        from vllm_cold.vllm.versions import vllm_version

        dtype = str(config.dtype).removeprefix("torch.")
        self.description = Description(
            model=Path(model).name,
            adapter=self._expert.lora_name,
            amateur=self._amateur.lora_name if self._amateur is not None else "base model",
            source=f"vLLM {vllm_version()} in one process, {dtype}",
        )

    def close(self) -> None:
        """End the engine."""
        self._llm.llm_engine.engine_core.shutdown()

    def encode(self, prompts: Sequence[str], chat: bool) -> list[list[int]]:
        """See ``Source``."""
        tokenizer = self._llm.get_tokenizer()
        found = []
        for prompt in prompts:
            text, special = prompt, True
            if chat:
                if not tokenizer.chat_template:
                    raise ToolError("--chat: this model has no chat template; leave --chat out")
                message = [{"role": "user", "content": prompt}]
                try:
                    text = tokenizer.apply_chat_template(
                        message, tokenize=False, add_generation_prompt=True
                    )
                # Templates are programs of the model's authors and raise what they like.
                except Exception as error:
                    raise ToolError(
                        f"--chat: the model's chat template does not take the prompt "
                        f"{prompt[:40]!r} ({error}); leave --chat out"
                    ) from error
                special = False  # the template writes them
            found.append(list(tokenizer.encode(text, add_special_tokens=special)))
        return found

    def decode(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, settings: ColdSettings | None
    ) -> list[Decoded]:
        """See ``Source``."""
        from vllm import SamplingParams

        from vllm_cold.params import ColdParams

        greedy: dict[str, Any] = {"temperature": 0.0, "max_tokens": max_tokens}
        if settings is None:
            params = SamplingParams(**greedy, extra_args=_PLAIN)
        else:
            params = ColdParams(
                alpha=settings.alpha,
                beta=settings.beta,
                beta_max=settings.beta_max,
                expert_top_k=settings.expert_top_k,
                amateur=self._amateur,
                **greedy,
            )
        outputs = [output.outputs[0] for output in self._generate(prompts, params, self._expert)]
        for output in outputs:
            if output.finish_reason not in ("stop", "length"):
                raise ToolError(f"vLLM ended an answer early: {output.stop_reason}")
        return [Decoded(tuple(o.token_ids), o.text, o.finish_reason) for o in outputs]

    def score(self, stream: str, texts: Sequence[Sequence[int]], top: int) -> list[list[Row]]:
        """See ``Source``."""
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=top, extra_args=_PLAIN
        )
        outputs = self._generate(texts, params, self._adapter(stream))
        return [read_rows(output.prompt_logprobs) for output in outputs]

    def largest_top(self) -> int:
        """See ``Source``."""
        return min(LARGEST_TOP, self.vocab_size or LARGEST_TOP)

    def look_up(
        self, stream: str, asked: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[Mapping[int, float]]:
        """See ``Source``."""
        from vllm import SamplingParams

        params = [
            SamplingParams(
                temperature=0.0, max_tokens=1, logprob_token_ids=list(ids), extra_args=_PLAIN
            )
            for _, ids in asked
        ]
        outputs = self._generate([text for text, _ in asked], params, self._adapter(stream))
        return [
            {token: entry.logprob for token, entry in output.outputs[0].logprobs[0].items()}
            for output in outputs
        ]

    def _adapter(self, stream: str) -> Any:
        return self._expert if stream == EXPERT else self._amateur

    def _generate(self, texts: Sequence[Sequence[int]], params: Any, adapter: Any) -> list[Any]:
        if not texts:
            return []
        prompts = [{"prompt_token_ids": list(text)} for text in texts]
        try:
            with engine_errors():
                found = self._llm.generate(prompts, params, lora_request=adapter, use_tqdm=False)
        except ValueError as error:  # CoLD or vLLM refuses the request and says why
            raise ToolError(str(error)) from error
        return list(found)
