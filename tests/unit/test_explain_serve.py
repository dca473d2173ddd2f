# SPDX-License-Identifier: Apache-2.0
"""What ``vllm-cold explain`` asks of a server, and its page ``--serve`` without a browser, before a
made-up server.
"""

import asyncio
import json
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from starlette.testclient import TestClient

from tests.made_up_server import ADAPTER, MadeUp
from tests.questions import questions
from tests.unit.test_explain_command import parse
from vllm_cold.settings.amateurs import describe, says_what
from vllm_cold.settings.arguments import parse_request_args
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.explain import page, serve
from vllm_cold.tools.explain.collect import explain
from vllm_cold.tools.explain.explain_command import run
from vllm_cold.tools.explain.explain_source import LISTED, xargs
from vllm_cold.tools.server import Server

pytestmark = [pytest.mark.unit, pytest.mark.slow]

SOON = 5.0  # seconds; a silent server is waited for twice as long here, and 600 otherwise
FORM: dict[str, Any] = {
    "prompt": "ab",
    "adapter": ADAPTER,
    "max_tokens": 6,
    "preset": "cold",
    "beta": "3",
}


def made_app(url: str, *given: str) -> Any:
    options = parse("--serve", "--url", url, *given)
    return serve.make_app(options, Server(url, options.adapter), {})


def ask(url: str, **form: Any) -> list[dict[str, Any]]:
    """What the page is told."""
    client = TestClient(made_app(url), base_url="http://localhost")
    reply = client.post("/answer", json={**FORM, **form})
    assert reply.status_code == 200
    return [json.loads(line) for line in reply.text.splitlines()]


@pytest.mark.parametrize(
    "contrast",
    [
        {"beta": 1.0},
        {"part": "0:1", "preset": "adacad"},
        {"part": "0:1", "rule": "adaptive", "beta_max": 3.0},
        {"amateur": ["", "two"], "weights": [-0.5, 0.25], "preset": "dexperts"},
        {
            "amateur": ["", "two", ""],
            "part": ["0:1", "", "1:2"],
            "weights": ["mti", "", 0.5],
            "rule_parameters": {"tau": 2},
            "beta": 2,
        },
    ],
)  # fmt: skip
def test_a_servers_defaults_have_no_say(contrast: dict[str, Any]) -> None:
    """What it makes of a request is what the numbers are made with."""
    [given] = questions(["xy"], **contrast)
    cold, greedy = (xargs(given, alone, "base") for alone in (False, True))
    sent = [*cold.values(), *greedy.values()]
    assert all(isinstance(v, (str, int, float, list)) for v in sent)  # as vLLM wants
    request, other = parse_request_args(cold), parse_request_args(greedy)
    weights, zeros = ([one.weight for one in describe(each.given)] for each in (request, other))
    for defaults in (
        {},
        {"cold_alpha": 0.7, "cold_beta": 3.0, "cold_expert_top_k": 1},
        {"cold_rule": "mti", "cold_rule_parameters": {"tau": 9}, "cold_preset": "cfg"},
        {"cold_rule": "adaptive", "cold_beta_max": 9.0},
    ):
        settings, found = request.settings(parse_request_args(defaults), weights)
        assert settings.expert_top_k == 2**31 - 1
        assert replace(settings, expert_top_k=None) == given.contrast.settings
        assert found == given.contrast.weights
        alone, found = other.settings(parse_request_args(defaults), zeros)
        assert (alone.rule, alone.alpha) == (None, settings.alpha)
        assert alone.expert_top_k == 2**31 - 1 and found == (0.0,) * len(weights)
    for each in (request, other):
        assert says_what(each.given)  # so that nothing else is left out
        assert each.given["explain"] == LISTED


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"prompt_token_ids": None}, "prompt_token_ids"),
        ({"steps": None}, "kv_transfer_params.cold"),
    ],
)
def test_what_a_server_does_not_return_is_named(
    fields: dict[str, Any], what: str, upstream: tuple[str, MadeUp]
) -> None:
    url, made = upstream
    made.changed = fields
    said = f"--url={url}: the server does not return {what}"
    with pytest.raises(ToolError, match=f"^{said}.* as vLLM does; vLLM 0.23 or newer is"):
        asyncio.run(explain(Server(url, ADAPTER), questions(["x"]), 2))


def test_the_command(
    upstream: tuple[str, MadeUp], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From options to a page and the terminal; a chat is asked as a chat, also what an amateur
    reads, and always greedily, whatever the model's generation_config says.
    """
    (url, made), html, rows = upstream, tmp_path / "page.html", tmp_path / "rows.jsonl"
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows.write_text(json.dumps({"messages": chat}))
    options = ("--url", url, "--adapter", ADAPTER, "--prompts", str(rows), "--max-tokens", "4")
    assert run(parse(*options, "--without", "system", "--beta", "2", "--html", str(html))) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "contrastive (alpha 0.1) against adapter without system, weight -2" in printed
    assert f"server at {url}" in printed and f"page: {html}" in printed
    assert html.read_text(encoding="utf-8").count('role="option"') == 8
    cold, greedy = (body for _, body in made.bodies if "messages" in body)
    assert cold["messages"] == greedy["messages"] == chat
    assert "cold_weights" not in cold["vllm_xargs"] and greedy["vllm_xargs"]["cold_weights"] == 0.0
    for body in (cold, greedy):
        assert body["return_token_ids"] and body["model"] == ADAPTER
        assert (body["temperature"], body["repetition_penalty"], body["top_k"]) == (0.0, 1.0, 0)


def test_the_answers_come_while_they_are_decoded(upstream: tuple[str, MadeUp]) -> None:
    """And at the end there is what ``explain`` makes of them."""
    url, made = upstream
    made.delay = 0.03
    events = ask(url)
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start" and kinds[-1] == "report"
    first = next(i for i, event in enumerate(events) if event["event"] == "text")
    assert {event["place"] for event in events[first : first + 6]} == {0, 1}  # side by side
    assert events[0]["html"].count('role="listbox"') == 2
    assert 'role="option"' not in events[0]["html"]
    prompts = questions(["ab"], preset="cold", beta=3.0)
    report = asyncio.run(explain(Server(url, ADAPTER), prompts, 6))
    assert events[-1]["report"] == json.loads(report.model_dump_json())
    assert events[-1]["html"] == page.fragment(report)


def test_a_chat_with_context(upstream: tuple[str, MadeUp]) -> None:
    url, made = upstream
    chat = {"system": "s", "context": "<b>"}
    events = ask(url, **chat, adapter="", preset="grounded", alpha="0.2", beta="")
    assert events[-1]["event"] == "report", events[-1]
    html = events[-1]["html"]
    said = "(alpha 0.2) against base model without tool, weight −0.25"
    assert f"<b>grounded</b> {said}" in html
    assert "<span>&lt;b&gt;</span>" in html and "<b></" not in html
    streamed = [body for _, body in made.bodies if body.get("stream")]
    given = [{"role": "system", "content": "s"}, {"role": "tool", "content": "<b>"}]
    given.append({"role": "user", "content": "ab"})
    assert [body["messages"] for body in streamed] == [given, given]


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"alpha": "2"}, "--alpha=2.0: must be a number in [0, 1]"),
        ({"adapter": "nobody"}, "--adapter=nobody: no such adapter on the server (loaded: "),
        ({"adapter": "", "preset": ""}, "--prompt: nothing to contrast with, as the amateur"),
        ({"preset": "cad", "chat": True}, "--preset=cad: leaves tool out of a chat"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
    ],
)
def test_a_mistake_is_one_sentence(
    form: dict[str, Any], said: str, upstream: tuple[str, MadeUp]
) -> None:
    [event] = ask(upstream[0], **form)
    assert event["event"] == "error" and said in event["text"]


def test_a_server_that_fails_on_the_way(upstream: tuple[str, MadeUp]) -> None:
    url, made = upstream
    made.fails = 3
    assert ask(url)[-1] == {"event": "error", "text": f"--url={url}: out of order"}
    made.fails, made.breaks = None, 2
    assert ask(url)[-1]["text"].startswith(f"--url={url}: the server's answer broke off; look at")


@pytest.mark.parametrize("how", ["the page is closed", "the program ends"])
def test_nothing_waits_for_a_silent_server(how: str, upstream: tuple[str, MadeUp]) -> None:
    url, made = upstream
    made.hold.clear()
    config = serve.uvicorn.Config(made_app(url), log_level="critical", timeout_graceful_shutdown=1)
    program = serve.uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=program.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/answer"
        with httpx.stream("POST", address, json=FORM, timeout=SOON) as reply:
            told = reply.iter_lines()  # without which the reply would be closed
            assert json.loads(next(told))["event"] == "start"
            while sum(bool(body.get("stream")) for _, body in made.bodies) < 2:
                time.sleep(0.01)
            program.should_exit = how == "the program ends"
        if how == "the page is closed":
            made.delay = 0.05
            made.hold.set()  # the server goes on, and finds nobody there
            time.sleep(1.0)
            assert made.sent < 2 * 6
    finally:
        program.should_exit = True
        thread.join(SOON)
        listening.close()
    assert not thread.is_alive()


def test_who_may_ask(upstream: tuple[str, MadeUp], monkeypatch: pytest.MonkeyPatch) -> None:
    """A foreign page or name for this machine may not; the key stays on this side."""
    monkeypatch.setenv("COLD_API_KEY", "hush-hush")
    app = made_app(upstream[0], "--adapter", ADAPTER)
    client = TestClient(app, base_url="http://127.0.0.1:8090")
    home = client.get("/")
    assert home.status_code == 200 and "hush" not in home.text
    assert f"<option selected>{ADAPTER}</option>" in home.text
    assert "connect-src 'self'" in home.text and home.headers["cache-control"] == "no-store"
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    body = json.dumps(FORM)
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        refused = client.post("/answer", content=body, headers={"content-type": kind})
        assert refused.status_code == 415
    answered = client.post("/answer", json=FORM)
    assert '"report"' in answered.text and "hush" not in answered.text
    assert client.get("/answer").status_code == 405 and client.get("/docs").status_code == 404


@pytest.mark.parametrize(
    ("host", "taken", "refused"),
    [
        ("127.0.0.1", ["127.0.0.1:8090", "localhost:8090", "[::1]:8090"], ["evil.example", ""]),
        ("::1", ["[::1]:8090"], ["evil.example", "[::1", "::1@evil.example"]),
        ("here.lan", ["here.lan:8090", "192.0.2.7"], ["evil.example", "here.lan.evil.example"]),
    ],
)
def test_by_which_names_it_is_asked_for(
    host: str, taken: list[str], refused: list[str], upstream: tuple[str, MadeUp]
) -> None:
    """What is printed, addresses and localhost: no name that leads here."""
    client = TestClient(made_app(upstream[0], "--host", host), base_url="http://localhost")
    for names, status in ((taken, 415), (refused, 400)):
        got = {n: client.post("/answer", headers={"host": n}).status_code for n in names}
        assert got == dict.fromkeys(names, status)


def test_what_the_form_starts_with(upstream: tuple[str, MadeUp]) -> None:
    app = made_app(upstream[0], "--preset", "cfg", "--alpha", "0.2", "--max-tokens", "8000")
    shown = TestClient(app, base_url="http://localhost").get("/").text
    # A browser refuses what is above a limit of the field.
    assert 'name="max_tokens" type="number" min="1" value="8000"' in shown
    assert f"<option>{ADAPTER}</option>" in shown and "<option>other</option>" in shown
    assert re.search(r"<option [^>]*selected>cfg</option>", shown)
    assert 'name="alpha" value="0.2"' in shown and 'name="beta" value=""' in shown


def test_what_cannot_be_served(upstream: tuple[str, MadeUp]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for options, message in (
            (["--port", port], f"--port={port}: cannot listen at 127.0.0.1"),
            (["--port", "70000"], "--port=70000: cannot listen"),
            (["--without", "a", "--without", "b"], "--without: the page has a field"),
        ):
            with pytest.raises(ToolError, match=message):
                serve.run(parse("--serve", "--url", upstream[0], *options))


def test_the_address_is_printed(
    upstream: tuple[str, MadeUp],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By default it is this machine's; elsewhere there is a warning."""
    monkeypatch.setattr(serve.uvicorn.Server, "run", lambda self, sockets: sockets[0].close())
    given = ("--serve", "--url", upstream[0], "--port", "0")
    assert serve.run(parse(*given)) == 0
    first = capsys.readouterr().out
    assert first.startswith("http://127.0.0.1:") and first.count("\n") == 1
    assert serve.run(parse(*given, "--host", "0.0.0.0")) == 0
    assert "--host=0.0.0.0: whoever reaches this address" in capsys.readouterr().out
