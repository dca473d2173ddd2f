# SPDX-License-Identifier: Apache-2.0
"""Prompts to explain, each with what it is contrasted with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_cold.errors import ColdError
from vllm_cold.settings.amateurs import CannotLeaveOut, Messages, Text, left_out
from vllm_cold.settings.arguments import ContrastSpec, parse_request_args
from vllm_cold.settings.table import PREFIX
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.contrast_args import (
    Content,
    as_chat,
    as_written,
    check_amateurs,
    merge,
    read_contrast,
    with_pictures,
)
from vllm_cold.tools.pictures import Picture, without_data
from vllm_cold.tools.rows import PromptRow, read_lines, read_row

MAX_PROMPTS = 50


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and what its answer is contrasted with."""

    reads: Content  # what the expert reads
    args: Mapping[str, Any]  # all ``cold_*`` keys, as a client would send them
    contrast: ContrastSpec  # the same, read


def make_question(
    prompt: Content,
    options: Mapping[str, Any],
    chat: bool,
    expert: str | None,
    base: str,
    row_args: Mapping[str, Any] | None = None,
    where: str = "",
) -> Question:
    """Put a prompt together with a command's options.

    Args:
        prompt: Text or messages.
        options: Flat arguments, for all prompts.
        chat: Whether a text goes through the chat template.
        expert: The name of the expert's adapter, None for the base model.
        base: The base model's name.
        row_args: Its own ``cold_*`` keys.
        where: The file and the line; "" for the command line.

    Raises:
        ToolError: what its amateurs read contradicts itself, does not fit the prompt, or is what
            the expert reads; it names what the user has written (``as_written``).
    """
    reads, row_args = as_chat(prompt) if chat else prompt, row_args or {}
    of_preset: dict[str, Any] = {}
    try:
        args = merge(options, row_args)
        default = left_out(parse_request_args(args).given, {})
        if isinstance(reads, Messages) and default is not None:  # as on a server
            of_preset = {PREFIX + name: value for name, value in default[1].items()}
        args |= of_preset
        contrast = read_contrast(args)
        check_amateurs(where or "--prompt", reads, contrast.amateurs, expert, base)
    except ColdError as error:
        message = as_written(error, row_args)
        if isinstance(error, CannotLeaveOut) and of_preset:
            message = (
                f"--preset={args[PREFIX + 'preset']}: leaves {error.value} out of a chat, and "
                f"{error.problem}; add one, or name with --without what the amateur does not read"
            )
        raise ToolError(without_data(f"{where}: {message}" if where else message)) from error
    return Question(reads, args, contrast)


def read_prompts(
    path: Path, pictures: Sequence[Picture], question: Callable[..., Question]
) -> list[Question]:
    """Read the prompts of a file: one a line, or in a .jsonl file the ``prompt`` or ``messages`` of
    each object, with its pictures and its ``cold_*`` keys.

    Args:
        path: The file.
        pictures: For prompts without pictures of their own.
        question: ``make_question`` with what is the same for all.

    Raises:
        ToolError: names the file and the line.
    """
    questions = []
    for number, line in read_lines(path, f"--prompts={path}"):
        where = f"--prompts={path}: line {number}"
        if path.suffix != ".jsonl":
            questions.append(question(with_pictures(Text(line), pictures), where=where))
            continue
        try:
            row, row_args = read_row(PromptRow, line)
            prompt = row.read(path.parent, pictures)
        except (ValueError, ToolError) as error:
            raise ToolError(f"{where}: {without_data(str(error))}") from error
        questions.append(question(prompt, row_args=row_args, where=where))
    if not questions:
        raise ToolError(f"--prompts={path}: holds no prompt; put one on each line")
    if len(questions) > MAX_PROMPTS:
        raise ToolError(
            f"--prompts={path}: holds {len(questions)} prompts; one page takes up to "
            f"{MAX_PROMPTS}: split the file"
        )
    return questions
