# SPDX-License-Identifier: Apache-2.0
"""Addresses of servers and their keys: what may be sent where, and shown."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from vllm_cold.tools.errors import ToolError

KEY_VARIABLE = "COLD_API_KEY"


def add_options(group: argparse._ArgumentGroup) -> None:
    """Describe a command's options for a server."""
    group.add_argument(
        "--url",
        metavar="URL",
        help="use this server, such as http://localhost:8000, instead of starting one",
    )
    group.add_argument(
        "--api-key",
        metavar="KEY",
        help="the server's API key (default: $COLD_API_KEY, which lists of processes do not show)",
    )
    group.add_argument(
        "--insecure-http",
        action="store_true",
        help="send a key or a password over http:// to another machine, where it can be read on "
        "the way",
    )


def is_address(url: str) -> bool:
    """Whether an URL names a server: a scheme, a host, and a port from 0 to 65535 or none."""
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != -1
    except ValueError:  # of urlsplit, of port, or of a name that no resolver takes
        return False


def is_loopback(host: str) -> bool:
    """Whether a host's name or address stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_key(given: str | None) -> str | None:
    """The key of ``--api-key``, else of the environment; an empty variable holds none."""
    key = os.environ.get(KEY_VARIABLE) or None if given is None else given
    # What cannot stand in a header would be in the client's error.
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        source = KEY_VARIABLE if given is None else "--api-key"
        raise ToolError(
            f"{source}: an API key has ASCII characters, without white space; correct it"
        )
    return key


@contextmanager
def without_openai() -> Iterator[None]:
    """What OpenAI's client would take from the environment and send to any address, such as
    ``OPENAI_API_KEY``, ``OPENAI_ORG_ID`` and ``OPENAI_CUSTOM_HEADERS``, is out of its sight.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name[:7] == "OPENAI_"}
    try:
        yield
    finally:
        os.environ.update(hidden)


def without_user(url: str) -> str:
    """An URL without the name and password that may stand before its host."""
    return re.sub(r"^([a-z]+://)?[^/?#]*@", r"\1", url, flags=re.IGNORECASE)
