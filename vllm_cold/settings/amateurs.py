# SPDX-License-Identifier: Apache-2.0
"""What an amateur reads, and how a request's flat arguments describe its amateurs. Imports no vLLM.

An amateur without a prompt of its own reads the expert's. Otherwise it reads a text, token ids,
messages, embeddings or a prompt with media that the request brings along, or what the expert reads:
``Without`` some of the messages or media, without a ``Part``, or with ``Distorted`` images. A part
is named by positions, which no text of a user can imitate.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Annotated, Any, Required, TypedDict, TypeVar

import msgspec
from msgspec import Meta

from vllm_cold.errors import ColdError
from vllm_cold.settings.images import View, name_of, read_view
from vllm_cold.settings.presets import Preset, preset_of
from vllm_cold.settings.table import MAX_AMATEURS, MOST_ITEMS, PREFIX, check, check_number

_T = TypeVar("_T", str, list[int])
_Sized = TypeVar("_Sized", bound=Sequence[Any])
_TokenIds = list[Annotated[int, Meta(ge=0)]]

# What people call a system prompt: templates that know no developer make it one.
_ROLES = {"system": ("system", "developer")}
_NO_SUCH = "the conversation has no such message"
# The types of a message's parts that vLLM takes for each of them. A part without a type has a key
# of that name.
MEDIA: Mapping[str, frozenset[str]] = {
    "images": frozenset(("image_url", "input_image", "image_pil", "image_embeds")),
    "videos": frozenset(("video_url", "video_embeds")),
    "audios": frozenset(("audio_url", "input_audio", "audio_embeds")),
}
_ALL_MEDIA = frozenset(chain.from_iterable(MEDIA.values()))


class CannotLeaveOut(ColdError):
    """The prompt has no such message or image, or no other message."""


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


class _AsGiven(msgspec.Struct, frozen=True, eq=False):
    prompt: Any

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.prompt is self.prompt


class Embeds(_AsGiven, frozen=True, eq=False):
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


class Media(_AsGiven, frozen=True, eq=False):
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
    """

    view: View

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
    """

    items: tuple[str | int, ...]

    def __str__(self) -> str:
        return f"without {self.value}"

    @property
    def value(self) -> str:
        return ",".join(map(str, self.items))

    def of(self, field: str, messages: Sequence[Any] | None, lenient: bool = False) -> list[Any]:
        """What is left of the messages; None for a prompt that is none.

        Args:
            field: What an error names.
            messages: The conversation.
            lenient: Whether it is enough that it has one of what is left out.

        Raises:
            CannotLeaveOut: there are no messages, one of these roles or indices is not there, or
                nothing is left.
        """
        if messages is None:
            raise CannotLeaveOut(
                field,
                self.value,
                "is for chats, whose prompt is messages; leave a part of a text out with "
                "cold_part, or say what the amateur reads with a prompt of its own",
            )
        kept = list(messages)
        of_role: dict[Any, list[int]] = {}
        for i, message in enumerate(messages):
            is_dict = isinstance(message, Mapping)
            role = message.get("role") if is_dict else getattr(message, "role", None)
            of_role.setdefault(role, []).append(i)
        gone: set[int] = set()
        changed = False
        # Each once, however often it is listed: this runs on a server's event loop.
        for item in dict.fromkeys(self.items):
            reason = _NO_SUCH
            if item in MEDIA:
                found = [i for i, each in enumerate(kept) if has_media(each, str(item))]
                reason = f"the conversation has no {item}"
                for i in found:
                    left = [p for p in kept[i]["content"] if not _is_media(p, MEDIA[str(item)])]
                    kept[i] = {**kept[i], "content": left or ""}
                changed = changed or bool(found)
            elif isinstance(item, str):
                found = [i for role in _ROLES.get(item, (item,)) for i in of_role.get(role, ())]
                gone.update(found)
            else:
                found = [item] if item < len(messages) else []
                reason = f"the conversation has the messages 0 to {len(messages) - 1}"
                gone.update(found)
            if not found and not lenient:
                raise CannotLeaveOut(field, item, reason)
        if not (gone or changed):
            raise CannotLeaveOut(field, self.value, _NO_SUCH)
        if len(gone) == len(messages):
            raise CannotLeaveOut(field, self.value, "leaves no message; one must be left")
        return [message for i, message in enumerate(kept) if i not in gone]


def has_media(message: Any, kind: str) -> bool:
    """Whether a message has media of this kind, "images", "videos" or "audios"."""
    return bool(media_parts(message, MEDIA[kind]))


def media_parts(message: Any, names: frozenset[str] = _ALL_MEDIA) -> list[Mapping[str, Any]]:
    """A message's parts that are media of these types."""
    content = message.get("content") if isinstance(message, Mapping) else None
    return [p for p in content if _is_media(p, names)] if isinstance(content, list) else []


def _is_media(part: Any, names: frozenset[str]) -> bool:
    """As vLLM tells them: by their types, or by their keys where there is no type, or a uuid."""
    if not isinstance(part, (dict, Mapping)):
        return False
    if (kind := part.get("type")) is None or part.get("uuid") is not None:
        return bool(names & part.keys())
    return isinstance(kind, str) and kind in names


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
        lenient: Whether a default says what it does not read, which is for all chats: it is enough
            that a conversation has one of what is left out.
    """

    field: str
    prompt_field: str
    adapter: str | None = None
    source: Source | None = None
    weight: float | str | None = None
    lora: Any = None
    lenient: bool = False

    def refused(self, problem: str, kind: type[ColdError] = ColdError) -> ColdError:
        """The error that says what is wrong with its prompt, or why there is none."""
        return kind(self.prompt_field, self.source and self.source.value, problem)


def read_source(prompt: object, without: Any, images: object) -> Source | None:
    """What an amateur reads, as Python programs give it: by one of these arguments, or by none.

    Raises:
        ColdError: names the field, the value and what is allowed.
    """
    given = {"prompt": prompt, "without": without, "images": images}
    said = {name: (name, value) for name, value in given.items() if value is not None}
    if (reads := _reads(said, given)) is None:
        return None
    name, field, value = reads
    if name == "without":
        return read_without(field, check(name, value))
    if name == "prompt":
        return read_prompt(field, value)
    if not callable(value):
        raise ColdError(
            field, value, "must be Noise, Blur or a function that makes a PIL image of one"
        )
    return Distorted(value)


def read_prompt(field: str, prompt: object) -> Source:
    """A prompt as Python programs give it: text, token ids, messages, embeddings, or text or token
    ids with media.

    Raises:
        ColdError: it is something else, or empty.
    """
    if isinstance(prompt, str):
        return _text(field, prompt)
    if isinstance(prompt, Mapping):
        return _mapping(field, prompt)
    if isinstance(prompt, Sequence) and not isinstance(prompt, (bytes, bytearray)):
        if isinstance(_not_empty(field, prompt)[0], Mapping):
            return _messages(field, prompt, prompt)
        if all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in prompt):
            return TokenIds(list(prompt))
    raise ColdError(field, prompt, _PROMPTS)


_PROMPTS = (
    'must be a text, a list of token ids, a list of messages, {"prompt_embeds": tensor}, or '
    '{"prompt": text, "multi_modal_data": media by modality}'
)


class _MediaPrompt(msgspec.Struct, forbid_unknown_fields=True):
    """vLLM's TextPrompt or TokensPrompt, with media."""

    multi_modal_data: dict[str, Any]
    prompt: Annotated[str, Meta(min_length=1)] | None = None
    prompt_token_ids: Annotated[_TokenIds, Meta(min_length=1)] | None = None
    multi_modal_uuids: Any = None
    mm_processor_kwargs: Any = None

    def __post_init__(self) -> None:
        if self.prompt is None and self.prompt_token_ids is None:
            raise ValueError("it has neither prompt nor prompt_token_ids")


class _EmbedsPrompt(msgspec.Struct, forbid_unknown_fields=True):
    """vLLM's EmbedsPrompt."""

    prompt_embeds: Any
    prompt_token_ids: _TokenIds | None = None
    prompt_is_token_ids: list[bool] | None = None

    def __post_init__(self) -> None:
        import torch

        if not isinstance(self.prompt_embeds, torch.Tensor):
            raise ValueError("prompt_embeds is no tensor")


def _mapping(field: str, prompt: Mapping[str, Any]) -> Embeds | Media:
    """A prompt as vLLM takes it, with embeddings or media."""
    has_media = "multi_modal_data" in prompt and "prompt_embeds" not in prompt
    try:
        msgspec.convert(prompt, _MediaPrompt if has_media else _EmbedsPrompt)
    except msgspec.ValidationError as error:
        types = {key: type(each).__name__ for key, each in prompt.items()}  # values may be large
        raise ColdError(field, types, f"{_PROMPTS} ({error})") from error
    return Media(prompt) if has_media else Embeds(prompt)


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
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        problem = f"must be a JSON list of messages, in valid Unicode ({error})"
        raise ColdError(field, text, problem) from error
    return _messages(field, text, found)


def _messages(field: str, value: object, found: Any) -> Messages:
    """Messages of a Python program, or of a client whose ``value`` is JSON text."""
    try:
        msgspec.convert(found, Annotated[list[_ChatMessage], Meta(min_length=1)])
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        problem = (
            "must be a list of messages, each with a role, a content of text or parts, and "
            f"tool_calls, if any, of functions with a name ({error})"
        )
        raise ColdError(field, value, problem) from error
    for i, message in enumerate(found):
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
    return Messages([dict(message) for message in found])


def _is_part(part: Mapping[str, Any]) -> bool:
    return "text" in part if part.get("type") == "text" else _is_media(part, _ALL_MEDIA)


_INDEX, _NO_ITEM = re.compile(r"\d{1,9}", re.ASCII), re.compile(r"|-\d+|\d{10,}", re.ASCII)


def read_without(field: str, value: str | int | Sequence[str | int]) -> Without:
    """What ``cold_without`` says: a role, a kind of media, an index, or several; raises ColdError
    for others.
    """
    parts = [str(part) for part in ([value] if isinstance(value, (str, int)) else value)]
    check_number(field, value, sum(1 + part.count(",") for part in parts), MOST_ITEMS)
    items = [item.strip() for part in parts for item in part.split(",")]
    if not items or any(map(_NO_ITEM.fullmatch, items)):
        raise ColdError(field, value, "must be roles, or indices of messages, from 0")
    return Without(tuple(int(item) if _INDEX.fullmatch(item) else item for item in items))


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
    "amateur_prompt_embeds": lambda field, text: Embeds(_not_empty(field, text)),
    "without": read_without,
    "part": read_part,
    "images": read_images,
}


def says_what(given: Mapping[str, Any]) -> bool:
    """Whether a request's values, by name, say what it is contrasted with."""
    return any(name in given for name in ("amateur", *_READERS))


def left_out(
    given: Mapping[str, Any], engine: Mapping[str, Any]
) -> tuple[str, dict[str, Any]] | None:
    """What an engine's values, or a preset, leave out of an amateur's prompt where a request's
    values say nothing of that: whose default it is, and the name and the value.
    """
    preset, name = preset_of(given), given.get("preset", "")
    if says_what(given) or (name and not preset.own_prompt):
        return None
    if not name and (images := preset_of(engine).images) is not None:
        return "the engine", {"images": images}
    if preset.images is not None:
        # A method about images: what an engine leaves out of chats would make another of it.
        return name, {"images": preset.images}
    own = preset.without
    if isinstance(own, tuple):  # one for each of its amateurs
        return name, {"without": list(own)}
    if "without" in engine:
        return "the engine", {"without": engine["without"]}
    return None if own is None else (name, {"without": own})


def describe(given: Mapping[str, Any]) -> tuple[AmateurSpec, ...]:
    """The amateurs of a request by its values; raises ColdError for what does not fit together.
    Amateurs with the same values share one ``source``.
    """
    preset = preset_of(given)
    counted_by, number = count(given)
    amateurs = []
    known: dict[tuple[str, str], Source] = {}
    for i in range(number):
        said = _of_one(given, None if counted_by is None else i)
        field, adapter = said.get("amateur", ("cold_amateur", None))
        if adapter == "":
            raise ColdError(field, adapter, "must be the name of a loaded adapter")
        prompt_field, source = "cold_amateur_prompt", None
        if (reads := _reads(said, _READERS)) is not None:
            name, prompt_field, value = reads
            key = name, str(value)
            if key not in known:
                known[key] = _READERS[name](prompt_field, value)
            source = known[key]
        _, weight = said.get("weights", ("", None))
        if weight is None and i < len(preset.weights):
            weight = preset.weights[i]
        amateurs.append(AmateurSpec(field, prompt_field, adapter, source, weight))
    each = "what each reads in cold_without or cold_part"
    check_preset(
        ("cold_preset", given.get("preset")),
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


def count(given: Mapping[str, Any]) -> tuple[str | None, int]:
    """How many amateurs a request has, and which of its values decides it; (None, 1) without such a
    one. Nothing else is read.

    Raises:
        ColdError: two disagree, or it has none or too many.
    """
    preset = preset_of(given)
    lists = {name: len(value) for name, value in given.items() if isinstance(value, list)}
    # Lists of these two alone are one amateur's.
    counting = [name for name in ("weights", *lists) if name in lists.keys() - {"without", "part"}]
    if not counting and preset.weights and preset.own_prompt:
        counting, lists["preset"] = ["preset"], len(preset.weights)
    if not counting:
        return None, 1
    first, num = counting[0], lists[counting[0]]
    if not 1 <= num <= MAX_AMATEURS:
        problem = f"has {num} entries; a request has 1 to {MAX_AMATEURS} amateurs"
        raise ColdError(PREFIX + first, given[first], problem)
    for name, entries in lists.items():
        if entries != num:
            raise ColdError(
                PREFIX + name,
                given[name],
                f"has {entries} entries, and {PREFIX}{first} has {num}: lists have one for each "
                "amateur",
            )
    return first, num


def _of_one(given: Mapping[str, Any], i: int | None) -> dict[str, tuple[str, Any]]:
    """What is said of amateur ``i``, by name, each with what errors call it. None for the only one,
    whose values may be lists.
    """
    said = {}
    for name, value in given.items():
        field = PREFIX + name
        if i is not None and isinstance(value, list):
            field, value = f"{field}[{i}]", value[i]
            if value == "":
                continue
        said[name] = field, value
    return said


def _reads(
    said: Mapping[str, tuple[str, Any]], names: Iterable[str]
) -> tuple[str, str, Any] | None:
    """Which value of these names says what an amateur reads: its name, what errors call it, and it
    itself. None for the expert's prompt.
    """
    found = [(name, *said[name]) for name in names if name in said]
    for _, field, value in found[1:]:
        problem = f"the amateur has a prompt already, by {found[0][1]}; leave one of them out"
        raise ColdError(field, value, problem)
    return found[0] if found else None
