# SPDX-License-Identifier: Apache-2.0
"""A ``vllm serve`` that a command starts for itself (``--model``), on this machine alone."""

import ctypes
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, NoReturn

import httpx
from rich.console import Console
from rich.text import Text

from vllm_cold.tools.adapters import Adapter, read_model
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.server import Server

_HOST = "127.0.0.1"
_LOG_LINES = 100  # an engine's error may stand far above its server's
_PATIENCE = 20.0  # seconds until a server that does not end is killed
# pydantic writes an error's reason into a line of its own.
_ERROR = re.compile(r"Value error, (?P<of_pydantic>.+?)(?: \[type=|$)|\b(?:\w*Error|error): .+")
# Of a line that only refers to an error above it.
_AFTER = "Engine core initialization failed"
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def words_of(arguments: Mapping[str, Any]) -> list[str]:
    """Return arguments of ``vllm.LLM`` as options of ``vllm serve``."""
    words = []
    for name, value in arguments.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        elif value not in (None, []):  # no option of vLLM's parser says these
            # A list is one option with several words.
            several = value if isinstance(value, list) else [value]
            words += [option, *(v if isinstance(v, str) else json.dumps(v) for v in several)]
    return words


@contextmanager
def serving(
    model: str, adapters: Sequence[Adapter] = (), expert: str | None = None, **engine: Any
) -> Iterator[Server]:
    """Serve a model. The server has ended when this returns, be it by an error or Ctrl-C; if the
    command is killed, Linux has it end itself.

    Args:
        model: A folder or hub name; also what the base model is called.
        adapters: Those that requests can name.
        expert: The name of the expert's adapter, None for none.
        engine: More arguments of ``vllm.LLM``: ``engine_arguments`` and others.

    Raises:
        ToolError: the model is not there, or the server does not start; then the end of its log is
            shown.
    """
    arguments = {**engine, "served_model_name": model}
    if adapters:
        arguments["lora_modules"] = [adapter.module for adapter in adapters]
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port = probe.getsockname()[1]
    key = secrets.token_urlsafe()  # others on this machine are not served
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), _HOST)))
    print("starting vllm serve ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.cli.main", "serve", read_model(model)]
    command += ["--host", _HOST, "--port", str(port), *words_of(arguments)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(key),
            start_new_session=True,  # Ctrl-C is the command's
            preexec_fn=lambda: ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
        )
        url = f"http://{_HOST}:{port}"
        try:
            _wait(process, url, log, model)
            with closing(Server(url, expert, model, key, started=model)) as server:
                try:
                    yield server
                except ToolError:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(2)  # an engine that dies answers first
                    if process.poll() is not None:
                        _fail(process, log, model, "ended")
                    raise
        finally:
            _end(process)


def _environment(key: str) -> dict[str, str]:
    """Return the server's environment: this one, with the modules that are importable here."""
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    defaults = {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**defaults, **os.environ, "VLLM_API_KEY": key, "PYTHONPATH": paths}


def _wait(process: subprocess.Popen[Any], url: str, log: Any, model: str) -> None:
    """Wait until it serves; meanwhile a terminal shows the time and its log's last line."""
    start = time.monotonic()
    with (
        Console(stderr=True).status("vllm serve starts") as status,
        httpx.Client(trust_env=False, timeout=5) as client,
    ):
        while process.poll() is None:
            try:
                if client.get(f"{url}/health").is_success:
                    return
            except httpx.HTTPError:
                pass  # not yet
            last_line = (_lines(log) or [""])[-1]
            seconds = time.monotonic() - start
            status.update(Text(f"vllm serve starts, {seconds:.0f} s  {last_line:.100}"))
            time.sleep(0.2)
    _fail(process, log, model, "did not start")


def _lines(log: Any) -> list[str]:
    # Not by its position, which is the server's, too.
    text = os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()]


def _fail(process: subprocess.Popen[Any], log: Any, model: str, what: str) -> NoReturn:
    lines = _lines(log)
    print(*lines[-_LOG_LINES:], sep="\n", file=sys.stderr)
    errors = [_ERROR.search(line) for line in lines if _AFTER not in line]
    reasons = [match["of_pydantic"] or match[0] for match in errors if match is not None]
    reason = reasons[-1] if reasons else f"status {process.returncode}; the end of its log is above"
    raise ToolError(f"--model={model!r}: vllm serve {what}: {reason}")


def _end(process: subprocess.Popen[Any]) -> None:
    """End the server and all processes that it started."""
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        pass  # it is killed
    finally:
        with suppress(ProcessLookupError):  # where nothing is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
