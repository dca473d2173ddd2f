# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold explain`` from its options to its page."""

import argparse
import asyncio
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from vllm_cold.errors import ColdError
from vllm_cold.settings.amateurs import Text, read_prompt
from vllm_cold.settings.table import PREFIX, SETTINGS
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.contrast_args import option_args, with_pictures
from vllm_cold.tools.explain import page, terminal
from vllm_cold.tools.explain.collect import explain
from vllm_cold.tools.explain.explain_prompts import Question, make_question, read_prompts
from vllm_cold.tools.models import Models, read_models
from vllm_cold.tools.pictures import read_picture


def all_args(options: argparse.Namespace, names: Mapping[str, str]) -> dict[str, Any]:
    """Return all that the options say of the contrast as flat arguments; as ``option_args``."""
    args = option_args(options, names)
    for name in (*SETTINGS, "preset"):
        if (value := getattr(options, name)) is not None:
            args[PREFIX + name] = value
    return args


def read_questions(options: argparse.Namespace, models: Models) -> list[Question]:
    """Read the prompts of the options, and what they are contrasted with; ToolError names the
    option, or the file and the line.
    """
    question = partial(
        make_question,
        options=all_args(options, models.amateur_names),
        chat=options.chat,
        expert=models.expert,
        base=models.model,
    )
    pictures = [read_picture(path, f"--image={path}") for path in options.image or ()]
    if options.prompts is not None:
        return read_prompts(options.prompts, pictures, question)
    try:
        read_prompt("--prompt", options.prompt)
    except ColdError as error:
        raise ToolError(str(error)) from None
    return [question(with_pictures(Text(options.prompt), pictures))]


def start(options: argparse.Namespace) -> Models:
    """Return what decodes; ToolError as ``read_models``."""
    if options.max_tokens < 1:
        raise ToolError(f"--max-tokens={options.max_tokens}: must be >= 1")
    if options.url is None and options.gpu_memory_utilization is None:  # which it would win over
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB: a few prompts
    # A prompt with 32 amateurs has 33 streams.
    return read_models(options, enforce_eager=True, max_num_seqs=64)


def run(options: argparse.Namespace) -> int:
    """Explain; return the exit status."""
    models = start(options)
    questions = read_questions(options, models)
    path: Path = options.html
    # Before an engine is started.
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ToolError(f"--html={path}: cannot be written; name a file in a folder that is there")
    with models.open() as server:
        report = asyncio.run(explain(server, questions, options.max_tokens))
    try:
        path.write_text(page.render(report), encoding="utf-8")
    except OSError as error:
        raise ToolError(f"--html={path}: cannot be written: {error}") from error
    console = Console(highlight=False)
    terminal.show(console, report)
    console.print(f"page: {path}", markup=False, soft_wrap=True)
    return 0
