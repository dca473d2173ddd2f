# SPDX-License-Identifier: Apache-2.0
"""Contrastive decoding over HTTP with the openai client: the server's default, and its errors.
(``test_streams`` has the ways of asking for it.)
"""

from typing import Any

import openai
import pytest

from tests.naive import NaiveCold
from tests.server.conftest import Server

pytestmark = pytest.mark.server

PROMPT = list(range(20, 60))


def complete(
    server: Server, model: str = "one", xargs: dict[str, Any] | None = None, **options: Any
) -> list[int]:
    return server.ask(PROMPT, model, **{"max_tokens": 16, **options, **(xargs or {})})


def cold(naive: NaiveCold, alpha: float, beta: float) -> list[int]:
    return naive.generate(PROMPT, expert="one", alpha=alpha, beta=beta, max_tokens=16).tokens


def test_the_server_default(default_server: Server, naive: NaiveCold) -> None:
    server = default_server
    assert complete(server) == cold(naive, 0.05, 2.0)
    assert complete(server, xargs={"cold_beta": 0.5}) == cold(naive, 0.05, 0.5)
    assert complete(server, xargs={"cold": 0}) == naive.greedy(PROMPT, "one", 16).tokens
    assert complete(server, model="base") == naive.greedy(PROMPT, None, 16).tokens


def refused(server: Server, **request: Any) -> str:
    """The message of the 400 that the request gets."""
    with pytest.raises(openai.BadRequestError) as caught:
        complete(server, **request)
    return str(caught.value)


def test_too_long_for_the_cache(default_server: Server) -> None:
    message = "need 16 KV cache blocks of 32 tokens, and the engine has 14"
    for stream in (False, True):
        assert message in refused(default_server, max_tokens=200, stream=stream)
    assert len(complete(default_server, max_tokens=100, xargs={"cold": 0})) == 100
