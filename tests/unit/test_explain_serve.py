# SPDX-License-Identifier: Apache-2.0
"""The page of ``vllm-cold explain --serve`` without a browser, before a made-up server."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.asked import asked
from tests.made_up_server import ADAPTER, MadeUp, serving, word
from tests.unit.test_explain_command import parse
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import collect, page, serve, visible
from vllm_cold.tools.explain.server import ServerSource
from vllm_cold.tools.explain.trace import COLD, GREEDY, Column

pytestmark = pytest.mark.unit

FORM: dict[str, Any] = {
    "prompt": "ab",
    "adapter": ADAPTER,
    "max_tokens": 6,
    "methods": [{"name": "greedy"}, {"name": "cold"}, {"name": "cold", "beta": "3"}],
}


@pytest.fixture
def upstream() -> Iterator[tuple[str, MadeUp]]:
    with serving() as found:
        yield found


def ask(url: str, *given: str, **form: Any) -> list[dict[str, Any]]:
    """What the page is told."""
    client = TestClient(
        serve.make_app(parse("--serve", "--url", url, *given)), base_url="http://localhost"
    )
    reply = client.post("/answer", json={**FORM, **form})
    assert reply.status_code == 200
    return [json.loads(line) for line in reply.text.splitlines()]


def test_the_answers_come_while_they_are_decoded(upstream: tuple[str, MadeUp]) -> None:
    """And at the end there is what ``explain`` makes of them."""
    url, made = upstream
    made.delay = 0.03
    events = ask(url)
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start" and kinds[-1] == "report" and "status" in kinds
    for place in range(3):
        tokens = [e["texts"] for e in events if e["event"] == "tokens" and e["place"] == place]
        assert len(tokens) == 6 and all(len(texts) == 1 for texts in tokens)
    assert (
        events[0]["html"].count('role="listbox"') == 3 and 'role="option"' not in events[0]["html"]
    )
    source = ServerSource(url, ADAPTER)
    methods = {"cold": asked(["ab"], preset="cold"), "cold, beta 3": asked(["ab"], beta=3.0)}
    reports = collect.compare(source, methods, max_tokens=6)
    assert events[-1]["methods"] == json.loads(json.dumps([page.data(one) for one in reports]))
    columns = (Column(0, GREEDY), Column(0, COLD), Column(1, COLD))
    # The text that a preset's name adds to the request is on no page.
    assert events[-1]["html"] == page.fragment(*reports, columns=columns)
    # A first look says of a token what the whole account says, but for what it would look up.
    looked = [e for e in events if e["event"] == "steps"]
    assert {e["place"] for e in looked} == {0, 1, 2}
    for event in looked:
        column = columns[event["place"]]
        steps = events[-1]["methods"][column.method]["prompts"][0][column.kind]["steps"]
        for i, one in enumerate(event["steps"], event["from"]):
            whole = steps[i]
            assert one["text"] == visible.in_text(word(whole["token"]), whole["token"])
            assert one["step"]["token"] == whole["token"]
            assert one["step"]["greedy"] == whole["greedy"]
            known = {c[0]: c for c in whole["candidates"]}
            for candidate in one["step"]["candidates"]:
                assert candidate[2] in (None, known[candidate[0]][2])


def test_a_chat_with_context(upstream: tuple[str, MadeUp]) -> None:
    url, made = upstream
    methods = [{"name": "cad"}, {"name": "grounded", "alpha": "0.2"}]
    events = ask(url, adapter="", system="s", context="<b>", methods=methods)
    assert events[-1]["event"] == "report", events[-1]
    # A chat's first part has a role and no token.
    assert all(e["texts"] for e in events if e["event"] == "tokens")
    html = events[-1]["html"]
    assert (
        "<b>cad</b>: <b>The amateur</b>, base model, reads the same conversation without tool"
        in html
    )
    assert "<del>&lt;b&gt;</del>" in html and "<b></" not in html
    assert "<b>grounded, alpha 0.2</b>: <b>Amateur 2</b>" in html
    streamed = [body for path, body in made.bodies if body.get("stream")]
    assert len(streamed) == 3  # greedy, too, though no column shows it
    sent = [{"role": "system", "content": "s"}, {"role": "tool", "content": "<b>"}]
    assert all(body["messages"] == [*sent, {"role": "user", "content": "ab"}] for body in streamed)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"prompt": ""}, "Prompt: is empty"),
        ({"methods": [{"name": "greedy"}]}, "--method=greedy: has nothing to compare with"),
        ({"methods": [{"name": "cold", "alpha": "2"}]}, "--alpha=2.0: must be a number in [0, 1]"),
        ({"methods": [{"name": "cold", "beta": "x,y=1"}]}, "'y' is no value of cold's"),
        ({"methods": []}, "methods: List should have at least 1 item"),
        ({"adapter": "nobody"}, "--adapter=nobody: no such adapter on the server (loaded: "),
        ({"adapter": ""}, "--prompt: nothing to contrast with: give --adapter"),
        ({"max_tokens": 0}, "--max-tokens=0: must be >= 1"),
        ({"max_tokens": 400}, "--max-tokens=400: the prompt 'ab' has 2 tokens; with the answer"),
        ({"methods": [{"name": "cad"}]}, "--preset='cad': contrasts with another prompt; say wh"),
        ({"methods": [{"name": "cad"}], "chat": True}, "--preset=cad: leaves tool out of a chat"),
        ({"without": "system"}, "--without='system': is for chats"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
    ],
)  # fmt: skip
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
    assert ask("http://127.0.0.1:9")[-1]["text"].startswith(
        "--url=http://127.0.0.1:9: no server can be reached there"
    )


def test_a_page_that_is_closed_stops_the_server(upstream: tuple[str, MadeUp]) -> None:
    url, made = upstream
    lines = serve._lines(
        parse("--serve", "--url", url), json.dumps({**FORM, "max_tokens": 60}).encode()
    )
    made.delay = 0.01
    while '"tokens"' not in next(lines):
        pass
    lines.close()  # type: ignore[attr-defined]
    time.sleep(0.3)
    sent = made.sent
    time.sleep(0.3)
    assert made.sent == sent < 3 * 60


def test_who_may_ask(upstream: tuple[str, MadeUp], monkeypatch: pytest.MonkeyPatch) -> None:
    """A foreign page or name for this machine may not; the key stays on this side."""
    monkeypatch.setenv("COLD_API_KEY", "hush-hush")
    app = serve.make_app(parse("--serve", "--url", upstream[0], "--adapter", ADAPTER))
    client = TestClient(app, base_url="http://127.0.0.1:8090")
    home = client.get("/")
    assert home.status_code == 200 and "hush" not in home.text
    assert f"<option selected>{ADAPTER}</option>" in home.text
    assert "connect-src 'self'" in home.text and home.headers["cache-control"] == "no-store"
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    body = json.dumps(FORM)
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert (
            client.post("/answer", content=body, headers={"content-type": kind}).status_code == 415
        )
    answered = client.post("/answer", json=FORM)
    assert '"report"' in answered.text and "hush" not in answered.text
    assert client.get("/answer").status_code == 405 and client.get("/docs").status_code == 404


@pytest.mark.parametrize(
    ("host", "taken", "refused"),
    [
        ("127.0.0.1", ["127.0.0.1:8090", "localhost:8090", "[::1]:8090"], ["evil.example", ""]),
        ("127.0.0.2", ["127.0.0.2:8090", "LOCALHOST"], ["evil.example", "127.0.0.2.evil.example"]),
        ("::1", ["[::1]:8090", "localhost:8090"], ["evil.example", "[::1", "::1@evil.example"]),
        ("0.0.0.0", ["192.0.2.7:8090", "here:8090", "here.local", "here.lan"], ["evil.example"]),
        ("::", ["[2001:db8::7]:8090", "localhost:8090", "here"], ["evil.example:8090"]),
        ("here.lan", ["here.lan:8090", "192.0.2.7"], ["evil.example", "localhost"]),
    ],
)  # fmt: skip
def test_by_which_names_it_is_asked_for(
    host: str, taken: list[str], refused: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed, addresses, and this machine's own names: no name that leads here."""
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    monkeypatch.setattr(socket, "getfqdn", lambda: "here.lan")
    app = serve.make_app(parse("--serve", "--url", "http://127.0.0.1:9", "--host", host))
    client = TestClient(app, base_url="http://localhost")
    for names, status in ((taken, 415), (refused, 400)):
        assert {n: client.post("/answer", headers={"host": n}).status_code for n in names} == {
            n: status for n in names
        }


def test_what_the_form_starts_with(upstream: tuple[str, MadeUp]) -> None:
    def started(*given: str) -> dict[str, Any]:
        return serve._start(parse("--serve", "--url", upstream[0], *given))

    # A browser refuses what is above a limit of the field.
    shown = page.render_live(**started("--max-tokens", "8000"))
    assert 'id="max-tokens" type="number" min="1" value="8000"' in shown
    plain = started()
    assert [one["name"] for one in plain["methods"]] == ["greedy", "cold", ""]
    assert plain["adapters"] == [ADAPTER, "other"] and plain["error"] == ""
    found = started("--method", "cad: alpha = 0.2, beta=3", "--method", "greedy")
    assert found["methods"][0] == {"name": "cad", "alpha": "0.2", "beta": "3"}
    found = started("--method", "cad:alpha=0.2", "--method", "greedy", "--beta", "2")
    assert found["methods"][0] == {"name": "cad", "alpha": "0.2", "beta": 2.0}
    assert found["methods"][1] == {"name": "greedy", "alpha": None, "beta": None}
    assert [one["name"] for one in started("--preset", "cfg")["methods"]] == ["greedy", "cfg", ""]
    gone = serve._start(parse("--serve", "--url", "http://127.0.0.1:9"))
    assert "no server can be reached there" in gone["error"] and gone["adapters"] == []


def test_what_cannot_be_served(upstream: tuple[str, MadeUp]) -> None:
    url = upstream[0]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for given, said in (
            ([], "--serve: asks a running server; name it with --url"),
            (["--url", url, "--port", port], f"--port={port}: no page can be put at 127.0.0.1"),
            (["--url", url, "--port", "70000"], "--port=70000: no page can be put"),
            (["--url", url, "--dtype", "auto"], "--dtype: is for an engine in this process"),
            (["--url", url, "--without", "a", "--without", "b"], "--without: the page has a field"),
            (["--url", url, "--method", "cold:beta_max=2"], "the page has fields for alpha and"),
            (["--url", "http://127.0.0.1:9"], "no server can be reached there"),
        ):
            with pytest.raises(ToolError, match=said):
                serve.run(parse("--serve", *given))


def test_the_address_is_printed(
    upstream: tuple[str, MadeUp],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By default it is this machine's; elsewhere there is a warning."""
    monkeypatch.setattr(serve.uvicorn.Server, "run", lambda self, sockets: sockets[0].close())
    assert serve.run(parse("--serve", "--url", upstream[0], "--port", "0")) == 0
    first = capsys.readouterr().out
    assert first.startswith("http://127.0.0.1:") and first.count("\n") == 1
    assert (
        serve.run(parse("--serve", "--url", upstream[0], "--port", "0", "--host", "0.0.0.0")) == 0
    )
    assert "--host=0.0.0.0: whoever reaches this address" in capsys.readouterr().out
