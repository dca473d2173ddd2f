# SPDX-License-Identifier: Apache-2.0
"""Rows of a JSONL file: a prompt with its pictures, and with its ``cold_*`` keys what it is
contrasted with.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from vllm_cold.settings.sources import Messages, Text
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.contrast_args import Content, row_args, with_pictures
from vllm_cold.tools.pictures import Picture, read_picture

Whole = Annotated[str, Field(min_length=1)]


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    role: Whole
    content: str


class PromptRow(BaseModel):
    """A row's prompt, maybe with files of pictures, from the folder of the rows' file.
    Other fields may stand there: files are often made for something else, too.
    """

    model_config = ConfigDict(strict=True, extra="allow")
    prompt: Whole | None = None
    messages: Annotated[list[_Message], Field(min_length=1)] | None = None
    image: Whole | None = None
    images: list[Whole] | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError('needs either "prompt" or "messages"')
        if self.image is not None and self.images is not None:
            raise ValueError('has both "image" and "images"; leave one of them out')
        return self

    def read(self, folder: Path, pictures: Sequence[Picture] = ()) -> Content:
        """Read the prompt; with ``pictures`` if the row names none.

        Raises:
            ToolError: a picture cannot be read.
            ValueError: it has no place in the messages.
        """
        reads: Content = Messages([message.model_dump() for message in self.messages or ()])
        if self.prompt is not None:
            reads = Text(self.prompt)
        key, names = ("image", [self.image]) if self.image else ("images", self.images)
        if names is not None:
            pictures = [read_picture(folder / name, f"{key}={name!r}") for name in names]
        return with_pictures(reads, pictures)


def read_lines(path: Path, where: str) -> list[tuple[int, str]]:
    """Read the lines of a UTF-8 file that are not blank, with their numbers from 1; a ToolError
    calls the file ``where``.
    """
    try:
        # Not splitlines(): JSON strings may hold other line separators, such as U+2028.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ToolError(f"{where}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ToolError(f"{where}: is no UTF-8 text (byte {error.start})") from error
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


G = TypeVar("G", bound=PromptRow)


def read_row(form: type[G], line: str) -> tuple[G, dict[str, Any]]:
    """Read a line of JSON, and its ``cold_*`` keys as flat arguments; ValueError for a line that is
    not of this form.
    """
    try:
        row = form.model_validate_json(line)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        raise ValueError("; ".join(map(_message, problems))) from None
    return row, row_args(row.model_extra or {})


def _message(problem: ErrorDetails) -> str:
    # Of a type that is constrained, pydantic puts that in, too.
    where = ".".join(str(key) for key in problem["loc"] if not str(key).startswith("constrained"))
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
