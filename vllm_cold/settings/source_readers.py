# SPDX-License-Identifier: Apache-2.0
"""Reads what an amateur reads, as Python programs and as requests say it. Imports no vLLM."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Required, TypedDict, TypeVar

import msgspec
from msgspec import Meta

from vllm_cold.errors import ColdError
from vllm_cold.settings.images import Distorted, read_distorted
from vllm_cold.settings.sources import (
    Media,
    Messages,
    Part,
    Source,
    Text,
    TokenIds,
    Without,
    WithoutText,
    is_media,
)
from vllm_cold.settings.table import MOST_ITEMS, check, check_number

_Sized = TypeVar("_Sized", bound=Sequence[Any])


def read_source(prompt: object, without: Any, without_text: Any, images: object) -> Source | None:
    """Read what an amateur reads from the arguments of ``Amateur``, of which at most one is set.

    Raises:
        ColdError: names the field, the value and what is allowed.
    """
    arguments = {
        "prompt": prompt,
        "without": without,
        "without_text": without_text,
        "images": images,
    }
    values = {name: (name, value) for name, value in arguments.items() if value is not None}
    pick_source(values, arguments)  # refuses two
    if prompt is not None:
        return read_prompt("prompt", prompt)
    if without is not None:
        return read_without("without", check("without", without))
    if without_text is not None:
        if not isinstance(without_text, str):
            raise ColdError(
                "without_text", without_text, "must be a text as it stands in the prompt"
            )
        return read_without_text("without_text", without_text)
    if images is None or isinstance(images, Distorted):
        return images
    raise ColdError("images", images, "must be a Noise or a Blur")


def read_prompt(field: str, prompt: object) -> Source:
    """Read a prompt of a Python program: text, token ids, messages, or one of the first two with
    media.

    Raises:
        ColdError: it is something else, or empty.
    """
    if isinstance(prompt, str):
        return _text(field, prompt)
    if isinstance(prompt, Mapping):
        return _media(field, prompt)
    if isinstance(prompt, Sequence) and not isinstance(prompt, (bytes, bytearray)):
        if isinstance(_not_empty(field, prompt)[0], Mapping):
            return _messages(field, prompt, prompt)
        if all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in prompt):
            return TokenIds(list(prompt))
    raise ColdError(field, prompt, _PROMPTS)


_PROMPTS = (
    "must be a text, a list of token ids, a list of messages, or "
    '{"prompt": text, "multi_modal_data": media by modality}'
)


def _media(field: str, prompt: Mapping[str, Any]) -> Media:
    """Read a prompt with media; vLLM looks at what these are."""
    media = Media(prompt)
    has_data = isinstance(prompt.get("multi_modal_data"), Mapping)
    if not has_data or not isinstance(media.value, (str, list)):
        types = {key: type(part).__name__ for key, part in prompt.items()}  # values may be large
        raise ColdError(field, types, _PROMPTS)
    return media


def _not_empty(field: str, value: _Sized) -> _Sized:
    if not value:
        raise ColdError(field, value, "must not be empty")
    return value


def _text(field: str, text: str) -> Text:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which tokenizers do not take
        raise ColdError(field, text, "must be valid Unicode text") from None
    return Text(_not_empty(field, text))


class _CalledFunction(TypedDict):
    name: str


class _ToolCall(TypedDict):
    function: _CalledFunction


class _ContentPart(TypedDict, total=False):
    type: str | None
    text: str


class _ChatMessage(TypedDict, total=False):
    """What templates and vLLM rely on in a message. What media hold, vLLM looks at."""

    role: Required[str]
    content: str | list[_ContentPart] | None
    tool_calls: list[_ToolCall] | None


def _json_messages(field: str, text: str) -> Messages:
    try:
        # Of valid Unicode alone, wherever in it a text stands.
        messages = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        problem = f"must be a JSON list of messages, in valid Unicode ({error})"
        raise ColdError(field, text, problem) from error
    return _messages(field, text, messages)


def _messages(field: str, value: object, messages: Any) -> Messages:
    """Check messages of a Python program, or of a client whose ``value`` is JSON text."""
    try:
        msgspec.convert(messages, Annotated[list[_ChatMessage], Meta(min_length=1)])
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        problem = (
            "must be a list of messages, each with a role, a content of text or parts, and "
            f"tool_calls, if any, of functions with a name ({error})"
        )
        raise ColdError(field, value, problem) from error
    for i, message in enumerate(messages):
        content = message.get("content")
        parts = () if content is None or isinstance(content, str) else content
        if (content is None and "tool_calls" not in message) or not all(map(_is_part, parts)):
            raise ColdError(
                field, value, f"message {i} must have a content, of text, images, videos or audio"
            )
        # A client's text in a picture's place is opened by processors as a file or a URL, whatever
        # vLLM allows its clients. vLLM looks for this key in parts of any type.
        pil = any("image_pil" in part or part.get("type") == "image_pil" for part in parts)
        if pil and isinstance(value, str):
            raise ColdError(
                field, value, f"message {i} must not have image_pil; send images as image_url"
            )
    return Messages([dict(message) for message in messages])


def _is_part(part: Mapping[str, Any]) -> bool:
    return "text" in part if part.get("type") == "text" else is_media(part)


_INDEX, _NO_ITEM = re.compile(r"\d{1,9}", re.ASCII), re.compile(r"|-\d+|\d{10,}", re.ASCII)


def read_without(field: str, value: str | int | Sequence[str | int]) -> Without:
    """Read ``cold_without``: a role, a kind of media, an index, or several; raises ColdError for
    anything else.
    """
    parts = [str(part) for part in ([value] if isinstance(value, (str, int)) else value)]
    check_number(field, value, sum(1 + part.count(",") for part in parts), MOST_ITEMS)
    items = [item.strip() for part in parts for item in part.split(",")]
    if not items or any(map(_NO_ITEM.fullmatch, items)):
        raise ColdError(field, value, "must be roles, or indices of messages, from 0")
    return Without(tuple(int(item) if _INDEX.fullmatch(item) else item for item in items))


def read_images(field: str, value: str) -> Without | Distorted:
    """Read ``cold_images``; raises ColdError for anything else."""
    return Without(("images",)) if value == "none" else read_distorted(field, value)


def read_without_text(field: str, value: str) -> WithoutText:
    """Read ``cold_without_text``; raises ColdError for an empty one, or invalid Unicode."""
    return WithoutText(_text(field, value).value)


_LONGEST = 32 * MOST_ITEMS  # of a text with positions
_SPAN = re.compile(r"\s*(\d{1,9})\s*:\s*(\d{1,9})\s*", re.ASCII)


def read_part(field: str, value: str | int | Sequence[str | int]) -> Part:
    """Read ``cold_part``: positions, two for each part, or a text such as '0:120,300:340'; raises
    ColdError for anything else.
    """
    numbers: list[int] = []
    if isinstance(value, str):
        check_number(field, value, 1 + value.count(","), MOST_ITEMS)
        if len(value) > _LONGEST:
            raise ColdError(field, value, f"is longer than {_LONGEST} characters")
        for span in value.split(","):
            match = _SPAN.fullmatch(span)
            numbers += map(int, match.groups()) if match else [-1]
    elif isinstance(value, Sequence):
        numbers = [n if isinstance(n, int) else -1 for n in value]
    spans = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    # What is left is in order, and each part has something in it.
    rising = [0, *numbers]
    if not spans or len(numbers) % 2 or rising != sorted(rising) or any(a == b for a, b in spans):
        raise ColdError(
            field,
            value,
            "must be start and end with 0 <= start < end (of several parts: [s1, e1, s2, e2]), or "
            "a text such as '0:120'",
        )
    return Part(spans)


# Of the flat arguments that say what an amateur reads; takes what an error names, and the value.
READERS: Mapping[str, Any] = {
    "amateur_prompt": _text,
    "amateur_messages": _json_messages,
    "without": read_without,
    "without_text": read_without_text,
    "part": read_part,
    "images": read_images,
}


def pick_source(
    values: Mapping[str, tuple[str, Any]], names: Iterable[str]
) -> tuple[str, str, Any] | None:
    """Return which value says what an amateur reads: its name, what errors call it, and it itself.
    None for the expert's prompt.

    Args:
        values: What errors call each value, and it itself, by name.
        names: Of those that may say it.

    Raises:
        ColdError: there are two.
    """
    choices = [(name, *values[name]) for name in names if name in values]
    for _, field, value in choices[1:]:
        problem = f"the amateur has a prompt already, by {choices[0][1]}; leave one of them out"
        raise ColdError(field, value, problem)
    return choices[0] if choices else None
