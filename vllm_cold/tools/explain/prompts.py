# SPDX-License-Identifier: Apache-2.0
"""Prompts to explain, each with what it is contrasted with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_cold.errors import ColdError
from vllm_cold.settings.amateurs import CannotLeaveOut, Messages, Text, says_what
from vllm_cold.settings.arguments import parse_request_args
from vllm_cold.settings.presets import preset_of
from vllm_cold.settings.table import PREFIX
from vllm_cold.tools.contrast import (
    Content,
    Contrast,
    amateur_reads,
    as_chat,
    as_written,
    merge,
    read_contrast,
    with_pictures,
)
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.pictures import Picture, without_data
from vllm_cold.tools.rows import Given, read_lines, read_row

MAX_PROMPTS = 50


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt as it was given.

    Attributes:
        prompt: Text or messages.
        args: Its own ``cold_*`` keys.
        where: The file and the line, with which an error begins; "" for the command line.
    """

    prompt: Content
    args: Mapping[str, Any]
    where: str = ""

    def refusal(self, error: ColdError | str) -> ToolError:
        """An error about flat arguments; it names what the user has written (``as_written``)."""
        said = without_data(error if isinstance(error, str) else as_written(error, self.args))
        return ToolError(f"{self.where}: {said}" if self.where else said)


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and what its answer is contrasted with.

    Attributes:
        row: The prompt as it was given.
        reads: What the expert reads.
        args: All ``cold_*`` keys, as a client would send them.
        contrast: The same, read.
    """

    row: Row
    reads: Content
    args: Mapping[str, Any]
    contrast: Contrast


def ask(row: Row, options: Mapping[str, Any], chat: bool = False) -> Question:
    """Put a prompt together with a command's options.

    Args:
        row: The prompt.
        options: Flat arguments, for all prompts.
        chat: Whether a text goes through the chat template.

    Raises:
        ToolError: what its amateurs read contradicts itself, or does not fit the prompt.
    """
    reads = as_chat(row.prompt) if chat else row.prompt
    of_preset: dict[str, Any] = {}
    try:
        args = merge(options, row.args)
        if isinstance(reads, Messages):
            of_preset = _left_out(args)
        args |= of_preset
        contrast = read_contrast(args)
        for one in contrast.amateurs:
            amateur_reads(reads, one)
    except ColdError as error:
        if isinstance(error, CannotLeaveOut) and of_preset:
            raise row.refusal(
                f"--preset={args[PREFIX + 'preset']}: leaves {error.value} out of a chat, and "
                f"{error.problem}; add one, or name with --without what the amateur does not read"
            ) from error
        raise row.refusal(error) from error
    return Question(row, reads, args, contrast)


def _left_out(args: Mapping[str, Any]) -> dict[str, Any]:
    """What a preset leaves out of a chat by default, as on a server."""
    given = parse_request_args(args).given
    preset = preset_of(given)
    if says_what(given):
        return {}
    if preset.images is not None:
        return {PREFIX + "images": preset.images}
    own = preset.without
    return {} if own is None else {PREFIX + "without": own if isinstance(own, str) else list(own)}


def read_prompts(path: Path, pictures: Sequence[Picture] = ()) -> list[Row]:
    """The prompts of a file: one a line, or in a .jsonl file the ``prompt`` or the ``messages`` of
    each object, with its pictures and its ``cold_*`` keys.

    Args:
        path: The file.
        pictures: For prompts without pictures of their own.

    Raises:
        ToolError: names the file and the line.
    """
    found = []
    for number, line in read_lines(path, f"--prompts={path}"):
        where = f"--prompts={path}: line {number}"
        if path.suffix != ".jsonl":
            found.append(Row(with_pictures(Text(line), pictures), {}, where))
            continue
        try:
            given, args = read_row(Given, line)
            found.append(Row(given.read(path.parent, pictures), args, where))
        except ValueError as error:
            raise ToolError(f"{where}: {without_data(str(error))}") from error
    if not found:
        raise ToolError(f"--prompts={path}: holds no prompt; put one on each line")
    if len(found) > MAX_PROMPTS:
        raise ToolError(
            f"--prompts={path}: holds {len(found)} prompts; one page takes up to {MAX_PROMPTS}: "
            "split the file"
        )
    return found
