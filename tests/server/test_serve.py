# SPDX-License-Identifier: Apache-2.0
"""Contrastive decoding over HTTP with the openai client: asking for it, the server's default, and
its errors.
"""

import math
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


def test_a_request_asks_for_it(server: Server, naive: NaiveCold) -> None:
    greedy = naive.greedy(PROMPT, "one", 16).tokens
    assert complete(server) == greedy
    assert complete(server, xargs={"cold_alpha": 0.05, "cold_beta": 2.0}) == cold(naive, 0.05, 2.0)
    assert complete(server, xargs={"cold": True}) == cold(naive, 0.1, 0.5)
    assert complete(server, xargs={"cold": 0, "cold_beta": 2.0}) == greedy
    assert complete(server, xargs={"other": 1}) == greedy
    assert complete(server, xargs={"cold_beta": 2, "cold_expert_top_k": 1}) == greedy
    assert complete(server, model="base") == naive.greedy(PROMPT, None, 16).tokens


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


def test_bad_requests(server: Server, default_server: Server) -> None:
    assert "needs an adapter as expert" in refused(server, model="base", xargs={"cold": 1})
    nan = {"model": "one", "prompt": PROMPT, "vllm_xargs": {"cold_alpha": math.nan}}
    assert server.post("/v1/completions", nan)[0] == 400
    beam = {"return_token_ids": True, "use_beam_search": True}
    for target, xargs in ((server, {"cold": 1}), (default_server, {})):
        with pytest.raises(openai.BadRequestError, match="beam search"):
            target.client.completions.create(
                model="one",
                prompt=PROMPT,
                max_tokens=4,
                n=2,
                extra_body={**beam, "vllm_xargs": xargs},
            )
    opted_out = default_server.client.completions.create(
        model="one",
        prompt=PROMPT,
        max_tokens=4,
        n=2,
        extra_body={**beam, "vllm_xargs": {"cold": 0}},
    )
    assert len(opted_out.choices) == 2
