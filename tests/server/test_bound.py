# SPDX-License-Identifier: Apache-2.0
"""The bound over HTTP: the page's request, what answers tell of their bits, and what is refused."""

import json
from typing import Any

import pytest

from tests.docs.blocks import block
from tests.naive import NaiveCold, Trace
from tests.requests import SYSTEM, USER
from tests.server.conftest import Server

pytestmark = pytest.mark.server

HIDDEN = {"cold_preset": "bound", "cold_without_text": SYSTEM["content"].strip()}


def send(server: Server, **body: Any) -> tuple[int, Any]:
    """Status and answer of a chat; of a stream the events."""
    body = {"model": "base", "messages": [SYSTEM, USER], "temperature": 0.0, **body}
    body = {"max_completion_tokens": 12, "seed": 7, **body}
    status, text = server.post("/v1/chat/completions", body)
    if not body.get("stream"):
        return status, json.loads(text)
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return status, [json.loads(event) for event in events if event != "[DONE]"]


def budget(answer: tuple[int, Any]) -> Any:
    status, body = answer
    assert status == 200, body
    if isinstance(body, list):
        (body,) = [event for event in body if event.get("kv_transfer_params")]
    return body["kv_transfer_params"]["cold"]["budget"]


def text_of(answer: tuple[int, Any]) -> str:
    return str(answer[1]["choices"][0]["message"]["content"])


def test_what_answers_tell(server: Server) -> None:
    unlimited = send(server, vllm_xargs=HIDDEN)
    regular, without = send(server), send(server, messages=[{**SYSTEM, "content": " "}, USER])
    assert text_of(unlimited) == text_of(regular) != text_of(without)  # it only measures
    spent = budget(unlimited)["spent"]
    assert spent[0] > 2 and budget(unlimited)["reached"] == [False]

    limited = send(server, vllm_xargs={**HIDDEN, "cold_bits": 1})
    told = budget(limited)
    assert told["bits"] == 1 and told["reached"] == [True]
    assert 0 < told["spent"][0] <= 1.001 and text_of(limited) != text_of(regular)
    none = send(server, vllm_xargs={**HIDDEN, "cold_bits": 0})
    assert text_of(none) == text_of(without) and budget(none)["spent"][0] < 1e-3

    xargs = {**HIDDEN, "cold_bits": 1}
    assert budget(send(server, vllm_xargs=xargs, stream=True)) == told
    several = budget(send(server, vllm_xargs=xargs, n=3, temperature=1.0))
    assert len(several) == 3 and all(one["spent"][0] <= 1.001 for one in several)


def test_the_pages_request(server: Server) -> None:
    """With a limit that a server has never heard of before: no paragraph needs to be registered."""
    body = json.loads(block("docs/bound.md", "request"))
    hidden, system = body["vllm_xargs"]["cold_without_text"], body["messages"][0]["content"]
    assert hidden in system
    answer = send(server, **body)
    assert budget(answer)["bits"] == 8
    body["vllm_xargs"]["cold_without_text"] = "It is not there."
    status, error = send(server, **body)
    assert status == 400 and "cold_without_text" in error["error"]["message"]
    assert "not there" not in error["error"]["message"]  # it may be confidential


@pytest.mark.parametrize(
    ("field", "value", "more"), [("top_p", 0.9, {}), ("logprobs", True, {"top_logprobs": 2})]
)
def test_what_would_void_it(field: str, value: Any, more: Any, server: Server) -> None:
    status, error = send(server, vllm_xargs=HIDDEN, temperature=1.0, **{field: value, **more})
    assert status == 400 and error["error"]["message"].startswith(f"{field}="), error


@pytest.mark.parametrize("key", ["cold_alpha", "cold_expert_top_k", "cold_beta", "cold_bits"])
def test_settings_that_have_no_use(key: str, server: Server) -> None:
    """A limit without the preset, and what contrasts have."""
    xargs = {"cold_bits": 1, "cold_preset": "cad", "cold_without": "system"}
    xargs = xargs if key == "cold_bits" else {**HIDDEN, key: 1}
    status, error = send(server, vllm_xargs=xargs)
    assert status == 400 and key.removeprefix("cold_") in error["error"]["message"], error


def test_the_adapter_is_the_part_by_default(server: Server, naive: NaiveCold) -> None:
    prompt = list(range(20, 50))
    body: dict[str, Any] = {"model": "one", "prompt": prompt, "max_tokens": 12, "ignore_eos": True}
    body |= {"temperature": 0.0, "return_token_ids": True}
    status, text = server.post(
        "/v1/completions", {**body, "vllm_xargs": {"cold_preset": "bound", "cold_bits": 0}}
    )
    assert status == 200, text
    base: Trace = naive.greedy(prompt, None, 12)
    sure = base.settled()
    assert sure >= 6
    assert json.loads(text)["choices"][0]["token_ids"][:sure] == base.tokens[:sure]
