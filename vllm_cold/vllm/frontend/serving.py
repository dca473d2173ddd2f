# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``OpenAIServingModels.__init__``, the protocols' ``to_beam_search_params`` and
``to_sampling_params``, ``AsyncLLM.generate``, and ``LLM.beam_search``.

Why:

- ``cold_amateur`` names an adapter, and only the server's list of loaded adapters (static or loaded
  at run time) knows what the name stands for.
- ``to_sampling_params`` runs before a streamed response starts, so a wrong request gets its HTTP
  400 there; admission itself comes after the headers. It sees the whole body, in which our keys may
  stand where vLLM ignores them.
- Beam search makes its own sampling parameters, so a request for both would silently lose one.
- A request that the scheduler ends with an error has its sentence in ``stop_reason``; vLLM's
  servers would say "Internal server error".
- A client should see what its tokens were chosen with: the header ``x-cold`` of the response says
  it. vLLM's response bodies have no field for extensions that streams have too.

Since: 0.23 to 0.33. Can go: when vLLM resolves adapter names for extensions, passes ``vllm_xargs``
on in beam search, reports the reason of an error, and lets plugins add to a response.
"""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

import msgspec

from vllm_cold.method.settings import ColdError, check_placement, parse_request_args
from vllm_cold.params import ColdParams
from vllm_cold.vllm.frontend import admission
from vllm_cold.vllm.frontend.config import engine_defaults, is_configured
from vllm_cold.vllm.frontend.errors import generation_error, request_error
from vllm_cold.vllm.patching import Place

HEADER = b"x-cold"

_models: Any = None  # this process's OpenAIServingModels
# Of the HTTP request that is being answered; its last entry becomes the header.
_used: ContextVar[list[str] | None] = ContextVar("used", default=None)


def _make_models_init(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        global _models
        original(self, *args, **kwargs)
        _models = self
        # The live dict: adapters that are loaded later can be named too.
        self.engine_client.input_processor.cold_adapters = self.lora_requests

    return __init__


def _make_sampling_params(original: Callable[..., Any]) -> Callable[..., Any]:
    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        admission.plain_search.set(False)
        if _models is not None:
            try:
                _look_at(self)
            except ValueError as error:
                raise request_error(error) from error
        return original(self, *args, **kwargs)

    return to_sampling_params


def _look_at(request: Any) -> None:
    """Refuse a body that cannot have what it asks for; note what it will be decoded with."""
    check_placement(request.model_extra)
    config, adapters = _models.engine_client.vllm_config, _models.lora_requests
    args = parse_request_args(request.vllm_xargs)
    decision = admission.decide(config, args, adapters.get(request.model), adapters)
    if not is_configured(config):
        return
    _check_sendable(request.vllm_xargs)
    if (used := _used.get()) is not None:
        said: dict[str, Any] = {"cold": int(decision is not None)}
        if decision is not None:
            settings, amateur = decision
            said |= settings.as_dict()
            said["amateur"] = None if amateur is None else amateur.lora_name
        used.append(json.dumps(said))


def _check_sendable(xargs: Any) -> None:
    """Refuse what cannot be encoded for the engine, whosever key it is: vLLM says HTTP 500."""
    try:
        msgspec.msgpack.encode(xargs)
    except (UnicodeEncodeError, OverflowError) as error:
        raise ValueError(
            f"vllm_xargs cannot be sent to the engine ({error}): use valid Unicode text, and "
            "integers from -2^63 to 2^64 - 1."
        ) from error


def _make_beam_params(original: Callable[..., Any]) -> Callable[..., Any]:
    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            check_placement(self.model_extra)
            wants = parse_request_args(self.vllm_xargs).enabled
            if wants is None and _models is not None and self.model in _models.lora_requests:
                wants = engine_defaults(_models.engine_client.vllm_config).enabled
            if wants:
                raise ColdError(
                    "use_beam_search",
                    True,
                    'CoLD does not support beam search; leave it out, or send {"cold": 0} in '
                    "vllm_xargs to search with the adapter alone",
                )
        except ValueError as error:
            raise request_error(error) from error
        # The parameters that beam search makes for its steps do not carry vllm_xargs.
        admission.plain_search.set(True)
        return original(self, *args, **kwargs)

    return to_beam_search_params


def _make_generate(original: Callable[..., Any]) -> Callable[..., Any]:
    def generate(
        self: Any, prompt: Any, sampling_params: Any, request_id: str, *args: Any, **kwargs: Any
    ) -> Any:
        outputs = original(self, prompt, sampling_params, request_id, *args, **kwargs)
        if _models is None or not _may_use_cold(self.vllm_config, sampling_params, kwargs):
            return outputs
        return _with_the_reason(outputs)

    return generate


def _may_use_cold(config: Any, sampling_params: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a request may be one for CoLD; others are not to be slowed down by a look at each
    of their outputs.
    """
    if not is_configured(config) or kwargs.get("lora_request") is None:
        return False
    enabled = parse_request_args(sampling_params.extra_args).enabled
    return engine_defaults(config).enabled if enabled is None else enabled


async def _with_the_reason(outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    async with aclosing(outputs):  # which aborts what is left of the request
        async for output in outputs:
            for one in output.outputs:
                if one.finish_reason == "error" and str(one.stop_reason).startswith("CoLD"):
                    raise generation_error(one.stop_reason)
            yield output


class Header:
    """ASGI middleware that adds the header; ``cli`` names it in vLLM's option ``--middleware``."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        used: list[str] = []

        async def send_with_header(message: Any) -> None:
            if used and message["type"] == "http.response.start":
                headers = [*message["headers"], (HEADER, used[-1].encode())]
                message = {**message, "headers": headers}
            await send(message)

        admission.plain_search.set(False)  # of an earlier request on this connection
        token = _used.set(used)
        try:
            await self._app(scope, receive, send_with_header)
        finally:
            _used.reset(token)


def _make_beam_search(original: Callable[..., Any]) -> Callable[..., Any]:
    def beam_search(
        self: Any, prompts: Any, params: Any, lora_request: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        default = engine_defaults(self.llm_engine.vllm_config).enabled
        adapters = lora_request if isinstance(lora_request, (list, tuple)) else [lora_request]
        if isinstance(params, ColdParams) or (default and any(adapters)):
            raise ColdError(
                "beam_search",
                type(params).__name__,
                "CoLD does not support beam search; use generate(), or an engine whose default "
                "sampler is not CoLD",
            )
        return original(self, prompts, params, lora_request, *args, **kwargs)

    return beam_search


_OPENAI = "vllm.entrypoints.openai."
OFFLINE = (Place("vllm:LLM.beam_search", _make_beam_search, ("prompts", "params", "lora_request")),)


def online() -> tuple[Place, ...]:
    """For an API server process."""
    searching = (
        "completion.protocol:CompletionRequest",
        "chat_completion.protocol:ChatCompletionRequest",
    )
    sampling = (*searching, "responses.protocol:ResponsesRequest")
    return (
        Place(_OPENAI + "models.serving:OpenAIServingModels.__init__", _make_models_init),
        *(Place(f"{_OPENAI}{p}.to_beam_search_params", _make_beam_params) for p in searching),
        *(Place(f"{_OPENAI}{p}.to_sampling_params", _make_sampling_params) for p in sampling),
        Place(
            "vllm.v1.engine.async_llm:AsyncLLM.generate",
            _make_generate,
            ("prompt", "sampling_params", "request_id"),
        ),
    )
