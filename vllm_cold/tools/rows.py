# SPDX-License-Identifier: Apache-2.0
"""Rows of a JSONL file: a prompt, and with its ``cold_*`` keys what it is contrasted with."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from vllm_cold.tools.contrast import Prompt, row_args


def _check_unicode(value: Any) -> Any:
    """A value as it is.

    Raises:
        ValueError: it is text with half a surrogate pair.
    """
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"has half a surrogate pair, {value[error.start]!r}, which is no character; "
                "tokenizers take whole ones only"
            ) from None
    return value


# Before pydantic looks at it, which takes such text for no string in some places only.
_Content = Annotated[str, BeforeValidator(_check_unicode)]
Whole = Annotated[str, StringConstraints(min_length=1), BeforeValidator(_check_unicode)]


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    role: Whole
    content: _Content


class Given(BaseModel):
    """A prompt as a row gives it. Other fields may stand there: files are often made for something
    else, too.

    Attributes:
        prompt: Text, or None.
        messages: A chat, where there is no text.
    """

    model_config = ConfigDict(strict=True, extra="ignore")
    prompt: Whole | None = None
    messages: Annotated[list[_Message], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> Given:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError('needs either "prompt" or "messages"')
        return self

    @property
    def read(self) -> Prompt:
        """Text or messages."""
        return self.prompt or tuple((one.role, one.content) for one in self.messages or ())


G = TypeVar("G", bound=Given)


def read_row(form: type[G], line: str) -> tuple[G, dict[str, Any], dict[str, Any]]:
    """Read a line.

    Args:
        form: What it must hold.
        line: JSON.

    Returns:
        What it holds, its ``cold_*`` keys as flat arguments, and all as JSON reads it.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not JSON (nested too deeply)") from None
    if not isinstance(raw, dict):
        raise ValueError('must be an object such as {"prompt": "..."}')
    try:
        row = form.model_validate(raw)
    except ValidationError as error:
        raise ValueError(_explain(error)) from None
    own = row_args(raw)
    for key in own:
        try:
            _check_unicode(json.dumps(raw[key], ensure_ascii=False))
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    return row, own, raw


def _explain(error: ValidationError) -> str:
    parts = []
    for item in error.errors(include_url=False, include_input=False):
        where = ".".join(str(key) for key in item["loc"] if not str(key).startswith("constrained"))
        message = item["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {message}" if where else message)
    return "; ".join(parts)
