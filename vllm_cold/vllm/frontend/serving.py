# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``OpenAIServingModels.__init__``, the protocols' ``to_beam_search_params`` and
``to_sampling_params``, ``OnlineRenderer.preprocess_chat`` and ``.preprocess_cmpl``,
``AsyncLLM.generate``, and ``LLM.beam_search``.

Why:

- ``cold_amateur`` names an adapter, and only the server's list of loaded adapters (static or loaded
  at run time) knows what the name stands for.
- ``to_sampling_params`` runs before a streamed response starts, so a wrong request gets its HTTP
  400 there; admission itself comes after the headers. It sees the whole body, in which our keys may
  stand where vLLM ignores them.
- ``OnlineRenderer`` makes a request's prompt; the amateurs' are made right behind it, where the
  body and the template's arguments are known, before a response starts, and off the event loop.
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
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import msgspec

from vllm_cold.method.amateurs import Part
from vllm_cold.method.arguments import check_placement, parse_request_args
from vllm_cold.method.settings import ColdError
from vllm_cold.params import ColdParams
from vllm_cold.vllm.frontend import prompts
from vllm_cold.vllm.frontend.capacity import fit, most_tokens
from vllm_cold.vllm.frontend.config import engine_defaults, is_configured
from vllm_cold.vllm.frontend.errors import generation_error, request_error
from vllm_cold.vllm.frontend.plan import (
    Plan,
    applies,
    decide,
    plain_search,
    prepare_async,
    refuse_multimodal,
    settle,
)
from vllm_cold.vllm.patching import Place

HEADER = b"x-cold"
_LISTED = 100  # choices in it

_models: Any = None  # this process's OpenAIServingModels
# What the HTTP request that is being answered is decoded with, for the header: of each request
# that vLLM makes of it (a batch of chats is several), by its id.
_used: ContextVar[dict[int, dict[str, Any]] | None] = ContextVar("used", default=None)
# Requests that were looked at, by their ids, with what will be used.
_looked_at: ContextVar[dict[int, tuple[Any, dict[str, Any]]] | None] = ContextVar(
    "looked_at", default=None
)


def _make_models_init(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        global _models
        original(self, *args, **kwargs)
        _models = self
        processor = self.engine_client.input_processor
        # The live dict: adapters that are loaded later can be named too.
        processor.cold_adapters = self.lora_requests
        processor.cold_most_tokens = most_tokens(self.engine_client.vllm_config.model_config)

    return __init__


def _make_preprocess(original: Callable[..., Any]) -> Callable[..., Any]:
    """Of a chat's messages, or of a completion's prompts."""

    async def preprocess(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        found = await original(self, request, *args, **kwargs)
        if _models is None or not hasattr(request, "vllm_xargs"):
            return found
        if getattr(request, "use_beam_search", False):
            return found  # refused where it wants CoLD too
        made = found[1] if isinstance(found, tuple) else found
        try:
            made[:] = await _prepare(self, request, made)
        except ValueError as error:
            raise request_error(error) from error
        return found

    return preprocess


async def _prepare(online: Any, request: Any, made: list[Any]) -> list[Any]:
    """What vLLM made of a request's prompts, with the amateurs' prompts."""
    plan = _look_at(request)
    if plan is None or not made:
        return made
    if any(one.get("type") == "multimodal" for one in made):
        if applies(prompts.recipe_of(made[0]), plan):
            refuse_multimodal()
        _say(request, None)
        return made
    _check_parts(request, len(made), plan)
    engine = _models.engine_client
    expert = _models.lora_requests.get(request.model)
    prepared = []
    for one in made:
        recipe = replace(prompts.recipe_of(one), server=online)
        found = await prepare_async(engine.input_processor, recipe, plan)
        ids = one.get("prompt_token_ids")
        found = settle(found, expert, ids)
        if found.plan is not None:
            # What the client asked for and gets, as vLLM reads it; 0 where it did not.
            asked = recipe.tok_params.max_output_tokens if recipe.tok_params else 0
            asked = min(asked, getattr(engine.input_processor, "cold_most_tokens", None) or asked)
            limit = engine.vllm_config.model_config.max_model_len
            length = len(one["prompt_embeds"] if ids is None else ids)
            found = replace(found, unlimited=not asked)
            if length:  # vLLM refuses an empty prompt itself
                fit(engine.vllm_config, found, length, asked or limit)
        prepared.append(prompts.with_prepared(one, found))
    _say(request, found.plan)
    return prepared


def _check_parts(request: Any, num_prompts: int, plan: Plan) -> None:
    """Refuse positions in what is not the one text that the client sent."""
    for one in plan.amateurs:
        if not isinstance(one.prompt.source, Part):
            continue
        if num_prompts > 1:
            raise ColdError(
                "cold_part", num_prompts, "is for one prompt, and this is how many there are"
            )
        if getattr(request, "suffix", None) is not None:
            raise one.prompt.refused(
                "is for a prompt without a suffix; leave one of them out, or say with "
                "cold_amateur_prompt what the amateur reads"
            )


def _make_sampling_params(original: Callable[..., Any]) -> Callable[..., Any]:
    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        plain_search.set(False)
        if _models is not None:
            try:
                if id(self) not in (_looked_at.get() or ()):
                    _look_at_made_elsewhere(self)
            except ValueError as error:
                raise request_error(error) from error
            used, looked_at = _used.get(), _looked_at.get() or {}
            if used is not None and is_configured(_models.engine_client.vllm_config):
                used[id(self)] = looked_at[id(self)][1]
        return original(self, *args, **kwargs)

    return to_sampling_params


def _look_at(request: Any) -> Plan | None:
    """Refuse a body that cannot have what it asks for; how it will be decoded with CoLD."""
    check_placement(request.model_extra)
    config, adapters = _models.engine_client.vllm_config, _models.lora_requests
    args = parse_request_args(request.vllm_xargs)
    plan = decide(config, args, adapters.get(request.model), adapters)
    if is_configured(config):
        _check_sendable(request.vllm_xargs)
    return plan


def _look_at_made_elsewhere(request: Any) -> None:
    """Of a request whose prompt vLLM makes without a chat template, nothing is known of it."""
    plan = _look_at(request)
    if plan is not None and plan.optional and not plan.asked:
        plan = None
    model_config = _models.engine_client.vllm_config.model_config
    for one in plan.amateurs if plan is not None else ():
        if one.prompt.source is not None and model_config.hf_config.model_type == "gpt_oss":
            raise one.prompt.refused(
                "vLLM makes this model's chats without a chat template, so an amateur cannot have "
                "a prompt of its own there; send the prompt as a completion"
            )
    _say(request, plan)


def _say(request: Any, plan: Plan | None) -> None:
    """Note what a request will be decoded with."""
    if (looked_at := _looked_at.get()) is None:
        _looked_at.set(looked_at := {})
    told = {"cold": 0} if plan is None else {"cold": 1, **plan.as_dict()}
    looked_at[id(request)] = request, told


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
            if wants is None and _models is not None:
                plan = _look_at(self)
                recipe = prompts.Recipe(messages=getattr(self, "messages", None))
                wants = plan is not None and applies(recipe, plan)
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
        plain_search.set(True)
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
    if not is_configured(config):
        return False
    enabled = parse_request_args(sampling_params.extra_args).enabled
    if enabled is not None:
        return enabled
    defaults = engine_defaults(config)
    has_amateur = kwargs.get("lora_request") or defaults.contrast.without is not None
    return defaults.enabled and bool(has_amateur)


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
        used: dict[int, dict[str, Any]] = {}

        async def send_with_header(message: Any) -> None:
            if used and message["type"] == "http.response.start":
                headers = [*message["headers"], (HEADER, _header(list(used.values())))]
                message = {**message, "headers": headers}
            await send(message)

        plain_search.set(False)  # of an earlier request on this connection
        _looked_at.set(None)
        token = _used.set(used)
        try:
            await self._app(scope, receive, send_with_header)
        finally:
            _used.reset(token)


def _header(used: list[dict[str, Any]]) -> bytes:
    """What all the answers of a response were decoded with. The chats of a batch differ by whether
    they have what a default leaves out, and in nothing else: then it says which of them do, or of
    many how many, as proxies and clients take headers of a few thousand characters.
    """
    cold = [i for i, one in enumerate(used) if one["cold"]]
    told = used[cold[0]] if cold else used[0]
    if 0 < len(cold) < len(used):
        told = {**told, "choices": cold if len(cold) <= _LISTED else len(cold)}
    return json.dumps(told).encode()


def _make_beam_search(original: Callable[..., Any]) -> Callable[..., Any]:
    def beam_search(
        self: Any, prompts: Any, params: Any, lora_request: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        defaults = engine_defaults(self.llm_engine.vllm_config)
        default = defaults.enabled and defaults.contrast.without is None  # which is for chats
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


_RENDERER = "vllm.renderers.online_renderer:OnlineRenderer"
_RENDERER_024 = "vllm.entrypoints.serve.render.serving:OpenAIServingRender"  # until then


def _renderer() -> str:
    return _RENDERER if find_spec(_RENDERER.partition(":")[0]) else _RENDERER_024


def online_renderer() -> Any:
    """The class of vLLM's that makes prompts of requests."""
    module, _, name = _renderer().partition(":")
    return getattr(import_module(module), name)


def online() -> tuple[Place, ...]:
    """For an API server process."""
    searching = (
        "completion.protocol:CompletionRequest",
        "chat_completion.protocol:ChatCompletionRequest",
    )
    sampling = (*searching, "responses.protocol:ResponsesRequest")
    renderer = _renderer()
    return (
        *(
            Place(f"{renderer}.{name}", _make_preprocess, ("request",))
            for name in ("preprocess_chat", "preprocess_cmpl")
        ),
        Place(_OPENAI + "models.serving:OpenAIServingModels.__init__", _make_models_init),
        *(Place(f"{_OPENAI}{p}.to_beam_search_params", _make_beam_params) for p in searching),
        *(Place(f"{_OPENAI}{p}.to_sampling_params", _make_sampling_params) for p in sampling),
        Place(
            "vllm.v1.engine.async_llm:AsyncLLM.generate",
            _make_generate,
            ("prompt", "sampling_params", "request_id"),
        ),
    )
