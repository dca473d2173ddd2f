# SPDX-License-Identifier: Apache-2.0
"""Amateurs' prompts, made by vLLM's own methods as the expert's was (``prompts`` has noted how)."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from vllm_cold.compat import versions
from vllm_cold.compat.patching import result_of
from vllm_cold.errors import ColdError
from vllm_cold.frontend import request_media
from vllm_cold.frontend.prompts import Prompt, PromptSource
from vllm_cold.settings.amateurs import AmateurSpec
from vllm_cold.settings.images import Distorted
from vllm_cold.settings.sources import (
    Media,
    Messages,
    Part,
    Text,
    TokenIds,
    Without,
    WithoutText,
)

logger = logging.getLogger("vllm." + __name__)

_T = TypeVar("_T")
# vLLM's own threads stay free, and requests without images do not wait for the images of others.
_ASIDE = ThreadPoolExecutor(1, "vllm-cold")
_DISTORTING = ThreadPoolExecutor(2, "vllm-cold-images")

_MOST_SHOWN = 400  # characters of an error: it may show what a client sent


async def aside(
    at_once: bool, function: Callable[..., _T], *args: Any, pool: ThreadPoolExecutor = _ASIDE
) -> _T:
    """Return the result of a slow function, without blocking the event loop unless ``at_once``."""
    if at_once:
        return function(*args)
    return await asyncio.get_running_loop().run_in_executor(pool, function, *args)


async def render(
    renderer: Any,
    source: PromptSource,
    amateurs: Sequence[AmateurSpec],
    online: Any = None,
    *,
    most_megapixels: float,
    offline: bool = False,
) -> tuple[Prompt | None, ...]:
    """Return the prompts of a request's amateurs; None for one that reads the expert's.

    Args:
        renderer: vLLM's.
        source: How the expert's prompt was made.
        amateurs: What they read.
        online: vLLM's OnlineRenderer, which has the template's arguments of chats; None without a
            server.
        most_megapixels: Of an image that is distorted.
        offline: Whether nothing of it is awaited. Else nothing of it blocks the event loop.

    Raises:
        ColdError: a prompt cannot be made.
    """

    async def call(method: str, *args: Any, **kwargs: Any) -> Any:
        method += "" if offline else "_async"
        return await result_of(getattr(renderer, method)(*args, **kwargs))

    prompts: dict[int, Prompt] = {}  # by source: a prompt that several read is made once
    for amateur in amateurs:
        if amateur.source is None or id(amateur.source) in prompts:
            continue
        with _errors(amateur), request_media.remembering(source.fetched):
            seen = None
            if isinstance(amateur.source, Distorted):
                source.check_differs(amateur)
                if (prompt := source.whole) is None:
                    _, prompt = await call("render_messages", source.messages, source.chat_params)
                seen = await _distorted(offline, prompt, amateur, most_megapixels)
            method, args, kwargs = _call(renderer, source, amateur, online, seen)
            rendered = await call(method, *args, **kwargs)
            prompts[id(amateur.source)] = _read(renderer, amateur, rendered)
    return tuple(prompts.get(id(amateur.source)) for amateur in amateurs)


async def _distorted(
    offline: bool, prompt: Mapping[str, Any], amateur: AmateurSpec, most_megapixels: float
) -> dict[str, Any]:
    """Return the expert's prompt with the images that an amateur sees. They are made one after the
    other, so that a request with many images does not hold up others. ``prompt`` is not processed
    by vLLM yet.
    """
    data = prompt["multi_modal_data"]
    images = data["image"] if isinstance(data["image"], (list, tuple)) else [data["image"]]
    seen = [
        await aside(
            offline, request_media.distorted, image, amateur, most_megapixels, pool=_DISTORTING
        )
        for image in images
    ]
    other = {**prompt, "multi_modal_data": {**data, "image": seen}}
    if (uuids := prompt.get("multi_modal_uuids")) is not None:
        # Other images have other names, which vLLM makes of the pixels.
        other["multi_modal_uuids"] = {kind: uuids[kind] for kind in uuids if kind != "image"}
    return other


@contextmanager
def _errors(amateur: AmateurSpec) -> Iterator[None]:
    """Make whatever is raised about an amateur's prompt a ColdError: a client's messages make
    templates and PIL raise anything. What vLLM would raise if it had changed is logged with its
    traceback.
    """
    try:
        yield
    except ColdError:
        raise
    except Exception as error:
        changed: tuple[type[Exception], ...] = (AttributeError, ImportError)
        if not isinstance(amateur.source, Messages):  # of a client's messages, templates raise them
            changed += (KeyError, TypeError)
        if isinstance(error, changed):
            logger.exception(
                "vllm-cold: vLLM %s cannot make an amateur's prompt. If other requests fail like "
                "this, install vLLM %s, or a newer vllm-cold.",
                versions.vllm_version(),
                versions.RANGE,
            )
        message = str(error) or type(error).__name__
        problem = f"no prompt can be made of it: {message[:_MOST_SHOWN]}"
        raise amateur.refused(problem) from error


def _call(
    renderer: Any,
    prompt_source: PromptSource,
    amateur: AmateurSpec,
    online: Any,
    seen: Mapping[str, Any] | None,
) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Return the renderer's method that makes an amateur's prompt, and its arguments. ``seen`` is
    the expert's prompt with the images of an amateur that reads it with other ones.
    """
    tok_params, chat_params = prompt_source.tok_params, prompt_source.chat_params
    keywords = dict(prompt_source.keywords)
    match source := amateur.source:
        case WithoutText() if prompt_source.messages is not None:
            messages = source.of_messages(amateur.prompt_field, prompt_source.messages)
            return "render_chat", ([messages], chat_params, tok_params), keywords
        case Messages() | Without():
            if isinstance(source, Without):
                messages = source.of(amateur.prompt_field, prompt_source.messages, amateur.lenient)
            else:
                messages = [*source.value]
            if chat_params is None:
                chat_params = default_chat_params(renderer, online)
                if tok_params is not None:
                    tok_params = replace(tok_params, add_special_tokens=False)
            return "render_chat", ([messages], chat_params, tok_params), keywords
        case Distorted():
            if chat_params is not None:
                # After ``render_messages``, all that ``render_chat`` does is ``render_cmpl``.
                if tok_params is None:
                    tok_params = renderer.default_chat_tok_params
                extras = keywords.get("prompt_extras", {})
                media_io = chat_params.media_io_kwargs or {}
                keywords["prompt_extras"] = {**extras, "media_io_kwargs": media_io}
            return "render_cmpl", ([seen], tok_params), keywords
        case Media():
            prompt: Any = dict(source.prompt)
            if "prompt_extras" in keywords:
                extras = keywords["prompt_extras"]
                keywords["prompt_extras"] = {k: extras[k] for k in extras if k not in prompt}
        case Part() | WithoutText():
            if prompt_source.whole is not None:
                raise amateur.refused(
                    "is for a prompt of text alone, and this one has media; say what the amateur "
                    "reads"
                )
            text_or_ids: Any = prompt_source.prompt
            if isinstance(source, WithoutText) and not isinstance(text_or_ids, str):
                text_or_ids = None
            prompt = source.of(amateur.prompt_field, text_or_ids)
        case Text() | TokenIds():
            prompt = source.value
    if not isinstance(prompt, dict):
        prompt = {"prompt" if isinstance(prompt, str) else "prompt_token_ids": prompt}
    if chat_params is not None and tok_params is not None and "prompt_token_ids" not in prompt:
        # A template brings the special tokens along, a text does not.
        tok_params = replace(tok_params, add_special_tokens=True)
    return "render_cmpl", ([prompt], tok_params), keywords


def default_chat_params(renderer: Any, online: Any = None) -> Any:
    """Return those of a chat that says nothing about its template, offline or on a server."""
    from transformers import PreTrainedTokenizerBase
    from vllm.renderers.params import ChatParams

    # Mistral's own tokenizers give ids only, and vLLM makes them of a text otherwise.
    ids = not isinstance(renderer.tokenizer, PreTrainedTokenizerBase)
    kwargs = {"add_generation_prompt": True, "continue_final_message": False, "tokenize": ids}
    if online is None:
        return ChatParams(chat_template_kwargs=kwargs)
    return ChatParams(
        chat_template=online.chat_template,
        chat_template_content_format=online.chat_template_content_format,
        chat_template_kwargs=kwargs,
    ).with_defaults(online.default_chat_template_kwargs)


def _read(renderer: Any, amateur: AmateurSpec, rendered: Any) -> Prompt:
    """Return the prompt that a renderer made for an amateur, checked."""
    (prompt,) = rendered[1] if isinstance(rendered, tuple) else rendered  # of a chat
    if prompt["type"] not in ("token", "multimodal"):
        raise amateur.refused("must be text or token ids, or one of these with media")
    ids, size = prompt["prompt_token_ids"], renderer.model_config.get_vocab_size()
    if prompt["type"] == "multimodal" and renderer.tokenizer:  # images' tokens may be beyond
        size = max(size, renderer.tokenizer.max_token_id + 1)
    if not ids:
        raise amateur.refused("is no token at all; it must not be empty")
    for extreme in (max(ids), min(ids)):
        if not 0 <= extreme < size:
            problem = f"token {extreme} is none of the model's {size}, which are from 0"
            raise amateur.refused(problem)
    return Prompt.of(prompt)
