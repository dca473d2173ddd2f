# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold explain`` with a running server gives what it gives with an engine of its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its own default is CoLD with a cap of 1: a request that forgets an override is greedy."""
    command = [*arguments(tiny), "--sampler", "cold", "--cold-expert-top-k", "1"]
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
        try:
            yield {
                "plain": collect.explain(engine, PROMPTS, SETTINGS, **OPTIONS),
                "chat": collect.explain(engine, PROMPTS, SETTINGS, chat=True, **OPTIONS),
                "adaptive": collect.explain(engine, PROMPTS, ADAPTIVE, **OPTIONS),
                "wide": collect.explain(engine, PROMPTS[:1], WIDE, **OPTIONS),
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


@pytest.mark.parametrize("name", ["plain", "chat", "adaptive"])
def test_the_same_page_as_offline(
    name: str, source: ServerSource, offline: dict[str, Report]
) -> None:
    settings = ADAPTIVE if name == "adaptive" else SETTINGS
    got = collect.explain(source, PROMPTS, settings, chat=name == "chat", **OPTIONS)
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
    got = collect.explain(source, PROMPTS[:1], WIDE, **OPTIONS).explanations[0].cold
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
    other = ServerSource(url, "one", "two")
    got = collect.explain(other, PROMPTS, SETTINGS, **OPTIONS)
    assert got.amateur == "two"
    assert all(e.cold.mismatches == () for e in got.explanations)
    base = collect.explain(source, PROMPTS, SETTINGS, **OPTIONS)
    assert page.data(got) != page.data(base)
    other.close()


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
