# SPDX-License-Identifier: Apache-2.0
"""vLLM decodes requests, through the API that users have.

Touches vLLM: ``LLM.llm_engine.engine_core.shutdown``. Why: one process decodes with a model after
the other, and ``LLM`` has no public way to end its engine. Since: 0.23. Can go: when it has one.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.methods import Request, Stream
from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Prompt
from vllm_cold.tools import machine

_PROCESSOR = ("CPU", "family", "model", "flags")  # what decides how sums are rounded


class Engine:
    """One engine of one model, in this process.

    Args:
        model: Which.
        adapters: Whether requests may wear adapters.

    Attributes:
        versions: Of what decodes, and on what.

    Raises:
        ValueError: the model is not of the kind that its entry says.
    """

    def __init__(self, model: Model, *, adapters: bool) -> None:
        from transformers import AutoTokenizer
        from vllm import LLM
        from vllm.platforms import current_platform

        path = model.path()
        self._model = model
        model.check(AutoTokenizer.from_pretrained(path))
        options: dict[str, Any] = {}
        if current_platform.is_cpu():
            # Prompts stay in the cache from one method to the next. The block size is what all of
            # vLLM's attention on CPU takes.
            options = {"kv_cache_memory_bytes": int(model.cache_gib * 2**30), "block_size": 32}
        self._llm = LLM(
            model=path,
            dtype=model.dtype,
            max_model_len=model.max_length,
            max_num_seqs=128,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            enable_lora=adapters,
            max_loras=2,
            max_lora_rank=model.max_rank,
            # Possible, and no default: an adapter's greedy requests would be contrasted, too.
            additional_config={
                "cold": {"enabled": False, "rules": ["examples.rule.cold_clean_gen:CleanGen"]}
            },
            **options,
        )
        self._adapters: dict[tuple[str, float], Any] = {}
        self._scaled = tempfile.TemporaryDirectory()
        device = current_platform.get_device_name()
        if current_platform.is_cpu():
            facts = machine.describe()
            device = machine.text({name: facts[name] for name in _PROCESSOR if name in facts})
        self.versions = ", ".join(
            f"{name} {importlib.metadata.version(name)}" for name in ("vllm", "vllm-cold")
        )
        self.versions += f" on {device}"

    def run(self, requests: Sequence[Request]) -> list[tuple[str, int]]:
        """Decode requests of one method: the answers' texts, and how many tokens were decoded.
        Of a request that scores an answer, its mean log probability.
        """
        if requests[0].scored is not None:
            return [(repr(value), 0) for value in self._scores(requests)]
        prompts = [self._read(each.expert.prompt) for each in requests]
        decode: Any = self._llm.generate
        options: dict[str, Any] = {"use_tqdm": False}
        if not isinstance(prompts[0], str):  # then none is
            decode = self._llm.chat
            options["chat_template_kwargs"] = dict(self._model.template)
        outputs = decode(
            prompts,
            [self._params(each) for each in requests],
            lora_request=[self._lora(each.expert) for each in requests],
            **options,
        )
        return [(out.outputs[0].text, len(out.outputs[0].token_ids)) for out in outputs]

    def close(self) -> None:
        """End the engine, and free its memory for the next one."""
        self._llm.llm_engine.engine_core.shutdown()
        self._scaled.cleanup()

    def _scores(self, requests: Sequence[Request]) -> list[float]:
        """Mean log probabilities of the answers' tokens after their prompts, in nats."""
        from vllm import SamplingParams

        tokenizer: Any = self._llm.get_tokenizer()
        prompts, lengths = [], []
        for each in requests:
            text = self._read(each.expert.prompt)
            if isinstance(text, str):
                before = tokenizer(text).input_ids
            else:
                text = tokenizer.apply_chat_template(
                    text, tokenize=False, add_generation_prompt=True, **self._model.template
                )
                before = tokenizer(text, add_special_tokens=False).input_ids
            # An empty answer is the end of the turn.
            answer = tokenizer(each.scored, add_special_tokens=False).input_ids
            answer = answer or [tokenizer.eos_token_id]
            prompts.append({"prompt_token_ids": [*before, *answer]})
            lengths.append(len(answer))
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        worn = [self._lora(each.expert) for each in requests]
        found = self._llm.generate(prompts, params, lora_request=worn, use_tqdm=False)
        scores = []
        for out, length in zip(found, lengths, strict=True):
            tokens = zip(out.prompt_token_ids[-length:], out.prompt_logprobs[-length:], strict=True)
            scores.append(sum(each[token].logprob for token, each in tokens) / length)
        return scores

    def _params(self, request: Request) -> Any:
        from vllm import SamplingParams

        from vllm_cold import ColdParams

        if not request.amateurs:
            return SamplingParams(**request.sampling)
        amateurs = [self._amateur(each, request.expert) for each in request.amateurs]
        return ColdParams(amateurs=amateurs, **request.settings, **request.sampling)

    def _amateur(self, stream: Stream, expert: Stream) -> Any:
        from vllm_cold import Amateur

        return Amateur(
            prompt=None if stream.prompt == expert.prompt else self._read(stream.prompt),
            lora_request=self._lora(stream),
            weight=stream.weight,
        )

    def _read(self, prompt: Prompt) -> Any:
        return prompt if isinstance(prompt, str) else self._model.messages(prompt)

    def _lora(self, stream: Stream) -> Any:
        from vllm.lora.request import LoRARequest

        if stream.adapter is None:
            return None
        key = (stream.adapter, stream.scale)
        if key not in self._adapters:
            folder, number = stream.adapter, len(self._adapters) + 1
            if stream.scale != 1:
                folder = str(Path(self._scaled.name, str(number)))
                scaled(Path(stream.adapter), stream.scale, Path(folder))
            name = f"{Path(stream.adapter).name} x {stream.scale:g}"
            self._adapters[key] = LoRARequest(name, number, folder)
        return self._adapters[key]


def scaled(adapter: Path, scale: float, to: Path) -> None:
    """Write an adapter whose change to the weights is ``scale`` times that of another.

    Raises:
        ValueError: the adapter's scale is not one number for all of its layers.
    """
    config = to / "adapter_config.json"
    said = json.loads((adapter / config.name).read_text(encoding="utf-8"))
    if said.get("alpha_pattern"):
        raise ValueError(
            f"{adapter / config.name}: alpha_pattern is {said['alpha_pattern']!r}, and only "
            'adapters without one can be scaled: leave out the method "adapter x 1.5"'
        )
    shutil.copytree(adapter, to)
    said["lora_alpha"] *= scale
    config.write_text(json.dumps(said), encoding="utf-8")
