# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold explain`` with a running server gives what it gives with an engine of its own."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.asked import asked
from tests.server.conftest import Server, arguments, serve
from vllm_cold.method.settings import ColdSettings
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import collect
from vllm_cold.tools.explain.offline import OfflineSource
from vllm_cold.tools.explain.prompts import Asked
from vllm_cold.tools.explain.record import Report
from vllm_cold.tools.explain.server import ServerSource
from vllm_cold.tools.explain.source import Source
from vllm_cold.tools.server import Server as Asking

pytestmark = pytest.mark.server

PROMPTS = ["w12 w7 w300 w45", " w5 w6 hello"]
# Never more valid tokens than a server lists.
SETTINGS = ColdSettings(alpha=0.3, beta=2.0)
ADAPTIVE = ColdSettings(alpha=0.3, beta="adaptive", rule_parameters={"beta_max": 300.0})
CHAT = (("system", "w12 w7 w300"), ("user", "w45 w46"))
PARTS = [{"role": "developer", "content": [{"type": "text", "text": "w3"}]}]
TWO: dict[str, Any] = {
    "amateur": ["base", ""],
    "amateur_prompt": ["", "w9 w8"],
    "weights": [-2.0, 0.5],
}
ASKED = {
    "plain": asked(PROMPTS, SETTINGS),
    "chat": asked(PROMPTS, SETTINGS, chat=True),
    "adaptive": asked(PROMPTS, ADAPTIVE),
    "a stream that ends": asked([CHAT], ColdSettings(alpha=0.3, beta="grd"), without="system"),
    "wide": asked(PROMPTS[:1], ColdSettings(alpha=1e-5, beta=0.5)),  # often more
    "without": asked([CHAT], SETTINGS, without="system"),
    "part": asked(PROMPTS[:1], SETTINGS, part="0:7"),
    "messages": asked([CHAT], ADAPTIVE, amateur_messages=json.dumps(PARTS)),
    "two": asked(PROMPTS, alpha=0.3, **TWO),
}


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its own default is CoLD with a cap of 1, for chats against what is not from a user: a request
    that forgets an override is greedy, or another contrast.
    """
    default = ("--sampler", "cold", "--cold-expert-top-k", "1", "--cold-without", "system,0")
    command = [*arguments(tiny), *default]
    with serve(tmp_path_factory.mktemp("explain"), command) as running:
        yield running


def explained(source: Source, prompts: list[Asked]) -> Report:
    work = collect.explain(source, prompts, max_tokens=16)
    return asyncio.run(work)


def served(server: Server, prompts: list[Asked], adapter: str | None = "one") -> Report:
    asking = Asking(server.url, adapter)
    return explained(ServerSource(asking, adapter), prompts)


@pytest.fixture(scope="module")
def offline(tiny: Path) -> Iterator[dict[str, Report]]:
    """Reports of an engine in this process, by name of what was asked."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        engine = OfflineSource(
            str(tiny / "model"), str(tiny / "one"), dtype="float32", max_model_len=256
        )
        engine.base = "base"  # as the server calls it
        try:
            yield {name: explained(engine, prompts) for name, prompts in ASKED.items()}
        finally:
            engine.close()
            cleanup_dist_env_and_memory()


def assert_same(got: Any, expected: Any) -> None:
    """The same record, numbers to a tolerance."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for key in expected:
            assert_same(got[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            assert_same(a, b)
    elif isinstance(expected, float):
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-4)
    else:
        assert got == expected


@pytest.mark.parametrize("name", [name for name in ASKED if name != "wide"])
def test_the_same_report_as_offline(name: str, server: Server, offline: dict[str, Report]) -> None:
    got, expected = served(server, ASKED[name]), offline[name]
    mine, theirs = (one.model_dump()["explanations"] for one in (got, expected))
    assert_same(mine, theirs)
    answers = [answer for one in got.explanations for answer in one.answers]
    assert not any(step.wrong for answer in answers for step in answer.steps)
    parts = any(one.answers[0].text != one.answers[1].text for one in got.explanations)
    ends = any(step.ends for answer in answers for step in answer.steps)
    assert parts or ends
    assert ends is (name == "a stream that ends")


def test_a_valid_set_beyond_the_servers_limit(server: Server, offline: dict[str, Report]) -> None:
    """What cannot be known is not said; the answer's own tokens are the server's word."""
    cold, greedy = served(server, ASKED["wide"]).explanations[0].answers
    exact = offline["wide"].explanations[0].answers[0]
    compared = 0
    for mine, theirs in zip(cold.steps, exact.steps, strict=True):
        if mine.token != theirs.token:
            break
        assert theirs.complete
        if mine.complete:
            assert (mine.valid_size, mine.winner) == (theirs.valid_size, theirs.winner)
        else:
            assert 20 <= mine.valid_size <= theirs.valid_size
            assert mine.winner == mine.token
            compared += 1
    assert compared > 0
    assert any(step.winner is None for step in greedy.steps)


def test_the_base_model_is_guided(server: Server) -> None:
    for prompts in (ASKED["without"], ASKED["part"]):
        report = served(server, prompts, None)
        assert report.adapter == "base model"
        answers = [answer for one in report.explanations for answer in one.answers]
        assert not any(step.wrong for answer in answers for step in answer.steps)
    with pytest.raises(ToolError, match="nothing to contrast with"):
        served(server, ASKED["plain"], None)
