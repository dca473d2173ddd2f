# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold explain --serve``: a page that asks a running server, and shows answers as they come.

The browser talks to this program alone: the server's key stays here.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Generator
from typing import Annotated, Any
from urllib.parse import urlsplit

import uvicorn
from anyio import to_thread
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from vllm_cold.method.presets import PRESETS
from vllm_cold.tools.address import is_loopback
from vllm_cold.tools.connections import Connections
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import page
from vllm_cold.tools.explain.command import (
    ENGINE_OPTIONS,
    ask_all,
    check_numbers,
    methods_of,
    open_server,
)
from vllm_cold.tools.explain.live import Live
from vllm_cold.tools.explain.methods import MOST, parts_of
from vllm_cold.tools.explain.prompts import Row
from vllm_cold.tools.explain.trace import GREEDY
from vllm_cold.tools.server import check_options

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_START = ("greedy", "cold", "")  # the methods of a page, if the command names none


class _Method(BaseModel):
    """A method as the page's form gives it; what is empty is the preset's."""

    model_config = ConfigDict(strict=True, extra="forbid")
    name: str
    alpha: str = ""
    beta: str = ""

    @property
    def text(self) -> str:
        """As ``--method`` has it."""
        values = {"alpha": self.alpha.strip(), "beta": self.beta.strip()}
        given = ",".join(f"{knob}={value}" for knob, value in values.items() if value)
        return f"{self.name}:{given}" if given else self.name


class _Form(BaseModel):
    """What the page asks for."""

    model_config = ConfigDict(strict=True, extra="forbid")
    prompt: str
    system: str = ""
    context: str = ""
    chat: bool = False
    adapter: str = ""
    without: str = ""
    methods: Annotated[list[_Method], Field(min_length=1, max_length=MOST)]
    max_tokens: int

    @property
    def row(self) -> Row:
        """The prompt; a chat where there is more than one text."""
        if not self.system and not self.context:
            return Row(self.prompt, {})
        texts = {"system": self.system, "tool": self.context, "user": self.prompt}
        return Row(tuple((role, text) for role, text in texts.items() if text), {})


def _with_form(options: argparse.Namespace, form: _Form) -> argparse.Namespace:
    """The command's options with what the form says."""
    if not form.prompt:
        raise ToolError("Prompt: is empty")
    found = copy.copy(options)
    found.adapter = form.adapter or None
    found.chat = form.chat
    found.without = [form.without] if form.without else None
    found.max_tokens = form.max_tokens
    found.method = [method.text for method in form.methods]
    found.preset = found.alpha = found.beta = None  # as the form has them now
    return found


def _lines(
    options: argparse.Namespace, body: bytes, connections: Connections | None = None
) -> Generator[str]:
    """What the page is told, each as a line of JSON; an error is the last."""
    try:
        try:
            form = _Form.model_validate_json(body)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise ToolError(f"{where or 'form'}: {error.errors()[0]['msg']}") from error
        given = _with_form(options, form)
        check_numbers(given)
        methods = methods_of(given)
        asked = {one.name: ask_all(given, [form.row], one)[0] for one in methods.contrasting}
        source = open_server(given, connections)
        try:
            live = Live(source, methods, asked, given.max_tokens, given.candidates)
            for event in live.events():
                yield json.dumps(event, allow_nan=False) + "\n"
        finally:
            source.close()
    except ToolError as error:
        yield json.dumps({"event": "error", "text": str(error)}) + "\n"


async def _in_thread(lines: Generator[str], connections: Connections) -> AsyncIterator[str]:
    """Lines that a thread waits for, until nobody reads them: the page is closed, or this program
    ends.
    """

    def close() -> None:
        with contextlib.suppress(ValueError):  # the other thread is in it
            lines.close()

    def read() -> str:
        line = next(lines, "")
        if connections.closed:
            close()
        return line

    try:
        while line := await to_thread.run_sync(read, abandon_on_cancel=True):
            yield line
    finally:
        connections.close()
        close()


class _Hosts(TrustedHostMiddleware):
    """Takes requests to addresses, and to the names that are given: another page can give this
    machine a name of its own, but no address.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            host = urlsplit(f"//{Headers(scope=scope).get('host', '')}").hostname
            ipaddress.ip_address(host or "")
        except ValueError:
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _names(host: str) -> list[str]:
    """By which names a page at ``--host`` is asked for, beside addresses."""
    try:
        everywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        everywhere = host == ""
    found = [host] if host and ":" not in host else []
    if everywhere:
        found += [socket.gethostname(), f"{socket.gethostname()}.local", socket.getfqdn()]
    return [*found, "localhost"] if everywhere or is_loopback(host) else found


def make_app(options: argparse.Namespace) -> Starlette:
    """The program behind the page.

    Args:
        options: The command's.
    """

    async def home(_: Request) -> Response:
        with contextlib.closing(Connections()) as connections:
            start = await to_thread.run_sync(_start, options, connections, abandon_on_cancel=True)
        return HTMLResponse(page.render_live(**start), headers=_HEADERS)

    async def answer(request: Request) -> Response:
        # Another page's script may send a form here, but not this type unasked.
        if request.headers.get("content-type") != "application/json":
            return Response(status_code=415)
        connections = Connections()
        lines = _in_thread(_lines(options, await request.body(), connections), connections)
        return StreamingResponse(lines, media_type="application/x-ndjson", headers=_HEADERS)

    return Starlette(
        routes=[Route("/", home), Route("/answer", answer, methods=["POST"])],
        middleware=[Middleware(_Hosts, allowed_hosts=_names(options.host))],
    )


def _start(options: argparse.Namespace, connections: Connections | None = None) -> dict[str, Any]:
    """What the form shows before anything is typed in."""
    texts = options.method or ([GREEDY, options.preset, ""] if options.preset else _START)
    methods = []
    for text in (*texts, *[""] * MOST)[:MOST]:
        name, given = parts_of(text)
        values = dict(given)
        methods.append({"name": name, "alpha": values.get("alpha"), "beta": values.get("beta")})
        if name not in ("", GREEDY):
            for knob in ("alpha", "beta"):
                methods[-1][knob] = methods[-1][knob] or getattr(options, knob)
    found: dict[str, Any] = {"error": "", "model": "", "adapters": [], "server": ""}
    try:
        source = open_server(options, connections)
        found |= {"model": source.base, "adapters": source.loaded, "server": source.root}
        source.close()
    except ToolError as error:
        found["error"] = str(error)
    return {
        **found,
        "methods": methods,
        "presets": {name: preset.about for name, preset in PRESETS.items()},
        "adapter": options.adapter,
        "chat": options.chat,
        "without": (options.without or [""])[0],
        "max_tokens": options.max_tokens,
    }


def run(options: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C; returns the exit status."""
    if options.url is None:
        raise ToolError("--serve: asks a running server; name it with --url")
    check_options(options, ENGINE_OPTIONS)
    check_numbers(options)
    methods_of(options)
    for text in options.method or ():
        if more := [name for name, _ in parts_of(text)[1] if name not in ("alpha", "beta")]:
            raise ToolError(
                f"--method={text!r}: the page has fields for alpha and beta alone; leave "
                f"{', '.join(more)} out, or give it to all methods by its own option"
            )
    if len(options.without or ()) > 1:
        raise ToolError("--without: the page has a field for one; give it once")
    open_server(options).close()
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listening = socket.create_server((options.host, options.port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ToolError(
            f"--port={options.port}: no page can be put at {options.host} there ({reason}); name "
            "another port, or 0 for any that is free"
        ) from error
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(f"http://{host}:{listening.getsockname()[1]}/ (Ctrl-C ends it)", flush=True)
    if not is_loopback(options.host):
        print(
            f"--host={options.host}: whoever reaches this address can ask the server, with its key",
            flush=True,
        )
    config = uvicorn.Config(
        make_app(options), log_level="warning", timeout_graceful_shutdown=1, lifespan="off"
    )
    uvicorn.Server(config).run(sockets=[listening])
    return 0
