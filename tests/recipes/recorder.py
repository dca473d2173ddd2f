# SPDX-License-Identifier: Apache-2.0
"""A proxy in front of a server that keeps what clients send: the ground truth of the recipes."""

import http.client
import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests import loopback


class Recorder:
    """The bodies of the completion requests that went through, by arrival."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.bodies: list[dict[str, Any]] = []

    def take(self) -> list[dict[str, Any]]:
        """The bodies since the last call."""
        taken, self.bodies = self.bodies, []
        return taken

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a body to the server itself, past the recorder, and return the answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)  # type: ignore[no-any-return]


@contextmanager
def record(port: int) -> Iterator[tuple[Recorder, str]]:
    """Stand before the server on ``port``; gives the recorder and its own base URL."""
    recorder = Recorder(port)

    class Handler(loopback.Answering):
        def _forward(self, body: bytes | None) -> None:
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            upstream.request(
                self.command, self.path, body, {"Content-Type": "application/json"} if body else {}
            )
            answer = upstream.getresponse()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"] or "text/plain")
            self.end_headers()
            while chunk := answer.read1(65536):
                self.wfile.write(chunk)
                self.wfile.flush()
            upstream.close()

        def do_GET(self) -> None:
            self._forward(None)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.endswith("/completions"):
                recorder.bodies.append(json.loads(body))
            self._forward(body)

    with loopback.serving(Handler) as address:
        yield recorder, address
