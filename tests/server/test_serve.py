# SPDX-License-Identifier: Apache-2.0
"""CoLD over HTTP with the openai client: asking for it, the server's default, and its errors."""

from typing import Any

import openai
import pytest

from tests.naive import NaiveCold
from tests.server.conftest import Server

pytestmark = pytest.mark.server

PROMPT = list(range(20, 60))
OPTIONS: dict[str, Any] = {"temperature": 0.0, "max_tokens": 16}


def complete(
    server: Server, model: str = "one", xargs: dict[str, Any] | None = None, **options: Any
) -> list[int]:
    return server.ask(PROMPT, model, **{"max_tokens": 16, **options, **(xargs or {})})


def cold(naive: NaiveCold, alpha: float, beta: float, amateur: str | None = None) -> list[int]:
    return naive.generate(
        PROMPT, expert="one", alpha=alpha, beta=beta, amateur=amateur, max_tokens=16
    ).tokens


def test_a_request_asks_for_it(server: Server, naive: NaiveCold) -> None:
    greedy = naive.greedy(PROMPT, "one", 16).tokens
    assert complete(server) == greedy
    assert complete(server, xargs={"cold_alpha": 0.05, "cold_beta": 2.0}) == cold(naive, 0.05, 2.0)
    assert complete(server, xargs={"cold": 1}) == cold(naive, 0.1, 0.5)
    assert complete(server, xargs={"cold": True}) == cold(naive, 0.1, 0.5)
    assert complete(server, xargs={"cold": 0, "cold_beta": 2.0}) == greedy
    assert complete(server, xargs={"other": 1}) == greedy
    assert complete(server, xargs={"cold_beta": 2, "cold_expert_top_k": 1}) == greedy
    assert complete(server, model="base") == naive.greedy(PROMPT, None, 16).tokens


def test_the_server_default(default_server: Server, naive: NaiveCold) -> None:
    server = default_server
    greedy = naive.greedy(PROMPT, "one", 16).tokens
    assert complete(server) == cold(naive, 0.05, 2.0)
    assert complete(server, xargs={"cold_beta": 0.5}) == cold(naive, 0.05, 0.5)
    assert complete(server, xargs={"cold": 0}) == greedy
    assert complete(server, xargs={"cold": False}) == greedy
    assert complete(server, model="base") == naive.greedy(PROMPT, None, 16).tokens


def test_chat_streaming_and_n(default_server: Server) -> None:
    client = default_server.client
    messages: list[Any] = [{"role": "user", "content": "w12 w7 w300"}]
    chat = {"model": "one", "messages": messages, **OPTIONS}
    whole = client.chat.completions.create(**chat).choices[0].message.content
    chunks = client.chat.completions.create(**chat, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole
    plain = client.chat.completions.create(**chat, extra_body={"vllm_xargs": {"cold": 0}})
    assert plain.choices[0].message.content != whole
    stream = client.completions.create(model="one", prompt=PROMPT, stream=True, **OPTIONS)
    completion = client.completions.create(model="one", prompt=PROMPT, **OPTIONS)
    assert "".join(c.choices[0].text for c in stream) == completion.choices[0].text
    assert completion.usage.completion_tokens == 16
    sampled = {**OPTIONS, "temperature": 1.5, "seed": 5, "n": 4}
    several = client.completions.create(model="one", prompt=PROMPT, **sampled)
    texts = [c.text for c in several.choices]
    assert len(texts) == 4
    assert len(set(texts)) > 1
    again = client.completions.create(model="one", prompt=PROMPT, **sampled)
    assert [c.text for c in again.choices] == texts


# One of each kind; tests/unit has them all.
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "parameter": (
        {"cold_rule": "mti", "cold_rule_parameters": '{"tau": -1}'},
        "cold_rule_parameters['tau']=-1: must be a number from 0 to 100",
    ),
    "amateur": ({"cold_amateur": "nobody"}, "no such adapter is loaded (loaded: "),
}


def refused(server: Server, **request: Any) -> str:
    """The message of the 400 that the request gets."""
    with pytest.raises(openai.BadRequestError) as caught:
        complete(server, **request)
    return str(caught.value)


@pytest.mark.parametrize("wrong", BAD)
def test_bad_arguments(wrong: str, server: Server) -> None:
    """HTTP 400 with the sentence, streamed or not, completion or chat."""
    xargs, message = BAD[wrong]
    assert message in refused(server, xargs=xargs)
    assert message in refused(server, xargs=xargs, stream=True)
    with pytest.raises(openai.BadRequestError) as caught:
        server.client.chat.completions.create(
            model="one",
            messages=[{"role": "user", "content": "w1"}],
            stream=True,
            extra_body={"vllm_xargs": xargs},
        )
    assert message in str(caught.value)


def test_too_long_for_the_cache(default_server: Server) -> None:
    message = "need 16 KV cache blocks of 32 tokens, and the engine has 14"
    for stream in (False, True):
        assert message in refused(default_server, max_tokens=200, stream=stream)
    assert len(complete(default_server, max_tokens=100, xargs={"cold": 0})) == 100


def test_bad_requests(server: Server, default_server: Server) -> None:
    assert "needs an adapter as expert" in refused(server, model="base", xargs={"cold": 1})
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
