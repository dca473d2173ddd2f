# SPDX-License-Identifier: Apache-2.0
"""The source that runs an engine in this process."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_cold.settings import ColdSettings
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

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as max_lora_rank

# Off whatever the engine's default is; ColdParams ask for themselves.
_PLAIN = {"cold": 0}


def named_path(option: str, value: str) -> tuple[str, Path, int]:
    """``[NAME=]PATH`` of an adapter as its name, its absolute folder and its rank.

    Raises:
        ToolError: there is no adapter.
    """
    name, separator, path = value.partition("=")
    if not separator:
        # The name that was given, also of a link.
        path, name = value, os.path.basename(os.path.abspath(os.path.expanduser(value)))
    folder = Path(path).expanduser().resolve()
    config = folder / "adapter_config.json"
    if not name or not config.is_file():
        raise ToolError(
            f"{option}={value}: no adapter_config.json in {folder}; give the folder of a LoRA "
            "adapter as PATH or NAME=PATH"
        )
    try:
        rank = int(json.loads(config.read_text(encoding="utf-8"))["r"])
    except (ValueError, KeyError, TypeError) as error:
        raise ToolError(f"{option}={value}: cannot read the rank 'r' in {config}") from error
    return name, folder, rank


def check_model(model: str) -> None:
    """Refuse a model that looks like a path and is none; a name is left to vLLM."""
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1
    path = Path(model).expanduser()
    if (looks_local or path.exists()) and not (path / "config.json").is_file():
        raise ToolError(f"--model={model}: no config.json there; give a model's folder or hub name")


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
        check_model(model)
        adapters = [named_path("--adapter", adapter)]
        if amateur is not None:
            adapters.append(named_path("--amateur", amateur))
            if adapters[0][0] == adapters[1][0]:
                raise ToolError(
                    f"--amateur={amateur}: has the expert's name; give another as NAME=PATH"
                )
        rank = max(rank for _, _, rank in adapters)
        if rank > _RANKS[-1]:
            raise ToolError(f"--adapter={adapter}: rank {rank}; vLLM takes up to {_RANKS[-1]}")
        _quiet()
        try:
            from vllm import LLM
            from vllm.lora.request import LoRARequest
        except ModuleNotFoundError as error:
            raise ToolError(
                f"without --url this command runs vLLM here, and {error.name} is not installed: "
                "install vLLM, or give a server's --url"
            ) from error
        requests = [LoRARequest(n, i, str(path)) for i, (n, path, _) in enumerate(adapters, 1)]
        self._expert = requests[0]
        self._amateur = requests[1] if amateur is not None else None
        options: dict[str, Any] = {
            "enforce_eager": True,
            "max_num_seqs": 32,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            **{key: value for key, value in engine.items() if value is not None},
        }
        try:
            self._llm = LLM(
                model=str(Path(model).expanduser()) if Path(model).expanduser().exists() else model,
                enable_lora=True,
                max_loras=len(adapters),
                max_lora_rank=next(allowed for allowed in _RANKS if allowed >= rank),
                max_logprobs=LARGEST_TOP,
                **options,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise ToolError(f"--model={model}: vLLM did not start: {_reason(error)}") from error
        config = self._llm.llm_engine.model_config
        self.max_model_len: int | None = int(config.max_model_len)
        self.vocab_size: int | None = int(config.get_vocab_size())
        from vllm_cold.bindings.plugin import vllm_version

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
                text = tokenizer.apply_chat_template(
                    message, tokenize=False, add_generation_prompt=True
                )
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
            found = self._llm.generate(prompts, params, lora_request=adapter, use_tqdm=False)
        except ValueError as error:  # CoLD or vLLM refuses the request and says why
            raise ToolError(str(error)) from error
        return list(found)


def _reason(error: Exception) -> str:
    """What vLLM says, without what pydantic puts around it."""
    from pydantic import ValidationError  # comes with vLLM

    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(entry["msg"].removeprefix("Value error, ") for entry in error.errors())


def _quiet() -> None:
    """Leave the screen to the tool: vLLM's errors alone, and the engine in this process."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
