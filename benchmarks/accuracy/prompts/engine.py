# SPDX-License-Identifier: Apache-2.0
"""vLLM decodes the problems, through the API that users have."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.prompts.methods import Method
from benchmarks.accuracy.prompts.problem import Cell, ModelName, Problem, Prompt
from benchmarks.accuracy.store import ADAPTERS

MAX_LENGTH = 1024
DTYPE = "bfloat16"
KV_CACHE = 4 << 30  # bytes


@dataclass(frozen=True)
class Answers:
    """What a method made of problems: texts and their tokens, in the problems' order."""

    texts: list[str]
    token_ids: list[list[int]]
    seconds: float


class Engine:
    """One engine of one model, in this process."""

    def __init__(self, model: ModelName, *, adapters: bool = False) -> None:
        from vllm import LLM

        from examples import gemma3, smollm2

        path = {"smollm2": smollm2, "gemma": gemma3}[model].model_path()
        self._model: ModelName = model
        self._llm = LLM(
            model=str(path),
            dtype=DTYPE,
            max_model_len=MAX_LENGTH,
            max_num_seqs=128,
            # Prompts stay in the cache from one method to the next.
            kv_cache_memory_bytes=KV_CACHE,
            block_size=32,  # what all of vLLM's attention on CPU takes
            disable_log_stats=True,
            use_tqdm_on_load=False,
            enable_lora=adapters,
            max_lora_rank=16,
            # Possible, and no default: an adapter's greedy requests would be contrasted, too.
            additional_config={"cold": {"enabled": False}},
        )
        self._ids: dict[str, int] = {}

    def run(self, method: Method, cell: Cell, problems: list[Problem]) -> Answers:
        """Decode ``problems``."""
        prompts = [_chosen(method, problem) for problem in problems]
        params = [self._params(method, cell, problem) for problem in problems]
        lora = self._lora(cell.adapter)
        started = time.perf_counter()
        # Chat messages or documents, not both.
        if isinstance(prompts[0], str):
            outputs = self._llm.generate(prompts, params, lora_request=lora, use_tqdm=False)
        else:
            outputs = self._llm.chat(
                [_read(p) for p in prompts], params, lora_request=lora, use_tqdm=False
            )
        seconds = time.perf_counter() - started
        kept = [_voted(output.outputs) for output in outputs]
        return Answers(
            [completion.text for completion in kept],
            [list(completion.token_ids) for completion in kept],
            round(seconds, 1),
        )

    def _params(self, method: Method, cell: Cell, problem: Problem) -> Any:
        from vllm import SamplingParams

        from vllm_cold import Amateur, ColdParams

        common: dict[str, Any] = {
            "temperature": 0.0,
            "max_tokens": cell.max_tokens,
            "stop": list(cell.stop.get(self._model, ())) or None,
            "n": method.votes,
            **method.sampling,
        }
        if not method.contrasts:
            return SamplingParams(**common)
        amateurs = [_amateur(method, problem)]
        if method.unasked is not None:
            assert problem.unasked is not None
            amateurs.append(Amateur(prompt=_read(problem.unasked), weight=method.unasked))
        if method.preset is not None:
            return ColdParams.preset(method.preset, amateurs=amateurs, **common)
        return ColdParams(amateurs=amateurs, **method.knobs, **common)

    def _lora(self, adapter: str | None) -> Any:
        if adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        folder = ADAPTERS / adapter
        if not (folder / "adapter_config.json").exists():
            raise FileNotFoundError(
                f"{folder}: no adapter is there; python -m benchmarks.accuracy.prompts.train "
                "makes it"
            )
        number = self._ids.setdefault(adapter, len(self._ids) + 1)
        return LoRARequest(Path(adapter).name, number, str(folder))


def _amateur(method: Method, problem: Problem) -> Any:
    from vllm_cold import Amateur

    if method.amateur == "without":  # with the expert's adapter
        return Amateur(prompt=_read(problem.without))
    if method.amateur == "base":
        return Amateur(lora_request=None)
    return Amateur(prompt=_read(problem.without), lora_request=None)


def _voted(completions: list[Any]) -> Any:
    """The first of those that most agree with."""
    said = [completion.text.strip().casefold().rstrip(".") for completion in completions]
    votes = Counter(said)
    return completions[max(range(len(said)), key=lambda place: votes[said[place]])]


def _read(prompt: Prompt) -> Any:
    return prompt if isinstance(prompt, str) else list(prompt)


def _chosen(method: Method, problem: Problem) -> Prompt:
    if method.prompt in ("prompt", "without"):
        found: Prompt = getattr(problem, method.prompt)
        return found
    return problem.plain[method.prompt]
