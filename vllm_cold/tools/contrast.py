# SPDX-License-Identifier: Apache-2.0
"""What a prompt of a file or a command line is contrasted with, and what each stream of it reads.

A row's ``cold_*`` keys are those of ``vllm_xargs``: it is what a client would send. A command's
options are their defaults. Imports no vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from vllm_cold.method.amateurs import Described, Messages, Part, Text, Tokens, describe
from vllm_cold.method.arguments import EngineDefaults, parse_request_args
from vllm_cold.method.settings import PREFIX, ColdError, ColdSettings, Weight, is_known, is_ours
from vllm_cold.tools.errors import ToolError

Prompt = str | tuple[tuple[str, str], ...]
"""A text, or chat messages (role and content)."""

# What may differ from prompt to prompt: what the amateur reads.
ROW_KEYS = tuple(
    PREFIX + name for name in ("amateur_prompt", "amateur_messages", "without", "part")
)


@dataclass(frozen=True, slots=True)
class Contrast:
    """What a request is decoded with.

    Attributes:
        settings: The method's knobs.
        amateurs: One or more.
        weights: Theirs.
    """

    settings: ColdSettings
    amateurs: tuple[Described, ...]
    weights: tuple[Weight, ...]


def row_args(row: Mapping[str, Any]) -> dict[str, Any]:
    """The ``cold_*`` keys of a row, as flat arguments.

    Args:
        row: An object of a JSONL file; messages may stand there as JSON, not as text with JSON.

    Raises:
        ColdError: for one that is the same for all rows, or unknown.
    """
    args: dict[str, Any] = {}
    for key, value in row.items():
        if value is None or not (is_known(key) or is_ours(key)):
            continue
        if key not in ROW_KEYS:
            raise ColdError(key, value, f"a row may have {', '.join(ROW_KEYS)}")
        is_json = key == PREFIX + "amateur_messages" and isinstance(value, list)
        if is_json and not all(isinstance(one, str) for one in value):
            value = json.dumps(value)
        args[key] = value
    return args


def merge(defaults: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Flat arguments of a row on top of those of the command's options: where the row says what
    its amateur reads, it is that alone.
    """
    if row.keys() & set(ROW_KEYS):
        defaults = {key: value for key, value in defaults.items() if key not in ROW_KEYS}
    return {**defaults, **row}


def read_contrast(args: Mapping[str, Any]) -> Contrast:
    """What flat arguments ask for, on an engine without defaults of its own.

    Raises:
        ColdError: what they say does not fit together, or is out of range.
    """
    request = parse_request_args(args)
    amateurs = describe(request.contrast)
    settings, weights = request.settings(EngineDefaults(), [one.weight for one in amateurs])
    return Contrast(settings, amateurs, weights)


def adapter_of(one: Described, expert: str | None, base: str, loaded: Sequence[str]) -> str | None:
    """The name of an amateur's adapter, None for the base model: by default the expert's where it
    has another prompt, else none.

    Args:
        one: The amateur.
        expert: The name of the expert's adapter, if it has one.
        base: What the base model is called.
        loaded: The names of all adapters.

    Raises:
        ColdError: no adapter has the name.
    """
    if one.adapter is None:
        return None if one.source is None else expert
    if one.adapter in loaded:
        return one.adapter
    if one.adapter == base:
        return None
    names = ", ".join((*loaded, base))
    raise ColdError(one.field, one.adapter, f"no such adapter (there are: {names})")


Content = str | list[int] | list[dict[str, Any]]
"""What a stream reads, before it is token ids: a text, ids, or messages for the chat template."""


def messages_of(prompt: Prompt, chat: bool = False) -> list[dict[str, Any]] | None:
    """The messages of a prompt, None for one that is a text.

    Args:
        prompt: The expert's.
        chat: Whether a text goes through the chat template as a user's message.
    """
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}] if chat else None
    return [{"role": role, "content": content} for role, content in prompt]


def amateur_reads(prompt: Prompt, one: Described, chat: bool = False) -> Content | None:
    """What an amateur reads; None for the expert's prompt.

    Args:
        prompt: The expert's.
        one: The amateur.
        chat: As for ``messages_of``.

    Raises:
        ColdError: it cannot be made of this prompt.
    """
    field, messages = one.prompt_field, messages_of(prompt, chat)
    match source := one.source:
        case None:
            return None
        case Text() | Tokens() | Messages():
            return source.value
        case Part():
            if not isinstance(prompt, str) or messages is not None:
                raise ColdError(
                    field,
                    source.value,
                    "is for a prompt that is one text; leave messages of a chat out with "
                    "cold_without",
                )
            return source.of(field, prompt)
    if messages is None:
        raise ColdError(
            field,
            source.value,
            "is for chats, whose prompt is messages; leave a part of a text out with cold_part",
        )
    return source.of(field, messages)


class Reader:
    """Makes token ids of what the streams read, as a server does.

    Args:
        tokenizer: The model's, of transformers.
        chat: Whether a text goes through the chat template as a user's message.
    """

    def __init__(self, tokenizer: Any, chat: bool = False) -> None:
        self._tokenizer = tokenizer
        self._chat = chat

    def expert(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt.

        Raises:
            ToolError: the model has no chat template, or it does not take the messages.
        """
        messages = messages_of(prompt, self._chat)
        if messages is None:
            assert isinstance(prompt, str)
            return self.encode(prompt)
        return self.template(messages)

    def amateur(self, prompt: Prompt, one: Described) -> list[int] | None:
        """The ids of what an amateur reads; None for the expert's.

        Raises:
            ColdError: it cannot be made of this prompt.
            ToolError: see ``expert``.
        """
        content = amateur_reads(prompt, one, self._chat)
        if content is None:
            return None
        if isinstance(content, str):
            return self.encode(content)
        if isinstance(one.source, Tokens):
            return list(one.source.value)
        return self.template(cast(list[dict[str, Any]], content))

    def encode(self, text: str) -> list[int]:
        """The ids of a text, as of a completion's prompt."""
        return list(self._tokenizer.encode(text))

    def template(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids of messages.

        Raises:
            ToolError: see ``expert``.
        """
        shown = str(messages[0].get("content"))[:40]
        if not self._tokenizer.chat_template:
            raise ToolError("this model has no chat template; give prompts as text, without --chat")
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        # Templates are programs of the model's authors and raise what they like.
        except Exception as error:
            raise ToolError(
                f"the model's chat template does not take the chat that begins {shown!r} ({error})"
            ) from error
        # The template has put the special tokens in already.
        return list(self._tokenizer.encode(text, add_special_tokens=False))
