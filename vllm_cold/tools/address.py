# SPDX-License-Identifier: Apache-2.0
"""Addresses of servers and their keys."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from vllm_cold.tools.errors import ToolError

KEY_VARIABLE = "COLD_API_KEY"


def is_loopback(host: str) -> bool:
    """Whether a host's name or address stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_key(given: str | None) -> str | None:
    """The key of ``--api-key``, else of the environment, where an empty variable holds none."""
    key = os.environ.get(KEY_VARIABLE) or None if given is None else given
    # The client's error about a key that no header can hold would show it.
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        source = KEY_VARIABLE if given is None else "--api-key"
        raise ToolError(
            f"{source}: an API key has only ASCII characters and no white space; correct it"
        )
    return key


@contextmanager
def without_openai() -> Iterator[None]:
    """Hides from OpenAI's client what it would take from the environment and send to any address:
    ``OPENAI_API_KEY``, ``OPENAI_ORG_ID``, ``OPENAI_CUSTOM_HEADERS`` and others.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name[:7] == "OPENAI_"}
    try:
        yield
    finally:
        os.environ.update(hidden)


def without_user(url: str) -> str:
    """A URL without a name and password before its host."""
    return re.sub(r"^([a-z]+://)?[^/?#]*@", r"\1", url, flags=re.IGNORECASE)
