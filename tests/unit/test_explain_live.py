# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold explain --serve`` before a server that is silent, or does not answer all."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.made_up_server import ADAPTER, MadeUp, serving
from tests.unit.test_explain_command import parse
from tests.unit.test_explain_serve import FORM, ask
from vllm_cold.tools.address import without_openai
from vllm_cold.tools.connections import Connections
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import collect, live, serve
from vllm_cold.tools.explain.server import ServerSource

pytestmark = pytest.mark.unit

SOON = 5.0  # seconds; a silent server is waited for twice as long here, and 600 otherwise


@pytest.fixture
def upstream() -> Iterator[tuple[str, MadeUp]]:
    with serving() as found:
        yield found


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of what takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def soon(true: Callable[[], bool]) -> bool:
    """Whether it comes to be."""
    until = time.monotonic() + SOON
    while not true() and time.monotonic() < until:
        time.sleep(0.01)
    return true()


def decoding() -> bool:
    return any(one.name.startswith(live.THREADS) for one in threading.enumerate())


class Program:
    """The page's program, which runs as it would at its address."""

    def __init__(self, url: str) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        app = serve.make_app(parse("--serve", "--url", url))
        config = serve.uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        self._server = serve.uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._listening:
            self._server.run(sockets=[self._listening])

    def end(self) -> None:
        """As with Ctrl-C."""
        self._server.should_exit = True
        self._thread.join(SOON)


@pytest.mark.parametrize("how", ["the page is closed", "the program ends"])
def test_nothing_waits_for_a_silent_server(
    how: str, upstream: tuple[str, MadeUp], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, made = upstream
    ended = threading.Event()
    lines = serve._lines

    def watched(*given: Any) -> Iterator[str]:
        try:
            yield from lines(*given)
        finally:
            ended.set()

    monkeypatch.setattr(serve, "_lines", watched)
    made.hold.clear()
    program = Program(url)
    try:
        with httpx.stream("POST", f"{program.url}/answer", json=FORM, timeout=SOON) as reply:
            told = reply.iter_lines()  # without which the reply would be closed
            assert json.loads(next(told))["event"] == "start"
            assert soon(decoding)
            assert soon(lambda: sum(bool(body.get("stream")) for _, body in made.bodies) == 3)
            if how == "the program ends":
                program.end()
        assert ended.wait(SOON) and soon(lambda: not decoding())
        assert not made.hold.is_set() and made.sent == 0
    finally:
        made.hold.set()
        program.end()


@pytest.mark.parametrize("path", ["/", "/answer"])
def test_the_program_ends_though_the_server_was_never_heard(path: str, silent: str) -> None:
    before = set(threading.enumerate())
    program = Program(silent)
    method = "GET" if path == "/" else "POST"

    def ask_page() -> None:
        with contextlib.suppress(httpx.HTTPError):
            httpx.request(method, program.url + path, json=FORM, timeout=60)

    asking = threading.Thread(target=ask_page)
    asking.start()
    assert soon(lambda: any("AnyIO" in one.name for one in threading.enumerate()))
    time.sleep(0.2)  # until it waits for the server
    program.end()
    assert soon(lambda: set(threading.enumerate()) <= before)


def test_what_waits_for_a_server_is_ended_by_another_thread(silent: str) -> None:
    connections = Connections()
    said: list[str] = []

    def ask_for_models() -> None:
        with pytest.raises(ToolError) as error:
            ServerSource(silent, connections=connections)
        said.append(str(error.value))

    thread = threading.Thread(target=ask_for_models, daemon=True)
    thread.start()
    assert soon(lambda: bool(connections._sockets))
    connections.close()
    thread.join(SOON)
    assert said and "no server can be reached there" in said[0]
    ask_for_models()  # nor is it asked again
    assert len(connections._sockets) == 1


def test_an_answer_that_fails_ends_the_others(upstream: tuple[str, MadeUp]) -> None:
    """One that is silent does not hold the sentence back."""
    url, made = upstream
    source = ServerSource(url, ADAPTER)
    stream = source.stream

    def one_fails(read: Any, kind: str, most: int) -> Any:
        if kind == "greedy":
            raise ToolError("out of order")
        return stream(read, kind, most)

    source.stream = one_fails  # type: ignore[method-assign]
    made.hold.clear()
    options = parse("--serve", "--url", url, "--method", "greedy", "--method", "cold")
    options.prompt, options.adapter = "ab", ADAPTER
    methods = serve.methods_of(options)
    asked = {one.name: serve.ask_all(options, None, one)[0] for one in methods.contrasting}
    began = time.monotonic()
    with pytest.raises(ToolError, match="out of order"):
        list(live.Live(source, methods, asked, 6, 8).events())
    assert time.monotonic() - began < SOON and soon(lambda: not decoding())


def test_an_answer_does_without_looks(
    upstream: tuple[str, MadeUp], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first look that fails is the last one of that answer, and the answer is complete."""
    url, made = upstream
    looked: list[str] = []

    def fail(source: Any, kind: str, *_: Any) -> None:
        looked.append(kind)
        raise ToolError("HTTP 503")

    monkeypatch.setattr(collect, "first_look", fail)
    made.delay = 0.02
    kinds = [event["event"] for event in ask(url)]
    assert kinds[-1] == "report" and kinds.count("tokens") == 18 and "steps" not in kinds
    assert sorted(looked) == ["cold", "cold", "greedy"]


def test_one_thread_does_not_show_openai_s_variables_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Key: hush")
    inside, first_is_out, seen = threading.Event(), threading.Event(), list[bool]()

    def second() -> None:
        with without_openai():
            inside.set()
            first_is_out.wait(SOON)
            seen.append("OPENAI_CUSTOM_HEADERS" in os.environ)

    thread = threading.Thread(target=second)
    with without_openai():
        thread.start()
        inside.wait(0.2)
    first_is_out.set()
    thread.join()
    assert seen == [False] and os.environ["OPENAI_CUSTOM_HEADERS"] == "X-Key: hush"
