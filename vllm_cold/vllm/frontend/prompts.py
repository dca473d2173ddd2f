# SPDX-License-Identifier: Apache-2.0
"""How an amateur's prompt becomes token ids: as its expert's did, and what it does without is left
out of what the expert reads. So what vLLM makes of a prompt carries along how it was made
(``PromptSource``).

An amateur's own is made later, where the request's parameters are known, by the same methods: off
the event loop where vLLM renders so. And ``BaseRenderer.queue_mm_cache_invalidations`` (0.33) or
``_mm_executor`` (before) forget the images of a request that is refused.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from msgspec import structs

from vllm_cold.errors import ColdError
from vllm_cold.method.amateurs import (
    MEDIA,
    AmateurSpec,
    CannotLeaveOut,
    Distorted,
    Embeds,
    Media,
    Messages,
    Part,
    Text,
    Tokens,
    Without,
    has_media,
)
from vllm_cold.patching import at_once, in_form_of, result_of
from vllm_cold.vllm import versions
from vllm_cold.vllm.frontend import media
from vllm_cold.vllm.frontend.config import is_configured

logger = logging.getLogger("vllm." + __name__)

_T = TypeVar("_T")
# vLLM's own threads stay free, and who has no images does not wait for those of others.
_ASIDE = ThreadPoolExecutor(1, "vllm-cold")
_DISTORTING = ThreadPoolExecutor(2, "vllm-cold-images")

_KEY = "cold_recipe"  # in what vLLM makes of a prompt
_SAID = 400  # characters of an error: it may show what a client sent


class UNDECIDED:
    """Stands for what is not decided yet."""


@dataclass(frozen=True, slots=True)
class PromptSource:
    """How a prompt was made.

    Attributes:
        prompt: The text or ids of a completion; None if it was neither.
        messages: The conversation of a chat; None for a completion.
        tok_params: vLLM's TokenizeParams; None for its default.
        chat_params: vLLM's ChatParams; None for a completion.
        decided: The request's ``Contrast``, or None for no contrast, once that is decided.
        whole: A completion with media, as vLLM was given it.
        keywords: vLLM's ``prompt_extras`` and ``skip_mm_cache``, where it was given them: all
            prompts of the request are made so.
        fetched: The media that were fetched for it.
        processed: Hashes of the media that were processed for its amateurs and bring their data.
    """

    prompt: str | list[int] | None = None
    messages: list[Any] | None = None
    tok_params: Any = None
    chat_params: Any = None
    decided: Any = UNDECIDED
    whole: Mapping[str, Any] | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)
    fetched: dict[Any, Any] = field(default_factory=dict)
    processed: list[str] = field(default_factory=list)

    @property
    def always_sent(self) -> bool:
        """Whether its media bring their data along (``media.always_sent``)."""
        return "skip_mm_cache" in self.keywords

    @property
    def has_images(self) -> bool:
        """Whether the prompt has an image."""
        data = None if self.whole is None else self.whole["multi_modal_data"]
        return media.has_images(self.messages, data)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as vLLM made it: token ids, or embeddings.

    Attributes:
        ids: Token ids; beside embeddings only if these are no more than a part of the prompt.
        embeds: A tensor, [tokens, hidden size]; None for token ids alone.
        is_token_ids: Where the ids count and not the embeddings; None for one of both alone.
        features: Its media, vLLM's MultiModalFeatureSpec, in their order.
    """

    ids: list[int] | None
    embeds: Any = None
    is_token_ids: list[bool] | None = None
    features: tuple[Any, ...] = ()

    @classmethod
    def of(cls, made: Any) -> "Prompt":
        """Of what a renderer made, or of an EngineCoreRequest."""
        if isinstance(made, Mapping):
            ids, embeds = made.get("prompt_token_ids"), made.get("prompt_embeds")
            return cls(ids, embeds, made.get("is_token_ids"), media.of_prompt(made))
        return cls(
            made.prompt_token_ids,
            made.prompt_embeds,
            made.prompt_is_token_ids,
            tuple(made.mm_features or ()),
        )

    def is_of(self, one: AmateurSpec) -> bool:
        """Whether it is this amateur's, too. Where ids and embeddings are equal, which of them
        count is not asked: vLLM's prefix cache before 0.31 does not ask it either.
        """
        if media.marks(self.features) != media.marks(one.features) or self.ids != one.prompt:
            return False
        if self.embeds is None or one.embeds is None:
            return self.embeds is one.embeds
        if (self.embeds.dtype, self.embeds.shape) != (one.embeds.dtype, one.embeds.shape):
            return False
        return bool(self.embeds.equal(one.embeds))

    def problem(self, model_config: Any) -> str | None:
        """What is wrong with its embeddings; None if nothing is. Not all of it is looked at by
        vLLM, whose workers then end.
        """
        hidden = model_config.get_inputs_embeds_size()
        rows, columns = self.embeds.shape
        if not (rows and columns == hidden and self.embeds.is_floating_point()):
            return f"must be floating-point numbers of shape [1 or more tokens, {hidden}]"
        if self.ids is self.is_token_ids is None:
            return None
        lengths = [None if each is None else len(each) for each in (self.ids, self.is_token_ids)]
        if lengths != [rows, rows]:
            return (
                f"must have prompt_token_ids and prompt_is_token_ids of its {rows} tokens, or "
                "neither"
            )
        assert self.ids is not None and self.is_token_ids is not None
        used = [i for i, is_id in zip(self.ids, self.is_token_ids, strict=True) if is_id]
        return _unknown_token(used, model_config.get_vocab_size())


def _unknown_token(ids: Sequence[int], size: int) -> str | None:
    for extreme in (max(ids), min(ids)) if ids else ():
        if not 0 <= extreme < size:
            return f"token {extreme} is none of the model's {size}, which are from 0"
    return None


def _in(carrier: Any) -> PromptSource | None:
    found = carrier.get(_KEY) if isinstance(carrier, dict) else None
    return found if isinstance(found, PromptSource) else None


def prompt_source_of(prompt: Any) -> PromptSource:
    """How a prompt was made, or would be."""
    return _in(prompt) or _completion(prompt)


def _completion(prompt: Any, **more: Any) -> PromptSource:
    if not isinstance(prompt, dict):
        return PromptSource(prompt if isinstance(prompt, (str, list)) else None, **more)
    ids = prompt.get("prompt_token_ids")  # vLLM reads these where there is a text, too
    text_or_ids = prompt.get("prompt") if ids is None else list(ids)
    if "prompt_embeds" in prompt:
        text_or_ids = None  # ids beside them stand for some of the prompt only
    whole = dict(prompt) if prompt.get("multi_modal_data") else None
    return PromptSource(text_or_ids, whole=whole, **more)


def carrying(prompt: Any) -> Any:
    """The prompt, or in its place what says how it was made."""
    return prompt if _in(prompt) is not None else {_KEY: prompt_source_of(prompt)}


def decision_in(carrier: Any) -> Any:
    """What was decided about a request, of what ``with_decision`` gave; else ``UNDECIDED``."""
    return UNDECIDED if (found := _in(carrier)) is None else found.decided


def with_decision(carrier: dict[str, Any], decided: Any) -> dict[str, Any]:
    """What vLLM made of a prompt, or a request's flat arguments, with what was decided about it."""
    known = _in(carrier) or PromptSource()
    found = PromptSource(decided=decided, keywords=known.keywords, processed=known.processed)
    return {**carrier, _KEY: found}


def forget_media(carrier: Any) -> None:
    """No further prompt is made of what this one was made of: lets go of decoded media."""
    if (found := _in(carrier)) is not None:
        found.fetched.clear()


def sent_data(prompt: Any) -> list[str]:
    """The hashes of media that a contrasted request has sent without the sender's cache."""
    found = _in(prompt)
    if found is None or not found.always_sent:
        return []
    return [*media.with_data(prompt), *found.processed]


@contextmanager
def media_kept(renderer: Any, made: Sequence[Any], offline: bool = False) -> Iterator[None]:
    """Where requests are refused behind their prompts: vLLM sends an image that it has seen once no
    more, and those that it has seen for a refused request first were never sent. So it forgets
    them, or the next request with one of them would end with an error.

    Args:
        renderer: vLLM's.
        made: What it made of the prompts, and requests that were made of these.
        offline: Whether it makes them in the thread that this one is. Else a thread of its own
            uses what it has seen, and forgets it before the next image.
    """
    try:
        yield
    except BaseException:  # a client's hanging up, too
        seen = [each for one in made for each in _processed(one)]
        cache = getattr(renderer, "mm_processor_cache", None)
        if seen and (forget := getattr(cache, "invalidate", None)) is not None:  # not in 0.23
            if (queue := getattr(renderer, "queue_mm_cache_invalidations", None)) is not None:
                queue(seen)  # since 0.33
            else:
                for mm_hash in seen:
                    if offline:
                        forget(mm_hash)
                    else:
                        renderer._mm_executor.submit(forget, mm_hash)
        raise


def _processed(made: Any) -> list[str]:
    """The hashes of what is in the sender's cache because of this prompt."""
    if (found := _in(made)) is None:
        return media.with_data(made)
    return [] if found.always_sent else [*media.with_data(made), *found.processed]


def _completions(
    prompts: Sequence[Any], tok_params: Any = None, **kwargs: Any
) -> list[PromptSource]:
    known = _keywords(kwargs)
    return [_completion(p, tok_params=tok_params, keywords=known) for p in prompts]


def _chats(
    conversations: Sequence[list[Any]], chat_params: Any, tok_params: Any = None, **kwargs: Any
) -> list[PromptSource]:
    for conversation in conversations:
        media.make_readable(conversation)
    known = {"tok_params": tok_params, "chat_params": chat_params, "keywords": _keywords(kwargs)}
    return [PromptSource(messages=list(c), **known) for c in conversations]


def _keywords(given: Mapping[str, Any]) -> dict[str, Any]:
    names = ("prompt_extras", "skip_mm_cache")
    return {name: given[name] for name in names if given.get(name)}


def _noting(sources_of: Callable[..., list[PromptSource]]) -> Callable[..., Any]:
    """Makes a renderer's method note in what it makes of a prompt how that was made."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        async def render(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not is_configured(self.config):
                return await result_of(original(self, *args, **kwargs))
            fetched = media.remembered()
            sources = sources_of(*args, **kwargs)
            with media.remembering(fetched):
                made = await result_of(original(self, *args, **kwargs))
            prompts = made[1] if isinstance(made, tuple) else made  # of a chat
            for prompt, source in zip(prompts, sources, strict=True):
                prompt[_KEY] = replace(source, fetched=fetched)
            return made

        return in_form_of(original, render)

    return make


_make_cmpl, _make_chat = _noting(_completions), _noting(_chats)


# ---- amateurs' prompts ---------------------------------------------------------------------------


class RendererChanged(RuntimeError):
    """vLLM does not make prompts as it did; the engine goes on, the request does not."""


def render(
    renderer: Any, prompt_source: PromptSource, amateurs: Sequence[AmateurSpec]
) -> tuple[AmateurSpec, ...]:
    """As ``render_async`` offline, for those who have no event loop."""
    return at_once(render_async(renderer, prompt_source, amateurs, offline=True))


async def render_async(
    renderer: Any,
    prompt_source: PromptSource,
    amateurs: Sequence[AmateurSpec],
    online: Any = None,
    *,
    most_megapixels: float | None = None,
    offline: bool = False,
) -> tuple[AmateurSpec, ...]:
    """Amateurs with the token ids of their prompts, for one request.

    Args:
        renderer: vLLM's.
        prompt_source: How the expert's prompt was made.
        amateurs: As they were described.
        online: vLLM's OnlineRenderer, which has the template's arguments of chats; None without a
            server.
        most_megapixels: Of an image that is distorted; None for any.
        offline: Whether nothing of it waits. Else nothing of it blocks the event loop.

    Raises:
        ColdError: a prompt cannot be made.
        RendererChanged: vLLM cannot make it as it is asked to; the log has the traceback.
    """

    async def call(method: str, *args: Any, **kwargs: Any) -> Any:
        method += "" if offline else "_async"
        return await result_of(getattr(renderer, method)(*args, **kwargs))

    reads: list[tuple[Any, Prompt]] = []  # what several read is made once
    found = []
    for one in amateurs:
        read = next((read for source, read in reads if source is one.source), None)
        if read is None and one.source is not None:
            with _errors(one), media.remembering(prompt_source.fetched):
                if isinstance(one.source, Distorted):
                    check_there(prompt_source, one)
                    if (prompt := prompt_source.whole) is None:
                        chat = prompt_source.messages, prompt_source.chat_params
                        _, prompt = await call("render_messages", *chat)
                    seen = await _distorted(offline, prompt, one, most_megapixels)
                    method, args, kwargs = _call_seen(renderer, prompt_source, seen)
                else:
                    method, args, kwargs = _call(renderer, prompt_source, one, online)
                made = await call(method, *args, **kwargs)
                read = _read(renderer, prompt_source, one, made)
            reads.append((one.source, read))
        if read is not None:
            own = {"is_token_ids": read.is_token_ids, "features": read.features}
            one = structs.replace(one, prompt=read.ids, embeds=read.embeds, **own)
        found.append(one)
    return tuple(found)


async def aside(at_once: bool, function: Callable[..., _T], *args: Any) -> _T:
    """What a function that takes its time returns, without blocking the event loop, unless it is
    called ``at_once``.
    """
    if at_once:
        return function(*args)
    return await asyncio.get_running_loop().run_in_executor(_ASIDE, function, *args)


async def _distorted(
    offline: bool, prompt: Mapping[str, Any], one: AmateurSpec, most_megapixels: float | None
) -> dict[str, Any]:
    """The expert's prompt with the images that an amateur sees, made one after the other: so a
    request with many has one job among those of others.
    """
    images = media.images_of(prompt)
    for image in images:
        media.check_size(image, one, most_megapixels)
    loop = None if offline else asyncio.get_running_loop()
    seen = []
    for image in images:
        if loop is None:
            seen.append(media.distorted(image, one))
        else:
            seen.append(await loop.run_in_executor(_DISTORTING, media.distorted, image, one))
    return media.with_images(prompt, seen)


@contextmanager
def _errors(one: AmateurSpec) -> Iterator[None]:
    """Tells what is wrong with a client's prompt from what is wrong with this vLLM: of the first,
    templates and tokenizers say ValueError, which some of vLLM's own errors are no more.
    """
    from jinja2 import TemplateError
    from vllm.exceptions import VLLMValidationError

    try:
        yield
    except (TemplateError, VLLMValidationError, ValueError, NotImplementedError) as error:
        if isinstance(error, ColdError):
            raise
        raise _unreadable(one, error) from error
    except Exception as error:
        changed: tuple[type[Exception], ...] = (AttributeError, ImportError, TypeError)
        of_bytes = isinstance(one.source, Embeds) and isinstance(one.source.prompt, str)
        if isinstance(one.source, Messages):
            # Of what stands in a client's, templates say TypeError, and JSON says RecursionError.
            changed = (AttributeError, ImportError)
            if not isinstance(error, changed):
                raise _unreadable(one, error) from error
        if of_bytes or _brings_media(one.source):
            # Of a client's bytes torch and PIL say anything, which vLLM does not always catch; and
            # what they are fetched from may be gone.
            if isinstance(error, changed):  # or vLLM has changed
                logger.exception("vllm-cold: an amateur's prompt with media cannot be made.")
            raise _unreadable(one, error) from error
        logger.exception("vllm-cold: vLLM's renderer failed with an amateur's prompt.")
        raise RendererChanged(
            f"this vLLM ({versions.vllm_version()}) has changed where vllm-cold has it make the "
            f"prompt of an amateur ({type(error).__name__}: {error}): see the server's log. "
            f"Install vLLM {versions.RANGE}, or a newer vllm-cold."
        ) from error


def _brings_media(source: Any) -> bool:
    if isinstance(source, Messages):
        return any(has_media(message, kind) for message in source.value for kind in MEDIA)
    return isinstance(source, (Media, Distorted))


def _unreadable(one: AmateurSpec, error: Exception) -> ColdError:
    said = str(error) or type(error).__name__
    return one.refused(f"no prompt can be made of it: {said[:_SAID]}")


_Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def _call(renderer: Any, prompt_source: PromptSource, one: AmateurSpec, online: Any) -> _Call:
    """The renderer's method that makes an amateur's prompt, and its arguments."""
    tok_params, chat_params = prompt_source.tok_params, prompt_source.chat_params
    keywords = dict(prompt_source.keywords)
    match source := one.source:
        case Messages() | Without():
            messages = messages_of(prompt_source, one)
            if chat_params is None:
                chat_params = default_chat_params(renderer, online)
                if tok_params is not None:
                    tok_params = replace(tok_params, add_special_tokens=False)
            return "render_chat", ([messages], chat_params, tok_params), keywords
        case Embeds():
            if tok_params is not None:
                # For an answer with the prompt's text, which this one does not have.
                tok_params = replace(tok_params, needs_detokenization=False)
            own = source.prompt
            prompt: Any = own.encode() if isinstance(own, str) else {**own}
            return "render_cmpl", ([prompt], tok_params), {}
        case Media():
            prompt = dict(source.prompt)
            if "prompt_extras" in keywords:
                extras = keywords["prompt_extras"]
                keywords["prompt_extras"] = {k: extras[k] for k in extras if k not in prompt}
        case Part():
            if prompt_source.whole is not None:
                raise one.refused(
                    "is for a prompt of text alone, and this one has media; say what the amateur "
                    "reads"
                )
            prompt = source.of(one.prompt_field, prompt_source.prompt)  # type: ignore[type-var]
        case Text() | Tokens():
            prompt = source.value
    if not isinstance(prompt, dict):
        prompt = {"prompt" if isinstance(prompt, str) else "prompt_token_ids": prompt}
    if chat_params is not None and tok_params is not None and "prompt_token_ids" not in prompt:
        # A template brings the special tokens along, a text does not.
        tok_params = replace(tok_params, add_special_tokens=True)
    return "render_cmpl", ([prompt], tok_params), keywords


def _call_seen(renderer: Any, prompt_source: PromptSource, prompt: dict[str, Any]) -> _Call:
    """As for a prompt that ``render_messages`` made, or that is whole: what is left of
    ``render_chat`` behind it is ``render_cmpl``.
    """
    tok_params, chat_params = prompt_source.tok_params, prompt_source.chat_params
    keywords = dict(prompt_source.keywords)
    if chat_params is not None:
        if tok_params is None:
            tok_params = renderer.default_chat_tok_params
        extras = keywords.get("prompt_extras", {})
        media_io = chat_params.media_io_kwargs or {}
        keywords["prompt_extras"] = {**extras, "media_io_kwargs": media_io}
    return "render_cmpl", ([prompt], tok_params), keywords


def check_there(prompt_source: PromptSource, one: AmateurSpec) -> None:
    """Raise CannotLeaveOut if an amateur's prompt would not differ from this."""
    if isinstance(one.source, Without):
        messages_of(prompt_source, one)
    elif isinstance(one.source, Distorted) and not prompt_source.has_images:
        raise CannotLeaveOut(one.prompt_field, one.source.value, media.NO_IMAGE)


def messages_of(prompt_source: PromptSource, one: AmateurSpec) -> list[Any]:
    """What an amateur of a chat reads.

    Raises:
        ColdError: it cannot be had of this request.
    """
    if isinstance(one.source, Messages):
        return list(one.source.value)
    assert isinstance(one.source, Without)
    return one.source.of(one.prompt_field, prompt_source.messages)


def default_chat_params(renderer: Any, online: Any = None) -> Any:
    """As for a chat that says nothing about its template, offline or on a server."""
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


def _read(renderer: Any, prompt_source: PromptSource, one: AmateurSpec, made: Any) -> Prompt:
    """What a renderer made for an amateur to read."""
    prompts = made[1] if isinstance(made, tuple) else made  # of a chat
    assert len(prompts) == 1
    prompt = prompts[0]
    prompt_source.processed.extend(media.with_data(prompt))
    read = Prompt.of(prompt)
    if prompt["type"] == "embeds":
        problem = read.problem(renderer.model_config)
    elif prompt["type"] in ("token", "multimodal"):
        ids, size = prompt["prompt_token_ids"], renderer.model_config.get_vocab_size()
        if prompt["type"] == "multimodal" and renderer.tokenizer:  # images' tokens may be beyond
            size = max(size, renderer.tokenizer.max_token_id + 1)
        problem = _unknown_token(ids, size) if ids else "is no token at all; it must not be empty"
    else:
        raise one.refused("must be text, token ids, embeddings, or these with media")
    if problem is not None:
        raise one.refused(problem)
    return read
