# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold explain --serve``: a page that shows a server's answers while they are decoded.

The browser talks to this program alone: the server's key stays here.
"""

import argparse
import asyncio
import copy
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlsplit

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from vllm_cold.settings.amateurs import Messages, Text
from vllm_cold.settings.table import SETTINGS, read
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.contrast_args import Content, with_pictures
from vllm_cold.tools.explain import page, visible
from vllm_cold.tools.explain.account import title_of
from vllm_cold.tools.explain.collect import make_report
from vllm_cold.tools.explain.explain_command import all_args, start
from vllm_cold.tools.explain.explain_prompts import make_question
from vllm_cold.tools.explain.explain_source import fetch_answer
from vllm_cold.tools.explain.record import Answer, Report
from vllm_cold.tools.pictures import picture_of_url
from vllm_cold.tools.server import Server, is_loopback, side_by_side

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _Form(BaseModel):
    """The fields of the page's form."""

    model_config = ConfigDict(strict=True, extra="forbid")
    prompt: Annotated[str, Field(min_length=1)]
    image: str = ""
    image_name: str = ""
    system: str = ""
    context: str = ""
    chat: bool = False
    adapter: str = ""
    without: str = ""
    images: str = ""
    max_tokens: Annotated[int, Field(ge=1)]
    preset: str = ""
    alpha: str = ""
    beta: str = ""
    rule: str = ""
    beta_max: str = ""
    rule_parameters: str = ""
    expert_top_k: str = ""

    def on(self, options: argparse.Namespace) -> argparse.Namespace:
        """Return the command's options under the form's; an empty field is an option left out."""
        merged = copy.copy(options)
        merged.chat, merged.max_tokens = self.chat, self.max_tokens
        for name in ("adapter", "preset", "without", "images", *SETTINGS):
            value: Any = getattr(self, name) or None
            if value and name in SETTINGS:
                value = read(name, value)
            elif value and name in ("without", "images"):
                value = [value]
            setattr(merged, name, value)
        return merged

    def prompt_with(self) -> Content:
        """Return the prompt; a chat where there is more than one text, or an image.

        Raises:
            ToolError: the image cannot be read.
        """
        texts = {"system": self.system, "tool": self.context, "user": self.prompt}
        messages = [{"role": role, "content": text} for role, text in texts.items() if text]
        try:
            pictures = [picture_of_url(self.image_name, self.image)] if self.image else []
        except ValueError as error:
            raise ToolError(f"image: {error}") from None
        return with_pictures(Messages(messages) if messages[1:] else Text(self.prompt), pictures)


def _line(event: str, **more: Any) -> str:
    return json.dumps({"event": event, **more}, allow_nan=False) + "\n"


def _shown(event: str, report: Report) -> str:
    return _line(event, html=page.fragment(report), report=report.model_dump(mode="json"))


async def _events(
    server: Server, options: argparse.Namespace, names: Mapping[str, str], body: bytes
) -> AsyncIterator[str]:
    """Yield what the page shows, in lines of JSON: "start" with empty answers, "text" of them and
    "report" with all of it, or "error" with a sentence. When the page is closed, its requests end.
    """
    try:
        try:
            form = _Form.model_validate_json(body)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise ToolError(f"{where or 'form'}: {error.errors()[0]['msg']}") from error
        options = form.on(options)
        server = server.with_expert(options.adapter)
        args = all_args(options, names)
        question = make_question(form.prompt_with(), args, form.chat, server.expert, server.base)
        cold, greedy = (
            Answer(title=title_of(question, greedy), greedy=greedy) for greedy in (False, True)
        )
        yield _shown("start", make_report(server, [question], [(cold, greedy)]))
        texts: asyncio.Queue[str | None] = asyncio.Queue()

        def tell(place: int, text: str) -> None:
            texts.put_nowait(_line("text", place=place, text=visible.in_text(text)))

        work = asyncio.create_task(
            side_by_side(
                fetch_answer(server, question, greedy, options.max_tokens, partial(tell, place))
                for place, greedy in enumerate((False, True))
            )
        )
        work.add_done_callback(lambda _: texts.put_nowait(None))
        try:
            while (text := await texts.get()) is not None:
                yield text
            cold, greedy = await work
        finally:
            work.cancel()
        yield _shown("report", make_report(server, [question], [(cold, greedy)]))
    except ToolError as error:
        yield _line("error", text=str(error))


def _is_ours(request: Request, name: str) -> bool:
    """Whether a request names an address, localhost or ``--host``. A foreign page can make its own
    name lead to this machine (DNS rebinding), but not an address.
    """
    try:
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        return host in ("localhost", name.lower() or None) or bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def make_app(options: argparse.Namespace, server: Server, names: Mapping[str, str]) -> Starlette:
    """Make the application that serves the page; ``names`` are ``Models.amateur_names``."""

    async def home(request: Request) -> Response:
        if not _is_ours(request, options.host):
            return Response(status_code=400)
        return HTMLResponse(page.render_live(options, server), headers=_HEADERS)

    async def reply(request: Request) -> Response:
        if not _is_ours(request, options.host):
            return Response(status_code=400)
        # A foreign page may send a form here, but this type only with our leave (CORS).
        if request.headers.get("content-type") != "application/json":
            return Response(status_code=415)
        events = _events(server, options, names, await request.body())
        return StreamingResponse(events, media_type="application/x-ndjson", headers=_HEADERS)

    return Starlette(routes=[Route("/", home), Route("/answer", reply, methods=["POST"])])


def run(options: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C; return the exit status."""
    for name in ("without", "images"):
        if len(getattr(options, name) or ()) > 1:
            raise ToolError(f"--{name}: the page has a field for one; give it once")
    if options.image:
        raise ToolError("--image: the page has a field for it; leave it out")
    models = start(options)
    with models.open() as server:
        return _serve(options, make_app(options, server, models.amateur_names))


def _serve(options: argparse.Namespace, app: Starlette) -> int:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listening = socket.create_server((options.host, options.port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ToolError(
            f"--port={options.port}: cannot listen at {options.host} ({reason}); name another "
            "port, or 0 for any that is free"
        ) from error
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(f"http://{host}:{listening.getsockname()[1]}/ (Ctrl-C ends it)", flush=True)
    if not is_loopback(options.host):
        print(
            f"--host={options.host}: whoever reaches this address can use the server, with its key",
            flush=True,
        )
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, lifespan="off")
    uvicorn.Server(config).run(sockets=[listening])
    return 0
