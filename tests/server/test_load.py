# SPDX-License-Identifier: Apache-2.0
"""Two hundred clients at a time, half of which hang up, on a server that is short of KV cache."""

import asyncio
import random
import re

import pytest

from tests.naive import NaiveCold
from tests.server.clients import Asked, HangUp, assert_right, references, storm
from tests.server.conftest import Server

pytestmark = pytest.mark.server

CLIENTS, DIFFERENT = 200, 50


def make_requests(rng: random.Random) -> list[Asked]:
    """``DIFFERENT`` requests, each asked several times: a third regular, the others with both
    adapters as expert, against the base model, each other or two amateurs; half of them share a
    prefix.
    """
    shared = tuple(rng.randrange(4, 512) for _ in range(64))
    requests = []
    for number in range(DIFFERENT):
        tail = tuple(rng.randrange(4, 512) for _ in range((1, 7, 31, 32, 33)[number % 5]))
        prompt = (shared[: rng.choice((32, 64))] if number % 2 else ()) + tail
        model, amateur, beta = rng.choice(("one", "two")), None, rng.choice((0.5, 2.0))
        skip = 0
        if number % 3 == 0:
            model, beta = rng.choice(("base", "one", "two")), None
        elif number % 6 == 1:
            amateur = "two" if model == "one" else "one"
        elif number % 6 == 5:
            skip = len(prompt) // 2
        requests.append(Asked(prompt, rng.choice((16, 32)), model, beta, amateur, skip))
    return [rng.choice(requests) for _ in range(CLIENTS - DIFFERENT)] + requests


def make_hang_ups(rng: random.Random, asked: list[Asked]) -> list[HangUp | None]:
    """For every other client: before the answer begins, before its first chunk, or after some."""

    def one(request: Asked) -> HangUp:
        if rng.random() < 0.4:
            # By then some wait, some have begun, and some have not even been read.
            return HangUp(seconds=rng.choice((0.0, 0.05, 0.5, 1.0, 2.0, 4.0)))
        return HangUp(chunks=rng.randrange(request.max_tokens // 2))  # a chunk may hold some tokens

    leaves = set(rng.sample(range(CLIENTS), CLIENTS // 2))
    return [one(request) if i in leaves else None for i, request in enumerate(asked)]


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.full)])
def test_clients_that_hang_up(seed: int, server: Server, naive: NaiveCold) -> None:
    """The others get the right tokens, and nothing stays behind."""
    rng = random.Random(seed)
    asked = make_requests(rng)
    hang_ups = make_hang_ups(rng, asked)
    expected = references(naive, asked)
    before = server.metric("vllm:num_preemptions_total")
    server.new_log()

    async def run() -> None:
        async with asyncio.timeout(150):
            got = await storm(server.url, asked, hang_ups)
        assert sum(not g.hung_up for g in got) >= CLIENTS // 2
        assert sum(g.hung_up for g in got) > CLIENTS // 5  # others had their answer before
        assert_right(got, asked, expected)

    asyncio.run(run())
    server.wait_until_idle()
    assert server.metric("vllm:num_preemptions_total") > before
    again = asyncio.run(storm(server.url, asked[-10:], [None] * 10))
    assert_right(again, asked[-10:], expected[-10:])
    server.wait_until_idle()
    log = server.new_log()
    assert "Traceback" not in log
    assert not re.search(
        "ERROR .*contrastive decoding", log
    )  # how every error of a running pair begins
