# SPDX-License-Identifier: Apache-2.0
"""Adapters come and go while contrastive requests use them, as expert and as amateur."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.naive import NaiveCold
from tests.server.clients import LIMITS, Asked, Got, assert_right, references, storm, stream
from tests.server.conftest import Server
from tests.tiny import make_tiny_adapter

pytestmark = pytest.mark.server

PROMPT = tuple(range(20, 90))  # two whole blocks of 32 tokens, so that there is something to find
ROLES = (("late", 0.5, None), ("one", 2.0, "late"), ("late", None, None))
"""Model, beta and amateur: ``late`` as expert, as amateur, and without contrastive decoding."""


def uses(first: int, max_tokens: int = 16) -> list[Asked]:
    """A request for each role; ``first`` makes the prompt a new one."""
    return [Asked((first, *PROMPT), max_tokens, *role) for role in ROLES]


@pytest.fixture(scope="module")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two more adapters: ``late`` stands for one of them on the server."""
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: make_tiny_adapter(tiny / "model", folder / name, seed=seed, scale=0.1)
        for name, seed in (("three", 3), ("four", 4))
    }


@pytest.fixture(scope="module")
def reference(tiny: Path, adapters: dict[str, Path]) -> NaiveCold:
    return NaiveCold(tiny / "model", {"one": tiny / "one", "two": tiny / "two", **adapters})


@pytest.fixture(autouse=True)
def without_late(server: Server) -> None:
    """Whatever a test before did."""
    server.post("/v1/unload_lora_adapter", {"lora_name": "late"})


def load(server: Server, path: Path) -> None:
    body = {"lora_name": "late", "lora_path": str(path)}
    status, text = server.post("/v1/load_lora_adapter", body)
    assert status == 200, text


def unload(server: Server) -> None:
    status, text = server.post("/v1/unload_lora_adapter", {"lora_name": "late"})
    assert status == 200, text


def during(server: Server, asked: list[Asked], act: Callable[[], None]) -> list[Got]:
    """What the requests get if something happens while all of them stream."""

    async def run() -> list[Got]:
        got = [Got() for _ in asked]
        async with httpx.AsyncClient(limits=LIMITS, timeout=120.0) as client, asyncio.timeout(120):
            tasks = [
                asyncio.create_task(stream(client, server.url, one, mine))
                for one, mine in zip(asked, got, strict=True)
            ]
            await asyncio.gather(*(one.started.wait() for one in got))
            await asyncio.to_thread(act)
            assert not any(one.finish_reason for one in got), "they ended too early"
            await asyncio.gather(*tasks)
        return got

    return asyncio.run(run())


def test_unloaded_in_flight(
    server: Server, reference: NaiveCold, adapters: dict[str, Path]
) -> None:
    """Requests that run end as if nothing had happened; later ones hear that it is gone."""
    load(server, adapters["three"])
    asked = uses(4, max_tokens=100)
    got = during(server, asked, lambda: unload(server))
    assert_right(got, asked, references(reference, asked, {"late": "three"}))
    expert, amateur, regular = asyncio.run(storm(server.url, asked, [None] * 3))
    for gone in (expert, regular):
        assert gone.status == 404
        assert gone.error is not None
        assert "`late` does not exist" in gone.error["message"]
    assert amateur.status == 400
    assert amateur.error is not None
    sentence = "cold_amateur='late': no such adapter is loaded (loaded: "
    assert sentence in amateur.error["message"]
    server.wait_until_idle()


def test_loaded_again_in_flight(
    server: Server, reference: NaiveCold, adapters: dict[str, Path]
) -> None:
    """Both adapters of one name run in the same batch."""
    asked = [a for a in uses(6, max_tokens=100) if a.model == "late"]
    again = [a for a in uses(6) if a.model == "late"]
    load(server, adapters["three"])

    answers: list[Got] = []

    def swap() -> None:
        unload(server)
        load(server, adapters["four"])
        answers.extend(asyncio.run(storm(server.url, again, [None] * len(again))))

    got = during(server, asked, swap)
    assert_right(answers, again, references(reference, again, {"late": "four"}))
    assert_right(got, asked, references(reference, asked, {"late": "three"}))
    server.wait_until_idle()
