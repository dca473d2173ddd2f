# SPDX-License-Identifier: Apache-2.0
"""What ``vllm-cold explain`` does with its options."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner

from vllm_cold.method.amateurs import read_prompt
from vllm_cold.method.settings import KNOBS, PREFIX, ColdError
from vllm_cold.tools.adapters import read_adapters
from vllm_cold.tools.contrast import option_args, refuse_equal
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import collect, page, terminal
from vllm_cold.tools.explain.prompts import (
    DEFAULT,
    Asked,
    Methods,
    Row,
    ask,
    read_methods,
    read_prompts,
)
from vllm_cold.tools.explain.server import ServerSource
from vllm_cold.tools.explain.source import Source
from vllm_cold.tools.explain.trace import Report
from vllm_cold.tools.interrupts import kept_interrupts
from vllm_cold.tools.server import Server, check_options

# What only an engine in this process can be asked; None: not given.
ENGINE_OPTIONS = ("dtype", "max_model_len", "gpu_memory_utilization", "enforce_eager")


def check_length(options: argparse.Namespace) -> None:
    """Refuse answers without tokens."""
    if options.max_tokens < 1:
        raise ToolError(f"--max-tokens={options.max_tokens}: must be >= 1")


def methods_of(options: argparse.Namespace) -> Methods:
    """What stands side by side: one method and greedy decoding, if nobody says."""
    if options.method is None:
        return DEFAULT
    if options.preset is not None:
        raise ToolError(f"--preset={options.preset}: --method names presets; leave one of them out")
    return read_methods(options.method)


def ask_all(
    options: argparse.Namespace, methods: Methods, rows: Sequence[Row] | None = None
) -> dict[str, list[Asked]]:
    """The prompts with what each method contrasts them with, by its name.

    Args:
        options: The options.
        methods: See ``methods_of``.
        rows: The prompts; those of the options if they are left out.

    Raises:
        ToolError: names the option, or the file and the line.
    """
    if rows is None:
        if options.prompts is not None:
            rows = read_prompts(options.prompts)
        else:
            try:
                read_prompt("--prompt", options.prompt)
            except ColdError as error:
                raise ToolError(str(error)) from None
            rows = [Row(options.prompt, {})]
    named: dict[str, str] = {}
    if options.url is None and (paths := amateur_paths(options)):
        adapters = read_adapters(options.adapter, paths)[-len(paths) :]
        named = {path: one.name for path, one in zip(paths, adapters, strict=True)}
    common = option_args(options, named)
    for name in (*KNOBS, "preset"):
        if (value := getattr(options, name)) is not None:
            common[PREFIX + name] = value
    return {
        name: [_ask(row, {**common, **args}, options) for row in rows]
        for name, args in methods.args.items()
    }


def _ask(row: Row, args: Mapping[str, Any], options: argparse.Namespace) -> Asked:
    asked = ask(row, args, options.chat)
    for one in asked.contrast.amateurs:
        same = one.adapter in (None, options.model)
        if options.adapter is None and one.source is None and same:
            refuse_equal(row.where or "--prompt")
    return asked


def amateur_paths(options: argparse.Namespace) -> list[str]:
    """The amateurs' adapters, without the base model and those that have none of their own."""
    return [text for text in options.amateur or () if text not in ("", options.model)]


def check_page(path: Path) -> None:
    """Refuse a page that cannot be written, before an engine is started for it."""
    if not path.absolute().parent.is_dir():
        raise ToolError(f"--html={path}: no such folder; make it first")
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ToolError(f"--html={path}: cannot be written; name another file")


def open_server(options: argparse.Namespace) -> Server:
    """The server that ``--url`` names."""
    return Server(
        options.url,
        options.adapter,
        amateur_paths(options),
        options.model,
        options.api_key,
        options.insecure_http,
    )


def explain(options: argparse.Namespace, status: Spinner) -> Report:
    """Ask the engine or the server that the options name."""
    methods = methods_of(options)
    asked = ask_all(options, methods)
    check_page(options.html)

    async def ask(source: Source, client: AbstractAsyncContextManager[Any]) -> Report:
        async with client:
            return await collect.explain(
                source,
                asked,
                methods.columns,
                max_tokens=options.max_tokens,
                progress=lambda text: status.update(text=text),
            )

    # With kept_interrupts, as asyncio's own would wait for an engine.
    if options.url is not None:
        with closing(open_server(options)) as server, kept_interrupts():
            return asyncio.run(ask(ServerSource(server, server.expert), server.client))
    if options.model is None:
        raise ToolError("--model is missing: name the base model, or a server with --url")
    from vllm_cold.tools.explain.offline import OfflineSource

    engine = {name: getattr(options, name) for name in ENGINE_OPTIONS}
    source = OfflineSource(options.model, options.adapter, amateur_paths(options), **engine)
    with closing(source), kept_interrupts():
        return asyncio.run(ask(source, nullcontext()))


def run(options: argparse.Namespace) -> int:
    """Explain; returns the exit status."""
    check_options(options, ENGINE_OPTIONS)
    check_length(options)
    # On a file of its own, and without rich's hand on sys.stderr: while vLLM starts, nothing else
    # that is written there reaches the screen.
    status = Spinner("dots", "starting")
    with (
        os.fdopen(os.dup(2), "w") as stderr,
        Live(
            status,
            console=Console(file=stderr),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ),
    ):
        report = explain(options, status)
    try:
        options.html.write_text(page.render(report), encoding="utf-8")
    except OSError as error:
        raise ToolError(f"--html={options.html}: cannot be written: {error}") from error
    console = Console(highlight=False)
    terminal.show(console, report)
    console.print(f"page: {options.html}", markup=False, soft_wrap=True)
    return 0
