# SPDX-License-Identifier: Apache-2.0
"""Which hosts are this machine, and what OpenAI's client is not to send to any."""

import ipaddress
import os
from collections.abc import Iterator
from contextlib import contextmanager


def is_loopback(host: str) -> bool:
    """Whether a host's name or address stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
