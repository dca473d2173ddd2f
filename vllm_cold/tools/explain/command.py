# SPDX-License-Identifier: Apache-2.0
"""What ``vllm-cold explain`` does with its options."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from vllm_cold.method.settings import KNOBS, ColdError, ColdSettings
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import collect, page, terminal

MAX_PROMPTS = 50
# What only an engine in this process, or only a server, can be asked; None and False: not given.
ENGINE_OPTIONS = ("dtype", "max_model_len", "gpu_memory_utilization", "enforce_eager")
SERVER_OPTIONS = ("api_key", "insecure_http")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: one a line, or in a .jsonl file the ``prompt`` of each object.

    Raises:
        ToolError: names the file and the line.
    """
    try:
        # Not splitlines(): JSON strings may hold other line separators, such as U+2028.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ToolError(f"--prompts={path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ToolError(f"--prompts={path}: is no UTF-8 text: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            found.append(line)
            continue
        try:
            value: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ToolError(f"--prompts={path}: line {number} is no JSON: {error}") from error
        prompt = value.get("prompt") if isinstance(value, dict) else None
        if not isinstance(prompt, str) or not prompt:
            raise ToolError(
                f'--prompts={path}: line {number} must be an object with the text "prompt"'
            )
        if not is_unicode(prompt):
            raise ToolError(
                f"--prompts={path}: line {number} has half a surrogate pair, which is no "
                "character; tokenizers take whole ones only"
            )
        found.append(prompt)
    if not found:
        raise ToolError(f"--prompts={path}: holds no prompt; put one on each line")
    if len(found) > MAX_PROMPTS:
        raise ToolError(
            f"--prompts={path}: holds {len(found)} prompts; one page takes up to {MAX_PROMPTS}: "
            "split the file"
        )
    return found


def is_unicode(text: str) -> bool:
    """Whether text has no lone surrogates, as JSON escapes and bytes of a shell can make them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_settings(options: argparse.Namespace) -> ColdSettings:
    """CoLD's settings from the options, with ToolError for what is out of range."""
    try:
        return ColdSettings(**{name: getattr(options, name) for name in KNOBS})
    except ColdError as error:
        option = "--" + error.field.replace("_", "-")
        raise ToolError(str(error).replace(error.field, option, 1)) from error


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


def check_options(options: argparse.Namespace) -> None:
    """Refuse what would be ignored: an engine's options with --url, a server's without."""
    useless = SERVER_OPTIONS if options.url is None else ENGINE_OPTIONS
    for name in useless:
        value = getattr(options, name)
        if value is None or (value is False and name in SERVER_OPTIONS):
            continue
        option = "--" + ("no-" if value is False else "") + name.replace("_", "-")
        if options.url is None:
            raise ToolError(f"{option}: is for a server; add --url, or leave it out")
        raise ToolError(
            f"{option}: is for an engine in this process, and --url asks a server that is running; "
            "leave one of them out"
        )


def open_source(options: argparse.Namespace) -> Any:
    """The engine or the server that the options name."""
    if options.url is not None:
        from vllm_cold.tools.explain.server import ServerSource

        return ServerSource(
            options.url,
            options.adapter,
            options.amateur,
            options.model,
            options.api_key,
            options.insecure_http,
        )
    if options.model is None:
        raise ToolError("--model is missing: name the base model, or a server with --url")
    from vllm_cold.tools.explain.offline import OfflineSource

    engine = {name: getattr(options, name) for name in ENGINE_OPTIONS}
    return OfflineSource(options.model, options.adapter, options.amateur, **engine)


def run(options: argparse.Namespace) -> int:
    """Explain; returns the exit status."""
    check_options(options)
    settings = check_settings(options)
    for name in ("max_tokens", "candidates"):
        if getattr(options, name) < 1:
            raise ToolError(f"--{name.replace('_', '-')}={getattr(options, name)}: must be >= 1")
    if options.candidates > collect.FIRST_TOP:
        raise ToolError(f"--candidates={options.candidates}: at most {collect.FIRST_TOP}")
    if options.prompt == "":
        raise ToolError("--prompt: is empty")
    if options.prompt is not None and not is_unicode(options.prompt):
        raise ToolError("--prompt: is no UTF-8 text; set the terminal's encoding to UTF-8")
    prompts = [options.prompt] if options.prompt is not None else read_prompts(options.prompts)
    check_page(options.html)

    # On a file of its own: while vLLM starts, nothing that is written to stderr reaches the screen.
    with (
        os.fdopen(os.dup(2), "w") as stderr,
        Console(file=stderr).status("starting") as status,
    ):
        source = open_source(options)
        try:
            report = collect.explain(
                source,
                prompts,
                settings,
                chat=options.chat,
                max_tokens=options.max_tokens,
                listed=options.candidates,
                progress=status.update,
            )
        finally:
            source.close()
    try:
        options.html.write_text(page.render(report), encoding="utf-8")
    except OSError as error:
        raise ToolError(f"--html={options.html}: cannot be written: {error}") from error
    console = Console(highlight=False)
    terminal.show(console, report, options.full)
    console.print(f"page: {options.html}", markup=False, soft_wrap=True)
    return 0
