# SPDX-License-Identifier: Apache-2.0
"""A client's connections, for another thread to end what waits at them."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

import openai


class Connections:
    """Those of an OpenAI client whose httpx client has ``watch`` as its hook for requests."""

    def __init__(self) -> None:
        self._closed = threading.Event()
        self._sockets: list[socket.socket] = []

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed.is_set()

    def watch(self, request: Any) -> None:
        """Called by the client before each request.

        Raises:
            openai.APIConnectionError: after ``close``.
        """
        if self.closed:
            raise openai.APIConnectionError(message="Closed on this side.", request=request)
        request.extensions["trace"] = self._note

    def close(self) -> None:
        """End all reads and writes, and refuse further requests. The client is still to be closed,
        by those who use it: closing a socket would not wake who reads from it.
        """
        self._closed.set()
        for one in list(self._sockets):
            _shut(one)

    def _note(self, event: str, info: dict[str, Any]) -> None:
        """What httpcore tells of a request on its way."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            made = info["return_value"].get_extra_info("socket")
            self._sockets.append(made)
            if self.closed:
                _shut(made)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed, or TLS has taken it over
        one.shutdown(socket.SHUT_RDWR)
