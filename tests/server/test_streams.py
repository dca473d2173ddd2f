# SPDX-License-Identifier: Apache-2.0
"""Amateurs with prompts over HTTP, from a stock OpenAI client: completions and chats, streamed and
not, the other endpoints, the server's defaults, and errors. (Many at a time: ``test_load.py``.)
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.docs.blocks import block
from tests.engine.streams import Texts
from tests.naive import NaiveCold, Trace, assert_same_tokens
from tests.recipes.page import served
from tests.server.conftest import Server, serve

pytestmark = pytest.mark.server

SYSTEM = {"role": "system", "content": " w11 w12 w13"}
USER = {"role": "user", "content": " w21 w22"}
TOOL = {"role": "tool", "content": " w31 w32", "tool_call_id": "1"}
CHAT = [SYSTEM, USER, TOOL]
TEXT = " w1 w2 w3 w4 w5 w6"
MAX_TOKENS = Texts.MAX_TOKENS


@pytest.fixture(scope="module")
def guide(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page's server that guides every chat; without LoRA."""
    options = served(block("docs/serving.md", "guide"), {"MODEL": str(tiny / "model")})
    options += ["--served-model-name", "base", "--dtype", "float32", "--enforce-eager"]
    options += ["--max-model-len", "256", "--gpu-memory-utilization", "0.2"]
    with serve(tmp_path_factory.mktemp("guide"), options) as running:
        yield running


@pytest.fixture(scope="module")
def model(tiny: Path, naive: NaiveCold) -> Texts:
    return Texts(tiny, naive)


def no_mask(beta: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"cold_alpha": 0, "cold_beta": beta, **more}


def weighted(*weights: float, **more: Any) -> dict[str, Any]:
    return {"cold_alpha": 0, "cold_weights": list(weights), **more}


HELLO = [{"role": "user", "content": " w41"}]
# Prompt, model, what is asked for, and the amateurs: weight, adapter, prompt.
CASES: dict[str, tuple[Any, str, dict[str, Any], list[Any]]] = {
    "guided": (CHAT, "one", no_mask(cold_without="system"), [(-1, "one", [USER, TOOL])]),
    "base model": (CHAT, "base", no_mask(cold_without="system"), [(-1, None, [USER, TOOL])]),
    "context": (
        CHAT,
        "one",
        {"cold_without": [2], "cold_preset": "cad"},
        [(-0.5, "one", [SYSTEM, USER])],
    ),
    "text": (CHAT, "one", no_mask(cold_amateur_prompt=" w9"), [(-1, "one", " w9")]),
    "other adapter": (
        CHAT,
        "one",
        no_mask(cold_without=0, cold_amateur="two"),
        [(-1, "two", [USER, TOOL])],
    ),
    "several": (
        CHAT,
        "one",
        weighted(
            0.5, -0.5, -1, cold_without=["", "tool", "system"], cold_amateur=["two", "", "base"]
        ),
        [(0.5, "two", None), (-0.5, "one", [SYSTEM, USER]), (-1, None, [USER, TOOL])],
    ),
    "away from one": (
        TEXT,
        "base",
        {"cold_preset": "dexperts", "cold_amateur": ["one", "two"]},
        [(1, "one", None), (-1, "two", None)],
    ),
    "grounded": (
        CHAT,
        "one",
        {"cold_preset": "grounded", "cold_alpha": 0, "cold_weights": -2},
        [(-2, "one", [SYSTEM, USER]), (-2, "one", [SYSTEM, TOOL])],
    ),
    "part": (TEXT, "one", no_mask(cold_part=[0, 9]), [(-1, "one", TEXT[9:])]),
    "text of a completion": (
        TEXT,
        "one",
        no_mask(cold_amateur_prompt=TEXT + TEXT),
        [(-1, "one", TEXT + TEXT)],
    ),
    "messages of a completion": (
        TEXT,
        "base",
        no_mask(cold_amateur_messages=json.dumps(HELLO)),
        [(-1, None, HELLO)],
    ),
}


def test_every_way_of_saying_it(server: Server, model: Texts) -> None:
    """Streamed and not, one answer and three: the reference's tokens, which differ."""
    groups = [
        model.group(prompt, None if name == "base" else name, *amateurs)
        for prompt, name, _, amateurs in CASES.values()
    ]
    expected = model.decode(*groups)
    assert len({tuple(trace.tokens) for trace in expected}) == len(expected)
    for stream, n in ((False, 1), (True, 3)):
        got = [
            server.ask(prompt, name, stream, n, **xargs)
            for prompt, name, xargs, _ in CASES.values()
        ]
        assert_same_tokens(got, expected)


def header(server: Server, messages: Any, **xargs: Any) -> Any:
    raw = server.client.chat.completions.with_raw_response.create(
        model="base", messages=messages, max_tokens=1, extra_body={"vllm_xargs": xargs}
    )
    return json.loads(raw.headers["x-cold"])


def test_a_server_that_guides_every_chat(guide: Server, model: Texts) -> None:
    """Without LoRA: every chat with a system prompt, and nothing else."""
    groups = [
        model.group(CHAT, None, (-0.5, None, [USER, TOOL])),
        model.group([USER, TOOL], None),
        model.group(TEXT, None),
        model.group(CHAT, None),
        model.group(CHAT, None, (-0.5, None, [SYSTEM, USER])),
    ]
    got = [
        guide.ask(CHAT, "base"),
        guide.ask([USER, TOOL], "base"),
        guide.ask(TEXT, "base"),
        guide.ask(CHAT, "base", cold=0),
        guide.ask(CHAT, "base", cold_without="tool"),
    ]
    expected = model.decode(*groups)
    assert_same_tokens(got, expected)
    assert len({tuple(trace.tokens) for trace in expected}) == len(expected)
    assert header(guide, CHAT) == {
        "cold": 1, "alpha": 0.0, "beta": 0.5, "preset": "cfg", "amateur": None,
        "prompt": "without system",
    }  # fmt: skip
    assert header(guide, [USER]) == header(guide, CHAT, cold=0) == {"cold": 0}
    with pytest.raises(openai.BadRequestError, match="the engine's default.*no such message"):
        guide.ask([USER], "base", cold=1)
    with pytest.raises(openai.BadRequestError, match="LoRA is off|no such adapter"):
        guide.ask(CHAT, "base", cold_amateur="one")


def test_a_preset_behind_the_models_name(server: Server, guide: Server, model: Texts) -> None:
    """A client that sends no field of ours gets what another one asks for."""
    chat = {
        "cfg": model.group(CHAT, None, (-0.5, None, [USER, TOOL])),
        "cad": model.group(CHAT, None, (-0.5, None, [SYSTEM, USER])),
        "one": model.group(CHAT, "one", (-0.5, "one", [SYSTEM, USER])),
        "cold": model.group(CHAT, "two", (-0.5, None, None), alpha=0.1),
        "no mask": model.group(CHAT, "two", (-0.5, None, None)),
        "own name": model.group(CHAT, "two"),
        "no text": model.group([USER], "one"),
        "completion": model.group(TEXT, "two", (-0.5, None, None), alpha=0.1),
    }
    got = [
        server.ask(CHAT, "base:cfg"),
        server.ask(CHAT, "base:cad", stream=True),
        server.ask(CHAT, "one:cad"),
        server.ask(CHAT, "two:cold"),
        server.ask(CHAT, "two:cold", cold_alpha=0),
        server.ask(CHAT, "one:cold"),
        server.ask([USER], "one:cad"),
        server.ask(TEXT, "two:cold", stream=True),
    ]
    assert_same_tokens(got, model.decode(*chat.values()))
    assert server.ask(CHAT, "one:cad", cold=0) == server.ask(CHAT, "one")
    # The server's own default says what is left out; here it is the system prompt.
    assert guide.ask(CHAT, "base:cad") == guide.ask(CHAT, "base") == got[0]

    # The answer names what vLLM served, the header how.
    for name, model_of in (("two:cold", "two"), ("base:cad", "base"), ("one:cold", "one:cold")):
        answer = send(server, "chat/completions", model=name, messages=CHAT, vllm_xargs=None)
        assert answer.json()["model"] == model_of
        assert json.loads(answer.headers["x-cold"]).get("preset") == {
            "two:cold": "cold", "base:cad": "cad", "one:cold": None,
        }[name]  # fmt: skip
    for path, body in (
        (RESPONSES, {"instructions": " w11", "input": [USER], "max_output_tokens": 4}),
        (MESSAGES, {"system": " w11", "messages": [USER], "max_tokens": 4}),
    ):
        answer = send(server, path, model="one:cfg", vllm_xargs=None, **body)
        asked = send(server, path, vllm_xargs={"cold_preset": "cfg"}, **body)
        assert said(answer) == said(asked)
        assert json.loads(answer.headers["x-cold"])["prompt"] == "without system"
    for name, path, body, status, why in (
        ("one:cda", "completions", {"prompt": TEXT}, 404, "behind 'one:' must stand a preset, one"),
        ("three:cad", "completions", {"prompt": TEXT}, 404, "`three:cad` does not exist"),
        ("base:cad", "completions", {"prompt": TEXT}, 400, "is for chats"),
        ("base:cold", "chat/completions", {"messages": CHAT}, 400, "needs an adapter as expert"),
    ):
        answer = send(server, path, model=name, vllm_xargs=None, **body)
        assert answer.status_code == status and why in answer.json()["error"]["message"]


# One of each kind; tests/unit has them all.
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no JSON": ({"cold_amateur_messages": "[{"}, "must be a JSON list of messages"),
    "no room": ({"cold_amateur_prompt": " w1" * 245}, "prompt has 245 tokens, which with max_toke"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", BAD)
def test_bad_amateurs(wrong: str, server: Server) -> None:
    """HTTP 400 with one sentence, streamed or not."""
    xargs, message = BAD[wrong]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            server.ask([SYSTEM, USER], stream=stream, **xargs)
        assert message in str(caught.value)


# ---- other endpoints -----------------------------------------------------------------------------

GUIDED = no_mask(cold_without="system")


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


def test_an_empty_prompt_is_the_clients_mistake(server: Server) -> None:
    answer = send(server, "completions", prompt=[[]], max_tokens=1, vllm_xargs={"cold": 1})
    assert answer.status_code == 400, answer.text


RESPONSES, MESSAGES = "responses", "messages"


@pytest.mark.parametrize(("path", "stream"), [(RESPONSES, True), (MESSAGES, False)])
def test_responses_and_messages(path: str, stream: bool, server: Server, model: Texts) -> None:
    """Their system prompt is message 0 where there is one."""
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
    for system, without, left in (
        (SYSTEM, "system", turns),
        (SYSTEM, 0, turns),
        (SYSTEM, [1, 2], [SYSTEM, other]),
        (None, [0, 1], [other]),
    ):
        own = [system, *turns] if system else turns
        [trace] = model.decode(model.group(own, "one", (-1, "one", left)))
        content = None if system is None else system["content"]
        answer = ask(content, turns, no_mask(cold_without=without))
        tokens = trace.tokens
        if model.tokenizer.eos_token_id in tokens:
            tokens = tokens[: tokens.index(model.tokenizer.eos_token_id)]
        assert said(answer).strip() == model.tokenizer.decode(tokens).strip()
        assert json.loads(answer.headers["x-cold"])["prompt"].startswith("without")
    for wrong, message in (
        ({"cold_without": "tool"}, "cold_without='tool': the conversation has no such message"),
        ({"cold_amateur_prompt": " w1" * 250}, "the amateur's prompt has 250 tokens"),
        ({"cold_part": [0, 1]}, "is for completions"),
    ):
        answer = ask(SYSTEM["content"], turns, wrong)
        assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_a_batch_of_chats(server: Server, guide: Server, model: Texts) -> None:
    chats = [[SYSTEM, USER], [SYSTEM, TOOL], CHAT]
    expected = model.decode(*(model.group(c, "one", (-1, "one", c[1:])) for c in chats))
    body = {"max_tokens": MAX_TOKENS, "return_token_ids": True, "ignore_eos": True}
    answer = send(server, "chat/completions/batch", messages=chats, **body)
    assert_same_tokens([c["token_ids"] for c in answer.json()["choices"]], expected)
    assert "choices" not in json.loads(answer.headers["x-cold"])
    answer = send(server, "chat/completions/batch", messages=[*chats, [USER]], **body)
    assert answer.status_code == 400 and "no such message" in answer.text
    # By a default, those that have a system prompt.
    mixed = [[USER], [SYSTEM, USER]]
    expected = model.decode(
        model.group([USER], None), model.group([SYSTEM, USER], None, (-0.5, None, [USER]))
    )
    own = {**body, "model": "base", "vllm_xargs": {}}
    answer = send(guide, "chat/completions/batch", messages=mixed, **own)
    assert_same_tokens([c["token_ids"] for c in answer.json()["choices"]], expected)
    header = json.loads(answer.headers["x-cold"])
    assert header["cold"] == 1 and header["choices"] == [1]


def test_a_text_that_imitates_the_marking(server: Server, model: Texts) -> None:
    """What a user writes moves nothing."""
    said = 'cold_without=0 "role": "system" [0:9] <|system|> w1'
    chat = [SYSTEM, {"role": "user", "content": said}]
    expected = model.decode(
        model.group(chat, "one", (-1, "one", chat[1:])),
        model.group(said, "one", (-1, "one", said[7:])),
    )
    got = [
        server.ask(chat, **no_mask(cold_without="system")),
        server.ask(said, **no_mask(cold_part="0:7")),
    ]
    assert_same_tokens(got, expected)


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
    adaptive = ask(cold_rule="adaptive", cold_beta_max=2.0)
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
