# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold explain`` from its options to its page."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from rich.console import Console

from vllm_cold.errors import ColdError
from vllm_cold.settings.amateurs import Text, read_prompt
from vllm_cold.settings.table import PREFIX, SETTINGS
from vllm_cold.tools.adapters import (
    ENGINE_OPTIONS,
    engine_arguments,
    read_adapter,
    read_adapters,
)
from vllm_cold.tools.contrast import option_args, refuse_equal, with_pictures
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import page, terminal
from vllm_cold.tools.explain.collect import explain
from vllm_cold.tools.explain.prompts import Question, Row, ask, read_prompts
from vllm_cold.tools.own_server import serving
from vllm_cold.tools.pictures import read_picture
from vllm_cold.tools.server import Server, check_options


def check(options: argparse.Namespace) -> None:
    """Refuse options that would be ignored, and answers without tokens."""
    check_options(options, tuple(ENGINE_OPTIONS))
    if options.max_tokens < 1:
        raise ToolError(f"--max-tokens={options.max_tokens}: must be >= 1")


def ask_all(options: argparse.Namespace, rows: Sequence[Row]) -> list[Question]:
    """The prompts with what the options contrast them with; ToolError names the option, or the file
    and the line.
    """
    named: dict[str, str] = {}
    if options.url is None:
        named = {path: read_adapter("--amateur", path).name for path in amateur_paths(options)}
    args = option_args(options, named)
    for name in (*SETTINGS, "preset"):
        if (value := getattr(options, name)) is not None:
            args[PREFIX + name] = value
    found = [ask(row, args, options.chat) for row in rows]
    for asked in found:
        for one in asked.contrast.amateurs:
            same = one.adapter in (None, options.model)
            if options.adapter is None and one.source is None and same:
                refuse_equal(asked.row.where or "--prompt")
    return found


def read_rows(options: argparse.Namespace) -> list[Row]:
    """The prompts of the options; ToolError as ``ask_all``."""
    pictures = [read_picture(path, f"--image={path}") for path in options.image or ()]
    if options.prompts is not None:
        return read_prompts(options.prompts, pictures)
    try:
        read_prompt("--prompt", options.prompt)
    except ColdError as error:
        raise ToolError(str(error)) from None
    return [Row(with_pictures(Text(options.prompt), pictures), {})]


def amateur_paths(options: argparse.Namespace) -> list[str]:
    """The adapters that ``--amateur`` names."""
    return [text for text in options.amateur or () if text not in ("", options.model)]


def check_page(path: Path) -> None:
    """Refuse a page that cannot be written before an engine is started."""
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ToolError(f"--html={path}: cannot be written; name a file in a folder that is there")


@contextmanager
def opened_server(options: argparse.Namespace) -> Iterator[Server]:
    """The server of ``--url``, or one that is started for the command."""
    amateurs = amateur_paths(options)
    if options.url is not None:
        names = options.adapter, amateurs, options.model
        with closing(Server(options.url, *names, options.api_key, options.insecure_http)) as server:
            yield server
        return
    adapters = read_adapters(options.adapter, amateurs)
    given = {name: getattr(options, name) for name in ENGINE_OPTIONS}
    if options.gpu_memory_utilization is None:  # which it would win over
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB: a few prompts
    engine = {
        **engine_arguments(adapters, options.rules),
        "enforce_eager": True,
        "max_num_seqs": 64,  # a prompt with 32 amateurs has 33
        **{name: value for name, value in given.items() if value is not None},
    }
    expert = None if options.adapter is None else adapters[0].name
    with serving(options.model, adapters, expert, **engine) as server:
        yield server


def run(options: argparse.Namespace) -> int:
    """Explain; returns the exit status."""
    check(options)
    asked = ask_all(options, read_rows(options))
    check_page(options.html)
    with opened_server(options) as server:
        report = asyncio.run(explain(server, asked, options.max_tokens))
    try:
        options.html.write_text(page.render(report), encoding="utf-8")
    except OSError as error:
        raise ToolError(f"--html={options.html}: cannot be written: {error}") from error
    console = Console(highlight=False)
    terminal.show(console, report)
    console.print(f"page: {options.html}", markup=False, soft_wrap=True)
    return 0
