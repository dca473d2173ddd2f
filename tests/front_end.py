# SPDX-License-Identifier: Apache-2.0
"""vLLM's front end on the tiny model: configuration, renderer and input processor; no engine. And
what an API server's process does with bodies, without a server.
"""

import asyncio
import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.renderers.inputs.preprocess import prompt_to_seq

from tests.places import wrapped
from tests.requests import ids, xargs
from vllm_cold.compat import patching, places
from vllm_cold.frontend import request_hooks, serving
from vllm_cold.wire.stream import Stream, from_extra_args

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
_NAMES = ["amateur", "amateur_prompt", "amateur_messages", "without", "part", "images", "weights",
          "preset"]  # fmt: skip
# Flat arguments of a request, without ``cold_``, that make some sense or none.
JUNK = st.dictionaries(
    st.sampled_from([*_NAMES, "alpha", "beta", "rule_parameters"]),
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

    def serve(self, default: Any = None) -> Any:
        """Be a server, with these engine's defaults."""
        of_others = {k: v for k, v in self.config.additional_config.items() if k != "cold"}
        self.config.additional_config = of_others | ({} if default is None else {"cold": default})
        engine = SimpleNamespace(vllm_config=self.config, input_processor=self.processor)
        models = SimpleNamespace(engine_client=engine, lora_requests=self.adapters)
        request_hooks.serve(models)
        return engine

    def run(self, coroutine: Any) -> Any:
        """On the one event loop that this renderer has: 0.23 binds it to the first."""
        return self._loop.run_until_complete(coroutine)

    def text(self, prompt: Any, **tok: Any) -> Any:
        """Return what ``LLM.generate`` makes of a prompt."""
        params = self.renderer.default_cmpl_tok_params.with_kwargs(**tok)
        (rendered,) = self.renderer.render_cmpl(
            [{"prompt": prompt} if isinstance(prompt, str) else {"prompt_token_ids": prompt}],
            params,
        )
        return rendered

    def chat(self, messages: Any, template: str | None = None, **kwargs: Any) -> Any:
        """Return what ``LLM.chat`` makes of a conversation."""
        from vllm.renderers.params import ChatParams

        kwargs = {"add_generation_prompt": True, "tokenize": False, **kwargs}
        params = ChatParams(chat_template=template, chat_template_kwargs=kwargs)
        _, (rendered,) = self.renderer.render_chat(
            [messages], params, self.renderer.default_chat_tok_params
        )
        return rendered

    def request(self, prompt: Any, params: Any, lora: Any = ONE) -> Any:
        return self.processor.process_inputs(
            "r", prompt, params, supported_tasks=("generate",), lora_request=lora
        )

    def refusal(self, prompt: Any, params: Any, lora: Any = ONE) -> str:
        """Return why a request is refused, with HTTP 400 on a server."""
        with pytest.raises(ValueError) as raised:
            self.request(prompt, params, lora)
        assert type(raised.value).__name__ == "ColdRequestError"
        return str(raised.value)

    def render(self, prompt: Any) -> Any:
        """Return what vLLM makes of a prompt of ``tests.requests``."""
        is_chat = isinstance(prompt, list) and isinstance(prompt[0], dict)
        return self.chat(prompt) if is_chat else self.text(prompt)

    def streams(self, prompt: Any, params: Any = None, lora: Any = ONE, **args: Any) -> Stream:
        """Return those of a contrastive request; ``args`` are its flat arguments."""
        params = params or SamplingParams(extra_args=xargs(**args)["vllm_xargs"])
        stream = from_extra_args(self.request(prompt, params, lora).sampling_params.extra_args)
        assert stream is not None and (stream.group, stream.index) == ("", None)
        return stream

    def prompts(self, *args: Any, **kwargs: Any) -> list[str | None]:
        """Return what the amateurs read."""
        prompts = [amateur.prompt for amateur in self.streams(*args, **kwargs).amateurs]
        return [None if ids is None else self.tokenizer.decode(ids) for ids in prompts]

    def check(self, stream: Stream, request: Any) -> None:
        """Assert that a request of ``tests.requests`` has the streams that it should have."""
        assert stream.settings.alpha == request.alpha
        for amateur, expected in zip(stream.amateurs, request.amateurs, strict=True):
            weight, adapter, prompt = expected
            assert (amateur.weight, amateur.adapter and amateur.adapter["lora_name"]) == (
                weight,
                adapter,
            )
            assert amateur.prompt == (None if prompt is None else ids(self.tokenizer, prompt))


MOOD = {"mood": " w8"}  # the server's own template arguments


def protocol(body: dict[str, Any]) -> Any:
    """vLLM's class of such a body."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    return ChatCompletionRequest if "messages" in body else CompletionRequest


class Online:
    """What a server makes of a body, by vLLM's own classes of bodies and its renderer.

    Args:
        front: The rest of its front end.
        defaults: Sampling parameters of the model's own.
        most: Tokens of an answer that the server's owner allows.
    """

    def __init__(
        self, front: Front, defaults: dict[str, Any] | None = None, most: int | None = None
    ) -> None:
        patching.install(places.rows(places.ONLINE))
        owner, _, _ = wrapped(".preprocess_chat").find()
        arguments = {
            "model_config": front.config.model_config,
            "renderer": front.renderer,
            "request_logger": None,
            "chat_template": None,
            "chat_template_content_format": "auto",
            "trust_request_chat_template": True,
            "model_registry": None,
            "default_chat_template_kwargs": MOOD,
        }
        wanted = inspect.signature(owner.__init__).parameters
        self.renderer = owner(**{k: v for k, v in arguments.items() if k in wanted})
        self.front, self.defaults, self.most = front, defaults or {}, most

    async def prepare(self, request: Any) -> Any:
        """Return what vLLM makes of the prompts."""
        if not hasattr(request, "messages"):
            fields = [request.prompt_embeds, request.prompt]
            prompts = [p for field in fields if field is not None for p in prompt_to_seq(field)]
            return await self.renderer.preprocess_cmpl(request, prompts)
        tools = [tool.model_dump() for tool in request.tools or ()]
        _, prompts = await self.renderer.preprocess_chat(
            request, request.messages, None, "auto", MOOD, tool_dicts=tools
        )
        return prompts

    async def before_the_headers(self, request: Any) -> list[tuple[Any, Any]]:
        """Do what is done before a response starts; return each prompt, and its parameters."""
        from vllm.entrypoints.openai.completion.serving import get_max_tokens

        max_tokens = getattr(request, "max_completion_tokens", None) or request.max_tokens
        prepared = []
        for prompt in await self.prepare(request):
            length = len(prompt.get("prompt_token_ids") or prompt.get("prompt_embeds"))
            limit = self.front.config.model_config.max_model_len
            most = get_max_tokens(limit, max_tokens, length, self.defaults, self.most)
            prepared.append((prompt, request.to_sampling_params(most, self.defaults)))
        return prepared

    def prepared(self, body: dict[str, Any]) -> list[tuple[Any, Any]]:
        request = protocol(body)(**{"model": "one", **body})
        return self.front.run(self.before_the_headers(request))  # type: ignore[no-any-return]

    def beams(self, body: dict[str, Any], model: str = "one") -> Any:
        """Return the parameters of a beam search."""
        request = protocol(body)(model=model, use_beam_search=True, **body)
        self.front.run(self.prepare(request))
        return request.to_beam_search_params(4, {})

    async def answer_async(self, body: dict[str, Any], model: str = "one") -> tuple[Any, list[Any]]:
        """Return the header, and the engine core's request of each prompt."""
        request = protocol(body)(**{"model": model, "max_tokens": 4, **body})
        requests, sent = [], {}

        async def handle() -> None:  # as in vLLM, in a task of its own
            for prompt, params in await self.before_the_headers(request):
                requests.append(self.front.request(prompt, params, self.front.adapters.get(model)))

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.create_task(handle())
            await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
            await send({"type": "http.response.body"})

        async def send(message: dict[str, Any]) -> None:
            sent[message["type"]] = message

        await serving.Header(app)({"type": "http"}, None, send)
        headers = dict(sent["http.response.start"]["headers"])
        assert headers.pop(b"a") == b"b" and "http.response.body" in sent
        return json.loads(headers.pop(serving.HEADER)), requests

    def answer(self, body: dict[str, Any], model: str = "one") -> tuple[Any, list[Any]]:
        """Return the header, and the streams of each prompt (None for a regular request)."""
        header, requests = self.front.run(self.answer_async(body, model))
        return header, [from_extra_args(r.sampling_params.extra_args) for r in requests]

    def prompts(self, body: dict[str, Any], model: str = "one", **args: Any) -> list[str | None]:
        """Return what the amateurs of the first prompt read."""
        _, (stream, *_) = self.answer({**body, **xargs(**args)}, model)
        decode = self.front.tokenizer.decode
        return [amateur.prompt and decode(amateur.prompt) for amateur in stream.amateurs]


def make_seeing(folder: Path) -> Path:
    """A LLaVA without weights: what a front end reads of it. An image has 9 tokens, ``<image>``."""
    from tests.engine.families import make_config
    from tests.engine.media import MEDIA

    config = make_config(MEDIA["llava-1.5"].model, folder)
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    return folder
