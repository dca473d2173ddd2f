# SPDX-License-Identifier: Apache-2.0
"""What API servers and ``LLM`` do with requests outside the engine: how a prompt gets there, beam
search, errors, and what a client is told.

Before the renderer a body is read; right after the renderer the request is decided about and its
amateurs' prompts are made. In ``to_sampling_params`` the length of each prompt's answer is known,
and no response has begun. (gpt-oss's prompts vLLM makes elsewhere; their requests are read there.)
The header ``x-cold`` tells a client what its tokens were chosen with, and ``kv_transfer_params``
what it asked for of each step.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import cache
from importlib import import_module
from typing import Any

from vllm_cold.compat.patching import Original
from vllm_cold.compat.vllm_errors import as_http_400, generation_error
from vllm_cold.errors import ColdError
from vllm_cold.frontend import media_cache
from vllm_cold.frontend.admission import REQUESTED, Admission, is_long
from vllm_cold.frontend.contrast import RequestedContrast, ResolvedContrast
from vllm_cold.frontend.intake import FRONT_END, DecidedBody, Exchange
from vllm_cold.frontend.prompts import contrast_of, is_decided, source_of, with_contrast
from vllm_cold.params import ColdParams
from vllm_cold.rules import registry
from vllm_cold.settings.arguments import check_placement
from vllm_cold.settings.sources import Part
from vllm_cold.wire import transfer_params

HEADER = b"x-cold"
_LISTED = 100  # choices in it
_DONE = b"data: [DONE]"


async def preprocess(
    original: Original, renderer: Any, request: Any, *args: Any, **kwargs: Any
) -> Any:
    """Make a body's prompts by vLLM's ``original``, decide about each and make its amateurs'."""
    server = FRONT_END.server
    if not hasattr(request, "vllm_xargs"):
        return await original(renderer, request, *args, **kwargs)
    with as_http_400():
        requested = await server.read_aside(*_read_args(server, request))
    if requested is not None:
        kwargs |= media_cache.ALWAYS_SENT
    rendered = await original(renderer, request, *args, **kwargs)
    prompts = rendered[1] if isinstance(rendered, tuple) else rendered  # of a chat
    with as_http_400():
        _check_prompts(requested, request, len(prompts))
        for i, prompt in enumerate(prompts):
            if i:
                await asyncio.sleep(0)  # other requests' turn: token ids wait for nothing
            source = source_of(prompt)
            contrast = await server.decide(requested, source, prompt, online=renderer)
            prompts[i] = with_contrast(prompt, contrast)
    contrasts = deque(map(contrast_of, prompts))
    FRONT_END.exchange().decided[id(request)] = DecidedBody(request, contrasts)
    return rendered


def _read_args(server: Admission, request: Any) -> tuple[Any, ...]:
    """Return the arguments of ``Admission.read`` for a body."""
    check_placement(request.model_extra)
    limits = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    # Each kind of body has some of these.
    unlimited = not any(getattr(request, name, None) for name in limits)
    return request.vllm_xargs, server.adapters.get(request.model), None, unlimited


# Fields of some kinds of bodies that have the prompt sent back.
TELL_PROMPTS = ("echo", "return_prompt_text", "enable_response_messages", "return_token_ids")


def _check_prompts(requested: RequestedContrast | None, request: Any, num_prompts: int) -> None:
    """Refuse positions in a prompt that is not the client's one text, what is told of tokens where
    answers have no room for it, and of a limited part what would tell its text.
    """
    if requested is None:
        return
    rule = None if requested.settings.rule is None else registry.get(requested.settings.rule)
    path = FRONT_END.exchange().path
    streamed = path.endswith("/messages") and request.stream
    for field, value in (
        ("cold_explain", requested.explain),
        ("cold_rule", rule.name if rule is not None and rule.charges else ""),
    ):
        if value and num_prompts > 1:
            problem = f"must be 1 with {field} {value}; send a request for each"
            raise ColdError("prompts", num_prompts, problem)
        if value and (path.endswith("/batch") or streamed):
            problem = f"vLLM's answers of {path} have no room for what it tells; send a chat"
            raise ColdError(field, value, f"{problem} completion")
    for amateur in requested.amateurs:
        if not isinstance(amateur.source, Part):
            continue
        if num_prompts > 1:
            raise ColdError(
                "cold_part",
                num_prompts,
                "is for one prompt, and this is how many there are; send a request for each",
            )
        if getattr(request, "suffix", None) is not None:  # of completions alone
            raise amateur.refused(
                "is for a prompt without a suffix; leave one of them out, or say with "
                "cold_amateur_prompt what the amateur reads"
            )
    is_hidden = any(amateur.source is not None for amateur in requested.amateurs)
    # Who has the steps told may know the rest.
    if rule is None or not rule.is_of_scores or not is_hidden or requested.explain:
        return
    for field in TELL_PROMPTS:
        if sent := getattr(request, field, None):
            raise ColdError(field, sent, "tells the prompt, and with it the part that is limited")


def check_params(body: Any, params: Any) -> None:
    """Check what vLLM made of a body for its next prompt, and note for the header what it asks for.

    Raises:
        ValueError: see ``Admission.check``.
    """
    server, exchange = FRONT_END.server, FRONT_END.exchange()
    with as_http_400():
        requested, contrast = _next_contrast(server, exchange, body)
        if contrast is not None:
            server.check(contrast, params, params.max_tokens)
        elif requested is not None:
            params.extra_args = {**(params.extra_args or {}), REQUESTED: requested}
    exchange.used.append(requested)


def begin_search(body: Any) -> None:
    """Note that a body is a beam search; one that asks for a contrast is refused."""
    server, exchange = FRONT_END.server, FRONT_END.exchange()
    with as_http_400():
        if _next_contrast(server, exchange, body)[0] is not None:
            raise ColdError(
                "use_beam_search",
                True,
                "vllm-cold does not support beam search; leave it out, or send "
                '{"cold": 0} in vllm_xargs to search with the adapter alone',
            )
    # The parameters that beam search makes for its steps do not carry vllm_xargs.
    exchange.is_search = True


_NO_TEMPLATE = (
    "vLLM makes this model's chats without a chat template, so an amateur cannot have a prompt of "
    "its own there; send the prompt as a completion"
)


def _next_contrast(
    server: Admission, exchange: Exchange, request: Any
) -> tuple[RequestedContrast | None, ResolvedContrast | None]:
    """Return what a body asks for and what its next prompt, of several, is decoded with: None for
    no contrast, and where its prompts did not pass ``preprocess``.
    """
    if (decided := exchange.decided.get(id(request))) is not None:
        contrast = decided.contrasts.popleft() if decided.contrasts else None
        return (None if contrast is None else contrast.requested), contrast
    has_no_template = server.config.model_config.hf_config.model_type == "gpt_oss"
    if has_no_template and is_long(request.vllm_xargs):
        raise ColdError("vllm_xargs", request.vllm_xargs, _NO_TEMPLATE)
    requested = server.read(*_read_args(server, request))
    if requested is None or requested.by_default:
        return None, None
    for amateur in requested.amateurs:
        if amateur.source is not None and has_no_template:
            raise amateur.refused(_NO_TEMPLATE)
    return requested, None


def wrap_generate(
    original: Original,
    self: Any,
    prompt: Any,
    sampling_params: Any,
    request_id: str,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Wrap ``AsyncLLM.generate``."""
    outputs = original(self, prompt, sampling_params, request_id, *args, **kwargs)
    is_regular = is_decided(prompt) and contrast_of(prompt) is None
    if is_regular or FRONT_END.is_search or not FRONT_END.of(self.input_processor).is_server:
        return outputs
    return _watch(outputs, FRONT_END.exchange())


async def _watch(
    outputs: AsyncGenerator[Any, None], exchange: Exchange
) -> AsyncGenerator[Any, None]:
    """Yield the outputs, and raise an error with its own reason. What they tell of tokens is kept:
    a streamed answer ends with it.
    """
    async with aclosing(outputs):  # which aborts an unfinished request
        async for output in outputs:
            exchange.told |= transfer_params.told_in(output.kv_transfer_params)
            for answer in output.outputs:
                reason = answer.stop_reason
                if answer.finish_reason == "error" and str(reason).startswith("vllm-cold"):
                    raise generation_error()(reason)
            yield output


class Header:
    """ASGI middleware that adds the header, and at a streamed answer's end what is told of tokens.
    ``cli`` names it in vLLM's option ``--middleware``.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = FRONT_END.begin()
        exchange.path = scope.get("path", "")

        async def send_with_header(message: Any) -> None:
            if exchange.used and message["type"] == "http.response.start":
                headers = [*message["headers"], (HEADER, header(exchange.used))]
                message = {**message, "headers": headers}
            if exchange.told and not _streams_have_them():
                body = bytes(message.get("body", b""))
                if body.startswith(_DONE):
                    message = {**message, "body": _event(exchange.told) + body}
            await send(message)

        await self._app(scope, receive, send_with_header)


@cache
def _streams_have_them() -> bool:
    """Whether vLLM itself puts ``kv_transfer_params`` into streams."""
    protocol = import_module("vllm.entrypoints.openai.completion.protocol")
    return "kv_transfer_params" in protocol.CompletionStreamResponse.model_fields


def _event(told: Mapping[str, Any]) -> bytes:
    """Return a part of a streamed answer, without choices, that tells of tokens as a body does."""
    chunk = {"choices": [], "kv_transfer_params": transfer_params.with_ours(None, **told)}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def header(used: Sequence[RequestedContrast | None]) -> bytes:
    """Return what all the answers of a response were decoded with. The chats of a batch differ only
    by whether they have what a default leaves out: then it says which of them do, or how many if
    they are many, as proxies and clients take headers of a few thousand characters.
    """
    choices = [i for i, requested in enumerate(used) if requested is not None]
    first = used[choices[0]] if choices else None
    fields: dict[str, Any] = {"cold": 0} if first is None else {"cold": 1, **first.as_dict()}
    if 0 < len(choices) < len(used):
        fields["choices"] = choices if len(choices) <= _LISTED else len(choices)
    return json.dumps(fields).encode()


def check_search(llm: Any, prompts: Any, params: Any, lora_request: Any) -> None:
    """Refuse a beam search of ``LLM`` that asks for a contrast, or whose engine does by default."""
    read = FRONT_END.of(llm.llm_engine.input_processor).read
    several = isinstance(lora_request, (list, tuple))
    adapters = lora_request if several else [lora_request] * len(prompts)
    contrasts = (read(None, adapter) for adapter in adapters)
    pairs = zip(prompts, contrasts, strict=False)  # vLLM looks at their number
    if isinstance(params, ColdParams) or any(
        requested is not None and requested.applies(source_of(prompt))
        for prompt, requested in pairs
    ):
        raise ColdError(
            "beam_search",
            type(params).__name__,
            "vllm-cold does not support beam search; use generate(), or an engine whose "
            "default sampler is not contrastive decoding",
        )
