# SPDX-License-Identifier: Apache-2.0
"""vLLM's front end on the tiny model: configuration, renderer and input processor; no engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.lora.request import LoRARequest

from vllm_cold.group.stream import Stream, from_extra_args
from vllm_cold.vllm.frontend.intake import FRONT_END

MAX_LEN = 64
ONE, TWO, THREE = (
    LoRARequest(name, i, f"/{name}") for i, name in ((1, "one"), (2, "two"), (3, "three"))
)

_HELLO = json.dumps([{"role": "user", "content": " w3"}])
_WORDS = ["system", "0:3", "0,1", " w9", _HELLO, "one", "base", "cad", "dexperts", "vcd", "images",
          "noise:500", "none", ""]  # fmt: skip
_TEXT = st.text(max_size=8) | st.sampled_from(_WORDS)
_SCALAR = (
    _TEXT
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.sampled_from(["adaptive", "mti", '{"tau": 2}'])
)
_NAMES = ["amateur", "amateur_prompt", "amateur_messages", "amateur_prompt_embeds", "without",
          "part", "images", "weights", "preset"]  # fmt: skip
# Flat arguments of a request, without ``cold_``, that make some sense or none.
JUNK = st.dictionaries(
    st.sampled_from([*_NAMES, "alpha", "beta", "beta_max", "rule_parameters"]),
    _SCALAR | st.lists(_SCALAR, max_size=4),
    max_size=4,
)


class Front:
    """A front end: vLLM's input processor on the tiny model."""

    def __init__(self, model: Path, **options: Any) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.input_processor import InputProcessor

        arguments = {
            "dtype": "float32",
            "max_model_len": MAX_LEN,
            "max_num_seqs": 128,  # a request may have a quarter of so many amateurs
            "enable_lora": True,
            "max_loras": 2,
            "enforce_eager": True,
            "served_model_name": "base",
        }
        args = EngineArgs(model=str(model), **(arguments | options))  # type: ignore[arg-type]
        self.config = args.create_engine_config(UsageContext.LLM_CLASS)
        self.config.cache_config.num_gpu_blocks = 1000
        self.processor = InputProcessor(self.config)
        self.adapters = {"one": ONE, "two": TWO, "three": THREE}
        self.serve()
        self.renderer = self.processor.renderer
        self.tokenizer = self.renderer.get_tokenizer()
        self._loop = asyncio.new_event_loop()

    def serve(self, most_tokens: int | None = None, default: Any = None) -> Any:
        """Be a server, with these engine's defaults."""
        of_others = {k: v for k, v in self.config.additional_config.items() if k != "cold"}
        self.config.additional_config = of_others | ({} if default is None else {"cold": default})
        engine = SimpleNamespace(vllm_config=self.config, input_processor=self.processor)
        models = SimpleNamespace(engine_client=engine, lora_requests=self.adapters)
        FRONT_END.serve(models, most_tokens)
        return engine

    def run(self, coroutine: Any) -> Any:
        """On the one event loop that this renderer has: 0.23 binds it to the first."""
        return self._loop.run_until_complete(coroutine)

    def text(self, prompt: Any, **tok: Any) -> Any:
        """What ``LLM.generate`` makes of a prompt."""
        params = self.renderer.default_cmpl_tok_params.with_kwargs(**tok)
        (made,) = self.renderer.render_cmpl(
            [{"prompt": prompt} if isinstance(prompt, str) else {"prompt_token_ids": prompt}],
            params,
        )
        return made

    def chat(self, messages: Any, template: str | None = None, **kwargs: Any) -> Any:
        """What ``LLM.chat`` makes of a conversation."""
        from vllm.renderers.params import ChatParams

        kwargs = {"add_generation_prompt": True, "tokenize": False, **kwargs}
        params = ChatParams(chat_template=template, chat_template_kwargs=kwargs)
        _, (made,) = self.renderer.render_chat(
            [messages], params, self.renderer.default_chat_tok_params
        )
        return made

    def request(self, prompt: Any, params: Any, lora: Any = ONE) -> Any:
        return self.processor.process_inputs(
            "r", prompt, params, supported_tasks=("generate",), lora_request=lora
        )

    def streams(self, prompt: Any, params: Any = None, lora: Any = ONE, **args: Any) -> Stream:
        """Those of a CoLD request; ``args`` are its flat arguments."""
        params = params or SamplingParams(extra_args={f"cold_{k}": v for k, v in args.items()})
        stream = from_extra_args(self.request(prompt, params, lora).sampling_params.extra_args)
        assert stream is not None and (stream.group, stream.index) == ("", None)
        return stream

    def prompts(self, *args: Any, **kwargs: Any) -> list[str | None]:
        """What the amateurs read."""
        found = [one.prompt for one in self.streams(*args, **kwargs).amateurs]
        return [None if ids is None else self.tokenizer.decode(ids) for ids in found]


def make_seeing(folder: Path) -> Path:
    """A LLaVA without weights: what a front end reads of it. An image has 9 tokens, ``<image>``."""
    from tests.engine.families import make_config
    from tests.engine.media import MEDIA

    config = make_config(MEDIA["llava-1.5"].model, folder)
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    return folder
