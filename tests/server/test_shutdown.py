# SPDX-License-Identifier: Apache-2.0
"""SIGTERM while contrastive requests stream: the server ends in order, and leaves nothing."""

import asyncio
import re
import signal
from pathlib import Path

import httpx
import psutil
import pytest

from tests.naive import NaiveCold
from tests.server.clients import LIMITS, Asked, Got, assert_right, references, stream
from tests.server.conftest import Server, arguments, serve
from vllm_cold.frontend.serving import Header, _watch

pytestmark = pytest.mark.server

PROMPT = tuple(range(20, 60))
END_TIMEOUT = 60.0


async def terminate(server: Server, asked: list[Asked], patience: float) -> list[Got]:
    """SIGTERM as soon as all requests stream; what the clients got until the end, or until they
    had heard nothing of it for ``patience`` seconds.
    """
    got = [Got() for _ in asked]

    async with httpx.AsyncClient(limits=LIMITS, timeout=120.0) as client:
        tasks = [
            asyncio.create_task(stream(client, server.url, one, mine))
            for one, mine in zip(asked, got, strict=True)
        ]
        async with asyncio.timeout(60):
            await asyncio.gather(*(one.started.wait() for one in got))
        assert not any(one.finish_reason for one in got)
        server.ends = True
        server.process.send_signal(signal.SIGTERM)
        # A client that hears nothing more leaves, as clients do: vLLM 0.32 may cancel what passes
        # an engine's end on before it has, and its web server then waits for the clients.
        _, silent = await asyncio.wait(tasks, timeout=patience)
        for task in silent:
            task.cancel()
        # A cut connection is an error of httpx; the tokens before it are kept.
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    known = (httpx.HTTPError, asyncio.CancelledError)
    assert not [e for e in ends if isinstance(e, BaseException) and not isinstance(e, known)]
    return got


def end_of(folder: Path, command: list[str], asked: list[Asked], patience: float) -> list[Got]:
    """What the clients of a server that gets SIGTERM got; it ends well and takes all with it."""
    with serve(folder, command) as server:
        family = psutil.Process(server.process.pid).children(recursive=True)
        assert family
        got = asyncio.run(terminate(server, asked, patience))
        assert server.process.wait(END_TIMEOUT) == 0
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive, f"left over: {alive}"
        # Not the API server: vLLM's own notices at times that the engine is gone, and says so.
        log = server.log.read_text()
        assert not re.search(r"\((?:EngineCore|Worker)[^)]*\) (?:ERROR|Traceback)", log)
        # What vLLM says of that goes through our generator and middleware, which pass it on.
        frames = r'File ".*/vllm_cold/(?:(?!tools)\w+).* in (\w+)$'
        found = set(re.findall(frames, log, re.MULTILINE))
        assert found <= {_watch.__name__, Header.__call__.__name__, "replacement"}, (
            "traceback of the plugin"
        )
        return got


def long_ones() -> list[Asked]:
    """Eight requests that take a few seconds."""
    return [
        Asked((*PROMPT, number), 200, ("one", "two")[number % 2], 0.5) for number in range(4, 12)
    ]


def test_requests_are_aborted(tiny: Path, tmp_path: Path, naive: NaiveCold) -> None:
    """The default: requests in flight end at once."""
    asked = long_ones()
    got = end_of(tmp_path, arguments(tiny), asked, patience=5.0)
    # The client hears of it, finds its connection cut, or neither, as with stock vLLM.
    assert {g.finish_reason for g in got} <= {"abort", None}
    assert all(len(g.tokens) < request.max_tokens for g, request in zip(got, asked, strict=True))
    for one, trace in zip(got, references(naive, asked), strict=True):
        count = min(len(one.tokens), trace.settled())
        assert count > 0
        assert one.tokens[:count] == trace.tokens[:count]


@pytest.mark.full
def test_requests_are_finished(tiny: Path, tmp_path: Path, naive: NaiveCold) -> None:
    """With ``--shutdown-timeout`` the server waits for what is in flight."""
    asked = long_ones()
    got = end_of(tmp_path, [*arguments(tiny), "--shutdown-timeout", "150"], asked, 150.0)
    assert_right(got, asked, references(naive, asked))
