# SPDX-License-Identifier: Apache-2.0
"""A proxy in front of a server that keeps what clients send: the ground truth of the recipes."""

import http.client
import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Recorder:
    """The bodies of the completion requests that went through, by arrival."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []

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


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def record(port: int) -> Iterator[tuple[Recorder, str]]:
    """Stand before the server on ``port``; gives the recorder and its own base URL."""
    recorder = Recorder(port)

    class Handler(BaseHTTPRequestHandler):
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
                recorder.paths.append(self.path)
            self._forward(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    proxy = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield recorder, f"http://127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
