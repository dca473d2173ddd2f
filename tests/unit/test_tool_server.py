# SPDX-License-Identifier: Apache-2.0
"""The server that a command asks: where its key may go, and what is no server of ours."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.made_up_server import ADAPTER, MadeUp
from tests.unit.test_explain_command import parse
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.explain.explain_command import run
from vllm_cold.tools.server import Server

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def refusal(url: str, key: str | None, insecure_http: bool = False) -> str:
    with pytest.raises(ToolError) as error:
        Server(url, ADAPTER, api_key=key, insecure_http=insecure_http)
    assert "hush" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("url", ["ftp://x", "http:///x", "http://[::1", ""])
def test_what_is_no_address(url: str) -> None:
    assert refusal(url, None) == f"--url={url}: must be like http://localhost:8000"


@pytest.mark.parametrize("url", [f"http://{'x' * 99}", "http://[::1]:99999", "http://127.0.0.1:9"])
def test_where_nobody_answers(url: str) -> None:
    assert refusal(url, None).startswith(f"--url={url}: no server answers there (")


def test_a_password_in_the_address_is_shown_nowhere(upstream: tuple[str, MadeUp]) -> None:
    url, made = upstream
    url = url.replace("//", "//user:sec@ret@")
    assert "ret" not in Server(url, ADAPTER).root
    made.models = (500, "{}")
    for wrong in (url, "http://user:sec@ret@127.0.0.1:9", "user:sec@ret@host"):
        with pytest.raises(ToolError, match="--url=") as error:
            Server(wrong, ADAPTER)
        assert "ret" not in str(error.value) and "sec" not in str(error.value)


@pytest.mark.parametrize(("variable", "key"), [("", "none"), ("mine", "mine")])
def test_a_key_is_sent_only_where_it_is_given(
    upstream: tuple[str, MadeUp],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str,
    key: str,
) -> None:
    url, made = upstream
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "hush")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Mine: hush")
    monkeypatch.setenv("COLD_API_KEY", variable)
    made.explains = False
    command = ["--url", url, "--max-tokens", "1", "--prompt", "x", "--adapter", ADAPTER]
    with pytest.raises(ToolError, match="does not return kv_transfer_params.cold.steps as vLLM"):
        run(parse(*command, "--html", str(tmp_path / "x")))
    assert len(made.headers) >= 3 and "hush" not in str(made.headers)
    assert {headers["authorization"] for headers in made.headers} == {f"Bearer {key}"}
    assert os.environ["OPENAI_API_KEY"] == "hush"  # the client alone does not see it


def test_a_key_does_not_cross_the_network_unencrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(self: Server, may_lack: bool) -> None:
        raise ToolError("asked")

    monkeypatch.setattr(Server, "_list_models", no_network)
    monkeypatch.delenv("COLD_API_KEY", raising=False)
    said = (
        "--url=http://example.com: a key or password would cross the network unencrypted; use "
        "https://, or --insecure-http to send it anyway"
    )
    assert refusal("http://example.com", "hush") == said
    assert refusal("http://user:hush@example.com", None) == said
    elsewhere = "HTTP://192.0.2.1:8000/v1", "http://localhost.example.com", "http://[2001:db8::1]:8"
    for url in elsewhere:
        assert "would cross the network unencrypted" in refusal(url, "hush"), url
        assert refusal(url, "hush", insecure_http=True) == "asked"
    for url in ("http://localhost:80", "http://[::1]:8000", "https://user:hush@example.com"):
        assert refusal(url, "hush") == "asked", url
    assert refusal("http://example.com", None) == "asked"
    monkeypatch.setenv("COLD_API_KEY", "hush")
    assert refusal("http://example.com", None) == said


def test_a_key_stands_in_no_message(
    upstream: tuple[str, MadeUp], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, made = upstream
    for key in ("hush hush", "hush\n", "hush\u00e9"):
        monkeypatch.setenv("COLD_API_KEY", key)
        assert refusal(url, None).startswith("COLD_API_KEY: an API key has only ASCII characters")
    made.models = (403, '{"error": {"message": "hush may not"}}')
    assert refusal(url, "hush") == f"--url={url}: HTTP 403: ... may not"
    made.models = (401, '{"error": {"message": "hush is wrong"}}')
    said = "API key; set COLD_API_KEY"
    assert refusal(url, "hush") == f"--url={url}: wants another {said}"
    monkeypatch.delenv("COLD_API_KEY")
    assert refusal(url, None) == f"--url={url}: wants an {said}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": "two"}, r"--adapter=two: no such adapter on the server \(loaded: adapter, o"),
        ({"adapter": "base"}, "--adapter=base: no such adapter"),
        ({"model": "mine"}, r"--model=mine: no such base .*\(there are: base"),
    ],
)
def test_names_that_the_server_does_not_have(
    options: dict[str, Any], message: str, upstream: tuple[str, MadeUp]
) -> None:
    with pytest.raises(ToolError, match=message):
        Server(upstream[0], **{"adapter": ADAPTER, **options})


def test_a_server_of_ours(upstream: tuple[str, MadeUp]) -> None:
    url, made = upstream
    found = Server(f"{url}/v1/", ADAPTER)
    assert (found.root, found.base, found.expert) == (url, "base", ADAPTER)
    assert Server(url).expert is None
    made.plugin = False
    with pytest.raises(ToolError, match="this server ignores cold_alpha, so vllm-cold is not act"):
        Server(url)


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (404, "not here", "no OpenAI-compatible server lists its models"),
        (200, "<html></html>", "no OpenAI-compatible server lists its models"),
        (200, '{"data": [1]}', "no OpenAI-compatible server lists its models"),
        (500, '{"error": {"message": "out of order"}}', "HTTP 500: out of order"),
    ],
)
def test_something_else(status: int, text: str, said: str, upstream: tuple[str, MadeUp]) -> None:
    upstream[1].models = (status, text)
    with pytest.raises(ToolError, match=said):
        Server(upstream[0], ADAPTER)
