# SPDX-License-Identifier: Apache-2.0
"""Amateurs with prompts over HTTP, from a stock OpenAI client: completions and chats, streamed and
not, the other endpoints, and the server's defaults. What requests may say and what is refused, the
unit tests hold. (Many at a time: ``test_load.py``.)
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.docs.blocks import block
from tests.engine.streams import Texts
from tests.naive import NaiveCold, Trace, assert_same_tokens
from tests.recipes.page import served
from tests.requests import CHAT, REQUESTS, SYSTEM, TEXT, TOOL, USER
from tests.server.conftest import Server, serve

pytestmark = pytest.mark.server

MAX_TOKENS = Texts.MAX_TOKENS


@pytest.fixture(scope="module")
def guide(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page's server, that guides every chat by the options that it names; without LoRA."""
    options = served(block("docs/system-prompts.md", "guide"), {"MODEL": str(tiny / "model")})
    options += ["--sampler", "cold", "--cold-without", "system"]
    options += ["--dtype", "float32", "--enforce-eager"]
    options += ["--max-model-len", "256", "--gpu-memory-utilization", "0.2"]
    with serve(tmp_path_factory.mktemp("guide"), options) as running:
        yield running


@pytest.fixture(scope="module")
def model(tiny: Path, naive: NaiveCold) -> Texts:
    return Texts(tiny, naive)


def test_every_way_of_saying_it(server: Server, model: Texts) -> None:
    """Streamed and not, one answer and three: the reference's tokens, which differ."""
    requests = list(REQUESTS.values())
    expected = model.decode(*map(model.asked, requests))
    assert len({tuple(trace.tokens) for trace in expected}) == len(expected)
    for way, stream, n in ((0, False, 1), (-1, True, 3)):
        got = []
        for one in requests:
            xargs = {f"cold_{name}": value for name, value in one.said[way].items()}
            got.append(server.ask(one.prompt, one.model, stream, n, **xargs))
        assert_same_tokens(got, expected)


def test_a_server_that_guides_every_chat(guide: Server, model: Texts) -> None:
    """Without LoRA: every chat with a system prompt, and nothing else."""
    guided = model.group(CHAT, None, (-0.5, None, [USER, TOOL]))
    expected = model.decode(guided, model.group([USER, TOOL], None), model.group(CHAT, None))
    got = [
        guide.ask(CHAT, "base"),
        guide.ask([USER, TOOL], "base"),
        guide.ask(CHAT, "base", cold=0),
    ]
    assert_same_tokens(got, expected)
    assert len({tuple(trace.tokens) for trace in expected}) == len(expected)


def test_the_pages_request(guide: Server) -> None:
    asked = block("docs/system-prompts.md", "ask").partition("-d '")[2].rpartition("'")[0]
    status, text = guide.post("/v1/chat/completions", json.loads(asked))
    assert status == 200 and json.loads(text)["model"] == "base"


def test_a_preset_after_the_models_name(server: Server, guide: Server, model: Texts) -> None:
    """A client that sends no field of ours gets what another one asks for."""
    groups = [
        model.group(CHAT, None, (-0.5, None, [SYSTEM, USER])),
        model.group(CHAT, "one", (-0.5, "one", [SYSTEM, USER])),
        model.group(CHAT, "two"),  # the adapter whose name that is
        model.group([USER], "one"),
        model.group(TEXT, "two", (-0.5, None, None), alpha=0.1),
    ]
    got = [
        server.ask(CHAT, "base:cad", stream=True),
        server.ask(CHAT, "one:cad"),
        server.ask(CHAT, "one:cold"),
        server.ask([USER], "one:cad"),
        server.ask(TEXT, "two:cold", stream=True),
    ]
    assert_same_tokens(got, model.decode(*groups))
    # The server's own default says what is left out; here it is the system prompt.
    assert guide.ask(CHAT, "base:cad") == guide.ask(CHAT, "base")

    # The answer names what vLLM served, the header how.
    answer = send(server, "chat/completions", model="base:cad", messages=CHAT, vllm_xargs=None)
    assert answer.json()["model"] == "base"
    assert json.loads(answer.headers["x-cold"])["preset"] == "cad"
    body = {"instructions": " w11", "input": [USER], "max_output_tokens": 4}
    asked = send(server, RESPONSES, vllm_xargs={"cold_preset": "cfg"}, **body)
    assert said(send(server, RESPONSES, model="one:cfg", vllm_xargs=None, **body)) == said(asked)
    for name, status, why in (
        ("one:cda", 404, "does not exist"),
        ("base:cad", 400, "is for chats"),
    ):
        answer = send(server, "completions", model=name, vllm_xargs=None, prompt=TEXT)
        assert answer.status_code == status and why in answer.json()["error"]["message"]


def test_an_empty_prompt_is_refused(server: Server) -> None:
    answer = send(server, "completions", prompt=[[]], max_tokens=1, vllm_xargs={"cold": 1})
    assert answer.status_code == 400, answer.text


# ---- other endpoints -----------------------------------------------------------------------------

GUIDED = {"cold_alpha": 0, "cold_beta": 1, "cold_without": "system"}


def send(server: Server, path: str, **body: Any) -> httpx.Response:
    body = {"model": "one", "temperature": 0.0, "vllm_xargs": GUIDED, **body}
    return httpx.post(f"{server.url}/v1/{path}", json=body, timeout=120)


def said(answer: httpx.Response) -> str:
    """The text of /v1/responses or /v1/messages, streamed or not."""
    assert answer.status_code == 200, answer.text
    if "event-stream" in answer.headers["content-type"]:
        lines = [x.removeprefix("data: ") for x in answer.text.splitlines() if "data: {" in x]
        deltas = [event["delta"] for x in lines if "delta" in (event := json.loads(x))]
        return "".join(d if isinstance(d, str) else d.get("text", "") for d in deltas)
    found = answer.json()
    if "content" in found:
        return "".join(block["text"] for block in found["content"])
    return "".join(part["text"] for item in found["output"] for part in item["content"])


RESPONSES, MESSAGES = "responses", "messages"


@pytest.mark.parametrize(("path", "stream"), [(RESPONSES, True), (MESSAGES, False)])
def test_responses_and_messages(path: str, stream: bool, server: Server, model: Texts) -> None:
    """Their system prompt is a message."""
    other = {"role": "user", "content": " w23 w24"}
    final = {"role": "assistant", "content": " w51"}
    keys = (
        ("instructions", "input", "max_output_tokens")
        if path == RESPONSES
        else ("system", "messages", "max_tokens")
    )

    def ask(system: str | None, messages: list[Any], xargs: dict[str, Any]) -> httpx.Response:
        body = dict(zip(keys, (system, messages, MAX_TOKENS), strict=True))
        return send(server, path, stream=stream, vllm_xargs=xargs, **body)

    turns = [USER, final, other]
    for system, without, left in ((SYSTEM, "system", turns), (None, [0, 1], [other])):
        own = [system, *turns] if system else turns
        [trace] = model.decode(model.group(own, "one", (-1, "one", left)))
        content = None if system is None else system["content"]
        answer = ask(content, turns, {**GUIDED, "cold_without": without})
        tokens = trace.tokens
        if model.tokenizer.eos_token_id in tokens:
            tokens = tokens[: tokens.index(model.tokenizer.eos_token_id)]
        assert said(answer).strip() == model.tokenizer.decode(tokens).strip()
        assert json.loads(answer.headers["x-cold"])["prompt"].startswith("without")
    answer = ask(SYSTEM["content"], turns, {"cold_without": "tool"})
    assert answer.status_code == 400 and "no such message" in answer.json()["error"]["message"]


def test_a_batch_of_chats(server: Server, model: Texts) -> None:
    chats = [[SYSTEM, USER], [SYSTEM, TOOL], CHAT]
    expected = model.decode(*(model.group(c, "one", (-1, "one", c[1:])) for c in chats))
    body = {"max_tokens": MAX_TOKENS, "return_token_ids": True, "ignore_eos": True}
    answer = send(server, "chat/completions/batch", messages=chats, **body)
    assert_same_tokens([c["token_ids"] for c in answer.json()["choices"]], expected)
    assert "choices" not in json.loads(answer.headers["x-cold"])
    answer = send(server, "chat/completions/batch", messages=[*chats, [USER]], **body)
    assert answer.status_code == 400 and "no such message" in answer.text


def run_page(server: Server, text: str) -> dict[str, Any]:
    """The names that a block leaves, all of whose six requests are answered."""
    assert "http://localhost:8000" in text
    names: dict[str, Any] = {}
    before = server.metric("vllm:request_success_total")
    exec(compile(text.replace("http://localhost:8000", server.url), "block", "exec"), names)
    assert server.metric("vllm:request_success_total") - before == 6
    return names


def test_the_pages_first_client(default_server: Server, naive: NaiveCold, model: Texts) -> None:
    """All calls do what their comments say."""
    ask = run_page(default_server, block("docs/serving.md", "client"))["ask"]
    ids = model.ids("List all users.")

    def begins(text: str, trace: Trace) -> bool:
        assert trace.settled() >= 8
        right = model.tokenizer.decode(trace.tokens[: trace.settled()], skip_special_tokens=True)
        return text.startswith(right)

    def cold(**given: Any) -> Trace:
        settings = {"alpha": 0.05, "beta": 2.0, **given}  # the server's
        return naive.generate(ids, expert="one", max_tokens=64, **settings)

    def by_rule(name: str, **parameters: float) -> Trace:
        return cold(rule=name, rule_parameters=parameters)

    assert begins(ask(), cold())
    strong = ask(cold_alpha=0.2, cold_beta=1.0, cold_expert_top_k=20)
    assert begins(strong, cold(alpha=0.2, beta=1.0, expert_top_k=20))
    adaptive = ask(cold_rule="adaptive", cold_rule_parameters='{"beta_max": 2}')
    assert begins(adaptive, by_rule("adaptive", beta_max=2.0)) and not begins(adaptive, cold())
    unsure = ask(cold_rule="mti", cold_rule_parameters='{"tau": 2.0}')
    assert begins(unsure, by_rule("mti", tau=2.0))
    assert begins(ask(cold_amateur="chat"), cold(amateur="two"))
    assert begins(ask(cold=0), naive.greedy(ids, "one", 64))


def test_the_pages(server: Server, model: Texts) -> None:
    """What docs/serving.md shows."""
    names = run_page(server, block("docs/serving.md", "prompts"))
    chat = names["messages"]
    [trace] = model.decode(model.group(chat, "one", (-0.5, "one", [chat[0], chat[2]])))
    answer = names["chat"](cold_without=1, cold_preset="cad")
    assert answer.startswith(model.tokenizer.decode(trace.tokens[:8]).strip())
