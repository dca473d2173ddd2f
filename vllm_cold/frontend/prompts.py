# SPDX-License-Identifier: Apache-2.0
"""How a prompt was made: ``rendering`` makes an amateur's as its expert's was made, or of what the
expert reads. So what vLLM makes of a prompt carries along how it was made (``PromptSource``), and
then what was decided about its request (``with_contrast``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vllm_cold.compat.engine import is_configured
from vllm_cold.compat.patching import Original, result_of
from vllm_cold.frontend import request_media
from vllm_cold.settings.amateurs import AmateurSpec
from vllm_cold.settings.images import Distorted
from vllm_cold.settings.sources import CannotLeaveOut, Without, has_media

# Keys in what vLLM makes of a prompt.
_SOURCE = "cold_prompt_source"
_CONTRAST = "cold_contrast"


@dataclass(frozen=True, slots=True)
class PromptSource:
    """How a prompt was made.

    Attributes:
        prompt: The text or ids of a completion; None if it was neither.
        messages: The conversation of a chat; None for a completion.
        tok_params: vLLM's TokenizeParams; None for its default.
        chat_params: vLLM's ChatParams; None for a completion.
        whole: A completion with media, as vLLM was given it.
        keywords: vLLM's ``prompt_extras`` and ``skip_mm_cache``, where it was given them: all
            prompts of the request are made so.
        fetched: The media that were fetched for it.
    """

    prompt: str | list[int] | None = None
    messages: list[Any] | None = None
    tok_params: Any = None
    chat_params: Any = None
    whole: Mapping[str, Any] | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)
    fetched: dict[Any, Any] = field(default_factory=dict)

    @property
    def has_images(self) -> bool:
        """Whether the chat, or the completion's ``multi_modal_data``, has an image."""
        if self.messages is not None:
            return any(has_media(message, "images") for message in self.messages)
        images = None if self.whole is None else self.whole["multi_modal_data"].get("image")
        return images is not None and not (isinstance(images, (list, tuple)) and not images)

    def check_differs(self, amateur: AmateurSpec) -> None:
        """Raise CannotLeaveOut if an amateur's prompt would not differ from this."""
        if isinstance(amateur.source, Without):
            amateur.source.of(amateur.prompt_field, self.messages, amateur.lenient)
        elif isinstance(amateur.source, Distorted) and not self.has_images:
            raise amateur.refused("the prompt has no image", CannotLeaveOut)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of token ids as vLLM made it.

    Attributes:
        ids: The token ids.
        features: Its media, vLLM's MultiModalFeatureSpec, in their order.
    """

    ids: list[int]
    features: tuple[Any, ...] = ()

    @classmethod
    def of(cls, rendered: Any) -> "Prompt":
        """Return the prompt that a renderer made, or that an EngineCoreRequest has."""
        if isinstance(rendered, Mapping):
            return cls(rendered["prompt_token_ids"], request_media.of_prompt(rendered))
        return cls(rendered.prompt_token_ids, tuple(rendered.mm_features or ()))

    def equals(self, other: "Prompt") -> bool:
        """Whether both are the same prompt."""
        mine, theirs = (
            [(f.modality, f.mm_hash or f.identifier, f.mm_position.offset) for f in prompt.features]
            for prompt in (self, other)
        )
        return mine == theirs and self.ids == other.ids


# ---- what a prompt carries along ----------------------------------------------------------------


def source_of(prompt: Any) -> PromptSource:
    """Return how a prompt was made, or would be."""
    source = prompt.get(_SOURCE) if isinstance(prompt, dict) else None
    return source or _completion(prompt)


def with_contrast(prompt: Mapping[str, Any], contrast: Any) -> dict[str, Any]:
    """Return a copy of a made prompt that says what its request is decoded with: a
    ``ResolvedContrast``, or None for no contrast. Of how it was made it keeps only what
    ``media_cache`` needs.
    """
    source = PromptSource(keywords=source_of(prompt).keywords)
    return {**prompt, _SOURCE: source, _CONTRAST: contrast}


def is_decided(prompt: Any) -> bool:
    """Whether a prompt says what its request is decoded with."""
    return isinstance(prompt, dict) and _CONTRAST in prompt


def contrast_of(prompt: Mapping[str, Any]) -> Any:
    """Return what ``with_contrast`` has put into a prompt."""
    return prompt[_CONTRAST]


# ---- noting how a prompt is made ----------------------------------------------------------------


def _completion(prompt: Any, **more: Any) -> PromptSource:
    if not isinstance(prompt, dict):
        return PromptSource(prompt if isinstance(prompt, (str, list)) else None, **more)
    ids = prompt.get("prompt_token_ids")  # vLLM reads these where there is a text, too
    text_or_ids = prompt.get("prompt") if ids is None else list(ids)
    whole = dict(prompt) if prompt.get("multi_modal_data") else None
    return PromptSource(text_or_ids, whole=whole, **more)


def _completions(
    prompts: Sequence[Any], tok_params: Any = None, **kwargs: Any
) -> list[PromptSource]:
    known = _keywords(kwargs)
    return [_completion(p, tok_params=tok_params, keywords=known) for p in prompts]


def _chats(
    conversations: Sequence[list[Any]], chat_params: Any, tok_params: Any = None, **kwargs: Any
) -> list[PromptSource]:
    for conversation in conversations:
        request_media.make_readable(conversation)
    known = {"tok_params": tok_params, "chat_params": chat_params, "keywords": _keywords(kwargs)}
    return [PromptSource(messages=list(c), **known) for c in conversations]


def _keywords(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = ("prompt_extras", "skip_mm_cache")
    return {name: kwargs[name] for name in names if kwargs.get(name)}


async def wrap_render_cmpl(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap ``BaseRenderer.render_cmpl`` and ``render_cmpl_async``."""
    return await _note_sources(original, _completions, self, *args, **kwargs)


async def wrap_render_chat(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap ``BaseRenderer.render_chat`` and ``render_chat_async``."""
    return await _note_sources(original, _chats, self, *args, **kwargs)


async def _note_sources(
    original: Original,
    sources_of: Callable[..., list[PromptSource]],
    renderer: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Render prompts, and put into each how it was made."""
    if not is_configured(renderer.config):
        return await result_of(original(renderer, *args, **kwargs))
    sources = sources_of(*args, **kwargs)
    with request_media.remembering() as fetched:
        rendered = await result_of(original(renderer, *args, **kwargs))
    prompts = rendered[1] if isinstance(rendered, tuple) else rendered  # of a chat
    for prompt, source in zip(prompts, sources, strict=True):
        prompt[_SOURCE] = replace(source, fetched=fetched)
    return rendered
