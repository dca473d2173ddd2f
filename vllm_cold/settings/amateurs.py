# SPDX-License-Identifier: Apache-2.0
"""What an amateur reads, and how a request's flat arguments describe its amateurs. Imports no vLLM.

An amateur without a prompt of its own reads the expert's. Otherwise it reads a text, token ids,
messages, embeddings or a prompt with media that the request brings along, or what the expert reads:
``Without`` some of the messages or media, without a ``Part``, or with ``Distorted`` images. A part
is named by positions, which no text of a user can imitate.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import msgspec

from vllm_cold.errors import ColdError
from vllm_cold.settings.images import View, name_of, read_view
from vllm_cold.settings.presets import Preset
from vllm_cold.settings.table import (
    MAX_AMATEURS,
    MOST_ITEMS,
    PREFIX,
    ContrastArgs,
    check,
    check_number,
    preset_of,
)

_T = TypeVar("_T", str, list[int])
_Sized = TypeVar("_Sized", bound=Sequence[Any])

# What people call a system prompt: templates that know no developer make it one.
_ROLES = {"system": ("system", "developer")}
_NO_SUCH = "the conversation has no such message"
# Of vLLM's EmbedsPrompt, and of its TextPrompt and TokensPrompt.
_EMBEDS_KEYS = {"prompt_embeds", "prompt_token_ids", "prompt_is_token_ids"}
_MEDIA_KEYS = {
    *("prompt", "prompt_token_ids"),
    *("multi_modal_data", "multi_modal_uuids", "mm_processor_kwargs"),
}
# The types of a message's parts that vLLM takes for each of them. A part without a type has a key
# of that name.
MEDIA: Mapping[str, frozenset[str]] = {
    "images": frozenset(("image_url", "input_image", "image_pil", "image_embeds")),
    "videos": frozenset(("video_url", "video_embeds")),
    "audios": frozenset(("audio_url", "input_audio", "audio_embeds")),
}
_ALL_MEDIA = frozenset(chain.from_iterable(MEDIA.values()))


class CannotLeaveOut(ColdError):
    """The conversation has no such message, or no other."""


# Of what an amateur reads, str() is for clients that ask, and ``value`` is what an error shows.


class Text(msgspec.Struct, frozen=True):
    """A prompt as text."""

    value: str

    def __str__(self) -> str:
        return "text"


class TokenIds(msgspec.Struct, frozen=True):
    """A prompt as token ids."""

    value: list[int]


class Messages(msgspec.Struct, frozen=True):
    """A prompt as messages for the chat template."""

    value: list[dict[str, Any]]

    def __str__(self) -> str:
        return "messages"


class _AsVllmTakesIt(msgspec.Struct, frozen=True, eq=False):
    """A prompt whose tensors and media have no equality of their own."""

    prompt: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _AsVllmTakesIt):
            return False
        one, two = self.prompt, other.prompt
        return one is two or (isinstance(one, str) and bool(one == two))


class Embeds(_AsVllmTakesIt, frozen=True, eq=False):
    """A prompt as embeddings.

    Attributes:
        prompt: A mapping with the tensor, or base64 text of what ``torch.save`` writes of one.
    """

    def __str__(self) -> str:
        return "embeddings"

    @property
    def value(self) -> str:
        if isinstance(self.prompt, str):
            return self.prompt
        tensor = self.prompt["prompt_embeds"]
        return f"{tensor.dtype}{list(tensor.shape)}"


class Media(_AsVllmTakesIt, frozen=True, eq=False):
    """A prompt with media next to its text or token ids.

    Attributes:
        prompt: A mapping with ``prompt`` or ``prompt_token_ids``, and ``multi_modal_data``.
    """

    def __str__(self) -> str:
        return "a prompt with media"

    @property
    def value(self) -> Any:
        return self.prompt.get("prompt") or self.prompt.get("prompt_token_ids")


class Distorted(msgspec.Struct, frozen=True):
    """The request's own prompt with other images.

    Attributes:
        view: Makes them, each of one of the expert's.
        lenient: Whether prompts without images are passed over, as in ``Without``.
    """

    view: View
    lenient: bool = False

    def __str__(self) -> str:
        return self.value

    @property
    def value(self) -> str:
        return name_of(self.view)


class Without(msgspec.Struct, frozen=True):
    """The request's own conversation without some of its messages.

    Attributes:
        items: Roles, whose messages are all left out, indices of messages, and "images", "videos"
            and "audios", which are left out of all messages.
        lenient: Whether it is enough that a conversation has one of them: an engine's default is
            for all its chats.
    """

    items: tuple[str | int, ...]
    lenient: bool = False

    def __str__(self) -> str:
        return f"without {self.value}"

    @property
    def value(self) -> str:
        return ",".join(map(str, self.items))

    def of(self, field: str, messages: Sequence[Any] | None) -> list[Any]:
        """What is left of the messages; None for a prompt that is none.

        Raises:
            ColdError: there are no messages.
            CannotLeaveOut: one of these roles or indices is not there, or nothing is left.
        """
        if messages is None:
            of_media = any(item in MEDIA for item in self.items)
            raise ColdError(
                field,
                self.value,
                "is for chats, whose prompt is messages; "
                + (
                    "say what the amateur reads with a prompt of its own"
                    if of_media
                    else "leave a part of a text out with cold_part"
                ),
            )
        kept = list(messages)
        of_role: dict[Any, list[int]] = {}
        for i, message in enumerate(messages):
            of_role.setdefault(_role(message), []).append(i)
        gone: set[int] = set()
        changed = False
        # Each once, however often it is listed: this runs on a server's event loop.
        for item in dict.fromkeys(self.items):
            if item in MEDIA:
                without = [_without_parts(message, MEDIA[str(item)]) for message in kept]
                found = [i for i, message in enumerate(kept) if without[i] is not message]
                kept, changed = without, changed or bool(found)
                if not found and not self.lenient:
                    raise CannotLeaveOut(field, item, f"the conversation has no {item}")
                continue
            if isinstance(item, str):
                found = [i for role in _ROLES.get(item, (item,)) for i in of_role.get(role, ())]
                reason = _NO_SUCH
            else:
                found = [item] if item < len(messages) else []
                reason = f"the conversation has the messages 0 to {len(messages) - 1}"
            if not found and not self.lenient:
                raise CannotLeaveOut(field, item, reason)
            gone.update(found)
        if not (gone or changed):
            raise CannotLeaveOut(field, self.value, _NO_SUCH)
        if len(gone) == len(messages):
            raise CannotLeaveOut(field, self.value, "leaves no message; one must be left")
        return [message for i, message in enumerate(kept) if i not in gone]


def has_media(message: Any, kind: str) -> bool:
    """Whether a message has media of this kind, "images", "videos" or "audios"."""
    return _without_parts(message, MEDIA[kind]) is not message


def _without_parts(message: Any, names: frozenset[str]) -> Any:
    """The message without parts of these types; itself if it has none."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list):
        return message
    left = [part for part in content if not _is_media(part, names)]
    return message if len(left) == len(content) else {**message, "content": left or ""}


def media_parts(message: Any) -> list[Mapping[str, Any]]:
    """A message's parts that are media."""
    content = message.get("content") if isinstance(message, Mapping) else None
    return [p for p in content if _is_media(p, _ALL_MEDIA)] if isinstance(content, list) else []


def _is_media(part: Any, names: frozenset[str]) -> bool:
    """As vLLM tells them: by their types, or by their keys where there is no type, or a uuid."""
    if not isinstance(part, (dict, Mapping)):
        return False
    if (kind := part.get("type")) is None or part.get("uuid") is not None:
        return bool(names & part.keys())
    return isinstance(kind, str) and kind in names


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else getattr(message, "role", None)


class Part(msgspec.Struct, frozen=True):
    """The request's own prompt without parts of it.

    Attributes:
        spans: Where they begin and end, in characters of a text or tokens of a list of ids; in
            order, and none is empty.
    """

    spans: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return f"without {self.value}"

    @property
    def value(self) -> str:
        return ",".join(f"{start}:{end}" for start, end in self.spans)

    def of(self, field: str, prompt: _T | None) -> _T:
        """What is left of the prompt; None for one that is no text and no ids.

        Raises:
            ColdError: it is none, a part is out of range, or nothing is left.
        """
        if prompt is None:
            raise ColdError(
                field,
                self.value,
                "is for completions, whose prompt is one text or a list of token ids; leave "
                "messages of a chat out with cold_without",
            )
        start, end = self.spans[-1]
        if end > len(prompt):
            unit = "characters" if isinstance(prompt, str) else "tokens"
            raise ColdError(field, f"{start}:{end}", f"the prompt has {len(prompt)} {unit}")
        ends = [0, *chain.from_iterable(self.spans), len(prompt)]
        kept: Any = [prompt[i:j] for i, j in zip(ends[::2], ends[1::2], strict=True)]
        left: _T = "".join(kept) if isinstance(prompt, str) else [*chain.from_iterable(kept)]
        if not left:
            raise ColdError(field, self.value, "leaves nothing of the prompt")
        return left


Source = Text | TokenIds | Messages | Embeds | Media | Distorted | Without | Part


class AmateurSpec(msgspec.Struct):
    """An amateur as a request describes it.

    Attributes:
        field: What an error about it names.
        prompt_field: What an error about its prompt names.
        adapter: The name of its adapter in the request, None where it has none.
        source: What it reads, None for the expert's prompt.
        weight: As in the request, None for what beta says.
        lora: Its adapter (vLLM's LoRARequest), None for the base model; admission fills it in.
    """

    field: str
    prompt_field: str
    adapter: str | None = None
    source: Source | None = None
    weight: float | str | None = None
    lora: Any = None

    def refused(self, problem: str) -> ColdError:
        """The error that says what is wrong with its prompt."""
        return ColdError(self.prompt_field, self.source and self.source.value, problem)


def read_source(prompt: object, without: Any, images: object) -> Source | None:
    """What an amateur reads, as Python programs give it: by one of these arguments, or by none.

    Raises:
        ColdError: names the field, the value and what is allowed.
    """
    said = {"prompt": prompt, "without": without, "images": images}
    first, *others = [name for name, value in said.items() if value is not None] or [""]
    for name in others:
        raise _second(name, said[name], first)
    if without is not None:
        return read_without("without", check("without", without, "without"))
    if images is None:
        return read_prompt("prompt", prompt)
    if not callable(images):
        raise ColdError(
            "images", images, "must be Noise, Blur or a function that makes a PIL image of one"
        )
    return Distorted(images)


def _second(field: str, value: object, first: str) -> ColdError:
    return ColdError(
        field, value, f"the amateur has a prompt already, by {first}; leave one of them out"
    )


def _of_types(field: str, prompt: Mapping[str, Any], problem: str) -> ColdError:
    """What is wrong with a mapping, whose values may be large."""
    return ColdError(field, {key: type(each).__name__ for key, each in prompt.items()}, problem)


def read_prompt(field: str, prompt: object) -> Source | None:
    """A prompt as Python programs give it: text, token ids, messages, embeddings, or text or token
    ids with media; None for the expert's.

    Raises:
        ColdError: it is something else, or empty.
    """
    if prompt is None:
        return None
    if isinstance(prompt, str):
        return _text(field, prompt)
    if isinstance(prompt, Mapping):
        has_media = "multi_modal_data" in prompt and "prompt_embeds" not in prompt
        return _media(field, prompt) if has_media else _embeds(field, prompt)
    if isinstance(prompt, Sequence) and not isinstance(prompt, (bytes, bytearray)):
        if isinstance(_not_empty(field, prompt)[0], Mapping):
            return _messages(field, prompt, prompt)
        if _are_token_ids(prompt):
            return TokenIds(list(prompt))
    raise ColdError(
        field,
        prompt,
        'must be a text, a list of token ids, a list of messages, {"prompt_embeds": tensor}, or '
        '{"prompt": text, "multi_modal_data": media}',
    )


def _media(field: str, prompt: Mapping[str, Any]) -> Media:
    text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
    if isinstance(text, str):
        _text(field, text)
    is_ids = isinstance(ids, list) and bool(ids) and _are_token_ids(ids)
    if not (
        prompt.keys() <= _MEDIA_KEYS
        and isinstance(prompt["multi_modal_data"], Mapping)
        and (isinstance(text, str) if ids is None else is_ids)
    ):
        raise _of_types(
            field,
            prompt,
            'as a mapping with "multi_modal_data", a mapping by modality, must have a text as '
            '"prompt" or token ids as "prompt_token_ids"; no other keys are allowed but '
            '"multi_modal_uuids" and "mm_processor_kwargs"',
        )
    return Media(prompt)


def _embeds(field: str, prompt: Mapping[str, Any]) -> Embeds:
    import torch

    if not prompt.keys() <= _EMBEDS_KEYS or not isinstance(
        prompt.get("prompt_embeds"), torch.Tensor
    ):
        raise _of_types(
            field,
            prompt,
            'as a mapping must have a tensor as "prompt_embeds"; no other keys are allowed but '
            '"prompt_token_ids" with "prompt_is_token_ids"',
        )
    ids, is_token_ids = prompt.get("prompt_token_ids"), prompt.get("prompt_is_token_ids")
    if ids is not None and not (isinstance(ids, list) and _are_token_ids(ids)):
        raise ColdError(field, ids, "as prompt_token_ids must be a list of token ids, from 0")
    if is_token_ids is not None and not (
        isinstance(is_token_ids, list) and all(isinstance(each, bool) for each in is_token_ids)
    ):
        raise ColdError(field, is_token_ids, "as prompt_is_token_ids must be a list of True, False")
    return Embeds(prompt)


def _are_token_ids(ids: Sequence[Any]) -> bool:
    return all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids)


def _not_empty(field: str, value: _Sized) -> _Sized:
    if not value:
        raise ColdError(field, value, "must not be empty")
    return value


def _embeds_text(field: str, text: str) -> Embeds:
    return Embeds(_not_empty(field, text))


def _text(field: str, text: str) -> Text:
    if not _is_unicode(text):
        raise ColdError(field, text, "must be valid Unicode text")
    return Text(_not_empty(field, text))


def _is_unicode(text: str) -> bool:
    """Whether tokenizers take it: half a surrogate pair is a character of Python's alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_messages(field: str, text: str) -> Messages:
    try:
        # Of valid Unicode alone, wherever in it a text stands.
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        problem = f"must be a JSON list of messages, in valid Unicode ({error})"
        raise ColdError(field, text, problem) from error
    messages = _messages(field, text, found)
    for i, message in enumerate(messages.value):
        # A text in a picture's place is opened by processors as a file or a URL, whatever vLLM
        # allows its clients. vLLM looks for this key in parts of any type.
        content = message.get("content")
        if isinstance(content, list) and any(
            "image_pil" in part or part.get("type") == "image_pil" for part in content
        ):
            raise ColdError(
                field, text, f"message {i} must not have image_pil; send images as image_url"
            )
    return messages


def _messages(field: str, value: object, found: object) -> Messages:
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        raise ColdError(field, value, "must be a list of messages, with one or more of them")
    for i, message in enumerate(found):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ColdError(field, value, f"message {i} must have a role, which is a text")
        if not _is_content(message.get("content"), optional="tool_calls" in message):
            raise ColdError(
                field, value, f"message {i} must have a content, of text, images, videos or audio"
            )
        calls = message.get("tool_calls") or []
        if not (isinstance(calls, list) and all(map(_is_call, calls))):
            raise ColdError(
                field,
                value,
                f"message {i} must have tool_calls that are a list of calls, each with a "
                '"function" that has a "name"',
            )
        if not (isinstance(value, str) or _are_unicode(message)):
            raise ColdError(field, value, f"message {i} must be valid Unicode text")
    return Messages([dict(message) for message in found])


def _is_content(content: object, optional: bool) -> bool:
    """Text and media; what these hold, vLLM looks at."""
    if content is None:
        return optional
    return isinstance(content, str) or (
        isinstance(content, Sequence) and all(map(_is_part, content))
    )


def _is_part(part: object) -> bool:
    # dict first: it is looked at faster.
    if isinstance(part, (dict, Mapping)) and part.get("type") == "text":
        return isinstance(part.get("text"), str)
    return _is_media(part, _ALL_MEDIA)


def _is_call(call: object) -> bool:
    function = call.get("function") if isinstance(call, Mapping) else None
    return isinstance(function, Mapping) and isinstance(function.get("name"), str)


def _are_unicode(value: object) -> bool:
    """Whether all texts in it are valid."""
    if isinstance(value, str):
        return _is_unicode(value)
    if isinstance(value, Mapping):
        return all(map(_are_unicode, chain(value.keys(), value.values())))
    return not isinstance(value, (list, tuple)) or all(map(_are_unicode, value))


def read_without(field: str, value: str | int | Sequence[str | int]) -> Without:
    """What ``cold_without`` says: a role, a kind of media, an index, or several; raises ColdError
    for others.
    """
    said = [value] if isinstance(value, (str, int)) else value
    entries = sum(1 if isinstance(part, int) else 1 + part.count(",") for part in said)
    check_number(field, value, entries, MOST_ITEMS)
    items: list[str | int] = []
    for part in said:
        for item in [part] if isinstance(part, int) else map(str.strip, part.split(",")):
            is_index = isinstance(item, str) and re.fullmatch(r"\d{1,9}", item, re.ASCII)
            items.append(int(item) if is_index else item)
    if not items or any(i == "" or (isinstance(i, int) and not 0 <= i < 10**9) for i in items):
        raise ColdError(field, value, "must be roles, or indices of messages, from 0")
    return Without(tuple(items))


def read_images(field: str, value: str) -> Without | Distorted:
    """What ``cold_images`` says; raises ColdError for what it cannot."""
    return Without(("images",)) if value == "none" else Distorted(read_view(field, value))


_LONGEST = 32 * MOST_ITEMS  # of a text with positions
_SPAN = re.compile(r"\s*(\d{1,9})\s*:\s*(\d{1,9})\s*", re.ASCII)


def read_part(field: str, value: str | int | Sequence[str | int]) -> Part:
    """What ``cold_part`` says: positions, two for each part; or a text such as '0:120,300:340'.
    Raises ColdError for anything else.
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
        check_number(field, value, len(value), 2 * MOST_ITEMS)
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


_READERS: Mapping[str, Any] = {
    "amateur_prompt": _text,
    "amateur_messages": _json_messages,
    "amateur_prompt_embeds": _embeds_text,
    "without": read_without,
    "part": read_part,
    "images": read_images,
}


def says_what(args: ContrastArgs) -> bool:
    """Whether a request says itself what it is contrasted with."""
    return any(getattr(args, name) is not None for name in ("amateur", *_READERS))


def describe(args: ContrastArgs) -> tuple[AmateurSpec, ...]:
    """The amateurs of a request; raises ColdError for what does not fit together. Amateurs with the
    same arguments share one ``source``.
    """
    preset = preset_of(args)
    amateurs = []
    known: dict[tuple[str, Any], Source] = {}
    for i, said in enumerate(_split(args)):
        field, adapter = said.get("amateur", ("cold_amateur", None))
        if adapter == "":
            raise ColdError(field, adapter, "must be the name of a loaded adapter")
        prompt_field, source = _source(said, known)
        _, weight = said.get("weights", ("", None))
        if weight is None and preset is not None and i < len(preset.weights):
            weight = preset.weights[i]
        amateurs.append(AmateurSpec(field, prompt_field, adapter, source, weight))
    if preset is not None:
        each = "what each reads in cold_without or cold_part"
        check_preset(
            ("cold_preset", args.preset),
            preset,
            [one.source for one in amateurs],
            "say which with cold_without, cold_part, cold_images, cold_amateur_prompt or "
            "cold_amateur_messages",
            f": list {each if preset.own_prompt else 'their adapters in cold_amateur'}",
        )
    return tuple(amateurs)


def check_preset(
    said: tuple[str, object],
    preset: Preset,
    sources: Sequence[Source | None],
    with_prompts: str,
    with_several: str,
) -> None:
    """Refuse a method that needs other amateurs than those that read ``sources``.

    Args:
        said: What an error names: the field and its value.
        preset: The method.
        sources: What its amateurs read.
        with_prompts: The remedy: how to say what they read.
        with_several: The remedy: how to say which they are.
    """
    if preset.own_prompt and None in sources:
        raise ColdError(*said, f"contrasts with another prompt; {with_prompts}")
    alike = preset.own_prompt and all(one == sources[0] for one in sources)
    if preset.weights and (alike or len(sources) != len(preset.weights)):
        raise ColdError(*said, f"is for {len(preset.weights)} amateurs{with_several}")


def count(args: ContrastArgs) -> tuple[str | None, int]:
    """How many amateurs a request has, and the key that decides it; (None, 1) without such a key.
    Nothing else is read.

    Raises:
        ColdError: two keys disagree, or it has none or too many.
    """
    preset = preset_of(args)
    lists = {name: len(value) for name, value in _said(args).items() if isinstance(value, list)}
    # Lists of these two alone are one amateur's.
    counting = [name for name in ("weights", *lists) if name in lists.keys() - {"without", "part"}]
    if not counting and preset is not None and preset.weights and preset.own_prompt:
        counting, lists["preset"] = ["preset"], len(preset.weights)
    if not counting:
        return None, 1
    first, num = counting[0], lists[counting[0]]
    if not 1 <= num <= MAX_AMATEURS:
        problem = f"has {num} entries; a request has 1 to {MAX_AMATEURS} amateurs"
        raise ColdError(PREFIX + first, getattr(args, first), problem)
    for name, entries in lists.items():
        if entries != num:
            raise ColdError(
                PREFIX + name,
                getattr(args, name),
                f"has {entries} entries, and {PREFIX}{first} has {num}: lists have one for each "
                "amateur",
            )
    return first, num


def _said(args: ContrastArgs) -> dict[str, Any]:
    said = {name: getattr(args, name) for name in args.__struct_fields__}
    return {name: value for name, value in said.items() if value is not None}


def _split(args: ContrastArgs) -> list[dict[str, tuple[str, Any]]]:
    """Of each amateur the values by key, with what errors call them."""
    counted_by, num = count(args)
    everything = _said(args).items()
    if counted_by is None:
        return [{name: (PREFIX + name, value) for name, value in everything}]
    return [
        {
            name: (f"{PREFIX}{name}[{i}]", value[i])
            if isinstance(value, list)
            else (PREFIX + name, value)
            for name, value in everything
            if not isinstance(value, list) or value[i] != ""
        }
        for i in range(num)
    ]


def _source(
    said: Mapping[str, tuple[str, Any]], known: dict[tuple[str, Any], Source]
) -> tuple[str, Source | None]:
    """What an amateur reads, and what errors call it.

    Args:
        said: Of this amateur.
        known: What was read of what is said of others; added to.
    """
    found = [(name, *said[name]) for name in _READERS if name in said]
    if not found:
        return "cold_amateur_prompt", None
    (name, field, value), *others = found
    for _, second, other in others:
        raise _second(second, other, field)
    if isinstance(value, list):
        return field, _READERS[name](field, value)  # the only amateur's
    if (name, value) not in known:
        known[name, value] = _READERS[name](field, value)
    return field, known[name, value]
