# SPDX-License-Identifier: Apache-2.0
"""What an amateur reads in place of the expert's prompt. Imports no vLLM.

It reads a text, token ids, messages or a prompt with media that the request brings along, or what
the expert reads: ``Without`` some of the messages or media, without a ``Part``, or with
``Distorted`` images. A part is named by positions, which no text of a user can imitate.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import msgspec

from vllm_cold.errors import ColdError
from vllm_cold.settings.images import Distorted

_T = TypeVar("_T", str, list[int])

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


# Of a source, str() is for clients that ask what an amateur reads; errors show its ``value``.


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


class Media(msgspec.Struct, frozen=True, eq=False):
    """A prompt with media next to its text or token ids. Equal to another only if it is of the very
    same mapping: comparing pictures takes long.

    Attributes:
        prompt: A mapping with ``prompt`` or ``prompt_token_ids``, and ``multi_modal_data``.
    """

    prompt: Mapping[str, Any]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Media) and other.prompt is self.prompt

    def __str__(self) -> str:
        return "a prompt with media"

    @property
    def value(self) -> Any:
        return self.prompt.get("prompt") or self.prompt.get("prompt_token_ids")


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
        """Return what is left of the messages.

        Args:
            field: What an error names.
            messages: The conversation; None for a prompt that is no conversation.
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
        is_changed = False
        # Each once, however often it is listed: this runs on a server's event loop.
        for item in dict.fromkeys(self.items):
            reason = _NO_SUCH
            if item in MEDIA:
                kind = str(item)
                indices = [i for i, message in enumerate(kept) if has_media(message, kind)]
                reason = f"the conversation has no {item}"
                for i in indices:
                    parts = [part for part in kept[i]["content"] if not is_media(part, MEDIA[kind])]
                    kept[i] = {**kept[i], "content": parts or ""}
                is_changed = is_changed or bool(indices)
            elif isinstance(item, str):
                indices = [i for role in _ROLES.get(item, (item,)) for i in of_role.get(role, ())]
                gone.update(indices)
            else:
                indices = [item] if item < len(messages) else []
                reason = f"the conversation has the messages 0 to {len(messages) - 1}"
                gone.update(indices)
            if not indices and not lenient:
                raise CannotLeaveOut(field, item, reason)
        if not (gone or is_changed):
            raise CannotLeaveOut(field, self.value, _NO_SUCH)
        if len(gone) == len(messages):
            raise CannotLeaveOut(field, self.value, "leaves no message; one must be left")
        return [message for i, message in enumerate(kept) if i not in gone]


def has_media(message: Any, kind: str) -> bool:
    """Whether a message has media of this kind, "images", "videos" or "audios"."""
    return bool(media_parts(message, MEDIA[kind]))


def media_parts(message: Any, names: frozenset[str] = _ALL_MEDIA) -> list[Mapping[str, Any]]:
    """Return a message's parts that are media of these types."""
    content = message.get("content") if isinstance(message, Mapping) else None
    return [p for p in content if is_media(p, names)] if isinstance(content, list) else []


def is_media(part: Any, names: frozenset[str] = _ALL_MEDIA) -> bool:
    """Whether vLLM takes a part for media of these types: by its type, or by its keys where it has
    no type, or a uuid.
    """
    if not isinstance(part, (dict, Mapping)):
        return False
    if (kind := part.get("type")) is None or part.get("uuid") is not None:
        return bool(names & part.keys())
    return isinstance(kind, str) and kind in names


class WithoutText(msgspec.Struct, frozen=True):
    """The request's own prompt, or conversation, without a text where it first stands in it. What
    comes later, the amateur reads, as it may be somebody else's: who could have their own words
    left out would learn by it whether they are the text.
    """

    text: str

    def __str__(self) -> str:
        return "without a text"  # which may be confidential

    @property
    def value(self) -> str:
        return f"{len(self.text)} characters"

    def of(self, field: str, prompt: str | None) -> str:
        """Return a completion's prompt without the text.

        Raises:
            ColdError: the prompt is no text, does not have it, or has nothing else.
        """
        if prompt is None:
            problem = "is for chats and for prompts of one text; name positions with cold_part"
            raise ColdError(field, self.value, problem)
        if self.text not in prompt:
            raise ColdError(field, self.value, "the prompt has no such text")
        if not (left := self._cut(prompt)):
            raise ColdError(field, self.value, "leaves nothing of the prompt")
        return left

    def of_messages(self, field: str, messages: Sequence[Any]) -> list[Any]:
        """Return a conversation without the text.

        Raises:
            ColdError: no message has it.
        """
        for i, message in enumerate(messages):
            if (changed := self._without(message)) is not None:
                return [*messages[:i], changed, *messages[i + 1 :]]
        raise ColdError(field, self.value, "no message has such a text")

    def _without(self, message: Any) -> Any:
        """Return a message without the text, None if it does not have it."""
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, str):
            return {**message, "content": self._cut(content)} if self.text in content else None
        parts = content if isinstance(content, list) else []
        for i, part in enumerate(parts):
            text = part.get("text") if isinstance(part, Mapping) else None
            if isinstance(text, str) and self.text in text:
                changed = {**part, "text": self._cut(text)}
                return {**message, "content": [*parts[:i], changed, *parts[i + 1 :]]}
        return None

    def _cut(self, text: str) -> str:
        return text.replace(self.text, "", 1)


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
        """Return what is left of the prompt, which is None if it is neither text nor ids.

        Raises:
            ColdError: it is None, a part is out of range, or nothing is left.
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


Source = Text | TokenIds | Messages | Media | Distorted | Without | WithoutText | Part
