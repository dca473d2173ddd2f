# SPDX-License-Identifier: Apache-2.0
"""Prompts to explain, each with what it is contrasted with."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vllm_cold.errors import ColdError
from vllm_cold.settings.amateurs import ContrastSpec, default_omission
from vllm_cold.settings.arguments import ColdArgs, parse_request_args
from vllm_cold.settings.source_readers import read_prompt
from vllm_cold.settings.sources import CannotLeaveOut, Messages, Text
from vllm_cold.settings.table import PREFIX, SETTINGS
from vllm_cold.tools import contrast_args
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.contrast_args import Content, with_pictures
from vllm_cold.tools.models import Models
from vllm_cold.tools.pictures import read_picture, without_data
from vllm_cold.tools.rows import PromptRow, read_lines, read_row


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
    reads, row_args = contrast_args.as_chat(prompt) if chat else prompt, row_args or {}
    default = None
    try:
        args = contrast_args.merge(options, row_args)
        default = default_omission(parse_request_args(args), ColdArgs())
        if isinstance(reads, Messages) and default is not None:  # as on a server
            args[PREFIX + default.name] = default.value
        contrast = contrast_args.read_contrast(args)
        contrast_args.check_amateurs(where or "--prompt", reads, contrast.amateurs, expert, base)
    except ColdError as error:
        message = contrast_args.as_written(error, row_args)
        if isinstance(error, CannotLeaveOut) and default is not None:
            message = (
                f"--preset={args[PREFIX + 'preset']}: leaves {error.value} out of a chat, and "
                f"{error.problem}; add one, or name with --without what the amateur does not read"
            )
        raise ToolError(without_data(f"{where}: {message}" if where else message)) from error
    return Question(reads, args, contrast)


def read_questions(options: argparse.Namespace, models: Models) -> list[Question]:
    """Read the prompt of the options, or those of a file, one a line: a text, or in a .jsonl file
    an object, maybe with pictures and ``cold_*`` keys of its own.

    Raises:
        ToolError: names the option, or the file and the line.
    """
    args = contrast_args.option_args(options, models.amateur_names)
    for name in (*SETTINGS, "preset"):
        if (value := getattr(options, name)) is not None:
            if isinstance(value, list) and not value[1:]:
                [value] = value
            args[PREFIX + name] = value
    question = partial(
        make_question, options=args, chat=options.chat, expert=models.expert, base=models.model
    )
    pictures = [read_picture(path, f"--image={path}") for path in options.image or ()]
    path: Path | None = options.prompts
    if path is None:
        try:
            read_prompt("--prompt", options.prompt)
        except ColdError as error:
            raise ToolError(str(error)) from None
        return [question(with_pictures(Text(options.prompt), pictures))]
    questions = []
    for number, line in read_lines(path, f"--prompts={path}"):
        where = f"--prompts={path}: line {number}"
        row, row_args = PromptRow(prompt=line), dict[str, Any]()
        try:
            if path.suffix == ".jsonl":
                row, row_args = read_row(PromptRow, line)
            prompt = row.read(path.parent, pictures)
        except (ValueError, ToolError) as error:
            raise ToolError(f"{where}: {without_data(str(error))}") from error
        questions.append(question(prompt, row_args=row_args, where=where))
    if not questions:
        raise ToolError(f"--prompts={path}: holds no prompt; put one on each line")
    return questions
