# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold explain`` with a running server gives what it gives with an engine of its own."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.asked import asked
from tests.server.conftest import Server, arguments, serve
from vllm_cold.method.settings import ColdSettings
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import collect, page
from vllm_cold.tools.explain.offline import OfflineSource
from vllm_cold.tools.explain.server import ServerSource
from vllm_cold.tools.explain.trace import Report
from vllm_cold.tools.main import main

pytestmark = pytest.mark.server

PROMPTS = ["w12 w7 w300 w45", " w5 w6 hello"]
# Never more valid tokens than a server lists.
SETTINGS = ColdSettings(alpha=0.3, beta=2.0)
ADAPTIVE = ColdSettings(alpha=0.3, beta="adaptive", beta_max=300.0)
# Often more.
WIDE = ColdSettings(alpha=1e-5, beta=0.5)
OPTIONS: dict[str, Any] = {"max_tokens": 16, "listed": 6}
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
    "wide": asked(PROMPTS[:1], WIDE),
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


@pytest.fixture(scope="module")
def source(server: Server) -> Iterator[ServerSource]:
    made = ServerSource(f"http://127.0.0.1:{server.port}", "one")
    yield made
    made.close()


@pytest.fixture(scope="module")
def offline(tiny: Path) -> Iterator[dict[str, Report]]:
    """Reports of an engine in this process, by name of what was asked."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        engine = OfflineSource(
            str(tiny / "model"), str(tiny / "one"), dtype="float32", max_model_len=256
        )
        engine._base = "base"  # as the server calls it
        try:
            yield {
                name: collect.explain(engine, prompts, **OPTIONS) for name, prompts in ASKED.items()
            }
        finally:
            engine.close()
            cleanup_dist_env_and_memory()


def assert_same(got: Any, expected: Any) -> None:
    """The same page data, numbers to a tolerance."""
    assert type(got) is type(expected)
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for key in expected:
            assert_same(got[key], expected[key])
    elif isinstance(expected, list):
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            assert_same(a, b)
    elif isinstance(expected, float):
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-4)
    else:
        assert got == expected


@pytest.mark.parametrize("name", [name for name in ASKED if name != "wide"])
def test_the_same_page_as_offline(
    name: str, source: ServerSource, offline: dict[str, Report]
) -> None:
    got = collect.explain(source, ASKED[name], **OPTIONS)
    expected = offline[name]
    assert_same(page.data(got), page.data(expected))
    for mine, theirs in zip(got.explanations, expected.explanations, strict=True):
        assert (mine.prompt, mine.prompt_tokens) == (theirs.prompt, theirs.prompt_tokens)
        assert (mine.cold.text, mine.greedy.text) == (theirs.cold.text, theirs.greedy.text)
        assert mine.cold.mismatches == mine.greedy.mismatches == ()
    assert any(e.parting is not None for e in got.explanations)


def test_a_valid_set_beyond_the_servers_limit(
    source: ServerSource, offline: dict[str, Report]
) -> None:
    assert source.largest_top() == 20
    got = collect.explain(source, ASKED["wide"], **OPTIONS).explanations[0].cold
    exact = offline["wide"].explanations[0].cold
    compared = 0
    for mine, theirs in zip(got.steps, exact.steps, strict=False):
        assert theirs.valid_complete
        if mine.valid_complete:
            assert mine.valid_size == theirs.valid_size
        else:
            assert 20 <= mine.valid_size <= theirs.valid_size
            compared += 1
        if mine.token != theirs.token:
            break
    assert compared > 0


def test_another_adapter_as_amateur(server: Server, source: ServerSource) -> None:
    url = f"http://127.0.0.1:{server.port}/v1"
    other = ServerSource(url, "one", ["two"])
    got = collect.explain(other, asked(PROMPTS, SETTINGS, amateur="two"), **OPTIONS)
    assert got.amateur == "two"
    assert all(e.cold.mismatches == () for e in got.explanations)
    base = collect.explain(source, ASKED["plain"], **OPTIONS)
    assert page.data(got) != page.data(base)
    other.close()


def test_without_a_mask(source: ServerSource) -> None:
    """What cannot be known is not said; the answer's own tokens are the server's word."""
    prompts = asked([CHAT], without="system", preset="cfg", beta=2.0)
    [got] = collect.explain(source, prompts, **OPTIONS).explanations
    assert got.cold.told == tuple(range(16)) and got.cold.mismatches == ()
    assert any(step.differs for step in got.cold.steps)
    assert all(step.winner is None for step in got.greedy.steps)


def test_the_base_model_is_guided(server: Server, source: ServerSource) -> None:
    base = ServerSource(server.url)
    for prompts in (ASKED["without"], ASKED["part"]):
        report = collect.explain(base, prompts, **OPTIONS)
        assert report.adapter == "base model"
        assert all(e.cold.mismatches == e.greedy.mismatches == () for e in report.explanations)
        with_adapter = collect.explain(source, prompts, **OPTIONS)
        assert page.data(report) != page.data(with_adapter)
    with pytest.raises(ToolError, match="nothing to contrast with"):
        base.read(ASKED["plain"])
    base.close()


def test_a_file_of_chats(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, html = tmp_path / "chats.jsonl", tmp_path / "page.html"
    messages = [{"role": role, "content": content} for role, content in CHAT]
    rows = [{"messages": messages}, {"prompt": PROMPTS[0], "cold_part": "0:7"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["explain", "--url", server.url, "--prompts", str(file), "--html", str(html)]
    assert main([*command, "--without", "system", "--max-tokens", "8", "--alpha", "0.3"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "The amateur, base model, reads the same conversation without system" in printed
    assert "reads the same text without characters 0:7" in printed
    assert html.read_text(encoding="utf-8").count("<del>struck out</del>") == 2


def test_the_command(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, html = f"http://127.0.0.1:{server.port}", tmp_path / "page.html"
    command = ["explain", "--url", url, "--prompt", PROMPTS[0], "--max-tokens", "8"]
    assert main([*command, "--adapter", "one", "--html", str(html)]) == 0
    assert 'role="option"' in html.read_text(encoding="utf-8")
    assert f"server at {url}" in " ".join(capsys.readouterr().out.split())
    assert main([*command, "--adapter", "three", "--html", str(html)]) == 2
    error = capsys.readouterr().err
    assert "--adapter=three: no such adapter on the server (loaded: one, two)" in error


def test_a_server_without_the_plugin(tiny: Path, tmp_path: Path) -> None:
    with (
        serve(tmp_path, arguments(tiny), COLD_ENABLED="0") as running,
        pytest.raises(ToolError, match="vllm-cold is not active there"),
    ):
        ServerSource(f"http://127.0.0.1:{running.port}", "one")
