# SPDX-License-Identifier: Apache-2.0
"""What API servers and ``LLM`` do with requests beside the engine: the way of a prompt into it, the
ways of beam search, errors, and what a client is told.

Right behind the renderer a request is decided about and its amateurs' prompts are made. Of some
models vLLM makes the prompts elsewhere: their requests are decided about in ``to_sampling_params``,
which also says which of the prompts are sent. The body may hold our keys where vLLM ignores them. A
client should see what its tokens were chosen with: the header ``x-cold`` of the response says it,
and what is told of each step, where it asks, is in ``kv_transfer_params``.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import cache
from importlib import import_module
from itertools import chain
from typing import Any

import msgspec

from vllm_cold.errors import ColdError
from vllm_cold.group import results
from vllm_cold.method.amateurs import Messages, Part
from vllm_cold.method.arguments import check_placement
from vllm_cold.params import ColdParams
from vllm_cold.vllm.frontend import media
from vllm_cold.vllm.frontend.admission import Admission, check_penalty, says_much
from vllm_cold.vllm.frontend.capacity import fit, most_tokens
from vllm_cold.vllm.frontend.config import is_configured
from vllm_cold.vllm.frontend.contrast import Contrast
from vllm_cold.vllm.frontend.errors import generation_error, refusals
from vllm_cold.vllm.frontend.intake import FRONT_END, Exchange
from vllm_cold.vllm.frontend.prompts import (
    PromptSource,
    decision_in,
    media_kept,
    prompt_source_of,
    with_decision,
)

HEADER = b"x-cold"
_LISTED = 100  # choices in it
_DONE = b"data: [DONE]"


def _make_models_init(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        FRONT_END.serve(self, most_tokens(self.engine_client.vllm_config.model_config))

    return __init__


def _make_preprocess(original: Callable[..., Any]) -> Callable[..., Any]:
    """Of a chat's messages, or of a completion's prompts."""

    async def preprocess(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        # A beam search is refused where it wants CoLD too.
        beams = getattr(request, "use_beam_search", False)
        if (server := FRONT_END.server) is None or beams or not hasattr(request, "vllm_xargs"):
            return await original(self, request, *args, **kwargs)
        with refusals():
            contrast = await _decide_aside(server, request)
            sends = contrast and _sends_data(contrast, self.renderer, *args, **kwargs)
        if sends:
            kwargs["skip_mm_cache"] = True
        elif sends is None:
            contrast = None
        found = await original(self, request, *args, **kwargs)
        made = found[1] if isinstance(found, tuple) else found
        with refusals(), media_kept(self.renderer, made):
            made[:] = await _prepare(server, self, request, contrast, made)
        return found

    return preprocess


def _sends_data(
    contrast: Contrast, renderer: Any, messages: Any = None, *_: Any, **__: Any
) -> bool | None:
    """Whether a chat's media are processed as ``media.always_sent`` says: it will be contrasted.
    None for a default that gives way to media which cannot be.

    Raises:
        ValueError: there are some, and the request asked.
    """
    own = {id(one.source): one.source for one in contrast.amateurs}.values()
    said = (source.value for source in own if isinstance(source, Messages))
    all_of_them = [*(messages or ()), *chain.from_iterable(said)]
    sends = media.always_sent(renderer, all_of_them)
    if sends is False or not contrast.applies(PromptSource(messages=messages)):
        return False
    if sends:
        return True
    if all(one.source is None for one in contrast.amateurs):
        return False  # no prompt is made between the expert's and its sending
    if contrast.gives_way:
        return None
    raise ValueError(
        f"{media.REFUSED}some of this chat's are named by their uuid alone, and others bring their "
        "data along; send the data of all."
    )


async def _prepare(
    server: Admission, online: Any, request: Any, contrast: Contrast | None, made: list[Any]
) -> list[Any]:
    """What vLLM made of a request's prompts, with what they are decoded with."""
    expert = server.adapters.get(request.model)
    if contrast is not None:
        _check_parts(request, len(made), contrast)
    prepared: list[Any] = []
    found = contrast
    for one in made:
        if contrast is not None:
            if prepared:
                await asyncio.sleep(0)  # others' turn: of token ids nothing else waits for anything
            prompt_source = prompt_source_of(one)
            # What the client asked for and gets, as vLLM reads it; where it did not, 0, or None of
            # vLLM 0.33's chats.
            tok_params = prompt_source.tok_params
            asked = (tok_params and tok_params.max_output_tokens) or 0
            contrast = replace(contrast, unlimited=not asked)
        one = await server.prepare(one, contrast, expert, online)
        found = decision_in(one)
        if found is not None:
            if one["type"] == "embeds":
                penalty = getattr(request, "repetition_penalty", None)
                check_penalty(server.default_penalty if penalty is None else penalty)
            ids = one.get("prompt_token_ids")
            limit = server.config.model_config.max_model_len
            length = len(one["prompt_embeds"] if ids is None else ids)
            if length:  # vLLM refuses an empty prompt itself
                most = min(asked, server.most_tokens or asked) or limit
                fit(server.config, found.amateurs, length, most, found.unlimited)
        prepared.append(one)
    FRONT_END.exchange().decided[id(request)] = request, found
    return prepared


def _decide(server: Admission, request: Any) -> Contrast | None:
    """As ``_decide_aside``, where vLLM waits for nothing."""
    check_placement(request.model_extra)
    contrast = server.decide(request.vllm_xargs, server.adapters.get(request.model))
    _check_sendable(server, request)
    return contrast


async def _decide_aside(server: Admission, request: Any) -> Contrast | None:
    """Refuse a body that cannot have what it asks for; how it will be decoded with CoLD."""
    check_placement(request.model_extra)
    expert = server.adapters.get(request.model)
    contrast = await server.decide_aside(request.vllm_xargs, expert)
    _check_sendable(server, request)
    return contrast


def _check_sendable(server: Admission, request: Any) -> None:
    if is_configured(server.config):
        try:
            msgspec.msgpack.encode(request.vllm_xargs)
        except (UnicodeEncodeError, OverflowError) as error:  # vLLM says HTTP 500
            raise ValueError(
                f"vllm_xargs cannot be sent to the engine ({error}): use valid Unicode text, and "
                "integers from -2^63 to 2^64 - 1."
            ) from error


def _check_parts(request: Any, num_prompts: int, contrast: Contrast) -> None:
    """Refuse positions in what is not the one text that the client sent, and to tell of the
    steps of several.
    """
    contrast.check_alone(num_prompts)
    for one in contrast.amateurs:
        if not isinstance(one.source, Part):
            continue
        if num_prompts > 1:
            raise ColdError(
                "cold_part",
                num_prompts,
                "is for one prompt, and this is how many there are; send a request for each",
            )
        if getattr(request, "suffix", None) is not None:
            raise one.refused(
                "is for a prompt without a suffix; leave one of them out, or say with "
                "cold_amateur_prompt what the amateur reads"
            )


def _make_sampling_params(original: Callable[..., Any]) -> Callable[..., Any]:
    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (server := FRONT_END.server) is None:
            return original(self, *args, **kwargs)
        exchange = FRONT_END.exchange()
        if (decided := exchange.decided.get(id(self))) is not None:
            exchange.used[id(self)] = decided[1]
            return original(self, *args, **kwargs)
        with refusals():
            contrast = exchange.used[id(self)] = _decide_without_prompt(server, self)
        params = original(self, *args, **kwargs)
        if server.may_contrast(None, params):
            params.extra_args = with_decision(params.extra_args or {}, contrast)
        return params

    return to_sampling_params


_NO_TEMPLATE = (
    "vLLM makes this model's chats without a chat template, so an amateur cannot have a prompt of "
    "its own there; send the prompt as a completion"
)


def _decide_without_prompt(server: Admission, request: Any) -> Contrast | None:
    """Of a request whose prompt vLLM makes without a chat template, nothing is known of it."""
    has_none = server.config.model_config.hf_config.model_type == "gpt_oss"
    if has_none and says_much(request.vllm_xargs):
        raise ColdError("vllm_xargs", request.vllm_xargs, _NO_TEMPLATE)
    contrast = _decide(server, request)
    if contrast is None or (contrast.optional and not contrast.asked):
        return None
    for one in contrast.amateurs:
        if one.source is not None and has_none:
            raise one.refused(_NO_TEMPLATE)
    names = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    return replace(contrast, unlimited=not any(getattr(request, name, None) for name in names))


def _make_beam_params(original: Callable[..., Any]) -> Callable[..., Any]:
    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (server := FRONT_END.server) is not None:
            source = PromptSource(messages=getattr(self, "messages", None))
            with refusals():
                refused = says_much(self.vllm_xargs)
                contrast = None if refused else _decide(server, self)
                if refused or (contrast is not None and contrast.applies(source)):
                    raise ColdError(
                        "use_beam_search",
                        True,
                        "CoLD does not support beam search; leave it out, or send "
                        '{"cold": 0} in vllm_xargs to search with the adapter alone',
                    )
        # The parameters that beam search makes for its steps do not carry vllm_xargs.
        FRONT_END.exchange().plain = True
        return original(self, *args, **kwargs)

    return to_beam_search_params


def _make_generate(original: Callable[..., Any]) -> Callable[..., Any]:
    def generate(
        self: Any, prompt: Any, sampling_params: Any, request_id: str, *args: Any, **kwargs: Any
    ) -> Any:
        outputs = original(self, prompt, sampling_params, request_id, *args, **kwargs)
        admission = FRONT_END.of(self.input_processor)
        if not admission.is_server or FRONT_END.plain:
            return outputs
        cold = admission.may_contrast(prompt, sampling_params)
        return _looked_at(outputs, FRONT_END.exchange()) if cold else outputs

    return generate


async def _looked_at(
    outputs: AsyncGenerator[Any, None], exchange: Exchange
) -> AsyncGenerator[Any, None]:
    """The outputs, with an error's own reason; what they tell of steps is kept."""
    async with aclosing(outputs):  # which aborts what is left of the request
        async for output in outputs:
            exchange.steps = results.steps_in(output.kv_transfer_params) or exchange.steps
            for one in output.outputs:
                if one.finish_reason == "error" and str(one.stop_reason).startswith("CoLD"):
                    raise generation_error()(one.stop_reason)
            yield output


class Header:
    """ASGI middleware that adds the header, and what is told of steps at the end of a streamed
    answer;
    ``cli`` names it in vLLM's option ``--middleware``.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = FRONT_END.begin()

        async def send_with_header(message: Any) -> None:
            if exchange.used and message["type"] == "http.response.start":
                headers = [*message["headers"], (HEADER, header(list(exchange.used.values())))]
                message = {**message, "headers": headers}
            if exchange.steps is not None and not _streams_have_them():
                body = bytes(message.get("body", b""))
                if body.startswith(_DONE):
                    message = {**message, "body": _event(exchange.steps) + body}
            await send(message)

        await self._app(scope, receive, send_with_header)


@cache
def _streams_have_them() -> bool:
    """Whether vLLM itself puts ``kv_transfer_params`` into streams."""
    protocol = import_module("vllm.entrypoints.openai.completion.protocol")
    return "kv_transfer_params" in protocol.CompletionStreamResponse.model_fields


def _event(steps: Sequence[Mapping[str, Any]]) -> bytes:
    """What a streamed answer tells of steps, as a body does, in a part without choices."""
    told = {"choices": [], "kv_transfer_params": results.with_steps(None, steps)}
    return b"data: " + json.dumps(told).encode() + b"\n\n"


def header(used: Sequence[Contrast | None]) -> bytes:
    """What all the answers of a response were decoded with. The chats of a batch differ by whether
    they have what a default leaves out, and in nothing else: then it says which of them do, or of
    many how many, as proxies and clients take headers of a few thousand characters.
    """
    cold = [i for i, one in enumerate(used) if one is not None]
    first = used[cold[0]] if cold else None
    told: dict[str, Any] = {"cold": 0} if first is None else {"cold": 1, **first.as_dict()}
    if 0 < len(cold) < len(used):
        told["choices"] = cold if len(cold) <= _LISTED else len(cold)
    return json.dumps(told).encode()


def _make_beam_search(original: Callable[..., Any]) -> Callable[..., Any]:
    def beam_search(
        self: Any, prompts: Any, params: Any, lora_request: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        decide = FRONT_END.of(self.llm_engine.input_processor).decide
        several = isinstance(lora_request, (list, tuple))
        adapters = lora_request if several else [lora_request] * len(prompts)
        wanted = (decide(None, adapter) for adapter in adapters)
        if isinstance(params, ColdParams) or any(
            contrast is not None and contrast.applies(prompt_source_of(prompt))
            for prompt, contrast in zip(prompts, wanted, strict=False)  # vLLM looks at their number
        ):
            raise ColdError(
                "beam_search",
                type(params).__name__,
                "CoLD does not support beam search; use generate(), or an engine whose default "
                "sampler is not CoLD",
            )
        return original(self, prompts, params, lora_request, *args, **kwargs)

    return beam_search
