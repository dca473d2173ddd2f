# SPDX-License-Identifier: Apache-2.0
"""What ``vllm-cold explain`` does with its options."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner

from vllm_cold.method.settings import KNOBS, PREFIX
from vllm_cold.tools.adapters import read_adapters
from vllm_cold.tools.contrast import check_unicode, option_args, refuse_equal
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import collect, page, terminal
from vllm_cold.tools.explain.methods import Method, Methods, read_methods
from vllm_cold.tools.explain.prompts import Asked, Row, ask, read_prompts
from vllm_cold.tools.explain.trace import COLD_NAME, STACKED
from vllm_cold.tools.server import check_options

if TYPE_CHECKING:
    from vllm_cold.tools.connections import Connections
    from vllm_cold.tools.explain.server import ServerSource

# What only an engine in this process can be asked; None: not given.
ENGINE_OPTIONS = ("dtype", "max_model_len", "gpu_memory_utilization", "enforce_eager")


def read_rows(options: argparse.Namespace) -> list[Row]:
    """The prompts as they are given.

    Raises:
        ToolError: names the option, or the file and the line.
    """
    if options.prompt == "":
        raise ToolError("--prompt: is empty")
    check_unicode("--prompt", options.prompt or "")
    return [Row(options.prompt, {})] if options.prompts is None else read_prompts(options.prompts)


def methods_of(options: argparse.Namespace) -> Methods:
    """What stands side by side; one method, above greedy decoding, if nobody says."""
    if options.method is None:
        return Methods((Method(COLD_NAME),), STACKED)
    if options.preset is not None:
        raise ToolError(f"--preset={options.preset}: --method names presets; leave one of them out")
    return read_methods(options.method)


def ask_all(
    options: argparse.Namespace, rows: Sequence[Row] | None = None, method: Method | None = None
) -> list[Asked]:
    """The prompts with what a method contrasts them with.

    Args:
        options: The options.
        rows: The prompts; those of the options if they are left out.
        method: The options' own if it is left out.

    Raises:
        ToolError: names the option, or the file and the line.
    """
    rows = read_rows(options) if rows is None else rows
    named: dict[str, str] = {}
    if options.url is None and (paths := amateur_paths(options)):
        adapters = read_adapters(options.adapter, paths)[-len(paths) :]
        named = {path: one.name for path, one in zip(paths, adapters, strict=True)}
    args = option_args(options, named)
    for name in (*KNOBS, "preset"):
        if (value := getattr(options, name)) is not None:
            args[PREFIX + name] = value
    args |= {} if method is None else method.args
    asked = [ask(row, args, options.chat) for row in rows]
    for one in asked:
        for amateur in one.contrast.amateurs:
            same = amateur.adapter in (None, options.model)
            if options.adapter is None and amateur.source is None and same:
                refuse_equal(one.row.where or "--prompt")
    return asked


def amateur_paths(options: argparse.Namespace) -> list[str]:
    """The amateurs' adapters, without the base model and those that have none of their own."""
    return [text for text in options.amateur or () if text not in ("", options.model)]


def check_page(path: Path) -> None:
    """Refuse a page that cannot be written, before an engine is started for it."""
    if not path.absolute().parent.is_dir():
        raise ToolError(f"--html={path}: no such folder; make it first")
    # What is made is what a link leads to; the link itself is the user's.
    target = Path(os.path.realpath(path))
    existed = target.exists()
    try:
        target.open("a").close()
        if not existed:
            target.unlink()
    except OSError as error:
        raise ToolError(
            f"--html={path}: cannot be written ({error.strerror}); name another file"
        ) from error


def open_server(
    options: argparse.Namespace, connections: Connections | None = None
) -> ServerSource:
    """The server that ``--url`` names."""
    from vllm_cold.tools.explain.server import ServerSource

    return ServerSource(
        options.url,
        options.adapter,
        amateur_paths(options),
        options.model,
        options.api_key,
        options.insecure_http,
        connections,
    )


def open_source(options: argparse.Namespace) -> Any:
    """The engine or the server that the options name."""
    if options.url is not None:
        return open_server(options)
    if options.model is None:
        raise ToolError("--model is missing: name the base model, or a server with --url")
    from vllm_cold.tools.explain.offline import OfflineSource

    engine = {name: getattr(options, name) for name in ENGINE_OPTIONS}
    return OfflineSource(options.model, options.adapter, amateur_paths(options), **engine)


def check_numbers(options: argparse.Namespace) -> None:
    """Refuse lengths that are out of range."""
    for name in ("max_tokens", "candidates"):
        if getattr(options, name) < 1:
            raise ToolError(f"--{name.replace('_', '-')}={getattr(options, name)}: must be >= 1")
    if options.candidates > collect.FIRST_TOP:
        raise ToolError(f"--candidates={options.candidates}: at most {collect.FIRST_TOP}")


def run(options: argparse.Namespace) -> int:
    """Explain; returns the exit status."""
    check_options(options, ENGINE_OPTIONS)
    check_numbers(options)
    rows, methods = read_rows(options), methods_of(options)
    asked = {one.name: ask_all(options, rows, one) for one in methods.contrasting}
    check_page(options.html)

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
        source = open_source(options)
        try:
            reports = collect.compare(
                source,
                asked,
                max_tokens=options.max_tokens,
                listed=options.candidates,
                progress=lambda text: status.update(text=text),
            )
        finally:
            source.close()
    try:
        options.html.write_text(page.render(*reports, columns=methods.columns), encoding="utf-8")
    except OSError as error:
        raise ToolError(f"--html={options.html}: cannot be written: {error}") from error
    console = Console(highlight=False)
    for report in reports:
        if len(reports) > 1:
            console.rule(f"CoLD: {report.name}", characters="=")
        terminal.show(console, report, options.full)
    console.print(f"page: {options.html}", markup=False, soft_wrap=True)
    return 0
